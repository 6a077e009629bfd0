"""What a finished run left, and which peers it has."""

from pathlib import Path
from typing import Any

from kgraft.errors import UserError
from kgraft.files import is_file
from kgraft.runs.config import Config, read
from kgraft.runs.directory import SUMMARY, read_json


def read_run(path: Path) -> tuple[Config, dict[str, Any]]:
    """Settings and summary of a finished run.

    Args:
        path: a run's directory.

    Raises:
        UserError: there is no run, it did not finish, or a file of it is cut off or changed.
    """
    if not is_file(path / "run.toml"):
        raise UserError(f"{path} is no run's directory: it holds no run.toml.")
    if not (path / "summary.json").is_file():
        raise UserError(f"the run in {path} did not finish: it holds no summary.json.")
    config, summary = read(path / "run.toml"), read_json(path / "summary.json", SUMMARY)
    count, told = config.peers.count, len(summary["peers"]) + len(summary.get("lost", ()))
    if told != count or len(rows_of(summary)) != len(summary["peers"]):
        raise UserError(f"{path}: summary.json has {told} peers, run.toml {count}: copy it anew.")
    return config, summary


def rows_of(summary: dict[str, Any]) -> dict[int, dict[str, Any]]:
    """By its number, counted from 1, what each peer of a finished run has come to.

    Those that were lost on the way are missing.
    """
    return {row.get("peer", k): row for k, row in enumerate(summary["peers"], start=1)}


def numbers_of(summary: dict[str, Any]) -> list[int]:
    """The peers of a finished run, counted from 1: all, but for those that were lost on the way."""
    return [*rows_of(summary)]


def told_lost(summary: dict[str, Any]) -> list[str]:
    """A sentence on the peers of a finished run that were lost on the way, or none."""
    lost = summary.get("lost", ())
    if not lost:
        return []
    were = "peer {} was" if len(lost) == 1 else "peers {} were"
    return [were.format(", ".join(map(str, lost))) + " lost on the way, and did not come back"]


def told_numbers(numbers: list[int]) -> str:
    """Some peers' numbers, in words."""
    whole = numbers == [*range(1, len(numbers) + 1)]
    return f"1..{len(numbers)}" if whole else ", ".join(map(str, numbers))


def peer_file(path: Path, summary: dict[str, Any], peer: int) -> Path:
    """The file of one peer of a finished run, in its last epoch.

    Args:
        path: the run's directory.
        summary: what `read_run` gave.
        peer: which, counted from 1.

    Raises:
        UserError: there is no such peer, or its file is gone.
    """
    if peer not in (known := numbers_of(summary)):
        raise UserError(f"--peer {peer}: the run in {path} has peers {told_numbers(known)}.")
    file = path / "peers" / f"peer-{peer}.keras"
    if not file.is_file():
        raise UserError(f"{file} is missing: the run in {path} is not whole.")
    return file


def best_peer(summary: dict[str, Any]) -> int:
    """The peer, counted from 1, with the highest validation accuracy in its last epoch.

    Without a validation part the first one, which has the lowest learning rate.

    Args:
        summary: what `read_run` gave.
    """
    scores = [row["validation_accuracy"] for row in summary["peers"]]
    known = numbers_of(summary)
    return known[0] if None in scores else known[scores.index(max(scores))]


def best_peer_file(path: Path) -> Path:
    """The file of a finished run's best peer, see `best_peer`.

    Args:
        path: the run's directory.

    Raises:
        UserError: there is no finished run, or the file is gone.
    """
    _, summary = read_run(path)
    return peer_file(path, summary, best_peer(summary))
