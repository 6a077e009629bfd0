"""What a run has written down, as arrays: metrics by epoch, and every grafting."""

import json
import math
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kgraft.errors import UserError, told

_MOST_GAPS = 64  # places of a table of graftings for each that is told
_NAN = float("nan")


@dataclass(frozen=True, eq=False)
class Metrics:
    """What was measured in every epoch of some networks that were trained together.

    Attributes:
        epochs: numbers of the epochs, counted from 1, int64 `(E,)`.
        models: numbers of the networks, counted from 1, int64 `(K,)`.
        values: by name, float64 `(E, K)`; nan where nothing was measured.
    """

    epochs: np.ndarray
    models: np.ndarray
    values: dict[str, np.ndarray]

    @property
    def is_there(self) -> np.ndarray:
        """Which networks an epoch has a row of: one that was lost has none; bool `(E, K)`."""
        found = np.zeros((len(self.epochs), len(self.models)), bool)
        for own in self.values.values():
            found |= ~np.isnan(own)
        return found

    @property
    def accuracy(self) -> str:
        """Which of them is the accuracy on images that were not trained on, or else on those."""
        return "val_accuracy" if "val_accuracy" in self.values else "accuracy"

    def comparable(self, name: str) -> np.ndarray | None:
        """Values that may stand beside those of other methods; None where nothing was measured.

        A loss with a teacher's part, or the other peers', may not: under `"loss"` stands that of
        the labels alone, as it is called elsewhere, and under `"student_loss"` the whole.

        Args:
            name: of `values`.

        Returns:
            float64 `(E, K)`.
        """
        if "student_loss" in self.values:
            name = {"loss": "student_loss", "student_loss": "loss"}.get(name, name)
        return self.values.get(name)


@dataclass(frozen=True, eq=False)
class Grafts:
    """What every grafting measured and did.

    Attributes:
        epochs: numbers of the epochs that ended with one, counted from 1, int64 `(E,)`.
        peers: numbers of the peers, counted from 1, int64 `(K,)`.
        groups: paths of the kernels that own a coefficient, G of them.
        information: of each kernel before the grafting, float64 `(E, K, G)`.
        coefficients: share that the peer kept of its own, 0..1, float64 `(E, K, G)`.
        donors: who gave, counted from 1, int64 `(E, K)`; 0 for nobody.
    """

    epochs: np.ndarray
    peers: np.ndarray
    groups: tuple[str, ...]
    information: np.ndarray
    coefficients: np.ndarray
    donors: np.ndarray

    @property
    def reach(self) -> float:
        """How far a coefficient is from 1/2 at most, 0.05 at least: for colours."""
        known = self.coefficients[np.isfinite(self.coefficients)]
        return float(np.abs(known - 0.5).max(initial=0.05))

    @property
    def gaps(self) -> np.ndarray:
        """Information of each kernel less its donor's, float64 `(E, K, G)`; nan without donor."""
        place = {number: k for k, number in enumerate(self.peers.tolist())}
        found = np.full_like(self.information, _NAN)
        for e, donors in enumerate(self.donors.tolist()):
            for k, donor in enumerate(donors):
                if donor in place:
                    own = self.information[e]
                    found[e, k] = own[k] - own[place[donor]]
        return found


def mean_of_known(values: np.ndarray) -> np.ndarray:
    """The mean over networks of what is finite.

    Args:
        values: `(E, K)`.

    Returns:
        float64 `(E,)`; nan where nothing is.
    """
    known = np.isfinite(values)
    count = known.sum(axis=1)
    found = np.full(len(values), _NAN)
    np.divide(np.where(known, values, 0.0).sum(axis=1), count, out=found, where=count > 0)
    return found


def read_metrics(path: Path | str, phase: str = "peers") -> Metrics:
    """The metrics of a run's phase.

    Args:
        path: the run's directory.
        phase: `"peers"`, or `"teacher 1"` and so on.

    Raises:
        UserError: there is no such file or phase, or a line of it is damaged.
    """
    file, rows = Path(path) / "metrics.jsonl", []
    for number, row in enumerate(_lines(file), start=1):
        if row.get("phase") == phase:
            _check_measured(row, f"{file}, line {number}")
            rows.append(row)
    if not rows:
        raise UserError(f"{file}: nothing about {phase!r}.")
    epochs, models = (np.unique([row[key] for row in rows]) for key in ("epoch", "model"))
    names = dict.fromkeys(
        name for row in rows for name, value in row.items() if isinstance(value, float | int)
    )
    values = {
        name: np.full((len(epochs), len(models)), _NAN)
        for name in names
        if name not in ("epoch", "model")
    }
    places = np.searchsorted(epochs, [row["epoch"] for row in rows])
    columns = np.searchsorted(models, [row["model"] for row in rows])
    for row, e, k in zip(rows, places.tolist(), columns.tolist(), strict=True):
        for name, own in values.items():
            value = row.get(name)
            own[e, k] = _NAN if value is None else value
    return Metrics(epochs, models, values)


def phases(path: Path | str) -> tuple[str, ...]:
    """What a run has trained so far, in its order.

    Args:
        path: the run's directory.

    Returns:
        `"teacher 1"` and so on, `"teachers"`, `"peers"`.

    Raises:
        UserError: there is no such file, or a line of it is damaged.
    """
    named = dict.fromkeys(row.get("phase") for row in _lines(Path(path) / "metrics.jsonl"))
    return tuple(name for name in named if isinstance(name, str))


def read_grafts(path: Path | str, phase: str = "peers") -> Grafts | None:
    """The graftings of a run's phase.

    An epoch that a run that is not finished is about to write is left out.

    Args:
        path: the run's directory.
        phase: `"peers"`, or `"teachers"` where these are grafted.

    Returns:
        None where nothing was grafted.

    Raises:
        UserError: there is no such directory, or a line of the file is damaged.
    """
    file = Path(path) / "grafts.jsonl"
    if not Path(path).is_dir():
        raise UserError(f"{path}: there is no such directory.")
    if not file.exists():
        return None
    epochs: dict[int, int] = {}
    peers: dict[int, int] = {}
    groups: dict[str, int] = {}
    at, numbers = array("q"), array("d")  # a long run has a million lines
    try:
        for row in _lines(file):
            if row.get("phase", "peers") != phase:
                continue
            at.append(epochs.setdefault(row["epoch"], len(epochs)))
            at.append(peers.setdefault(row["peer"], len(peers)))
            at.append(groups.setdefault(row["group"], len(groups)))
            for key in ("information", "coefficient"):
                numbers.append(_NAN if row[key] is None else row[key])
            numbers.append(row["donor"] or 0)
        order, ring = (np.argsort(np.array(list(own), np.int64)) for own in (epochs, peers))
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(
            f"{file}: a line is no grafting: expected epoch, peer, group, information, donor and "
            "coefficient."
        ) from None
    if not at:
        return None
    e, k, g = np.frombuffer(at, np.int64).reshape(-1, 3).T
    columns = np.frombuffer(numbers).reshape(-1, 3).T
    if _trains(file) and (e == len(epochs) - 1).sum() < len(peers) * len(groups):
        written = e < len(epochs) - 1
        if not written.any():
            return None
        e, k, g, columns = e[written], k[written], g[written], columns[:, written]
        epochs.popitem()
        order = order[order < len(epochs)]
    shape = len(epochs), len(peers), len(groups)
    if math.prod(shape) > _MOST_GAPS * len(e):
        raise UserError(f"{file}: most epochs, peers and groups have no line.")
    found = [np.full(shape, _NAN) for _ in range(2)]
    for whole, column in zip(found, columns[:2], strict=True):
        whole[e, k, g] = column
    donors = np.zeros(shape[:2], np.int64)
    donors[e, k] = columns[2]
    return Grafts(
        np.sort(list(epochs)),
        np.sort(list(peers)),
        tuple(groups),
        found[0][order][:, ring],
        found[1][order][:, ring],
        donors[order][:, ring],
    )


def _check_measured(row: dict[str, Any], where: str) -> None:
    """Refuse a line of metrics that says something else than numbers."""
    if any(type(row.get(key)) is not int for key in ("epoch", "model")):
        raise UserError(f"{where}: no whole epoch and model.")
    for name, value in row.items():
        if name != "phase" and not isinstance(value, float | int | None):
            raise UserError(f"{where}: {name} is {told(value)}; expected a number or null.")


def _trains(file: Path) -> bool:
    """Whether the run that a file is of is not finished."""
    return not (file.parent / "summary.json").exists()


def _lines(file: Path) -> Iterator[dict[str, Any]]:
    """Its lines; the last one of a run that is not finished may be about to be written."""
    trains = _trains(file)
    try:
        with file.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, start=1):
                try:
                    row = json.loads(line)
                except ValueError:
                    if trains and not line.endswith("\n"):
                        return
                    raise UserError(f"{file}, line {number}: no JSON.") from None
                if not isinstance(row, dict):
                    raise UserError(f"{file}, line {number}: expected an object.")
                yield row
    except OSError as error:
        raise UserError(f"{file}: {error.strerror or error}.") from error
