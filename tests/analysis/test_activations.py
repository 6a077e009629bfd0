import keras
import numpy as np
import pytest

import kgraft
from kgraft.analysis.activations import Rectified, dead_share, rectified

pytestmark = pytest.mark.core


def network():
    keras.utils.set_random_seed(0)
    inputs = keras.Input((6, 6, 2))
    x = keras.layers.Conv2D(4, 3, name="first", activation="relu")(inputs)
    relu = keras.layers.ReLU(name="shared")
    x = relu(keras.layers.Conv2D(3, 1, name="second")(x))
    y = relu(keras.layers.Conv2D(3, 1, name="third")(x))
    x = keras.layers.GlobalAveragePooling2D()(keras.layers.Add()([x, y]))
    model = keras.Model(inputs, keras.layers.Dense(2)(x))
    kernel, _ = model.get_layer("second").get_weights()
    model.get_layer("second").set_weights([kernel, np.array([-1e6, 1e6, 0.0])])
    return model


def test_channels_that_never_speak_are_dead():
    model, rng = network(), np.random.default_rng(0)
    images = rng.normal(size=(10, 6, 6, 2)).astype("float32")
    found = rectified(model, [images[:4], (images[4:], None)])
    assert [own.name for own in found] == ["first", "shared", "shared"]
    by_hand = keras.Model(model.inputs[0], model.get_layer("first").output)(images)
    expected = keras.ops.convert_to_numpy(by_hand).max(axis=(0, 1, 2))
    np.testing.assert_allclose(found[0].largest, expected, rtol=1e-5)
    assert found[1].dead.tolist()[:2] == [True, False]
    dead = [own.dead for own in found]
    assert dead_share(found) == pytest.approx(np.concatenate(dead).mean())


@pytest.mark.parametrize("name", ["resnet8", "mobilenet_v2"])
def test_networks_of_the_registry_have_rectifiers(name):
    model = kgraft.models.build(name, input_shape=(16, 16, 3), classes=4)
    images = np.random.default_rng(0).normal(size=(4, 16, 16, 3)).astype("float32")
    found = rectified(model, [images])
    assert len(found) > 5 and 0 <= dead_share(found) < 0.5


def test_models_without_what_is_looked_for_are_refused():
    linear = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    with pytest.raises(kgraft.UserError, match="no rectifier"):
        rectified(linear, [])
    with pytest.raises(kgraft.UserError, match="no batch"):
        rectified(network(), [])


def test_rectifiers_of_every_kind_are_looked_at():
    model = keras.Sequential(
        [
            keras.Input((2,)),
            keras.layers.Dense(3, use_bias=False, activation="relu6"),
            keras.layers.ReLU(threshold=1.0),
            keras.layers.ReLU(negative_slope=0.1),
        ]
    )
    model.layers[0].set_weights([np.array([[1.0, -1.0, 0.0], [0.0, -1.0, 0.5]])])
    images = np.array([[9.0, 0.0], [2.0, 1.0]], "float32")
    first, second = rectified(model, images)
    np.testing.assert_allclose(first.largest, [6.0, 0.0, 0.5])
    np.testing.assert_allclose(second.largest, [6.0, 0.0, 0.0])  # 0.5 is below the threshold
    assert dead_share([first, second]) == pytest.approx(3 / 6)


def test_images_may_come_in_one_array():
    model, rng = network(), np.random.default_rng(0)
    images = rng.normal(size=(300, 6, 6, 2)).astype("float32")
    batches = rectified(model, [images[:150], images[150:]])
    for given in (images, keras.ops.convert_to_tensor(images)):
        for own, expected in zip(rectified(model, given), batches, strict=True):
            np.testing.assert_allclose(own.largest, expected.largest, rtol=1e-5)
    with pytest.raises(kgraft.UserError, match="no batch"):
        rectified(model, images[:0])


def test_no_rectifiers_have_no_dead_share():
    with pytest.raises(kgraft.UserError, match="expected what rectified gives"):
        dead_share([])


def test_a_channel_that_gives_nan_is_neither_dead_nor_alive():
    some = Rectified("some", np.array([0.0, np.nan, 2.0, 1.0]))
    assert dead_share([some]) == pytest.approx(1 / 3)
    assert np.isnan(dead_share([Rectified("all", np.full(2, np.nan))]))
