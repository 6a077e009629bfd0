"""Feature losses of `keras.distillation` beside the distillation, by hand."""

import keras
import numpy as np
import pytest

import kgraft

pytestmark = pytest.mark.core


def network(seed, width=3):
    keras.utils.set_random_seed(seed)
    model = keras.Sequential(
        [
            keras.Input((6, 6, 1)),
            keras.layers.Conv2D(width, 3, use_bias=False, name="conv"),
            keras.layers.BatchNormalization(),
            keras.layers.ReLU(name="maps"),
            keras.layers.Flatten(),
            keras.layers.Dense(4, name="head"),
        ]
    )
    model.compile(
        kgraft.SGD(0.1, momentum=0.0),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    return model


def images(count=16):
    random = np.random.default_rng(0)
    return random.normal(size=(count, 6, 6, 1)).astype("float32"), random.integers(0, 4, count)


def between_maps():
    return keras.distillation.FeatureDistillation(
        "mse", teacher_layer_name="maps", student_layer_name="maps"
    )


def step(feature_losses, teachers, loss_weight=1.0):
    x, y = images()
    student = network(0)
    run = kgraft.GraftingFit(
        [student],
        teachers,
        distillation_weight=loss_weight,
        feature_losses=feature_losses,
        mixer=kgraft.grafting.Independent(),
    )
    (history,) = run.fit(x, y, batch_size=len(x), shuffle=False, verbose=0)
    return student, history.history


def features(model, x, training):
    inner = keras.Model(model.inputs[0], model.get_layer("maps").output)
    return keras.ops.convert_to_numpy(inner(x, training=training))


def test_the_loss_has_the_mean_squared_distance_to_each_teacher_in_it():
    x, _ = images()
    teachers = [network(1), network(2)]
    own = features(network(0), x, True)
    expected = np.mean([np.mean((own - features(t, x, False)) ** 2) for t in teachers])
    _, plain = step((), teachers)
    _, taught = step((between_maps(),), teachers)
    assert taught["loss"][0] - plain["loss"][0] == pytest.approx(expected, rel=1e-4)
    assert taught["student_loss"][0] == pytest.approx(plain["student_loss"][0], rel=1e-5)


def test_batch_statistics_move_once_a_step_and_weights_towards_the_features():
    teachers = [network(1)]
    plain, _ = step((), teachers)
    taught, _ = step((between_maps(),), teachers)
    for weight, a, b in zip(plain.weights, plain.get_weights(), taught.get_weights(), strict=True):
        reached = weight.path.endswith(("conv/kernel", "gamma", "beta"))
        assert np.allclose(a, b, atol=1e-6) != reached, weight.path


def test_without_a_weight_the_distillation_is_gone():
    x, y = images()
    student, _ = step((), [network(1)], loss_weight=0.0)
    alone = network(0)
    alone.fit(x, y, batch_size=len(x), shuffle=False, verbose=0)
    for name, a, b in zip(
        [w.path for w in alone.weights], alone.get_weights(), student.get_weights(), strict=True
    ):
        np.testing.assert_allclose(a, b, atol=1e-5, err_msg=name)


def test_a_distiller_with_features_is_saved_and_goes_on(tmp_path):
    x, y = images()
    distiller = kgraft.Distiller(network(0), [network(1)], feature_losses=[between_maps()])
    distiller.compile(kgraft.SGD(0.1), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    distiller.fit(x, y, verbose=0)
    distiller.save(tmp_path / "d.keras")
    again = keras.models.load_model(tmp_path / "d.keras")
    for model in (distiller, again):
        model.fit(x, y, verbose=0, shuffle=False)
    for a, b in zip(distiller.get_weights(), again.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_what_cannot_be_tapped_is_told():
    with pytest.raises(kgraft.UserError, match="has no layer 'nope'"):
        kgraft.Distiller(
            network(0),
            [network(1)],
            feature_losses=[keras.distillation.FeatureDistillation("mse", "nope", "maps")],
        )
    with pytest.raises(kgraft.UserError, match="LogitsDistillation"):
        kgraft.Distiller(
            network(0), [network(1)], feature_losses=[keras.distillation.LogitsDistillation()]
        )
