"""One rank of a ring, or all of it in one process, in many cases: what `test_ring` compares.

RANK=0 WORLD_SIZE=2 MASTER_ADDR=... MASTER_PORT=... python -m tests.training.ring_cases DIRECTORY
"""

import json
import os
import sys
import tempfile
from pathlib import Path

import keras
import numpy as np
import torch
from keras import layers

import kgraft
from kgraft import grafting
from kgraft.errors import UserError
from kgraft.training.mutual import Mutual

K, CLASSES = 3, 4
RANDOM = np.random.default_rng(0)
X = RANDOM.normal(size=(96, 6, 6, 2)).astype("float32")
Y = RANDOM.integers(0, CLASSES, 96)
VALID = {"validation_data": (X[:32], Y[:32])}
LOSS = {"from_logits": True}


def built(k, **optimizer):
    """Peer k, compiled."""
    keras.utils.set_random_seed(100 + k)
    model = keras.Sequential(
        [
            keras.Input(X.shape[1:]),
            layers.Conv2D(4, 3, use_bias=False),
            layers.BatchNormalization(),
            layers.ReLU(),
            layers.Dropout(0.2, seed=k),
            layers.Flatten(),
            layers.Dense(CLASSES),
        ]
    )
    model.compile(
        keras.optimizers.SGD(0.02 * (1 + k % K), momentum=0.9, **optimizer),
        keras.losses.SparseCategoricalCrossentropy(**LOSS),
        metrics=["accuracy"],
    )
    return model


class Stops(keras.callbacks.Callback):
    """Ends the training of its peer after an epoch."""

    def __init__(self, after):
        super().__init__()
        self._after = after

    def on_epoch_end(self, epoch, logs=None):
        self.model.stop_training = epoch + 1 == self._after


class Case:
    """A ring in one process, or this rank's part of it."""

    def __init__(self, name, **fit):
        self.link = kgraft.RingLink(name=name, timeout=20) if "RANK" in os.environ else None
        self.here = range(K) if self.link is None else self.link.places(K)
        self.fit_options = {"epochs": 3, "batch_size": 16, "verbose": 0, **VALID, **fit}

    def run(self, peers=None, **options):
        """Train."""
        peers = [built(k) for k in self.here] if peers is None else peers
        self.training = kgraft.GraftingFit(peers, link=self.link, **options)
        return self.again()

    def again(self, **changes):
        """Train on; what came of it."""
        options = {"x": X, "y": Y, **self.fit_options, **changes}
        histories = self.training.fit(**options)
        found = {}
        for k, peer, history in zip(self.here, self.training.peers, histories, strict=True):
            for n, value in enumerate(peer.get_weights()):
                found[f"weight {k} {n}"] = value
            for name, values in history.history.items():
                found[f"log {k} {name}"] = np.array(values, np.float64)
        for n, (epoch, record) in enumerate(self.training.records):
            found[f"record {n}"] = np.array([epoch, *record.coefficients.ravel()])
            found[f"information {n}"] = record.information
        return found


def plain():
    return Case("plain").run()


def after_validation():
    return Case("before").run(mixer=grafting.Graft(evaluate="before"))


def pulled_between_steps():
    return Case("papa").run(mixer=grafting.Papa(every_steps=4, rate=0.5))


def shuffled_between_steps():
    return Case("wash").run(mixer=grafting.Wash(share=0.2))


def with_averages():
    case = Case("ema")
    return case.run([built(k, use_ema=True, ema_momentum=0.9) for k in case.here])


def under_teachers():
    teachers = [built(10), built(11)]
    return Case("taught").run(teachers=teachers, temperature=3.0)


def own_data():
    data = [(X[k * 8 :], Y[k * 8 :]) for k in range(K)]
    return Case("listed", x=data, y=None).run()


def the_same_batches():
    return Case("shared", shared_batches=True).run()


def stopped_by_one():
    case = Case("stopped", epochs=5)
    case.fit_options["callbacks"] = lambda k: [Stops(2)] if k == K - 1 else []
    return case.run()


def two_fits():
    case = Case("twice", epochs=1)
    case.run()
    return case.again(epochs=2)


def not_finite():
    case = Case("sick", validation_data=None)
    peers = [built(k) for k in case.here]
    if 1 in case.here:
        sick = peers[1 - case.here.start]
        sick.set_weights([np.full_like(value, np.nan) for value in sick.get_weights()])
    return case.run(peers, mixer=grafting.Graft(revive=True))


def resumed(directory):
    """Two epochs, and then a new program of four: the same as four at once."""
    first = Case("resumed-1", epochs=2)
    first.fit_options["checkpoint"] = kgraft.Checkpoints(directory, every=1)
    first.run()
    if first.link is not None:
        first.link.end()
    case = Case("resumed-2", epochs=4)
    case.fit_options["checkpoint"] = kgraft.Checkpoints(directory, every=1)
    return case.run()


def uninterrupted():
    return Case("whole", epochs=4).run()


def errors():
    """What is refused, in words, on a ring of several processes."""
    found = {}

    def refused(name, run):
        try:
            run()
        except UserError as error:
            found[name] = str(error)

    rank = int(os.environ.get("RANK", "0"))
    refused("mixers", lambda: Case("mixers").run(mixer=grafting.Graft(amplitude=0.1 + rank / 10)))
    refused("mutual", lambda: Case("mutual").run(mixer=Mutual()))
    case = Case("steps", x=X[rank * 32 :], y=Y[rank * 32 :])
    refused("steps", lambda: case.run(mixer=grafting.Papa(every_steps=2)))

    def wide():
        other = keras.Sequential(
            [keras.Input(X.shape[1:]), layers.Flatten(), layers.Dense(4 + rank)]
        )
        other.compile("sgd", keras.losses.SparseCategoricalCrossentropy(**LOSS))
        Case("shapes", validation_data=None).run([other])

    refused("shapes", wide)
    refused("batches", lambda: Case("batches", batch_size=8 + rank).run())
    saved = Case("saved", checkpoint=None if rank else tempfile.mkdtemp())
    refused("saved", saved.run)

    def mixed():
        case = Case("policies")
        keras.config.set_dtype_policy("mixed_bfloat16" if rank else "float32")
        peers = [built(k) for k in case.here]
        keras.config.set_dtype_policy("float32")
        case.run(peers)

    refused("policies", mixed)

    def waits():
        link = kgraft.RingLink(name="waits", timeout=20, on_lost_peer="wait")
        kgraft.GraftingFit([built(rank)], link=link).fit(X, Y)

    refused("waits", waits)
    callback = Case("callback", callbacks=lambda k: [kgraft.GraftCallback([built(9)])])
    refused("callback", callback.run)
    refused("link", lambda: kgraft.GraftingFit([built(0)], link="ring"))
    refused("few", lambda: Case("few").link.places(1))
    return found


CASES = (
    *(plain, after_validation, pulled_between_steps, shuffled_between_steps, with_averages),
    *(under_teachers, own_data, the_same_batches, stopped_by_one, two_fits, not_finite),
    uninterrupted,
)


def main(directory):
    """Run all cases, and leave what came of them."""
    torch.set_num_threads(1)
    rank = os.environ.get("RANK", "all")
    for case in CASES:
        np.savez(directory / f"{case.__name__}-{rank}.npz", **case())
    goes_on = resumed(directory / f"checkpoints-{'ring' if rank != 'all' else 'all'}")
    np.savez(directory / f"resumed-{rank}.npz", **goes_on)
    if rank != "all":
        (directory / f"errors-{rank}.json").write_text(json.dumps(errors()))
    assert not torch.distributed.is_initialized()
    (directory / f"done-{rank}").touch()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
