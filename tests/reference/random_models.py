"""Random small functional models, to look for what an engine computes differently."""

import keras
import numpy as np
from keras import layers

import kgraft.models

# Every activation that a layer can be given by name, but for glu, which halves the channels behind
# Keras' back. Functions and layers of one's own come on top.
ACTIVATIONS = [
    *("celu", "elu", "exponential", "gelu", "hard_shrink", "hard_sigmoid", "hard_silu"),
    *("hard_tanh", "leaky_relu", "linear", "log_sigmoid", "log_softmax", "mish", "relu", "relu6"),
    *("selu", "sigmoid", "silu", "soft_shrink", "softmax", "softplus", "softsign", "sparse_plus"),
    *("sparse_sigmoid", "sparsemax", "squareplus", "tanh", "tanh_shrink"),
]


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
    head = rng.choice(["average", "flatten", "max", "kept"])
    x = {
        "average": layers.GlobalAveragePooling2D,
        "flatten": layers.Flatten,
        "max": layers.GlobalMaxPooling2D,
        "kept": lambda: lambda y: layers.Flatten()(layers.GlobalAveragePooling2D(keepdims=True)(y)),
    }[head]()(x)
    if rng.random() < 0.3:
        # smooth: where noise has dropped a whole image, a rectifier's input is 0 but for rounding
        x = layers.BatchNormalization()(layers.Dense(12, activation="tanh")(x))
    if rng.random() < 0.3:
        x = layers.Dense(12, activation=str(rng.choice(["softmax", "log_softmax", "sigmoid"])))(x)
    return keras.Model(inputs, layers.Dense(classes)(x), name=f"random{seed}")


def _layer(rng, x):
    channels = x.shape[-1]
    filters = int(rng.choice([4, 8]))
    size = int(rng.integers(1, 4))
    stride = int(rng.choice([1, 1, 1, 2])) if x.shape[1] > 3 else 1
    padding = "same" if x.shape[1] <= 3 else str(rng.choice(["same", "valid"]))
    activation = _activation(rng)
    groups = 4 if channels % 4 == 0 else 1
    bias = bool(rng.random() < 0.7)
    kind = rng.choice(list("cccbbbbrraldgpzsnutfvA"))
    match kind:
        case "c":
            made = layers.Conv2D(
                filters,
                size,
                strides=stride,
                padding=padding,
                use_bias=bias,
                activation=activation,
            )
            return _tamed(made, x)
        case "b":
            batch_norm = [layers.BatchNormalization, kgraft.models.BatchNormalization]
            own = rng.integers(2)
            axis = -1 if own or rng.random() < 0.8 else int(rng.integers(1, 4))
            x = batch_norm[own](
                axis=axis,
                scale=bool(rng.random() < 0.7),
                center=bool(rng.random() < 0.7),
                momentum=float(rng.choice([0.99, 0.5])),
                # Keras' means are float32, and a variance near 0 makes their rounding large
                epsilon=float(rng.choice([1e-2, 1e-1])),
            )(x)
            return layers.Activation("relu")(x) if rng.random() < 0.5 else x
        case "r":
            return layers.ReLU(
                max_value=[None, None, 1.0][rng.integers(3)],
                negative_slope=float(rng.choice([0.0, 0.0, 0.2])),
                threshold=float(rng.choice([0.0, 0.0, 0.1])),
            )(x)
        case "a":
            return _tamed(layers.Activation(activation), x)
        case "l":
            return layers.LeakyReLU(negative_slope=float(rng.choice([0.1, 0.3, 0.0])))(x)
        case "d":
            made = layers.DepthwiseConv2D(
                size,
                strides=stride,
                padding=padding,
                depth_multiplier=int(rng.integers(1, 3)),
                use_bias=bias,
                activation=activation,
            )
            return _tamed(made, x)
        case "g":
            made = layers.Conv2D(
                filters, size, padding="same", groups=groups, use_bias=False, activation=activation
            )
            return _tamed(made, x)
        case "p":
            pool = [layers.MaxPooling2D, layers.AveragePooling2D][rng.integers(2)]
            width = int(rng.integers(1, 4))
            step = [None, 1, 2][rng.integers(3)]
            return pool(width, strides=step, padding="same" if width > 1 else padding)(x)
        case "z":
            x = layers.ZeroPadding2D(int(rng.integers(1, 3)))(x)
            return layers.Conv2D(filters, 3, padding="valid")(x) if rng.random() < 0.7 else x
        case "s":
            made = layers.SeparableConv2D(filters, size, padding="same", activation=activation)
            return _tamed(made, x)
        case "n":
            return layers.Dropout(0.3)(x)
        case "u":
            return layers.SpatialDropout2D(0.3)(x)
        case "f":
            return _channels_first(layers.Conv2D, x, filters, size, padding="same")
        case "v":
            return layers.Dense(filters, activation=activation)(x)
        case "A":
            return layers.Softmax(axis=int(rng.integers(1, 4)))(x)
        case _:
            return _tamed(
                layers.Conv2D(
                    filters, size, padding="same", dilation_rate=2, activation=activation
                ),
                x,
            )


def _activation(rng):
    """None, a rectifier or any other activation there is, or one that Keras does not know."""
    own = [_over_channels, layers.LeakyReLU(0.2)]
    names = [None, None, "relu", "relu", str(rng.choice(ACTIVATIONS)), str(rng.choice(ACTIVATIONS))]
    return own[rng.integers(2)] if rng.random() < 0.05 else names[rng.integers(len(names))]


def _over_channels(x):
    return x - keras.ops.mean(x, axis=-1, keepdims=True)


def _tamed(layer, x):
    """The layer's output, brought back to size after an exponential."""
    y = layer(x)
    grows = layer.activation is keras.activations.exponential
    return layers.BatchNormalization()(y) if grows else y


def _channels_first(kind, x, *args, **options):
    """A layer that wants channels first, where the backend can on a CPU."""
    if keras.config.backend() == "tensorflow":
        return kind(*args, **options)(x)
    x = kind(*args, data_format="channels_first", **options)(layers.Permute((3, 1, 2))(x))
    return layers.Permute((2, 3, 1))(x)
