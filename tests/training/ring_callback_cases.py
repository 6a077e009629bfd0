"""What the ranks of `test_ring_callback` train: the program of each.

`python -m tests.training.ring_callback_cases FOLDER [CASE ...]` runs cases one after the other,
each in a ring of its own, and writes what there is to see; under torchrun, or as
`RANK` of `WORLD_SIZE`, by the directory `MEET` or with jax.distributed's `COORDINATOR`.
"""

import json
import os
import sys
import time
from pathlib import Path

import kgraft  # isort: skip  # chooses the backend before Keras is imported
import keras
import numpy as np

from kgraft.errors import LostPeerError
from kgraft.grafting import Graft
from kgraft.training.callback import GraftCallback
from tests.training.callback_cases import Listed, arrays, batches, compiled, everything

COUNTS = (22, 13, 18, 22)  # examples of each peer: epochs of 6, 4, 5 and 6 steps
EPOCHS = 3


def data_of(k):
    """A peer's own batches, in an order of its own."""
    return Listed(batches(*arrays(COUNTS[k], seed=k)))


def peer(k):
    return compiled(k + 1, learning_rate=0.05 / (k + 1))


def fit(model, k, callbacks, epochs=EPOCHS, **options):
    return model.fit(
        data_of(k), epochs=epochs, shuffle=False, verbose=0, callbacks=callbacks, **options
    )


class At(keras.callbacks.Callback):
    """Does something when an epoch ends."""

    def __init__(self, epoch, act):
        super().__init__()
        self.epoch, self.act = epoch, act

    def on_epoch_end(self, epoch, logs=None):
        if epoch == self.epoch:
            self.act(self.model)


def plain(link, rank, out):
    """One model a rank, as a script of one process has it."""
    model, grafting = peer(rank), GraftCallback(link)
    history = fit(model, rank, [grafting], validation_data=arrays(8)).history
    return [model], {
        "alpha": history["alpha"],
        "logs": sorted(history),
        "epochs": [epoch for epoch, _ in grafting.records],
        "donors": [record.donors for _, record in grafting.records],
        "config": grafting.get_config(),
    }


def with_peers(link, rank, out):
    """Two models a rank, of which one learns beside the other from its own data."""
    model, other = peer(2 * rank), peer(2 * rank + 1)
    grafting = GraftCallback([other], link=link, data=arrays(COUNTS[0], seed=9), engine="eager")
    fit(model, 3 * rank, [grafting])
    return [model, other], {"logs": sorted(model.history.history)}


def put_off(link, rank, out):
    """The authors' order, over two fits with one callback, and then a count that begins anew."""
    model, grafting = peer(rank), GraftCallback(link, evaluate="before")
    fit(model, rank, [grafting], epochs=1)
    fit(model, rank, [grafting], epochs=2)
    fit(model, rank, [grafting], epochs=2, initial_epoch=1)
    return [model], {"epochs": [epoch for epoch, _ in grafting.records]}


def early(link, rank, out):
    """One rank stops after its second epoch of six."""

    def stop(model):
        model.stop_training = rank == 1

    model = peer(rank)
    history = fit(model, rank, [GraftCallback(link), At(1, stop)], epochs=6).history
    return [model], {"count": len(history["loss"])}


def other_epochs(link, rank, out):
    fit(peer(rank), rank, [GraftCallback(link)], epochs=2 + rank)


def other_mixer(link, rank, out):
    fit(peer(rank), rank, [GraftCallback(link, mixer=Graft(amplitude=0.2 + 0.1 * rank))])


def other_network(link, rank, out):
    fit(compiled(1, filters=3 + rank), rank, [GraftCallback(link)])


def one_backup(link, rank, out):
    backup = keras.callbacks.BackupAndRestore(out / "shared")
    fit(peer(rank), rank, [GraftCallback(link), backup])


class _StoppedError(Exception):
    pass


def _raise(model):
    raise _StoppedError


def _backed_up(link, rank, out, *more):
    model = peer(rank)
    grafting = GraftCallback(link, backup_dir=out / "peers")
    backup = keras.callbacks.BackupAndRestore(out / f"model-{rank}")
    history = fit(model, rank, [grafting, backup, *more]).history
    return [model], {"epochs": [e for e, _ in grafting.records], "count": len(history["loss"])}


def resumed(link, rank, out):
    """All ranks are broken off after their second epoch, and go on from what is on the disk."""
    try:
        _backed_up(link, rank, out, At(1, _raise))
    except _StoppedError:
        names = sorted(path.name for path in (out / "peers").iterdir())
    link.end()
    found, said = _backed_up(new_link("resumed again"), rank, out)
    return found, {**said, "names": names}


def behind(link, rank, out):
    """One rank has lost its backups."""
    out = out / str(rank)
    try:
        _backed_up(link, rank, out, At(1, _raise))
    except _StoppedError:
        pass
    link.end()
    if rank:
        out = out / "other"
    _backed_up(new_link("behind again"), rank, out)


def broken_off(link, rank, out):
    """A rank is interrupted and goes on in the same process: all of them meet anew."""

    class Once(keras.callbacks.Callback):
        done = False

        def on_train_batch_end(self, batch, logs=None):
            if rank == 1 and batch == 2 and not self.done:
                self.done = True
                raise KeyboardInterrupt

    model, grafting, callbacks = peer(rank), GraftCallback(link), Once()
    try:
        fit(model, rank, [grafting, callbacks], epochs=2)
    except (KeyboardInterrupt, LostPeerError) as error:
        words = f"{type(error).__name__}: {error}"
    fit(model, rank, [grafting, callbacks], epochs=2)
    return [model], {"words": words, "epochs": [epoch for epoch, _ in grafting.records]}


def skipped(link, rank, out):
    """A rank keeps the others waiting until they go on without it, and is let in again."""
    link, gone_on = new_link("skipping", timeout=0.2, on_lost_peer="skip"), out / "gone-on"

    class Slow(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if rank == 0:
                time.sleep(0.05)
                if epoch == 3:
                    gone_on.touch()
            elif epoch == 1:
                until = time.monotonic() + 60.0
                while not gone_on.exists() and time.monotonic() < until:
                    time.sleep(0.01)

    model, grafting = peer(rank), GraftCallback(link)
    history = fit(model, rank, [grafting, Slow()], epochs=60).history
    return [model], {
        "epochs": [epoch for epoch, _ in grafting.records],
        "lost": [epoch for epoch, own in grafting.records if None in own.donors],
        "count": len(history["loss"]),
        "alpha": history["alpha"],
        "iterations": int(keras.ops.convert_to_numpy(model.optimizer.iterations)),
    }


def registered(link, rank, out):
    """The script has registered a process group."""
    import torch

    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{out / f'group-{rank}'}", rank=0, world_size=1
    )
    try:
        fit(peer(rank), rank, [GraftCallback(link)])
    finally:
        torch.distributed.destroy_process_group()


def ctrl_c(link, rank, out):
    """Ctrl-C ends one rank's program; the other is told why."""

    def interrupt(model):
        if rank == 1:
            raise KeyboardInterrupt

    fit(peer(rank), rank, [GraftCallback(link), At(1, interrupt)])


def grafting_fit(link, rank, out):
    """The same by GraftingFit, each peer in an order of its own of the same data."""
    model = peer(rank)
    fit_together([model], link)
    return [model], {}


def fit_together(peers, link=None):
    kgraft.GraftingFit(peers, link=link).fit(*arrays(), epochs=EPOCHS, batch_size=4, verbose=0)


CASES = {own.__name__: own for own in (plain, with_peers, put_off, early, other_epochs)}
CASES |= {own.__name__: own for own in (other_mixer, other_network, one_backup, resumed, behind)}
CASES |= {own.__name__: own for own in (broken_off, skipped, registered, ctrl_c, grafting_fit)}


def new_link(name, **options):
    options = {"timeout": 20.0, **options}
    return kgraft.RingLink(os.environ.get("MEET"), name=name.replace(" ", "-"), **options)


def main(folder, names):
    if "COORDINATOR" in os.environ:
        import jax

        ranks, rank = int(os.environ["WORLD_SIZE"]), int(os.environ["RANK"])
        jax.distributed.initialize(os.environ["COORDINATOR"], ranks, rank)
    for name in names:
        link = new_link(name)
        out = folder / name
        out.mkdir(exist_ok=True)
        began = time.monotonic()
        try:
            found, said = CASES[name](link, link.rank, out) or ([], {})
        except Exception as error:
            found, said = [], {"error": f"{type(error).__name__}: {error}"}
        said["seconds"], said["store"] = time.monotonic() - began, link.store.where
        for k, model in enumerate(found):
            np.savez(folder / f"{name}-{link.rank}-{k}.npz", *everything(model))
        (folder / f"{name}-{link.rank}.json").write_text(json.dumps(said))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
