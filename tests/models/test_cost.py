import keras
import pytest
from keras import layers

from kgraft import models
from kgraft.errors import UserError

pytestmark = pytest.mark.core


def test_convolutions_and_dense_layers_by_hand():
    images = keras.Input((8, 8, 3))
    x = layers.Conv2D(4, 3, padding="same")(images)  # 64 positions x 27 x 4 = 6912
    x = layers.BatchNormalization()(x)
    x = layers.DepthwiseConv2D(3, strides=2, padding="same")(x)  # 16 x 9 x 4 = 576
    x = layers.Conv2D(6, 1, groups=2)(x)  # 16 x 2 x 6 = 192
    x = layers.SeparableConv2D(5, 3)(x)  # 4 x (9 x 6 + 6 x 5) = 336
    x = layers.Conv2DTranspose(2, 2, strides=2)(x)  # 4 inputs x 4 x 5 x 2 = 160
    x = layers.Dense(3)(x)  # 16 positions x 2 x 3 = 96
    x = layers.GlobalAveragePooling2D()(x)
    model = keras.Model(images, layers.Dense(10)(x))  # 3 x 10 = 30
    assert models.macs(model) == 6912 + 576 + 192 + 336 + 160 + 96 + 30
    assert models.flops(model) == 2 * 8302
    assert models.filters(model) == 4 + 4 + 6 + 5 + 2


def test_parameters_leave_out_running_statistics():
    model = keras.Sequential(
        [keras.Input((4, 4, 1)), layers.Conv2D(2, 3, use_bias=False), layers.BatchNormalization()]
    )
    assert models.parameters(model) == 18 + 4


def test_nested_models_count_and_shared_layers_count_once_per_call():
    inside = keras.Input((8, 8, 3))
    backbone = keras.Model(inside, layers.Conv2D(3, 3, padding="same")(inside))  # 64 x 81 = 5184
    nested = keras.Sequential([keras.Input((8, 8, 3)), backbone, layers.Conv2D(1, 1)])  # + 192
    assert models.macs(nested) == 5184 + 192
    assert models.filters(nested) == 4
    images = keras.Input((8, 8, 3))
    shared = layers.Conv2D(3, 3, padding="same")
    twice = keras.Model(images, shared(shared(images)))
    assert models.macs(twice) == 2 * 5184
    assert models.filters(twice) == 3
    outside = keras.Input((8, 8, 3))
    assert models.macs(keras.Model(outside, backbone(backbone(outside)))) == 2 * 5184


def test_calls_outside_the_model_do_not_count():
    images = keras.Input((8, 8, 3))
    shared = layers.Conv2D(3, 3, padding="same")
    model = keras.Model(images, shared(images))
    shared(keras.Input((16, 16, 3)))
    assert models.macs(model) == 5184


def test_images_of_open_size_and_models_without_a_graph_are_refused():
    images = keras.Input((None, None, 3))
    model = keras.Model(images, layers.Conv2D(3, 3, name="first")(images))
    with pytest.raises(UserError, match="layer 'first' sees images of any size"):
        models.macs(model)

    class Subclassed(keras.Model):
        pass

    with pytest.raises(UserError, match="model 'plain' has no graph to count in"):
        models.macs(Subclassed(name="plain"))


@pytest.mark.parametrize("name", ["resnet8", "mobilenet_v2", "wrn-10-1"])
def test_four_times_the_pixels_cost_four_times_the_convolutions(name):
    small, large = (models.build(name, input_shape=(side, side, 3), classes=2) for side in (16, 32))
    head = small.get_layer("logits").kernel.shape[0] * 2
    assert models.macs(large) - head == 4 * (models.macs(small) - head)
