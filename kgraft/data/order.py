"""Which images come when, and how a peer's random numbers are drawn.

Every (seed, peer, epoch) has streams of its own, so that peers differ, and so that an epoch can be
repeated or resumed without the ones before it. All are drawn on the host by NumPy: the same numbers
on every backend.
"""

from dataclasses import replace

import numpy as np

from kgraft.data.dataset import Dataset, Split
from kgraft.errors import UserError

_ORDER, _AUGMENTATION, _VALIDATION, _WINDOWS, _WITHIN, _CROPS, _IDENTITIES = 1, 2, 3, 4, 5, 6, 7

HELD_OUT = 0.1
"""Share of every class that is held out where nobody says how much."""


def epoch_order(
    count: int, *, seed: int, peer: int, epoch: int, shuffle: bool = True
) -> np.ndarray:
    """Order in which a peer sees its images in one epoch.

    Args:
        count: Number of images.
        seed: The run's seed, not negative.
        peer: Number of the peer; peers of the same number see the same order.
        epoch: Number of the epoch.
        shuffle: False for the order in which the images lie.

    Returns:
        A permutation of 0..count-1, int64 `(count,)`.
    """
    if not shuffle:
        return np.arange(count)
    return np.random.default_rng([seed, peer, epoch, _ORDER]).permutation(count)


def order_of_windows(count: int, *, seed: int, group: int, epoch: int) -> np.ndarray:
    """Order in which the photographs of an epoch are decoded, which is cut into windows.

    Args:
        count: Number of photographs.
        seed: The run's seed, not negative.
        group: Number of the peers that share it.
        epoch: Number of the epoch.

    Returns:
        A permutation of 0..count-1, int64 `(count,)`.
    """
    return np.random.default_rng([seed, group, epoch, _WINDOWS]).permutation(count)


def order_within_window(count: int, *, seed: int, peer: int, epoch: int, window: int) -> np.ndarray:
    """Order in which a peer sees the photographs of a window.

    Args:
        count: Photographs in the window.
        seed: The run's seed, not negative.
        peer: Number of the peer.
        epoch: Number of the epoch.
        window: Number of the window.

    Returns:
        A permutation of 0..count-1, int64 `(count,)`.
    """
    rng = within_window_rng(seed=seed, peer=peer, epoch=epoch, window=window)
    return rng.permutation(count)


def within_window_rng(*, seed: int, peer: int, epoch: int, window: int) -> np.random.Generator:
    """Generator of the order in which a peer sees the photographs of a window."""
    return np.random.default_rng([seed, peer, epoch, window, _WITHIN])


def identities_rng(*, seed: int, peer: int, epoch: int) -> np.random.Generator:
    """Generator of how an epoch's images are dealt into groups of one identity."""
    return np.random.default_rng([seed, peer, epoch, _IDENTITIES])


def crops_rng(*, seed: int, peer: int, epoch: int, window: int) -> np.random.Generator:
    """Generator of a peer's crops of the photographs of a window."""
    return np.random.default_rng([seed, peer, epoch, window, _CROPS])


def order_within_batches(
    count: int, batch_size: int, *, seed: int, peer: int, epoch: int
) -> np.ndarray:
    """Order that keeps every batch's images together, as `shuffle="batch"` of `Model.fit`.

    Args:
        count: Number of images.
        batch_size: Images a step.
        seed: The run's seed, not negative.
        peer: Number of the peer.
        epoch: Number of the epoch.

    Returns:
        A permutation of 0..count-1 within each batch, int64 `(count,)`.
    """
    drawn = epoch_order(count, seed=seed, peer=peer, epoch=epoch)
    return drawn[np.argsort(drawn // batch_size, kind="stable")]


def steps_of(epoch: int, steps: int, limit: int | None, *, shuffle: bool) -> np.ndarray:
    """Which steps of its order an epoch takes that may be shorter than the data.

    A new order begins with every epoch, so the first ones are taken. Without one an epoch goes on
    where the last one has ended, as in `Model.fit`: the data's end ends an epoch too, which is
    shorter then, and the next one begins with the first step again. (Keras does so with an order
    that is shuffled, too; here an epoch's order follows from its number alone.)

    Args:
        epoch: Number of the epoch.
        steps: Batches that the data make.
        limit: At most so many of them; None for all.
        shuffle: Whether every epoch has an order of its own.

    Returns:
        Numbers of steps, int64, at most `min(steps, limit)` of them.

    Example:
        >>> [steps_of(epoch, 5, 3, shuffle=False).tolist() for epoch in range(3)]
        [[0, 1, 2], [3, 4], [0, 1, 2]]
    """
    taken = steps if limit is None else min(steps, limit)
    first = 0 if shuffle else epoch % -(-steps // taken) * taken
    return np.arange(first, min(first + taken, steps))


def augmentation_rng(*, seed: int, peer: int, epoch: int) -> np.random.Generator:
    """Generator of a peer's crops and flips in one epoch; independent of its order."""
    return np.random.default_rng([seed, peer, epoch, _AUGMENTATION])


def with_validation(dataset: Dataset, share: float | None, *, seed: int) -> Dataset:
    """A set with the validation part that it has, or with one taken out of its training images.

    Args:
        dataset: The set; `validation` is None where it has no such part.
        share: What to take, see `split_validation`; None for a tenth where the set has none.
        seed: Which images are taken.

    Raises:
        UserError: see `split_validation`; or something is to be taken, and the set has such images.
    """
    if dataset.validation is None:
        train, taken = split_validation(
            dataset.train,
            HELD_OUT if share is None else share,
            classes=dataset.classes,
            seed=seed,
        )
        return replace(dataset, train=train, validation=taken)
    if share:
        raise UserError(
            f"data set {dataset.name!r} has {len(dataset.validation)} validation images of its "
            f"own, and data.validation is {share}: expected 0, or nothing."
        )
    return replace(dataset, own_validation=True)


def split_validation(
    train: Split, share: float, *, classes: int, seed: int | None, what: str = "validation"
) -> tuple[Split, Split | None]:
    """Take a validation part out of the training images, the same share of every class.

    Args:
        train: Images to part.
        share: Share of them, above 0 and below 1, or a count from 1 on; 0 takes none.
        classes: Number of classes.
        seed: Which images of a class are taken; None for the first ones.
        what: What the share is called in errors.

    Returns:
        `(rest, validation)`, each in the order of `train`; `validation` is None for `share` 0.

    Raises:
        UserError: `share` is negative, no whole number above 1, or leaves nothing to train on.
    """
    if share == 0:
        return train, None
    is_share = 0 < share < 1
    is_count = isinstance(share, int) and 1 <= share < len(train)
    if not (is_share or is_count) or len(train) < 2:
        raise UserError(
            f"{what} {share}: expected a share in [0, 1) or a whole number below the "
            f"{len(train)} training images."
        )
    count = min(max(1, round(share * len(train))), len(train) - 1) if is_share else int(share)
    rng = None if seed is None else np.random.default_rng([seed, _VALIDATION])
    of_class = np.bincount(train.labels, minlength=classes)
    exact = of_class * count / len(train)
    taken = np.floor(exact).astype(np.int64)
    # what rounding down leaves goes to the classes that lost most by it
    most_lost = np.argsort(taken - exact, kind="stable")
    taken[most_lost[: count - taken.sum()]] += 1
    chosen = np.zeros(len(train), bool)
    for label in np.flatnonzero(taken):
        members = np.flatnonzero(train.labels == label)
        count = int(taken[label])
        own = members[:count] if rng is None else rng.choice(members, count, replace=False)
        chosen[own] = True
    return (
        Split(train.images[~chosen], train.labels[~chosen]),
        Split(train.images[chosen], train.labels[chosen]),
    )


def check_batch_size(batch_size: int, count: int, what: str = "training images") -> None:
    """Refuse a batch that the data cannot fill.

    Args:
        batch_size: Images a step.
        count: Images there are.
        what: What these are called.

    Raises:
        UserError: `batch_size` is not in 1..count.
    """
    if not 1 <= batch_size <= count:
        raise UserError(f"batch size {batch_size}: expected 1..{count}, the {what}.")
