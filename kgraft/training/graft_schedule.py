"""When peers are grafted."""

from dataclasses import dataclass
from typing import Literal

from kgraft.errors import UserError, suggest


@dataclass(frozen=True)
class GraftSchedule:
    """At the end of which epochs peers are grafted, and on which side of the validation.

    Attributes:
        every: graft at the end of every n-th epoch.
        epochs_grafted: graft at the end of the first n epochs only; None for all.
        evaluate: `"after"` grafts before the validation, so that a logged metric belongs to the
            weights that a checkpoint holds; `"before"` is the authors' order: train, validate,
            save, then graft, so that the last epoch's metrics belong to ungrafted weights.
    """

    every: int = 1
    epochs_grafted: int | None = None
    evaluate: Literal["after", "before"] = "after"

    def __post_init__(self) -> None:
        if not isinstance(self.every, int) or self.every < 1:
            raise UserError(f"every={self.every!r}: graft every n-th epoch, n at least 1.")
        if self.epochs_grafted is not None and (
            not isinstance(self.epochs_grafted, int) or self.epochs_grafted < 0
        ):
            raise UserError(
                f"epochs_grafted={self.epochs_grafted!r}: the first n epochs, n at least 0, or "
                "None."
            )
        if self.evaluate not in ("after", "before"):
            raise UserError(
                f"evaluate={self.evaluate!r}: validate after or before the grafting."
                + suggest(str(self.evaluate), ("after", "before"))
            )

    def due(self, epoch: int) -> bool:
        """Whether the end of this epoch, counted from 0, is one to graft at."""
        return (epoch + 1) % self.every == 0 and (
            self.epochs_grafted is None or epoch < self.epochs_grafted
        )
