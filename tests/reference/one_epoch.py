"""One epoch and one grafting from given weights: `python one_epoch.py WEIGHTS.npz OUT.npz`.

Run once per backend by tests/test_backends_agree.py; the first run, which finds no WEIGHTS,
writes them.
"""

import sys
from pathlib import Path

import kgraft  # isort: skip  # chooses the backend
import keras
import numpy as np

from kgraft import data, models
from kgraft.engines.stepper import Stepper
from kgraft.grafting import Graft
from kgraft.training.optimizers import SGD

assert kgraft.__name__
# at 0.05 a float32 rounding grows to 1e-3 within the 20 steps of an epoch, see tests/test_parity.py
RATE = 0.01
SEED = 0


def main(weights_file: Path, out: Path) -> None:
    digits = data.load("digits", limit_train=640)
    keras.utils.set_random_seed(SEED)
    peers = [models.resnet8(input_shape=(8, 8, 1), classes=10) for _ in range(2)]
    if not weights_file.exists():
        initial = [weight for peer in peers for weight in peer.get_weights()]
        np.savez(weights_file, *initial)
    with np.load(weights_file) as stored:
        initial = list(stored.values())
    count = len(peers[0].weights)
    for k, peer in enumerate(peers):
        peer.set_weights(initial[k * count : (k + 1) * count])
        peer.compile(
            SGD(RATE, momentum=0.9, l2=5e-4),
            keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        )

    before = [peer.get_weights() for peer in peers]
    record = Graft().mix(peers)
    results = {
        f"blended_{k}_{i}": w for k, p in enumerate(peers) for i, w in enumerate(p.get_weights())
    }
    results["coefficients"] = record.coefficients
    results["information"] = record.information
    for peer, weights in zip(peers, before, strict=True):
        peer.set_weights(weights)

    stream = data.BatchStream(
        digits.train.images,
        digits.train.labels,
        batch_size=32,
        seed=0,
        peer=0,
        augment=data.Augment(pad=1, flip=False, mean=digits.mean, std=digits.std),
    )
    losses = []
    for k, peer in enumerate(peers):
        stepper = Stepper(peer)
        for batch in stream.for_peer(k).epoch(0):
            stepper.begin_epoch()
            stepper.step(batch)
            losses.append(stepper.logs()["loss"])
    results["losses"] = np.array(losses)
    np.savez(out, **results)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
