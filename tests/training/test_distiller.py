import re

import keras
import numpy as np
import pytest
from keras import ops

from kgraft.equations import distillation_loss, mean_probabilities
from kgraft.errors import UserError
from kgraft.training import distiller as module
from kgraft.training.distiller import (
    DistillationLoss,
    Distiller,
    distil,
    student_of,
)
from kgraft.training.optimizers import SGD
from kgraft.training.schedules import step_decay
from tests.reference import distillation as reference

pytestmark = pytest.mark.core

FEATURES, CLASSES, COUNT, BATCH = 6, 4, 16, 8
RNG = np.random.default_rng(7)
X = RNG.normal(size=(COUNT, FEATURES)).astype("float32")
Y = RNG.integers(CLASSES, size=COUNT)
FIRST = X[:BATCH], Y[:BATCH]


def linear(name="linear", classes=CLASSES, features=FEATURES):
    inputs = keras.Input((features,))
    return keras.Model(inputs, keras.layers.Dense(classes, use_bias=False)(inputs), name=name)


def noisy(name="noisy"):
    """A model with batch statistics and dropout, which must not move in a teacher."""
    return keras.Sequential(
        [
            keras.Input((FEATURES,)),
            keras.layers.Dense(5, activation="relu"),
            keras.layers.BatchNormalization(),
            keras.layers.Dropout(0.5),
            keras.layers.Dense(CLASSES),
        ],
        name=name,
    )


def compiled(model, optimizer=None, **options):
    model.compile(
        optimizer or SGD(0.1, momentum=0.9),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
        **options,
    )
    return model


def state(model):
    return [ops.convert_to_numpy(variable).copy() for variable in model.variables]


def assert_same(left, right, **tolerance):
    for own, other in zip(left, right, strict=True):
        np.testing.assert_allclose(own, other, **tolerance)


def fit(model, epochs=1, **options):
    return model.fit(X, Y, batch_size=BATCH, epochs=epochs, shuffle=False, verbose=0, **options)


def logits(model):
    return ops.convert_to_numpy(model(X, training=False))


# The equations


@pytest.mark.parametrize("temperature", [1.0, 2.0, 5.0])
def test_equations_are_those_by_hand(temperature):
    student, *teachers = RNG.normal(scale=3, size=(4, 5, CLASSES)).astype("float32")
    pbar = mean_probabilities([ops.convert_to_tensor(z) for z in teachers], temperature)
    expected = reference.mean_probabilities(teachers, temperature)
    np.testing.assert_allclose(ops.convert_to_numpy(pbar), expected, rtol=1e-5)
    np.testing.assert_allclose(
        ops.convert_to_numpy(distillation_loss(ops.convert_to_tensor(student), pbar, temperature)),
        reference.distillation_losses(student, expected, temperature),
        rtol=1e-5,
    )


def test_indifferent_student_loses_the_log_of_the_classes():
    pbar = ops.convert_to_tensor(np.array([[0.7, 0.2, 0.1, 0.0]], "float32"))
    loss = distillation_loss(ops.zeros((1, CLASSES)), pbar, 3.0)
    assert ops.convert_to_numpy(loss) == pytest.approx([9 * np.log(4)], rel=1e-6)


def test_loss_is_the_divergence_from_the_teachers_plus_their_entropy():
    torch = pytest.importorskip("torch")
    tau = 2.0
    student, first, second = RNG.normal(scale=3, size=(3, 5, CLASSES))
    own = torch.tensor(student, requires_grad=True)
    pbar = (
        torch.softmax(torch.tensor(first) / tau, -1) + torch.softmax(torch.tensor(second) / tau, -1)
    ) / 2
    divergence = tau**2 * torch.nn.functional.kl_div(
        torch.log_softmax(own / tau, -1), pbar, reduction="batchmean"
    )
    divergence.backward()
    entropy = -(pbar * pbar.log()).sum(-1).mean()
    ours = distillation_loss(
        ops.convert_to_tensor(student.astype("float32")),
        mean_probabilities([ops.convert_to_tensor(z.astype("float32")) for z in (first, second)]),
    )
    assert float(ops.mean(ours)) == pytest.approx(
        float(divergence.detach() + tau**2 * entropy), rel=1e-5
    )
    labels = np.zeros(5, int)
    only_labels = reference.softmax(student) - np.eye(CLASSES)[labels]
    by_hand = reference.logit_gradients(student, labels, pbar.numpy(), tau) - only_labels
    np.testing.assert_allclose(own.grad.numpy(), by_hand / 5, atol=1e-12)


def test_half_precision_is_computed_in_single():
    half = ops.cast(ops.convert_to_tensor([[30.0, -30.0, 0.0, 1.0]]), "float16")
    pbar = mean_probabilities([half])
    loss = distillation_loss(half, pbar)
    assert keras.backend.standardize_dtype(pbar.dtype) == "float32"
    assert keras.backend.standardize_dtype(loss.dtype) == "float32"


def test_classes_are_never_broadcast():
    with pytest.raises(UserError, match="the student has 4 classes and its teachers 1"):
        distillation_loss(ops.zeros((2, 4)), ops.ones((2, 1)))
    with pytest.raises(UserError, match=r"teachers with \[4, 1\] classes have no mean"):
        mean_probabilities([ops.zeros((2, 4)), ops.zeros((2, 1))])
    with pytest.raises(UserError, match="at least one"):
        mean_probabilities([])


def test_keras_loss_weighs_and_reduces_the_images():
    student = RNG.normal(size=(3, CLASSES)).astype("float32")
    pbar = reference.softmax(RNG.normal(size=(3, CLASSES)))
    weights = np.array([1.0, 0.0, 3.0], "float32")
    loss = keras.losses.deserialize(keras.losses.serialize(DistillationLoss(3.0)))
    expected = np.mean(weights * reference.distillation_losses(student, pbar, 3.0))
    assert float(loss(pbar, student, weights)) == pytest.approx(expected, rel=1e-5)


# Training


@pytest.mark.parametrize("weighted", [False, True], ids=["", "sample weights"])
def test_one_step_is_the_one_by_hand(weighted):
    """For linear models the gradient of CE + KD is x^T (derivative by the logits) / N."""
    tau, lr = 3.0, 0.5
    student, teachers = linear("student"), [linear("first"), linear("second")]
    weights = RNG.uniform(size=COUNT).astype("float32") if weighted else np.ones(COUNT)
    before = student.get_weights()[0]
    pbar = reference.mean_probabilities([logits(teacher) for teacher in teachers], tau)
    own = X @ before
    model = compiled(Distiller(student, teachers, tau), SGD(lr, momentum=0.0))
    logs = model.train_on_batch(X, Y, sample_weight=weights if weighted else None, return_dict=True)

    slopes = reference.logit_gradients(own, Y, pbar, tau) * weights[:, None]
    np.testing.assert_allclose(
        student.get_weights()[0], before - lr * X.T @ slopes / COUNT, atol=1e-6
    )
    cross_entropy = np.mean(weights * reference.cross_entropies(own, Y))
    distilled = np.mean(weights * reference.distillation_losses(own, pbar, tau))
    assert {name: float(value) for name, value in logs.items()} == pytest.approx(
        {
            "loss": cross_entropy + distilled,
            "student_loss": cross_entropy,
            "distillation_loss": distilled,
            "accuracy": np.mean(own.argmax(-1) == Y),
        },
        rel=1e-5,
    )


def test_epoch_logs_weigh_a_partial_batch_by_its_size():
    model = compiled(Distiller(linear(), [noisy()]), SGD(1e-12, momentum=0.0))
    parts = model.fit(X[:12], Y[:12], batch_size=BATCH, shuffle=False, verbose=0).history
    model.reset_metrics()
    whole = model.train_on_batch(X[:12], Y[:12], return_dict=True)
    for name, value in whole.items():
        assert parts[name][0] == pytest.approx(float(value), rel=1e-5)


def test_evaluation_is_the_students_own():
    student = compiled(noisy("student"))
    model = distil(student, [linear()])
    history = fit(model, validation_data=(X, Y)).history
    assert set(history) == {
        "loss", "student_loss", "distillation_loss", "accuracy", "val_loss", "val_accuracy"
    }  # fmt: skip
    own = student.evaluate(X, Y, batch_size=BATCH, verbose=0, return_dict=True)
    assert model.evaluate(X, Y, batch_size=BATCH, verbose=0, return_dict=True) == own
    listed = model.evaluate(X, Y, batch_size=BATCH, verbose=0)
    assert listed == [own["loss"], own["accuracy"]]
    assert history["val_loss"][0] == pytest.approx(own["loss"], rel=1e-6)
    np.testing.assert_array_equal(logits(model), logits(student))


class Noting(keras.layers.Layer):
    """Tells `note` in which mode it is called."""

    def __init__(self, note):
        super().__init__()
        self.note = note

    def call(self, inputs, training=None):
        self.note(training)
        return inputs


def noting(note):
    inputs = keras.Input((FEATURES,))
    return keras.Model(inputs, keras.layers.Dense(CLASSES)(Noting(note)(inputs)))


@pytest.mark.skipif(keras.backend.backend() == "jax", reason="jax traces, it does not call")
def test_teachers_run_once_a_batch_in_training_only():
    calls = ([], [])
    teachers = [noting(calls[0].append), noting(calls[1].append)]
    model = compiled(Distiller(linear(), teachers), run_eagerly=True)
    for noted in calls:
        noted.clear()
    fit(model)
    assert calls[0] == calls[1] == [False, False]
    model.evaluate(X, Y, verbose=0)
    model.predict(X, verbose=0)
    assert len(calls[0]) == len(calls[1]) == 2


def test_teachers_never_move():
    teachers = [noisy("first"), noisy("second")]
    before = [state(teacher) for teacher in teachers]
    outputs = [logits(teacher) for teacher in teachers]
    student = noisy("student")
    start = state(student)
    model = compiled(Distiller(student, teachers), SGD(0.1, l2=0.1))
    fit(model, epochs=2)
    for teacher, variables, output in zip(teachers, before, outputs, strict=True):
        assert_same(state(teacher), variables, rtol=0)
        np.testing.assert_array_equal(logits(teacher), output)
    moved = {
        variable.name
        for variable, old, new in zip(student.variables, start, state(student), strict=True)
        if np.any(old != new)
    }
    assert {"kernel", "moving_mean", "moving_variance"} <= moved


def test_only_the_student_is_trainable():
    student, teacher = noisy("student"), noisy("teacher")
    model = Distiller(student, [teacher])
    own = [id(variable) for variable in student.trainable_variables]
    assert [id(variable) for variable in model.trainable_variables] == own
    taught = {id(variable) for variable in teacher.variables}
    others = {id(variable) for variable in model.non_trainable_variables}
    assert taught <= others and len(others) == len(model.variables) - len(own)
    assert [id(v) for v in model.trainable_weights] == own
    assert len(model.non_trainable_weights) == len(model.weights) - len(own)
    assert teacher.trainable and teacher.trainable_variables  # its own flag is not touched


@pytest.mark.skipif(keras.backend.backend() != "torch", reason="looks at torch tensors")
def test_torch_builds_no_graph_through_the_teachers(monkeypatch):
    seen = []

    def spy(teacher_logits, temperature):
        seen.extend(teacher_logits)
        return mean_probabilities(teacher_logits, temperature)

    monkeypatch.setattr(module, "mean_probabilities", spy)
    teacher = noisy()
    model = compiled(Distiller(linear(), [teacher]))
    fit(model)
    assert len(seen) == 2
    assert not any(tensor.requires_grad or tensor.grad_fn for tensor in seen)
    assert all(variable.value.grad is None for variable in teacher.variables)


def test_two_distillers_may_share_a_teacher():
    teacher = noisy("teacher")
    teacher(X)
    before = state(teacher)
    peers = [compiled(Distiller(linear(f"peer{k}"), [teacher])) for k in range(2)]
    alone = compiled(Distiller(linear("alone"), [teacher]))
    alone.student.set_weights(peers[1].student.get_weights())
    for model in peers:
        fit(model)
    for _ in range(2):
        for model in peers:
            model.train_on_batch(*FIRST)
    fit(alone)
    for _ in range(2):
        alone.train_on_batch(*FIRST)
    assert_same(state(teacher), before, rtol=0)
    assert_same(state(peers[1].student), state(alone.student), rtol=1e-6)


def test_regularisers_count_for_the_student_only():
    inputs = keras.Input((FEATURES,))

    def regularised(name):
        dense = keras.layers.Dense(
            CLASSES, kernel_regularizer="l2", activity_regularizer=keras.regularizers.L1(0.1)
        )
        return keras.Model(inputs, dense(inputs), name=name)

    student = compiled(regularised("student"))
    own = student.evaluate(X, Y, batch_size=COUNT, verbose=0, return_dict=True)["loss"]
    model = compiled(Distiller(student, [regularised("teacher")]), SGD(1e-12, momentum=0.0))
    for _ in range(2):
        logs = model.train_on_batch(X, Y, return_dict=True)
        assert float(logs["student_loss"]) == pytest.approx(own, rel=1e-5)


def test_student_without_shapes_is_built_by_the_first_batch():
    student = keras.Sequential([keras.layers.Dense(CLASSES)])
    model = compiled(Distiller(student, [linear()]))
    fit(model)
    assert student.built and len(student.weights) == 2
    wrong = compiled(Distiller(keras.Sequential([keras.layers.Dense(9)]), [linear()]))
    with pytest.raises(UserError, match="the student has 9 classes and its teachers 4"):
        fit(wrong)


# Saving, and a student's own compile settings


def test_saved_distiller_goes_on_as_if_it_had_not_stopped(tmp_path):
    student = compiled(linear("student"))
    schedule = step_decay(0.1, every=1, steps_per_epoch=2)
    model = Distiller(student, [noisy("teacher"), linear("other")], temperature=3.0)
    compiled(model, SGD(schedule, l2=1e-3))
    fit(model)
    model.save(tmp_path / "distiller.keras")
    loaded = keras.models.load_model(tmp_path / "distiller.keras")
    assert loaded.temperature == 3.0
    np.testing.assert_array_equal(logits(loaded), logits(model))
    for own, other in zip(model.teachers, loaded.teachers, strict=True):
        np.testing.assert_array_equal(logits(own), logits(other))
        assert {id(v) for v in other.variables} <= {id(v) for v in loaded.non_trainable_variables}
    for one in (model, loaded):
        one.train_on_batch(*FIRST)
    assert_same(state(loaded.student), state(model.student), rtol=1e-6)
    assert_same(
        [ops.convert_to_numpy(variable) for variable in loaded.optimizer.variables],
        [ops.convert_to_numpy(variable) for variable in model.optimizer.variables],
        rtol=1e-6,
    )


def test_config_makes_the_same_distiller():
    model = Distiller(linear("student"), [noisy("teacher")], 3.0, name="pair")
    again = Distiller.from_config(model.get_config())
    assert (again.name, again.temperature) == ("pair", 3.0)
    assert (again.student.name, again.teachers[0].name) == ("student", "teacher")


@pytest.mark.parametrize("built", [True, False])
def test_distil_trains_with_the_students_own_optimizer(built, tmp_path):
    student = linear("student") if built else keras.Sequential([keras.layers.Dense(CLASSES)])
    compiled(student, SGD(0.1, l2=1e-3))
    model = distil(student, [noisy("teacher")])
    fit(model)
    assert model.optimizer is student.optimizer
    student.train_on_batch(*FIRST)
    model.train_on_batch(*FIRST)
    assert int(ops.convert_to_numpy(student.optimizer.iterations)) == 4
    student.save(tmp_path / "student.keras")
    model.save(tmp_path / "distiller.keras")
    for name in ("student", "distiller"):
        loaded = keras.models.load_model(tmp_path / f"{name}.keras")
        np.testing.assert_array_equal(logits(loaded), logits(student))
        assert loaded.optimizer is student_of(loaded).optimizer
        assert student_of(loaded).loss is not None
        assert int(ops.convert_to_numpy(loaded.optimizer.iterations)) == 4


def test_distil_keeps_loss_and_metrics_apart():
    student = linear("student")

    def cross_entropy(y_true, y_pred):
        return keras.losses.sparse_categorical_crossentropy(y_true, y_pred, from_logits=True)

    student.compile(
        SGD(0.1),
        cross_entropy,
        metrics=[keras.metrics.SparseTopKCategoricalAccuracy(2, name="top2")],
    )
    model = distil(student, [linear("teacher")], temperature=1.5)
    assert model.loss is student.loss
    assert model.temperature == 1.5
    fit(model)
    assert "top2" in model.get_metrics_result()


def test_student_of_unwraps_a_distiller_only():
    student = linear()
    assert student_of(student) is student
    assert student_of(Distiller(student, [linear("teacher")])) is student


# What is refused


def ending_in(layer, name):
    inputs = keras.Input((FEATURES,))
    return keras.Model(inputs, layer(keras.layers.Dense(CLASSES)(inputs)), name=name)


def nested_softmax():
    inner = keras.Sequential([keras.layers.Dense(CLASSES, activation="softmax", name="head")])
    return keras.Sequential([keras.Input((FEATURES,)), inner], name="t")


def sharing():
    student = linear("s")
    return student, [keras.Sequential([keras.Input((FEATURES,)), student.layers[-1]], name="t")]


HINT = ": remove it, kgraft distils logits (and compile with from_logits=True)."


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: (linear("s"), []), "no teachers: a Distiller needs at least one."),
        (
            lambda: (linear("s"), linear("t")),
            "teachers is a model: pass a list, teachers=[t].",
        ),
        (
            lambda: (linear("s"), [linear("u"), linear("t", classes=9)]),
            "teacher 2 ('t') has classes 9, student 's' has classes 4.",
        ),
        (
            lambda: (linear("s"), [linear("t", features=3)]),
            "teacher 1 ('t') has inputs [(3,)], student 's' has inputs [(6,)].",
        ),
        (
            lambda: (linear("s"), [linear("t")], 0.0),
            "temperature=0.0: expected more than 0.",
        ),
        (
            lambda: (linear("s"), [keras.Sequential([keras.layers.Dense(4)], name="t")]),
            "teacher 1 ('t') has no weights yet: train or load it first.",
        ),
        (
            lambda: (linear("s"), [ending_in(keras.layers.Softmax(name="p"), "t")]),
            "teacher 1 ('t') ends in a softmax ('p')" + HINT,
        ),
        (
            lambda: (ending_in(keras.layers.Activation("sigmoid", name="p"), "s"), [linear()]),
            "student 's' ends in a sigmoid ('p')" + HINT,
        ),
        (
            lambda: (ending_in(lambda z: ops.softmax(z), "s"), [linear()]),
            "student 's' ends in a softmax ('softmax')" + HINT,
        ),
        (
            lambda: (linear("s"), [nested_softmax()]),
            "teacher 1 ('t') ends in a softmax ('head')" + HINT,
        ),
        (sharing, "teacher 1 ('t') shares weights with student 's'."),
    ],
)
def test_models_that_do_not_fit_are_refused_in_one_line(make, message):
    arguments = make()
    with pytest.raises(UserError) as caught:
        Distiller(*arguments)
    counted = re.sub(r"(softmax)_\d+", r"\1", str(caught.value))  # Keras counts what has no name
    assert counted == message
    if len(arguments[1:2]) and isinstance(arguments[1], list):
        assert all(teacher.trainable for teacher in arguments[1])


def test_distil_needs_a_compiled_student_with_registered_metrics():
    class Unknown(keras.metrics.Mean):
        def update_state(self, y_true, y_pred, sample_weight=None):
            return super().update_state(y_true)

    with pytest.raises(UserError, match="student 's' is not compiled"):
        distil(linear("s"), [linear("t")])
    student = linear("s")
    student.compile(SGD(0.1), "mse", metrics=[Unknown()])
    with pytest.raises(UserError, match="a metric of student 's' cannot be made anew"):
        distil(student, [linear("t")])
