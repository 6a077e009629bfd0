"""What a student has itself counts under teachers and in mutual learning as it does alone."""

import keras
import numpy as np
import pytest
from keras import layers, ops

import kgraft
from kgraft.grafting import Independent
from kgraft.training.distiller import Distiller, distil

pytestmark = pytest.mark.core

# what is tested belongs to the models; only on torch the engines take them apart
ENGINES = ["eager", "compiled"] if keras.config.backend() == "torch" else ["compiled"]
METHODS = ["taught", "mutual"]


def cross_entropy(**options):
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True, **options)


class AddsLoss(layers.Layer):
    def call(self, x):
        self.add_loss(0.01 * ops.mean(ops.square(x)))
        return x


class OwnLoss(keras.Model):
    """Ten times its loss, and a metric of its own beside."""

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.extra = keras.metrics.Mean(name="extra")

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        loss = super().compute_loss(x=x, y=y, y_pred=y_pred, sample_weight=sample_weight)
        self.extra.update_state(ops.mean(ops.abs(y_pred)))
        return 10 * loss


def network(seed=0, kind=keras.Model, middle=(), **dense):
    keras.utils.set_random_seed(seed)
    x = inputs = keras.Input((6, 6, 1))
    x = layers.Conv2D(3, 3, activation="relu")(x)
    for layer in middle:
        x = layer(x)
    head = layers.Dense(4, **{"name": "head", **dense})
    return kind(inputs, head(layers.Flatten()(x)))


def own_compute_loss(seed):
    model = network(seed, OwnLoss)
    model.compile(kgraft.SGD(0.002), cross_entropy(), metrics=["accuracy"])
    return model


def loss_weights(seed):
    model = network(seed)
    model.compile(kgraft.SGD(0.05), {"head": cross_entropy()}, loss_weights={"head": 0.25})
    return model


def weighted_metrics(seed):
    model = network(seed)
    model.compile(
        kgraft.SGD(0.05),
        cross_entropy(),
        metrics={"head": ["accuracy"]},
        weighted_metrics=[
            keras.metrics.SparseCategoricalCrossentropy("weighted", from_logits=True)
        ],
    )
    return model


def added_losses(seed):
    model = network(
        seed,
        middle=[AddsLoss()],
        kernel_regularizer=keras.regularizers.L2(0.1),
        activity_regularizer=keras.regularizers.L1(0.01),
    )
    model.compile(kgraft.SGD(0.05), cross_entropy())
    return model


def scaled_loss(seed):
    model = network(seed)
    optimizer = keras.optimizers.LossScaleOptimizer(kgraft.SGD(0.05), dynamic_growth_steps=2)
    model.compile(optimizer, cross_entropy())
    return model


def scaled_by_a_factor(seed):
    model = network(seed)
    model.compile(keras.optimizers.Adam(0.01, loss_scale_factor=128.0), cross_entropy())
    return model


def data(count=24):
    random = np.random.default_rng(0)
    x = random.normal(size=(count, 6, 6, 1)).astype("float32")
    return x, random.integers(0, 4, count), random.uniform(0.1, 2, count).astype("float32")


def fit(models, engine, **options):
    x, y, weights = data()
    run = kgraft.GraftingFit(models, mixer=Independent(), engine=engine, **options)
    return run.fit(x, y, sample_weight=weights, batch_size=8, epochs=2, shuffle=False, verbose=0)


def weightless(method):
    """A method whose teachers or peers have no say."""
    if method == "mutual":
        return {"mutual": kgraft.Mutual(weight=0.0)}
    return {"teachers": [network(9)], "distillation_weight": 0.0}


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    "make",
    [
        own_compute_loss,
        loss_weights,
        weighted_metrics,
        added_losses,
        scaled_loss,
        scaled_by_a_factor,
    ],
)
def test_a_student_that_nobody_teaches_trains_as_if_it_were_alone(make, method, engine):
    alone, taught = ([make(1), make(2)] for _ in range(2))
    expected = fit(alone, engine)
    found = fit(taught, engine, **weightless(method))
    for own, other in zip(found, expected, strict=True):
        assert own.history["student_loss"] == pytest.approx(other.history["loss"], rel=1e-4)
        for name, values in other.history.items():
            assert own.history[name] == pytest.approx(values, rel=1e-4), name
    for own, other in zip(taught, alone, strict=True):
        for a, b in zip(own.get_weights(), other.get_weights(), strict=True):
            np.testing.assert_allclose(a, b, atol=2e-6)
        for a, b in zip(own.optimizer.variables, other.optimizer.variables, strict=True):
            a, b = ops.convert_to_numpy(a), ops.convert_to_numpy(b)
            np.testing.assert_allclose(a, b, atol=1e-5)


def test_an_own_test_step_evaluates_the_student():
    class Tested(keras.Model):
        def test_step(self, *arguments):
            result = super().test_step(*arguments)
            logs = result[0] if isinstance(result, tuple) else result
            logs["mine"] = ops.convert_to_tensor(3.0)
            return result

    x, y, _ = data()
    student = network(kind=Tested)
    student.compile(kgraft.SGD(0.01), cross_entropy())
    run = kgraft.GraftingFit([student], [network(9)])
    (history,) = run.fit(x, y, validation_data=(x, y), verbose=0)
    assert history.history["val_mine"] == [3.0]
    with pytest.raises(kgraft.UserError, match="its own test_step"):
        distil(student, [network(9)]).evaluate(x, y, verbose=0)


class Stepping(keras.Model):
    def train_step(self, *arguments):
        return super().train_step(*arguments)


class Measuring(keras.Model):
    def compute_metrics(self, *arguments, **options):
        return super().compute_metrics(*arguments, **options)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("kind", "name"), [(Stepping, "train_step"), (Measuring, "compute_met")])
def test_an_own_train_step_is_refused_before_the_first_step(kind, name, method):
    peers = [network(kind=kind), network(kind=kind)]
    for peer in peers:
        peer.compile("sgd", cross_entropy())
    with pytest.raises(kgraft.UserError, match=f"{name}.*would not be called"):
        kgraft.GraftingFit(peers, **weightless(method))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    "loss",
    ["sparse_categorical_crossentropy", keras.losses.SparseCategoricalCrossentropy()],
)
def test_a_loss_that_takes_logits_for_probabilities_is_refused(loss, method):
    peers = [network(), network()]
    for peer in peers:
        peer.compile("sgd", loss)
    with pytest.raises(kgraft.UserError, match="from_logits is False"):
        fit(peers, "auto", **weightless(method))
    distiller = Distiller(network(), [network(9)])
    distiller.compile("sgd", loss)
    with pytest.raises(kgraft.UserError, match="from_logits is False"):
        distiller.fit(*data()[:2], verbose=0)


def test_peers_that_end_in_probabilities_do_not_learn_mutually():
    peers = [network(activation="softmax"), network(activation="softmax")]
    for peer in peers:
        peer.compile("sgd", "sparse_categorical_crossentropy")
    with pytest.raises(kgraft.UserError, match=r"peer 1 .* ends in a softmax \('head'\)"):
        kgraft.GraftingFit(peers, mutual=kgraft.Mutual())


def shares(logits):
    return ops.softmax(logits / 2, axis=-1)


PROBABILITIES = {
    "unbuilt": lambda: keras.Sequential(
        [layers.Flatten(), layers.Dense(4), keras.Sequential([layers.Softmax(name="end")])]
    ),
    "layer as activation": lambda: network(activation=layers.Softmax(), name="end"),
    "function of one's own": lambda: network(activation=shares, name="end"),
    "lambda": lambda: network(activation=lambda z: ops.softmax(z), name="end"),
}
BEHIND = {
    "linear": lambda z: layers.Activation("linear", dtype="float32")(z),
    "reshape": lambda z: layers.Reshape((2, 2))(z),
    "dropout": lambda z: layers.Dropout(0.1)(z),
    "identity": lambda z: layers.Identity()(z),
    "cast": lambda z: ops.cast(z, "float32"),
    "mean": lambda z: layers.Average()([z, z]),
    "model": lambda z: keras.Sequential([layers.Flatten(), layers.Dropout(0.1)])(z),
}


def behind(activation, *names):
    x = inputs = keras.Input((6, 6, 1))
    x = layers.Dense(4, activation=activation, name="end")(layers.Flatten()(x))
    for name in names:
        x = BEHIND[name](x)
    return keras.Model(inputs, x)


PROBABILITIES |= {name: lambda name=name: behind("softmax", name) for name in BEHIND}
PROBABILITIES["all"] = lambda: behind("sigmoid", "linear", "dropout", "model", "cast")


@pytest.mark.parametrize("kind", PROBABILITIES)
def test_probabilities_are_found_behind_what_passes_them_on(kind):
    refused = r"ends in a (softmax|sigmoid) \('end'\)"
    with pytest.raises(kgraft.UserError, match=f"student .*{refused}"):
        Distiller(PROBABILITIES[kind](), [network(9)])
    teacher = PROBABILITIES[kind]()
    if teacher.built:
        with pytest.raises(kgraft.UserError, match=f"teacher 1 .*{refused}"):
            Distiller(network(), [teacher])


@pytest.mark.parametrize("method", METHODS)
def test_probabilities_of_a_peer_that_is_not_built_are_found(method):
    peers = [PROBABILITIES["unbuilt"]() for _ in range(2)]
    for peer in peers:
        peer.compile("sgd", cross_entropy())
    with pytest.raises(kgraft.UserError, match=r"ends in a softmax \('end'\)"):
        fit(peers, "auto", **weightless(method))


def two_outputs():
    """A model whose second output, logits, is used."""
    inputs = keras.Input((5,))
    logits = layers.Dense(4)(inputs)
    return keras.Model(inputs, [layers.Softmax()(logits), logits])


@pytest.mark.parametrize(
    "activation",
    [
        *("linear", "tanh", "log_softmax", ops.relu6),
        lambda z: z / ops.norm(z, axis=-1, keepdims=True),
        lambda z: ops.softmax(ops.reshape(z, (-1, 2, 2))),  # no function of five logits
    ],
)
def test_logits_are_taken_whatever_makes_them(activation):
    names = [name for name in BEHIND if name != "reshape"]
    Distiller(behind(activation, *names), [behind(activation, *names)])
    inputs = keras.Input((6, 6, 1))
    gate = layers.Dense(5, activation="softmax")(layers.Flatten()(inputs))
    _, logits = two_outputs()(gate)
    Distiller(keras.Model(inputs, layers.Dropout(0.1)(logits)), [network(9)])


def test_a_teacher_of_one_run_trains_in_the_next():
    x, y, _ = data()
    teacher, other, student = own = [network(k) for k in range(3)]
    for model in own:
        model.compile(kgraft.SGD(0.05), cross_entropy())
    before = teacher.get_weights()
    kgraft.GraftingFit([student], [teacher]).fit(x, y, verbose=0)
    for a, b in zip(teacher.get_weights(), before, strict=True):
        np.testing.assert_array_equal(a, b)
    fresh = network(0)
    fresh.compile(kgraft.SGD(0.05), cross_entropy())
    run = kgraft.GraftingFit([teacher], [student], mixer=Independent())
    again = kgraft.GraftingFit([fresh], [student], mixer=Independent())
    for one in (run, again):
        one.fit(x, y, batch_size=8, shuffle=False, verbose=0)
    for a, b, c in zip(teacher.get_weights(), fresh.get_weights(), before, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)
        assert not np.array_equal(a, c)
    other.trainable = False  # and who was frozen by somebody else stays so
    kgraft.GraftingFit([student], [other])
    assert not other.trainable


@pytest.mark.parametrize(
    ("teachers", "message"),
    [
        (["t.keras"], "teacher 1 is 't.keras': expected a trained model"),
        ("t.keras", "teachers is 't.keras': expected a list of trained models"),
        (3, "teachers is 3: expected a list of trained models"),
    ],
)
def test_teachers_that_are_no_models_are_named(teachers, message):
    with pytest.raises(kgraft.UserError, match=message):
        Distiller(network(), teachers)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("method", ["plain", *METHODS])
def test_halves_train_with_scaled_losses(method, engine):
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_float16")
    try:
        peers = [loss_weights(1), loss_weights(2)]
        start = [peer.get_weights() for peer in peers]
        options = {
            "plain": {},
            "taught": {"teachers": [network(9)]},
            "mutual": {"mutual": kgraft.Mutual()},
        }[method]
        histories = fit(peers, engine, **options)
    finally:
        keras.config.set_dtype_policy(before)
    for peer, weights, history in zip(peers, start, histories, strict=True):
        assert isinstance(peer.optimizer, keras.optimizers.LossScaleOptimizer)
        assert np.isfinite(history.history["loss"]).all()
        taken = int(ops.convert_to_numpy(peer.optimizer.iterations))
        skipped = 15 - np.log2(float(ops.convert_to_numpy(peer.optimizer.dynamic_scale)))
        assert taken + skipped == 6 and taken > 0
        for weight, a, b in zip(peer.weights, peer.get_weights(), weights, strict=True):
            assert weight.dtype == "float32" and not np.array_equal(a, b)
