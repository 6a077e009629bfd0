"""Batches of P identities with I images of each, which losses between images need.

An identity's images are dealt anew in every epoch, I at a time; where they do not come out even,
some are seen twice. So every image is seen in every epoch. (Samplers that draw P identities at a
time leave out what is left over of an identity; here it is filled up.)

Source: Hermans, Beyer, Leibe, "In defense of the triplet loss", arXiv 1703.07737, section 2.
"""

import numpy as np

from kgraft.data.order import identities_rng
from kgraft.errors import UserError
from kgraft.settings import argument


class IdentityBatches:
    """How the images of an epoch are dealt.

    Args:
        labels: Identities, integers `(n,)`.
        batch_size: P x I images.
        instances: I, 2 or more.

    Attributes:
        instances: I.
        count: Images in an epoch, those that are seen twice being counted twice.

    Raises:
        UserError: `batch_size` is not two times `instances` or more, and a multiple of it.

    Example:
        >>> own = IdentityBatches(np.array([0, 0, 0, 1, 1, 2]), batch_size=4, instances=2)
        >>> own.count  # two groups of the first identity, and one of each other
        8
    """

    def __init__(self, labels: np.ndarray, *, batch_size: int, instances: int) -> None:
        argument("instances", instances, int, low=2)
        if batch_size % instances or batch_size < 2 * instances:
            raise UserError(
                f"batch size {batch_size} with {instances} images of an identity: expected a "
                f"multiple of {instances}, of two identities or more."
            )
        self._labels, self._batch, self.instances = labels, batch_size, instances
        order = np.argsort(labels, kind="stable")
        starts = np.flatnonzero(np.diff(labels[order])) + 1
        self._of_each = np.split(order, starts)
        groups = sum(-(-len(own) // instances) for own in self._of_each)
        self.count = groups * instances

    def dealt(self, *, seed: int, group: int, epoch: int) -> np.ndarray:
        """Which images an epoch has: I of an identity after each other.

        Args:
            seed: The run's seed.
            group: Number of the peers that share it.
            epoch: Number of the epoch.

        Returns:
            Int64 `(count,)`.
        """
        rng = identities_rng(seed=seed, peer=group, epoch=epoch)
        groups = np.concatenate([self._filled(own, rng) for own in self._of_each])
        return rng.permutation(groups.reshape(-1, self.instances)).reshape(-1)

    def _filled(self, own: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        missing = -len(own) % self.instances
        dealt = rng.permutation(own)
        # a picture twice in one group is no pair: only an identity with too few has that
        last = len(own) - len(own) % self.instances
        others = dealt[:last] if last >= missing else dealt
        more = rng.choice(others, missing, replace=len(others) < missing)
        return np.concatenate([dealt, more])

    def order(self, images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """An order of some of what was dealt, in whose batches no identity comes twice.

        Where that cannot be, for nothing else is left, it does.

        Args:
            images: Images, as `dealt` has them, int64 `(m,)`.
            rng: Where it comes from.

        Returns:
            A permutation of 0..m-1.
        """
        size = self.instances
        waiting = rng.permutation(len(images) // size).tolist()
        identity = self._labels[images[::size]].tolist()
        order: list[int] = []
        while waiting:
            batch: list[int] = []
            seen: set[int] = set()
            later: list[int] = []
            for place, group in enumerate(waiting):
                if identity[group] in seen:
                    later.append(group)
                    continue
                seen.add(identity[group])
                batch.append(group)
                if len(batch) * size == self._batch:
                    later += waiting[place + 1 :]
                    break
            missing = self._batch // size - len(batch)
            order += [*batch, *later[:missing]]
            waiting = later[missing:]
        own = np.array(order, np.int64)[:, None] * size + np.arange(size)
        return own.reshape(-1)
