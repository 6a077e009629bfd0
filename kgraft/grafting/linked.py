"""The weights of K peers of which some are in other processes."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kgraft import equations
from kgraft.equations import Float64
from kgraft.errors import UserError
from kgraft.grafting.arrays import parted
from kgraft.grafting.population import Local, Mix, towards_mean
from kgraft.links.device_matrix import Edges
from kgraft.links.link import Link


class Linked:
    """A `Population` over a link; every rank does the same with it, in the same order.

    Nothing is assigned before all ranks have what they need, so that a mixing in which a rank is
    lost can be begun anew.

    Args:
        own: the weights of the peers here.
        link: how the others are reached.
        healthy: for each of the K peers whether its weights are finite, False for a lost one.
    """

    def __init__(self, own: Local, link: Link, healthy: Sequence[bool]) -> None:
        self._own, self._link, self._here = own, link, link.here
        self._healthy = healthy

    def is_finite(self, k: int) -> bool:
        """See `Population`."""
        return self._healthy[k]

    def weights(self, k: int, indices: Sequence[int]) -> list[Any]:
        """See `Population`."""
        return self._own.weights(self._at(k), indices)

    def on_host(self, k: int, indices: Sequence[int]) -> list[NDArray[Any]]:
        """See `Population`."""
        return self._own.on_host(self._at(k), indices)

    def of_donors(
        self, indices: Sequence[int], ring: Sequence[int | None]
    ) -> dict[int, list[NDArray[Any]]]:
        """See `Population`: donors elsewhere are guests for as long as it takes."""
        guests = self._admit_donors(indices, ring)
        shapes = [own.shape for own in self._own.on_host(0, indices)]
        found = {}
        for k in self._here:
            donor = ring[k]
            if donor is None:
                continue
            if donor in self._here:
                found[k] = self._own.on_host(self._at(donor), indices)
            else:
                found[k] = parted(guests[donor], shapes)
        return found

    def mix(self, members: Sequence[int], mix: Mix) -> None:
        """See `Population`: all ranks get all peers' weights, and each does the whole of it."""
        link, here = self._link, self._here
        others = [rank for rank in link.members if rank != link.rank]
        own = [self._own.flat(self._at(k), members) for k in here]
        sent = np.concatenate(own)
        wanted = {r: np.empty(len(link.holds[r]) * own[0].size, sent.dtype) for r in others}
        link.exchange(dict.fromkeys(others, sent), wanted)
        rows = {
            k: row
            for rank, found in wanted.items()
            for k, row in zip(
                link.holds[rank], found.reshape(len(link.holds[rank]), -1), strict=True
            )
        }
        self._own.admit(members, [*rows.values()])
        at = {k: self._at(k) for k in here} | {k: len(here) + n for n, k in enumerate(rows)}
        count = link.count
        # a lost peer is where the one before it is
        places = [
            next(at[j % count] for j in range(k, k - count, -1) if j % count in at)
            for k in range(count)
        ]
        self._own.mix(members, lambda values: _placed(mix, values, places, at))
        self._own.admit(members, [])

    def graft(
        self, groups: Sequence[Sequence[int]], alphas: Float64, ring: Sequence[int | None]
    ) -> None:
        """See `Population`: only donors' weights travel, to the ranks of their receivers."""
        members = sorted(index for group in groups for index in group)
        guests = self._admit_donors(members, ring)
        at = {k: self._at(k) for k in self._here}
        at |= {k: len(self._here) + n for n, k in enumerate(guests)}
        own = [None if (donor := ring[k]) is None else at[donor] for k in self._here]
        own += [None] * len(guests)
        self._own.graft(groups, alphas[[*at]], own)
        self._own.admit(members, [])

    def pull(self, members: Sequence[int], kept: Sequence[float], healthy: Sequence[bool]) -> None:
        """See `Population`; a mean of several dtypes is each rank's own, of all rows."""
        if not self._own.is_uniform:
            self.mix(members, partial(towards_mean, kept=kept, healthy=healthy))
            return
        well = [healthy[k] for k in self._here]
        rows = [self._own.flat(self._at(k), members) for k in self._here]
        counted = [row for row, counts in zip(rows, well, strict=True) if counts]
        mean = self._link.mean(counted, rows[0].size, rows[0].dtype)
        if mean is None:
            return
        self._own.admit(members, [mean])
        shares = [kept[k] for k in self._here]

        def moved(values: list[Any]) -> list[Any]:
            *own, towards = values
            found = zip(own, shares, well, strict=True)
            return [*(equations.blend(v, towards, s) if w else v for v, s, w in found), towards]

        self._own.mix(members, moved)
        self._own.admit(members, [])

    def counts(
        self, peers: Sequence[int], indices: Sequence[int], edges: Edges
    ) -> NDArray[np.int64] | None:
        """See `Population`."""
        return self._own.counts([self._at(k) for k in peers], indices, edges)

    def replace(self, k: int, index: int, value: Any) -> None:
        """See `Population`."""
        self._own.replace(self._at(k), index, value)

    def commit(self) -> None:
        """See `Population`: on all ranks, or on none."""
        self._link.confirm()
        self._own.commit()

    def _admit_donors(
        self, members: Sequence[int], ring: Sequence[int | None]
    ) -> dict[int, NDArray[Any]]:
        """Make guests of the donors from elsewhere; their rows by place."""
        link, here = self._link, self._here
        asked: dict[int, list[int]] = {}  # by rank, the donors here that it needs
        needed: dict[int, list[int]] = {}  # by rank, the donors there that are needed here
        for k, donor in enumerate(ring):
            if donor is None or (k in here) == (donor in here):
                continue
            whose = asked if donor in here else needed
            places = whose.setdefault(link.owner(k if donor in here else donor), [])
            if donor not in places:
                places.append(donor)
        like = self._own.flat(0, members)
        sent = {
            rank: np.concatenate([self._own.flat(self._at(k), members) for k in own])
            for rank, own in asked.items()
        }
        wanted = {r: np.empty(len(own) * like.size, like.dtype) for r, own in needed.items()}
        link.exchange(sent, wanted)
        rows = {
            k: row
            for rank, own in needed.items()
            for k, row in zip(own, wanted[rank].reshape(len(own), -1), strict=True)
        }
        self._own.admit(members, [*rows.values()])
        return rows

    def _at(self, k: int) -> int:
        """A peer's place among those here."""
        if k not in self._here:
            raise UserError(
                f"peer {k + 1} is in another process: a mixer reads and replaces the weights of "
                "peers.places, and mixes all with mix, graft or pull."
            )
        return k - self._here.start


class LinkedAverages(Linked):
    """Averages, which are assigned after their weights, whose confirmation is theirs too."""

    def commit(self) -> None:
        """See `Population`."""
        self._own.commit()


def _placed(mix: Mix, values: list[Any], places: list[int], at: dict[int, int]) -> list[Any]:
    """Values in the ring's order to a mixing, and back in the order in which they are here."""
    found = mix([values[place] for place in places])
    mixed = list(values)
    for k, place in at.items():
        mixed[place] = found[k]
    return mixed
