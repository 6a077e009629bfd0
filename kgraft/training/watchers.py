"""Who watches each peer: its Keras callbacks, and the epoch that they resume at."""

import inspect
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import keras
from keras.callbacks import BackupAndRestore, Callback, CallbackList

from kgraft.engines.stepper import Stepper
from kgraft.errors import UserError
from kgraft.training.batches import Feed

Callbacks: TypeAlias = keras.callbacks.Callback | Sequence[keras.callbacks.Callback]


def watchers_of(
    peers: Sequence[keras.Model],
    callbacks: Callbacks | Callable[[int], Callbacks | None] | None,
    *,
    first: int = 0,
    verbose: Any = 0,
    add_history: bool = True,
    **params: Any,
) -> list[CallbackList]:
    """One list of callbacks a peer.

    Args:
        peers: the K models.
        callbacks: a callback, a list of them or a `CallbackList` watches the first peer; a function
            `k -> list` gives every peer its own.
        first: where in the ring the first of them is: of several processes one has its first peer.
        verbose: 0 for no progress bar of the first peer; a `CallbackList` brings its own.
        add_history: whether every peer gets a `History`, as in `fit`.
        **params: what callbacks are told, e.g. `epochs` and `steps`.

    Raises:
        UserError: something in a list is no callback, or one watches two peers.
    """
    each = callbacks if callable(callbacks) and not inspect.isclass(callbacks) else None
    watchers = []
    owner: dict[int, int] = {}
    for k, peer in enumerate(peers, start=first):
        given = each(k) if each is not None else callbacks if k == 0 else None
        found = _checked(given)
        for own in found:
            before = owner.setdefault(id(own), k)
            if before != k:
                raise UserError(
                    f"peer {before + 1} and peer {k + 1} share one {type(own).__name__}: a "
                    "callback belongs to one model, make one for each in callbacks=lambda k: [...]."
                )
        watchers.append(
            CallbackList(
                found,
                add_history=add_history,
                add_progbar=verbose != 0 and k == 0 and not isinstance(given, CallbackList),
                model=peer,
                verbose=verbose,
                **params,
            )
        )
    return watchers


def evaluate(student: Stepper, feed: Feed, watcher: CallbackList) -> dict[str, Any]:
    """Loss and metrics of a peer whose callbacks hear of every batch.

    Args:
        student: the peer.
        feed: all of its epoch 0 is taken.
        watcher: the peer's.

    Returns:
        Metric name -> value.
    """
    watcher.on_test_begin()
    hooks: dict[str, Any] = {}
    if any(_hears_of_batches(type(own)) for own in watcher.callbacks):
        hooks = {
            "before_batch": watcher.on_test_batch_begin,
            "after_batch": watcher.on_test_batch_end,
        }
    results = student.evaluate(feed.epoch(0), **hooks)
    watcher.on_test_end(results)
    return results


def check_backups(watchers: Sequence[CallbackList]) -> None:
    """Refuse Keras' `BackupAndRestore` where it would bring back some of the peers only.

    Args:
        watchers: one list of callbacks a peer.

    Raises:
        UserError: some peers have one and others have not, or two share a directory.
    """
    backups = [_backup(watcher) for watcher in watchers]
    owner: dict[Path, int] = {}
    for k, backup in enumerate(backups, start=1):
        if backup is None:
            continue
        if None in backups:
            without = backups.index(None) + 1
            raise UserError(
                f"BackupAndRestore would restore peer {k} but not peer {without}: give every peer "
                "its own, callbacks=lambda k: [BackupAndRestore(f'backup/peer{k}')]."
            )
        first = owner.setdefault(Path(backup.backup_dir).resolve(), k)
        if first != k:
            raise UserError(
                f"peer {first} and peer {k} have BackupAndRestore({str(backup.backup_dir)!r}): "
                "every peer needs a directory of its own."
            )


def backed_up(watchers: Sequence[CallbackList]) -> bool:
    """Whether any peer has Keras' `BackupAndRestore`.

    Args:
        watchers: one list of callbacks a peer.
    """
    return any(_backup(watcher) is not None for watcher in watchers)


def restored_epoch(peers: Sequence[keras.Model]) -> int | None:
    """The epoch that the callbacks of all peers resume at, None where they begin.

    Args:
        peers: the K models, after `on_train_begin` of their callbacks.

    Raises:
        UserError: they were restored at different epochs.
    """
    epochs = [peer._initial_epoch or 0 for peer in peers]
    for peer in peers:  # it was said to this fit, not to a later one of the peer alone
        peer._initial_epoch = None
    if len(set(epochs)) > 1:
        raise UserError(
            f"the peers are restored after {', '.join(map(str, epochs))} epochs: a backup of all "
            "peers at one epoch is needed; remove the backups to begin anew."
        )
    return epochs[0] or None


def ends_epochs(watchers: Sequence[CallbackList]) -> bool:
    """Whether the peers' backups are taken at the end of an epoch, before the next one begins.

    Args:
        watchers: one list of callbacks a peer.
    """
    backups = [_backup(watcher) for watcher in watchers]
    return all(backup is not None and backup.save_freq == "epoch" for backup in backups)


def _hears_of_batches(kind: type[Callback]) -> bool:
    """Whether anybody wants the metrics after each batch: they are read from the device for it."""
    return (
        kind.on_test_batch_begin is not Callback.on_test_batch_begin
        or kind.on_test_batch_end is not Callback.on_test_batch_end
    )


def _backup(watcher: CallbackList) -> BackupAndRestore | None:
    found = [own for own in watcher.callbacks if isinstance(own, BackupAndRestore)]
    return found[0] if found else None


def _checked(given: Any) -> list[Callback]:
    if isinstance(given, CallbackList):
        return list(given.callbacks)
    found = keras.tree.flatten(given) if given is not None else []
    for own in found:
        if inspect.isclass(own):
            raise UserError(f"callbacks holds the class {own.__name__}: pass {own.__name__}(...).")
        if not isinstance(own, Callback):
            raise UserError(
                f"callbacks holds a {type(own).__name__}: expected Keras callbacks, or a function "
                "k -> list of them."
            )
    return found
