import math

import keras
import numpy as np
import pytest

from kgraft.errors import UserError
from kgraft.training.optimizers import SGD
from kgraft.training.schedules import (
    cosine,
    cosine_per_step,
    spread,
    step_decay,
    warmup,
)
from tests.reference.parity import float64

pytestmark = pytest.mark.core

STEPS = 7


def rates(schedule, epochs):
    return [float(schedule(step)) for step in range(epochs * STEPS)]


def torch_rates(make, lr, epochs, per_step=False):
    torch = pytest.importorskip("torch")
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=lr)
    scheduler = make(torch.optim.lr_scheduler, optimizer)
    visited = []
    for _ in range(epochs):
        for _ in range(STEPS):
            visited.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            if per_step:
                scheduler.step()
        if not per_step:
            scheduler.step()
    return visited


def test_step_decay_drops_with_the_first_step_of_the_epoch():
    schedule = step_decay(0.1, every=60, steps_per_epoch=391)
    assert [float(schedule(step)) for step in (0, 60 * 391 - 1, 60 * 391, 180 * 391)] == (
        pytest.approx([0.1, 0.1, 0.01, 0.0001], rel=1e-5)
    )


def test_cosine_stands_still_within_an_epoch_and_stays_at_zero():
    schedule = cosine(0.1, epochs=4, steps_per_epoch=STEPS)
    by_hand = [0.1, 0.05 * (1 + math.sqrt(0.5)), 0.05, 0.05 * (1 - math.sqrt(0.5)), 0.0, 0.0]
    assert rates(schedule, 6) == pytest.approx(np.repeat(by_hand, STEPS), rel=1e-5, abs=1e-9)


def test_schedules_are_those_of_torch():
    assert rates(step_decay(0.3, every=3, steps_per_epoch=STEPS), 8) == pytest.approx(
        torch_rates(lambda module, o: module.StepLR(o, 3, 0.1), 0.3, 8), rel=1e-6
    )
    assert rates(cosine(0.3, epochs=8, steps_per_epoch=STEPS), 8) == pytest.approx(
        torch_rates(lambda module, o: module.CosineAnnealingLR(o, 8), 0.3, 8), rel=2e-5
    )


def test_schedules_per_step_are_those_of_torch():
    ours = cosine_per_step(0.3, epochs=8, steps_per_epoch=STEPS)
    theirs = torch_rates(lambda m, o: m.CosineAnnealingLR(o, 8 * STEPS), 0.3, 8, per_step=True)
    assert rates(ours, 8) == pytest.approx(theirs, rel=2e-5, abs=1e-8)

    rise = 3 * STEPS

    def chained(module, optimizer):
        return module.ChainedScheduler(
            [
                module.LinearLR(optimizer, 1 / rise, total_iters=rise - 1),
                module.CosineAnnealingLR(optimizer, 8 * STEPS),
            ]
        )

    ours = warmup(ours, epochs=3, steps_per_epoch=STEPS)
    assert rates(ours, 8) == pytest.approx(
        torch_rates(chained, 0.3, 8, per_step=True), rel=1e-4, abs=1e-8
    )


@pytest.fixture
def rounding():
    """Of the numbers in a test: float64's, but float32's on jax, which has no other by default."""
    if keras.config.backend() == "jax":
        yield 1e-7
        return
    with float64():
        yield 1e-14


def test_dlr_is_torchs_cosine_stepped_after_every_batch_of_two_epochs(rounding):
    """The authors' scheduler: T_max = epochs x batches, so that the rate falls to 0."""
    steps = 391  # CIFAR in batches of 128
    rate = np.float64(0.05)  # tensorflow would make float32 of Python's
    schedule = cosine_per_step(rate, epochs=2, steps_per_epoch=steps)
    ours = [float(schedule(step)) for step in range(2 * steps + 1)]
    torch = pytest.importorskip("torch")
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.05)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 2 * steps)
    theirs = [0.05]
    for _ in range(2 * steps):
        optimizer.step()
        scheduler.step()
        theirs.append(scheduler.get_last_lr()[0])
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=rounding)
    assert ours[-1] == 0.0
    assert ours[-2] < 1e-6
    once_an_epoch = cosine(0.05, epochs=2, steps_per_epoch=steps)
    assert float(once_an_epoch(2 * steps - 1)) == pytest.approx(0.025)  # what the run files had


def test_sgd_under_dlr_ends_where_pytorchs_ends_after_two_epochs(rounding):
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, STEPS, 8, 3))
    y = y[..., :1]
    start = rng.normal(size=(3, 1))
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1, use_bias=False)])
    model.set_weights([start])
    rate = cosine_per_step(np.float64(0.1), epochs=2, steps_per_epoch=STEPS)
    model.compile(SGD(rate, momentum=0.9, l2=5e-4), "mse")
    model.fit(
        np.concatenate([*x, *x]),
        np.concatenate([*y, *y]),
        batch_size=8,
        epochs=1,
        shuffle=False,
        verbose=0,
    )

    weight = torch.tensor(start, requires_grad=True)
    optimizer = torch.optim.SGD([weight], lr=0.1, momentum=0.9, weight_decay=5e-4)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 2 * STEPS)
    for _ in range(2):
        for inputs, targets in zip(torch.tensor(x), torch.tensor(y), strict=True):
            optimizer.zero_grad()
            ((inputs @ weight - targets) ** 2).mean().backward()
            optimizer.step()
            scheduler.step()
    ours = keras.ops.convert_to_numpy(model.weights[0])
    np.testing.assert_allclose(ours, weight.detach().numpy(), rtol=0, atol=10 * rounding)


def test_warmup_drives_an_optimizer_that_is_saved_and_loaded(tmp_path):
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    schedule = warmup(step_decay(0.1, every=1, steps_per_epoch=4), epochs=1, steps_per_epoch=2)
    model.compile(keras.optimizers.SGD(schedule), "mse")
    model.fit(np.ones((3, 1)), np.ones((3, 1)), batch_size=1, verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert float(loaded.optimizer.learning_rate) == float(model.optimizer.learning_rate)
    assert float(model.optimizer.learning_rate) == pytest.approx(0.1)


@pytest.mark.parametrize(
    "schedule",
    [
        step_decay(0.1, every=2, steps_per_epoch=STEPS),
        cosine(0.1, epochs=4, steps_per_epoch=STEPS),
        cosine_per_step(0.1, epochs=4, steps_per_epoch=STEPS),
        warmup(0.1, epochs=2, steps_per_epoch=STEPS),
        warmup(cosine(0.1, epochs=4, steps_per_epoch=STEPS), epochs=2, steps_per_epoch=STEPS),
    ],
    ids=["step", "cosine", "cosine per step", "warm-up", "warm-up of cosine"],
)
def test_schedules_survive_serialisation(schedule):
    config = keras.optimizers.schedules.serialize(schedule)
    again = keras.optimizers.schedules.deserialize(config)
    assert rates(again, 5) == rates(schedule, 5)


def test_spread_gives_the_papers_rates():
    assert [spread(0.1, k, 2) for k in range(2)] == pytest.approx([0.05, 0.1])
    assert [round(spread(0.1, k, 4), 4) for k in range(4)] == [0.0146, 0.05, 0.0854, 0.1]
    assert round(spread(0.1, 0, 8), 4) == 0.0038
    assert spread(0.1, 0, 1) == 0.1


@pytest.mark.parametrize("K", [2, 3, 8])
def test_spread_rises_to_the_full_rate(K):
    values = [spread(0.2, k, K) for k in range(K)]
    assert values == sorted(values)
    assert values[-1] == 0.2
    assert values[0] > 0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: spread(0.1, 4, 4), "k=4: 4 peers are counted from 0 to 3."),
        (lambda: spread(0.1, -1, 2), "k=-1: 2 peers are counted from 0 to 1."),
        (lambda: spread(0.1, 0, 0), "K=0: expected 1 or more."),
        (lambda: spread(-0.1, 0, 2), "lr=-0.1: expected more than 0."),
        (lambda: cosine(0.1, epochs=0, steps_per_epoch=1), "epochs=0: expected 1 or more."),
        (
            lambda: step_decay(0.1, every=1, steps_per_epoch=1, factor=2.0),
            "factor=2.0: expected more than 0, at most 1.",
        ),
    ],
)
def test_impossible_rates_are_refused_in_one_line(call, message):
    with pytest.raises(UserError) as caught:
        call()
    assert str(caught.value) == message
