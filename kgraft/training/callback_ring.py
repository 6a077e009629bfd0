"""The fits of a ring's processes: each trains its own models, and all go on and end together."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import keras

from kgraft.engines.backends import BACKEND
from kgraft.errors import UserError
from kgraft.links.ring_link import RingLink
from kgraft.training.alike import check_same


class RingOfFits:
    """What the processes of a ring, each with a `fit` of its own, have to agree on.

    Args:
        link: joins them.

    Attributes:
        link: joins them.
    """

    def __init__(self, link: RingLink) -> None:
        self.link = link
        self._last: int | None = None  # epoch that has begun in the ring as it is; None: unknown

    def join(self, peers: int, *, interrupted: bool) -> None:
        """Be in the ring when a `fit` begins, anew where the one before did not come to its end.

        Args:
            peers: how many models of it are here.
            interrupted: whether it did not.

        Raises:
            UserError: Keras would average the peers' gradients, or there were other models.
        """
        if reason := BACKEND.averages_in_fit():
            raise UserError(f"fit would train all ranks' models as one: {reason}.")
        link = self.link
        if link.holds and len(link.here) != peers:
            raise UserError(
                f"the link joined the ring with {len(link.here)} models, and now there are "
                f"{peers}: make another link."
            )
        if not link.holds:
            link.join(peers)
            self._last = -1
        elif interrupted or self._last is None:
            self._join_anew()

    def begin(self, said: dict[str, Any], epoch: int, *, built: bool) -> bool:
        """Make sure that all ranks are about to train the same epochs.

        Args:
            said: what must be equal on all ranks, by the words that name it.
            epoch: number of the first one, counted over all fits.
            built: whether this rank's models are.

        Returns:
            Whether those of all are.

        Raises:
            UserError: names two ranks, and in what they differ.
        """
        everybody = self.link.gather_small({"said": said, "built": built}, opens=True)
        check_same(
            {rank: found["said"] for rank, found in everybody.items()},
            "all ranks of a ring train the same epochs, and go on from backups of the same one",
        )
        if self._last is None or epoch <= self._last:  # said before in this ring
            self._join_anew()
        return all(found["built"] for found in everybody.values())

    def check_backups(self, directories: Iterable[str]) -> None:
        """Refuse one directory for the backups of two ranks.

        Args:
            directories: where Keras backs this rank's model up.

        Raises:
            UserError: names the ranks.
        """
        own = [str(Path(name).resolve()) for name in directories]
        owner: dict[str, int] = {}
        for rank, names in self.link.gather_small(own, opens=True).items():
            for name in names:
                if (first := owner.setdefault(name, rank)) != rank:
                    raise UserError(
                        f"ranks {first} and {rank} have BackupAndRestore({name!r}): every rank "
                        "needs a directory of its own, with link.rank in its name."
                    )

    def begun(self, epoch: int) -> None:
        """An epoch has begun.

        Args:
            epoch: its number.
        """
        self._last = epoch

    def _join_anew(self) -> None:
        self.link.regroup()
        self._last = -1


class StopTogether(keras.callbacks.Callback):
    """Ends a `fit` with the epoch in which that of another rank ends; last in the list.

    Args:
        anywhere: whether it is so on any rank.
    """

    def __init__(self, anywhere: Callable[[bool], bool]) -> None:
        super().__init__()
        self.anywhere = anywhere

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """See the class; who was away for some epochs ends with the others."""
        is_last = epoch + 1 == (self.params or {}).get("epochs")
        if self.anywhere(self._model.stop_training or is_last) and not is_last:
            self._model.stop_training = True
