import keras
import numpy as np
import pytest
from keras import ops

from kgraft.errors import UserError
from kgraft.training.optimizers import SGD
from kgraft.training.schedules import step_decay
from tests.reference import sgd as reference

pytestmark = pytest.mark.core

STEPS = 20
DROP = 8
RATES = [0.1] * DROP + [0.01] * (STEPS - DROP)
START = np.random.default_rng(1).normal(size=(4, 3)).astype("float32")
CURVATURE = np.random.default_rng(2).uniform(0.1, 1.0, size=(4, 3)).astype("float32")

RULES = {
    "plain": {"momentum": 0.0},
    "l2": {"momentum": 0.0, "l2": 5e-2},
    "momentum": {"momentum": 0.9},
    "momentum and l2": {"momentum": 0.9, "l2": 5e-2},
    "nesterov": {"momentum": 0.9, "nesterov": True},
    "nesterov and l2": {"momentum": 0.9, "l2": 5e-2, "nesterov": True},
}


def slope(weight, step):
    """Gradient of a quadratic whose minimum moves, so that no step repeats another."""
    return CURVATURE * (weight - np.float32(0.1 * step))


def trajectory(optimizer, steps=STEPS, start=START):
    weight = keras.Variable(start)
    visited = []
    for step in range(steps):
        gradient = slope(ops.convert_to_numpy(weight), step)
        optimizer.apply([ops.convert_to_tensor(gradient)], [weight])
        visited.append(ops.convert_to_numpy(weight).copy())
    return visited


def scheduled():
    return keras.optimizers.schedules.PiecewiseConstantDecay([DROP - 1], [0.1, 0.01])


def assert_same_trajectory(visited, expected):
    for step, (own, other) in enumerate(zip(visited, expected, strict=True)):
        np.testing.assert_allclose(own, other, rtol=1e-6, atol=1e-6, err_msg=f"step {step}")


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_trajectory_is_the_one_by_hand(rule):
    expected = reference.trajectory(START.astype("float64"), slope, RATES, **rule)
    assert_same_trajectory(trajectory(SGD(scheduled(), **rule)), expected)


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_trajectory_is_that_of_torch(rule):
    torch = pytest.importorskip("torch")
    weight = torch.tensor(START, requires_grad=True)
    optimizer = torch.optim.SGD(
        [weight],
        lr=0.1,
        momentum=rule["momentum"],
        weight_decay=rule.get("l2", 0.0),
        nesterov=rule.get("nesterov", False),
    )
    expected = []
    for step, rate in enumerate(RATES):
        optimizer.param_groups[0]["lr"] = rate
        weight.grad = torch.tensor(slope(weight.detach().numpy(), step))
        optimizer.step()
        expected.append(weight.detach().numpy().copy())
    assert_same_trajectory(trajectory(SGD(scheduled(), **rule)), expected)


def test_keras_own_momentum_is_another_one_after_a_drop():
    ours = trajectory(SGD(scheduled(), momentum=0.9))
    keras_own = trajectory(keras.optimizers.SGD(scheduled(), momentum=0.9))
    np.testing.assert_allclose(ours[DROP - 1], keras_own[DROP - 1], atol=1e-6)
    assert np.abs(ours[DROP] - keras_own[DROP]).max() > 0.01


def test_an_assigned_learning_rate_counts_from_the_next_step():
    optimizer = SGD(0.1, momentum=0.9)
    weight = keras.Variable(START)
    visited = []
    for step, rate in enumerate(RATES):
        optimizer.learning_rate = rate
        gradient = slope(ops.convert_to_numpy(weight), step)
        optimizer.apply([ops.convert_to_tensor(gradient)], [weight])
        visited.append(ops.convert_to_numpy(weight).copy())
    assert_same_trajectory(visited, reference.trajectory(START, slope, RATES, momentum=0.9))


def test_clipping_comes_before_l2():
    weight = keras.Variable(np.array([3.0], "float32"))
    optimizer = SGD(1.0, momentum=0.0, l2=0.5, clipvalue=1.0)
    optimizer.apply([ops.convert_to_tensor(np.array([10.0], "float32"))], [weight])
    assert ops.convert_to_numpy(weight) == pytest.approx([3.0 - (1.0 + 0.5 * 3.0)])


def test_excluded_variables_have_no_l2():
    dense = keras.layers.Dense(2)
    dense.build((None, 3))
    dense.kernel.assign(np.ones((3, 2)))
    dense.bias.assign(np.ones(2))
    optimizer = SGD(0.1, momentum=0.0, l2=0.5, exclude_from_l2=("bias",))
    optimizer = SGD.from_config(optimizer.get_config())
    optimizer.apply([ops.zeros((3, 2)), ops.zeros((2,))], dense.trainable_variables)
    np.testing.assert_allclose(ops.convert_to_numpy(dense.kernel), np.full((3, 2), 0.95))
    np.testing.assert_allclose(ops.convert_to_numpy(dense.bias), np.ones(2))


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_groups_of_variables_move_by_rates_of_their_own(rule):
    """As torch's groups of parameters; the first path that is found counts."""
    rates = {"a": 0.1, "b": 0.01, "c": 0.03}
    variables = {name: keras.Variable(START, name=name) for name in rates}
    optimizer = SGD(0.1, rate_scales={"^b$": 0.1, "[bc]": 0.3}, **rule)
    for step in range(STEPS):
        given = [slope(ops.convert_to_numpy(own), step) for own in variables.values()]
        optimizer.apply([ops.convert_to_tensor(own) for own in given], [*variables.values()])
    for name, rate in rates.items():
        expected = reference.trajectory(START.astype("float64"), slope, [rate] * STEPS, **rule)
        found = ops.convert_to_numpy(variables[name])
        np.testing.assert_allclose(found, expected[-1], rtol=1e-5, atol=1e-6)
    again = SGD.from_config(optimizer.get_config())
    assert again.rate_scales == {"^b$": 0.1, "[bc]": 0.3}
    assert "rate_scales" not in SGD().get_config()


def test_accumulated_gradients_step_once():
    weight = keras.Variable(np.array([1.0], "float32"))
    optimizer = SGD(0.1, momentum=0.9, l2=0.5, gradient_accumulation_steps=2)
    for gradient in (1.0, 3.0):
        optimizer.apply([ops.convert_to_tensor(np.array([gradient], "float32"))], [weight])
    assert ops.convert_to_numpy(weight) == pytest.approx([1.0 - 0.1 * (2.0 + 0.5)])


def test_config_makes_the_same_optimizer():
    optimizer = SGD(scheduled(), momentum=0.8, l2=1e-3, nesterov=True, clipnorm=2.0)
    again = keras.optimizers.deserialize(keras.optimizers.serialize(optimizer))
    assert type(again) is SGD
    assert keras.optimizers.serialize(again) == keras.optimizers.serialize(optimizer)
    assert_same_trajectory(trajectory(again), trajectory(optimizer))


def test_saved_model_goes_on_as_if_it_had_not_stopped(tmp_path):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(24, 5)).astype("float32"), rng.integers(3, size=24)
    model = keras.Sequential([keras.Input((5,)), keras.layers.Dense(3)])
    model.compile(
        SGD(step_decay(0.1, every=1, steps_per_epoch=4), momentum=0.9, l2=1e-2),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    fit = {"batch_size": 8, "epochs": 1, "shuffle": False, "verbose": 0}
    model.fit(x, y, **fit)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert int(ops.convert_to_numpy(loaded.optimizer.iterations)) == 3
    for one in (model, loaded):
        one.fit(x, y, **fit)
    for own, other in zip(model.get_weights(), loaded.get_weights(), strict=True):
        np.testing.assert_allclose(own, other, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"momentum": 1.0}, "momentum=1.0: expected 0 or more, less than 1."),
        ({"l2": -1e-4}, "l2=-0.0001: expected 0 or more."),
        (
            {"l2": 0.1, "exclude_from_l2": ["bias", "("]},
            "exclude_from_l2 holds '(', no regular expression: missing ), unterminated subpattern "
            "at position 0.",
        ),
        ({"momentum": 0.0, "nesterov": True}, "nesterov=True needs a momentum above 0."),
        (
            {"rate_scales": {"(": 0.1}},
            "rate_scales holds '(', no regular expression: missing ), unterminated subpattern at "
            "position 0.",
        ),
        ({"rate_scales": {"a": -1.0}}, "rate_scales['a']=-1.0: expected 0 or more."),
        (
            {"weight_decay": 5e-4},
            "SGD has no weight_decay, which in Keras is decoupled: torch's weight decay is l2=.",
        ),
    ],
)
def test_impossible_settings_are_refused_in_one_line(arguments, message):
    with pytest.raises(UserError) as caught:
        SGD(0.1, **arguments)
    assert str(caught.value) == message


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")  # torch compiles with it
@pytest.mark.skipif(keras.config.backend() != "torch", reason="torch.compile has no fused SGD")
def test_a_fit_that_torch_compiles_moves_as_one_that_it_does_not():
    x = np.random.default_rng(0).normal(size=(8, 4)).astype("float32")

    def run(jit_compile):
        keras.utils.set_random_seed(0)
        model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
        model.compile(SGD(0.1, momentum=0.9, l2=1e-2), "mse", jit_compile=jit_compile)
        model.fit(x, x[:, :3], batch_size=4, epochs=2, shuffle=False, verbose=0)
        return model.get_weights()

    for own, other in zip(run(True), run(False), strict=True):
        np.testing.assert_allclose(own, other, rtol=1e-5, atol=1e-7)
