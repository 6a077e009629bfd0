"""Rotation, fixed ring, averages and shuffles: by hand, and by what they must keep."""

import keras
import numpy as np
import pytest

import kgraft
from kgraft.grafting import Average, FixedGraft, Independent, Papa, Rotation, Wash, papa
from tests.grafting.driven import Driven

pytestmark = pytest.mark.core


def peers(count=3):
    models = []
    for k in range(count):
        keras.utils.set_random_seed(k)
        models.append(kgraft.models.build("resnet8", input_shape=(8, 8, 3), classes=5))
    return models


def stacked(models):
    """Every weight of all peers, shape (K, ...), one a weight."""
    weights = [model.get_weights() for model in models]
    return [np.stack(own).astype(np.float64) for own in zip(*weights, strict=True)]


def make_sick(model):
    weights = model.get_weights()
    weights[0][0] = np.inf
    model.set_weights(weights)


def test_rotation_passes_all_weights_on():
    models = peers()
    before = stacked(models)
    Rotation().mix(models)
    for old, new in zip(before, stacked(models), strict=True):
        assert np.array_equal(new, np.roll(old, 1, axis=0))


def test_a_fixed_ring_blends_with_the_peer_before():
    models = peers()
    before = stacked(models)
    record = FixedGraft(0.7).mix(models)
    for old, new in zip(before, stacked(models), strict=True):
        np.testing.assert_allclose(new, 0.7 * old + 0.3 * np.roll(old, 1, axis=0), atol=1e-6)
    assert (record.coefficients == 0.7).all()


def test_average_gives_everybody_the_mean():
    models = peers()
    before = stacked(models)
    Average().mix(models)
    for old, new in zip(before, stacked(models), strict=True):
        np.testing.assert_allclose(new, np.broadcast_to(old.mean(0), old.shape), atol=1e-6)


def test_papa_keeps_the_mean_and_shrinks_the_distance_to_it():
    models, mixer = peers(), Papa(rate=0.9)
    before = stacked(models)
    Driven(mixer, models).step(0)
    for old, new in zip(before, stacked(models), strict=True):
        np.testing.assert_allclose(new.mean(0), old.mean(0), atol=1e-6)
        np.testing.assert_allclose(new - new.mean(0), 0.9 * (old - old.mean(0)), atol=2e-6)


@pytest.mark.parametrize("mixer", [Average(), FixedGraft(0.3)], ids=lambda m: type(m).__name__)
def test_equal_peers_stay_equal_to_the_last_bit(mixer):
    models = peers(3)
    for model in models[1:]:
        model.set_weights(models[0].get_weights())
    before = models[0].get_weights()
    mixer.mix(models)
    for model in models:
        assert all(np.array_equal(a, b) for a, b in zip(before, model.get_weights(), strict=True))


@pytest.mark.parametrize("mixer", [Average(), Rotation()], ids=lambda m: type(m).__name__)
def test_a_sick_peer_gives_nothing_and_keeps_what_it_has(mixer):
    models = peers(3)
    make_sick(models[1])
    record = mixer.mix(models)
    assert record.sick == {1}
    assert not np.isfinite(models[1].get_weights()[0]).all()
    for k in (0, 2):
        assert all(np.isfinite(weight).all() for weight in models[k].get_weights())


def test_wash_keeps_every_parameters_multiset_and_moves_the_share_it_says():
    models, mixer = peers(4), Wash(share=0.2, by_depth=False, seed=3)
    before = stacked(models)
    Driven(mixer, models).step(17)
    moved = total = 0
    for old, new in zip(before, stacked(models), strict=True):
        assert np.array_equal(np.sort(old, axis=0), np.sort(new, axis=0))
        if old.ndim == 5:
            moved += (old != new).any(axis=0).sum()
            total += old[0].size
    # a chosen parameter stays everywhere in 1 of 4! deals
    assert moved / total == pytest.approx(0.2 * (1 - 1 / 24), rel=0.05)


def test_wash_leaves_batch_statistics_and_shuffles_early_layers_most():
    models, mixer = peers(4), Wash(share=0.5, seed=3)
    before = stacked(models)
    run = Driven(mixer, models)
    plan = run.peers.plan
    run.step(0)
    after = stacked(models)
    share = [(before[g.kernel] != after[g.kernel]).any(axis=0).mean() for g in plan.groups]
    assert share[0] > 0.3
    assert share[-1] == 0
    for i, (path, *_) in enumerate(plan.weights):
        if "moving" in path:
            assert np.array_equal(before[i], after[i])


def test_wash_is_the_same_for_the_same_step_and_another_for_the_next():
    results = []
    for number in (5, 5, 6):
        models, mixer = peers(2), Wash(share=0.1)
        Driven(mixer, models).step(number)
        results.append(models[0].get_weights()[0])
    assert np.array_equal(results[0], results[1])
    assert not np.array_equal(results[0], results[2])


def test_no_mixing_moves_nothing():
    models = peers(2)
    before = stacked(models)
    assert Independent().mix(models) is None
    for old, new in zip(before, stacked(models), strict=True):
        assert np.array_equal(old, new)


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: FixedGraft(1.5), "alpha=1.5"),
        (lambda: Papa(rate=-1.0), "rate=-1.0"),
        (lambda: Papa(every_steps=0), "every_steps=0"),
        (lambda: Papa(lr_scaling="lineer"), "Did you mean 'linear'"),
        (lambda: Wash(share=2.0), "share=2.0"),
    ],
)
def test_what_is_out_of_range_is_refused(make, text):
    with pytest.raises(kgraft.UserError, match=text):
        make()


class Programme(keras.optimizers.schedules.LearningRateSchedule):
    """Rates by hand, one a step."""

    def __init__(self, *rates):
        self.rates = rates

    def __call__(self, step):
        return keras.ops.take(
            keras.ops.convert_to_tensor(np.float32(self.rates)), keras.ops.cast(step, "int32")
        )

    def get_config(self):
        return {"rates": self.rates}


def learning(*rates):
    """Peers that have each a learning rate or a schedule."""
    models = peers(len(rates))
    for model, rate in zip(models, rates, strict=True):
        model.compile(keras.optimizers.SGD(rate), loss="mse")
    return models


def kept(run):
    """Share of its distance to the mean that every peer keeps in one step of a mixer."""
    models = run.peers.models
    before = [model.get_weights()[0].astype(np.float64) for model in models]
    run.step(run.mixer.every_steps - 1)
    after = [model.get_weights()[0].astype(np.float64) for model in models]
    mean = np.mean(before, axis=0)
    return [
        float(np.vdot(new - mean, old - mean) / np.vdot(old - mean, old - mean))
        for old, new in zip(before, after, strict=True)
    ]


def test_papas_pull_shrinks_with_the_learning_rate():
    """Their code: 1 - alpha is multiplied by lr / lr_0."""
    models = learning(0.4, 0.4, 0.4)
    run = Driven(Papa(rate=0.8), models)
    for rate, share in ((0.4, 0.8), (0.1, 0.95), (0.0, 1.0), (0.2, 0.9)):
        for model in models:
            model.optimizer.learning_rate = rate
        assert kept(run) == pytest.approx([share] * 3, abs=1e-5)


def test_papas_pull_can_stand_still():
    models = learning(0.4, 0.4)
    run = Driven(Papa(rate=0.8, lr_scaling="none"), models)
    for model in models:
        model.optimizer.learning_rate = 0.1
    assert kept(run) == pytest.approx([0.8, 0.8], abs=1e-5)


def test_each_peer_is_pulled_by_its_own_learning_rate():
    models = learning(0.4, 0.1)
    run = Driven(Papa(rate=0.8), models)
    assert kept(run) == pytest.approx([0.8, 0.8], abs=1e-5)
    models[1].optimizer.learning_rate = 0.05
    assert kept(run) == pytest.approx([0.8, 0.9], abs=1e-5)


def test_papas_pull_follows_a_schedule_up_and_down():
    models = learning(*[Programme(0.1, 0.4, 0.2, 0.1)] * 2)
    run = Driven(Papa(rate=0.8, every_steps=1), models)
    shares = []
    for step in range(4):
        for model in models:
            model.optimizer.iterations.assign(step)
        shares.append(kept(run)[0])
    assert shares == pytest.approx([0.8, 0.8, 0.9, 0.95], abs=1e-5)


def test_papa_goes_on_from_a_checkpoint_as_if_nothing_had_been():
    models = learning(*[Programme(0.1, 0.4, 0.2, 0.1)] * 2)
    for model in models:
        model.optimizer.iterations.assign(3)
    run = Driven(Papa(rate=0.8, every_steps=1), models)
    assert kept(run)[0] == pytest.approx(0.95, abs=1e-5)


def test_a_new_training_measures_learning_rates_anew():
    models = learning(0.4, 0.4)
    run = Driven(Papa(rate=0.8), models)
    for model in models:
        model.optimizer.learning_rate = 0.1
    run = Driven(run.mixer, models, run.state)
    assert kept(run) == pytest.approx([0.8, 0.8], abs=1e-5)


def test_papa_reads_the_rate_behind_a_scaled_loss():
    models = learning(0.4, 0.4)
    for model in models:
        inner = keras.optimizers.SGD(Programme(0.4, 0.1))
        model.compile(keras.optimizers.LossScaleOptimizer(inner), loss="mse")
    run = Driven(Papa(rate=0.8), models)
    for model in models:
        model.optimizer.inner_optimizer.iterations.assign(1)
    assert kept(run) == pytest.approx([0.95, 0.95], abs=1e-5)


def test_peers_that_are_not_compiled_take_after_one_that_is():
    models = [*learning(0.4, 0.4), *learning(0.4)]
    models[2].compiled = False
    run = Driven(Papa(rate=0.8), models)
    for model in models[:2]:
        model.optimizer.learning_rate = 0.1
    assert kept(run) == pytest.approx([0.95] * 3, abs=1e-5)


def test_papa_sees_the_rate_of_every_step_of_a_fit(monkeypatch):
    models = []
    for k in range(2):
        keras.utils.set_random_seed(k)
        model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
        rate = keras.optimizers.schedules.PolynomialDecay(0.4, 8, end_learning_rate=0.0)
        model.compile(keras.optimizers.SGD(rate), loss="mse")
        models.append(model)
    seen = []
    ratios = papa._ratios

    def watched(rates, highest):
        seen.append(ratios(rates, highest))
        return seen[-1]

    monkeypatch.setattr(papa, "_ratios", watched)
    x = np.random.default_rng(0).normal(size=(8, 3)).astype("float32")
    run = kgraft.GraftingFit(models, mixer=Papa(rate=0.9, every_steps=2))
    run.fit(x, x[:, :2], batch_size=2, epochs=2, verbose=0)
    assert seen == [pytest.approx([1 - taken / 8] * 2) for taken in (2, 4, 6, 8)]
