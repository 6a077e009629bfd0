"""Random small functional models, to look for what an engine computes differently."""

import keras
import numpy as np
from keras import layers

import kgraft.models


def random_model(seed, shape, classes):
    """A random graph of convolutions, normalisations, noise, pooling and branches."""
    rng = np.random.default_rng(seed)
    x = inputs = keras.Input(shape)
    branches = []
    for _ in range(rng.integers(3, 9)):
        x = _layer(rng, x)
        if rng.random() < 0.4:
            branches.append(x)
        fitting = [b for b in branches if b.shape == x.shape and b is not x]
        if fitting and rng.random() < 0.7:
            other = fitting[rng.integers(len(fitting))]
            join = rng.choice(["add", "add", "concatenate", "multiply", "plus", "thrice"])
            x = {
                "add": lambda a, b: layers.Add()([a, b]),
                "concatenate": lambda a, b: layers.Concatenate()([a, b]),
                "multiply": lambda a, b: layers.Multiply()([a, b]),
                "plus": lambda a, b: a + b,
                "thrice": lambda a, b: layers.Add()([a, b, a]),
            }[join](x, other)
    head = rng.choice(["average", "flatten", "max"])
    x = {
        "average": layers.GlobalAveragePooling2D,
        "flatten": layers.Flatten,
        "max": layers.GlobalMaxPooling2D,
    }[head]()(x)
    if rng.random() < 0.3:
        # smooth: where noise has dropped a whole image, a rectifier's input is 0 but for rounding
        x = layers.BatchNormalization()(layers.Dense(12, activation="tanh")(x))
    return keras.Model(inputs, layers.Dense(classes)(x), name=f"random{seed}")


def _layer(rng, x):
    channels = x.shape[-1]
    filters = int(rng.choice([4, 8]))
    size = int(rng.integers(1, 4))
    stride = int(rng.choice([1, 1, 1, 2])) if x.shape[1] > 3 else 1
    padding = "same" if x.shape[1] <= 3 else str(rng.choice(["same", "valid"]))
    activation = [None, "relu", "tanh"][rng.integers(3)]
    groups = 4 if channels % 4 == 0 else 1
    kind = rng.choice(list("cccbbbbrraldgpzsnut"))
    match kind:
        case "c":
            return layers.Conv2D(
                filters, size, strides=stride, padding=padding, activation=activation
            )(x)
        case "b":
            batch_norm = [layers.BatchNormalization, kgraft.models.BatchNormalization]
            x = batch_norm[rng.integers(2)](
                scale=bool(rng.random() < 0.7), center=bool(rng.random() < 0.7)
            )(x)
            return layers.Activation("relu")(x) if rng.random() < 0.5 else x
        case "r":
            return layers.ReLU(max_value=[None, 1.0][rng.integers(2)])(x)
        case "a":
            return layers.Activation(str(rng.choice(["relu", "sigmoid", "gelu"])))(x)
        case "l":
            return layers.LeakyReLU(negative_slope=0.1)(x)
        case "d":
            return layers.DepthwiseConv2D(
                size, strides=stride, padding=padding, depth_multiplier=int(rng.integers(1, 3))
            )(x)
        case "g":
            return layers.Conv2D(filters, size, padding="same", groups=groups, use_bias=False)(x)
        case "p":
            pool = [layers.MaxPooling2D, layers.AveragePooling2D][rng.integers(2)]
            return pool(2, strides=stride, padding="same")(x)
        case "z":
            x = layers.ZeroPadding2D(int(rng.integers(1, 3)))(x)
            return layers.Conv2D(filters, 3, padding="valid")(x) if rng.random() < 0.7 else x
        case "s":
            return layers.SeparableConv2D(filters, size, padding="same")(x)
        case "n":
            return layers.Dropout(0.3)(x)
        case "u":
            return layers.SpatialDropout2D(0.3)(x)
        case _:
            return layers.Conv2D(filters, size, padding="same", dilation_rate=2)(x)
