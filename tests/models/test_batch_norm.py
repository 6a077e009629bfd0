import keras
import numpy as np
import pytest
import torch

from kgraft.errors import UserError
from kgraft.models import BatchNormalization

pytestmark = pytest.mark.core


def batches(*shapes):
    rng = np.random.default_rng(3)
    return [rng.normal(2.0, 3.0, size=shape).astype("float32") for shape in shapes]


def to_torch(x):
    return torch.from_numpy(np.moveaxis(x, -1, 1).copy())


def test_statistics_follow_pytorchs_over_steps_of_different_size():
    layer, twin = BatchNormalization(), torch.nn.BatchNorm2d(5)
    for x in batches((8, 3, 4, 5), (8, 3, 4, 5), (2, 1, 1, 5)):
        ours = keras.ops.convert_to_numpy(keras.ops.stop_gradient(layer(x, training=True)))
        theirs = np.moveaxis(twin(to_torch(x)).detach().numpy(), 1, -1)
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)
    _, _, mean, variance = layer.get_weights()
    np.testing.assert_allclose(mean, twin.running_mean, rtol=1e-5)
    np.testing.assert_allclose(variance, twin.running_var, rtol=1e-5)
    keras_own = keras.layers.BatchNormalization(momentum=0.9, epsilon=1e-5)
    for x in batches((8, 3, 4, 5), (8, 3, 4, 5), (2, 1, 1, 5)):
        keras_own(x, training=True)
    assert np.abs(keras_own.get_weights()[3] / twin.running_var.numpy() - 1).max() > 0.01


def test_inference_is_keras_own():
    (x,) = batches((4, 3, 3, 2))
    layer = BatchNormalization()
    own = keras.layers.BatchNormalization(momentum=0.9, epsilon=1e-5)
    layer(x, training=True)
    own.build(x.shape)
    own.set_weights(layer.get_weights())
    np.testing.assert_allclose(
        keras.ops.convert_to_numpy(layer(x)),
        keras.ops.convert_to_numpy(own(x)),
        rtol=1e-5,
        atol=1e-6,
    )


def test_a_frozen_layer_keeps_its_statistics():
    (x,) = batches((4, 3, 3, 2))
    layer = BatchNormalization(trainable=False)
    layer(x, training=True)
    np.testing.assert_array_equal(layer.get_weights()[2], [0, 0])
    np.testing.assert_array_equal(layer.get_weights()[3], [1, 1])


def test_a_single_value_leaves_the_variance_finite():
    layer = BatchNormalization()
    layer(np.array([[3.0]], "float32"), training=True)
    np.testing.assert_allclose(layer.get_weights()[3], [0.9])


@pytest.mark.parametrize("options", [{"scale": False}, {"center": False}, {"axis": 1}])
def test_keras_options_hold(options):
    (x,) = batches((4, 3, 5))
    layer = BatchNormalization(**options)
    own = keras.layers.BatchNormalization(epsilon=1e-5, **options)
    ours, theirs = layer(x, training=True), own(x, training=True)
    np.testing.assert_allclose(
        *(keras.ops.convert_to_numpy(keras.ops.stop_gradient(y)) for y in (ours, theirs)),
        rtol=1e-5,
        atol=1e-6,
    )


def test_half_precision_is_summed_in_float32():
    x = np.full((64, 1), 600.0, "float16")
    x[::2] = 0
    layer = BatchNormalization(dtype="mixed_float16")
    y = layer(x, training=True)
    assert keras.backend.standardize_dtype(y.dtype) == "float16"
    np.testing.assert_allclose(layer.get_weights()[3], 0.9 + 0.1 * 90000 * 64 / 63, rtol=1e-5)


def test_it_learns_inside_fit_as_eagerly():
    (x,) = batches((8, 6))
    model = keras.Sequential([keras.Input((6,)), BatchNormalization(), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    model.fit(x, np.zeros((8, 1)), batch_size=8, verbose=0)
    np.testing.assert_allclose(
        model.layers[0].get_weights()[3], 0.9 + 0.1 * x.var(axis=0, ddof=1), rtol=1e-5
    )


def test_a_file_holds_keras_own_layer_and_a_clone_this_one(tmp_path):
    model = keras.Sequential([keras.Input((2,)), BatchNormalization()])
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert type(loaded.layers[0]) is keras.layers.BatchNormalization
    assert type(keras.models.clone_model(model).layers[0]) is BatchNormalization
    assert loaded.layers[0].get_config() == model.layers[0].get_config()


def test_what_it_cannot_do_is_refused():
    with pytest.raises(UserError, match="no renorm"):
        BatchNormalization(renorm=True)
    with pytest.raises(UserError, match="no mask can be used"):
        BatchNormalization()(np.ones((2, 3, 1)), training=True, mask=np.ones((2, 3), bool))
