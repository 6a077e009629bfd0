"""kgraft and a plain PyTorch loop, from the same weights on the same batches.

`python -m tests.reference.parity NAME...` prints a table: float64, 2 peers, 20 steps each, two
graftings after steps 5 and 10, learning rates dropped before step 16.
"""

import sys
from contextlib import contextmanager
from dataclasses import dataclass

import kgraft  # isort: skip  # chooses the backend
import keras
import numpy as np
import torch
from keras.src.backend.common import dtypes

from kgraft import models
from kgraft.grafting import Entropy, Graft
from kgraft.training.fit import GraftingFit
from kgraft.training.optimizers import SGD
from kgraft.training.schedules import step_decay
from tests.reference.torch_models import TWINS, copy_to, randomise, weights_by_layer
from tests.reference.torch_training import train

assert kgraft.__name__
CLASSES, STEPS, EPOCHS, DROP_EVERY = 7, 5, 4, 3
# such that 20 steps are no chaos: at 0.01 MobileNetV2 carries a rounding of 1e-15 to 1e-1
RATE, MOMENTUM, L2 = 2e-4, 0.9, 5e-4
# Chaotic still at 2e-4, where one activation in a thousand million steps over a kink: ResNet50
# parts by 2e-1 after 20 steps (9e-9 at 2e-5), MobileNetV2 by 6e-12 on one thread and 2e-5 on two,
# which add the same numbers up in another order (1e-14 at 1e-4, 3e-14 at 3e-4).
SLOWER = {"mobilenet_v2": 1e-4, "resnet50": 4e-6}


class Given:
    """A feed of batches that are there already, one list an epoch."""

    def __init__(self, epochs):
        self.epochs, self.steps = epochs, len(epochs[0])

    def for_peer(self, peer):
        return self

    def epoch(self, epoch):
        yield from self.epochs[epoch % len(self.epochs)]


class Watch(keras.callbacks.Callback):
    """Running mean losses and, at the end of every epoch, weights."""

    def __init__(self):
        super().__init__()
        self.losses, self.weights = [], []

    def on_epoch_begin(self, epoch, logs=None):
        self.losses.append([])

    def on_train_batch_end(self, batch, logs=None):
        self.losses[-1].append(float(logs["loss"]))

    def on_epoch_end(self, epoch, logs=None):
        self.weights.append({x.name: x.get_weights() for x in self.model.layers if x.weights})


@dataclass
class Differences:
    """Largest differences between kgraft and the twin, over both peers.

    `logits` are relative to the largest logit, losses to the loss; weights and statistics are
    absolute, or relative where they are above 1.
    """

    parameters: int
    logits: float
    loss: float
    grafted: float
    weights: float


def images(count, side, seed):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(count, side, side, 3)).astype("float32")
    return x, rng.integers(0, CLASSES, count)


def compare(name, *, side=16, batch=16, grafts=2, nesterov=False, rate=RATE):
    """Train twins and Keras models side by side, in Keras' float type; peer 2 at twice the rate."""
    rates = (rate, 2 * rate)
    dtype = getattr(torch, keras.config.floatx())
    twins, peers = [], []
    for k in range(2):
        twin = TWINS[name](3, CLASSES)
        randomise(twin, torch.Generator().manual_seed(k))
        twins.append(twin.to(dtype))
        peers.append(models.build(name, input_shape=(side, side, 3), classes=CLASSES))
        copy_to(peers[k], twin)
        peers[k].compile(
            SGD(
                step_decay(rates[k], every=DROP_EVERY, steps_per_epoch=STEPS),
                momentum=MOMENTUM,
                l2=L2,
                nesterov=nesterov,
            ),
            keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        )
    logits = _logits(peers[0], twins[0], images(4, side, seed=9)[0])
    x, y = images(2 * EPOCHS * STEPS * batch, side, seed=5)
    parts = zip(np.split(x, 2 * EPOCHS * STEPS), np.split(y, 2 * EPOCHS * STEPS), strict=True)
    batches = iter(list(parts))
    epochs = [[[next(batches) for _ in range(STEPS)] for _ in range(2)] for _ in range(EPOCHS)]

    watches = [Watch(), Watch()]
    run = GraftingFit(
        peers,
        mixer=Graft(criterion=Entropy(binning="authors"), decimals=2),
        epochs_grafted=grafts,
    )
    run.fit(
        [Given([epoch[k] for epoch in epochs]) for k in range(2)],
        epochs=EPOCHS,
        verbose=0,
        callbacks=lambda k: [watches[k]],
    )
    found = Differences(models.parameters(peers[0]), logits, 0.0, 0.0, 0.0)
    options = {"momentum": MOMENTUM, "l2": L2, "drop_every": DROP_EVERY, "nesterov": nesterov}
    for epoch, losses in enumerate(train(twins, epochs, rates=rates, grafts=grafts, **options)):
        ours = np.array([watch.losses[epoch] for watch in watches])
        found.loss = max(found.loss, float(np.abs(ours / losses - 1).max()))
        found.weights = max(
            _weights(watch.weights[epoch], twin) for watch, twin in zip(watches, twins, strict=True)
        )
        if epoch < grafts:
            found.grafted = max(found.grafted, found.weights)
    return found


def _logits(model, twin, x):
    with torch.no_grad():
        given = torch.from_numpy(x).permute(0, 3, 1, 2).to(next(twin.parameters()).dtype)
        theirs = twin.eval()(given).numpy()
        ours = keras.ops.convert_to_numpy(keras.ops.stop_gradient(model(x, training=False)))
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())


def _weights(ours, twin):
    worst = 0.0
    for layer, arrays in weights_by_layer(twin).items():
        for own, theirs in zip(ours[layer], arrays, strict=True):
            scale = np.maximum(1.0, np.abs(theirs))
            worst = max(worst, float((np.abs(own - theirs) / scale).max()))
    return worst


@contextmanager
def float64():
    """Keras in double precision.

    On torch Keras turns float64 into float32 wherever it works out the type of a result (means and
    losses among them), "to be aligned with JAX's default"; on tensorflow it does not. What is to
    be shown here is kgraft's arithmetic, so that one table entry of Keras is changed meanwhile.
    """
    demoted = dtypes.BIT64_TO_BIT32_DTYPE["float64"]
    floatx, policy = keras.config.floatx(), keras.config.dtype_policy()
    dtypes.BIT64_TO_BIT32_DTYPE["float64"] = "float64"
    keras.config.set_floatx("float64")
    keras.config.set_dtype_policy("float64")
    try:
        yield
    finally:
        dtypes.BIT64_TO_BIT32_DTYPE["float64"] = demoted
        keras.config.set_floatx(floatx)
        keras.config.set_dtype_policy(policy)


def main(names):
    print("| model | parameters | logits | loss, 20 steps | after 2 graftings | after 20 steps |")
    print("|---|---|---|---|---|---|")
    for name in names or TWINS:
        with float64():
            d = compare(name, rate=SLOWER.get(name, RATE))
        figures = " | ".join(f"{v:.0e}" for v in (d.logits, d.loss, d.grafted, d.weights))
        print(f"| {name} | {d.parameters:,} | {figures} |", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
