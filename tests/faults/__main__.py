"""The long form: kills, signals and full disks, each run resumed and compared bit for bit.

    OMP_NUM_THREADS=1 python -m tests.faults DIRECTORY [--kills 50] [--compares 20] [--seed 0]

prints a row of the README's table for every kind of fault, and exits with 1 where anything was lost
or told wrongly.
"""

import argparse
import contextlib
import os
import random
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import keras

from tests.faults.victims import (
    PLACES,
    TINY,
    End,
    as_anybody,
    calls_counted,
    dies_at,
    differences,
    forked,
    going_on,
    once_there,
    started,
)

COMPARISON = """
[comparison]
seeds = [0, 1]
baseline = "plain"
[common.run]
epochs = 2
batch_size = 32
[common.data]
limit_train = 96
limit_test = 40
[entries.plain]
run.method = "baseline"
peers.count = 1
[entries.two]
run.method = "graft"
peers.count = 2
[entries.taught]
run.method = "distill"
peers.count = 1
teachers.count = 1
teachers.files = ["@plain"]
"""


KEPT: list[Any] = []  # what a victim has arranged, for as long as it lives


@dataclass
class Row:
    """One kind of fault.

    Attributes:
        fault: what happens.
        how: how it was made to happen.
        count: how often.
        lost: what went wrong, nothing where all is well.
        seconds: from the fault to the end, each time somebody is told.
    """

    fault: str
    how: str
    count: int = 0
    lost: list[str] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    def note(self, out: Path, end: End, code: int) -> None:
        """One victim has ended, as it should in one line and with this exit code."""
        self.count += 1
        self.seconds.append(end.told_after or 0.0)
        if end.code != code or len(end.lines) != 1:
            self.lost.append(f"{out.name}: exit {end.code}: {end.said[-300:]}")

    def resumed(self, whole: Path, out: Path) -> None:
        """Go on, and compare."""
        end = forked(going_on(out))
        if end.code != 0 and not (out / "summary.json").is_file():
            self.lost.append(f"{out.name} does not go on: {end.said[-300:]}")
        self.lost += [f"{out.name}: {name}" for name in differences(whole, out)]

    def __str__(self) -> str:
        told = f"{max(self.seconds):.1f} s at most" if self.seconds else "-"
        lost = "nothing beyond the current epoch" if not self.lost else "; ".join(self.lost)
        return f"| {self.fault} | {self.how} | {self.count} | {lost} | {told} |"


def main() -> int:
    """Run all kinds of faults.

    Returns:
        The exit code.
    """
    parser = argparse.ArgumentParser()
    parser.add_argument("directory", type=Path)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--compares", type=int, default=20)
    parser.add_argument("--every-call", type=int, default=1, help="only every n-th call fails")
    parser.add_argument("--seed", type=int, default=0)
    wanted = parser.parse_args()
    wanted.directory.mkdir(parents=True)
    run = forked if keras.config.backend() == "torch" else started
    whole = wanted.directory / "whole"
    end = run([*TINY, "--out", str(whole)])
    assert end.code == 0, end.said
    print(f"a run that nothing happens to: {end.seconds:.1f} s", flush=True)
    print("\n| fault | how | times | lost | told after |\n|---|---|---|---|---|")
    lost = 0
    for row in rows(wanted, whole, end.seconds, run, random.Random(wanted.seed)):
        print(row, flush=True)
        lost += len(row.lost)
    return int(bool(lost))


def rows(
    wanted: argparse.Namespace,
    whole: Path,
    seconds: float,
    run: Callable[..., End],
    chance: random.Random,
) -> Iterator[Row]:
    """The faults, one kind after the other."""
    directory = wanted.directory
    yield kills_at_random(directory, whole, wanted.kills, seconds, run, chance)
    if run is forked:
        for place in PLACES:
            yield kills_at(place, directory, whole)
        for name in ("SIGTERM", "SIGINT"):
            yield asked(directory, whole, seconds, name, chance)
        yield twice(directory, whole, seconds)
        yield paused(directory, whole)
        yield locked(directory)
        yield vanished(directory, whole)
        yield read_only(directory, whole)
        yield full_disks(directory, whole, wanted.every_call)
    if wanted.compares:
        yield comparisons(directory, wanted.compares, run, chance)


def kills_at_random(
    directory: Path,
    whole: Path,
    count: int,
    seconds: float,
    run: Callable[..., End],
    chance: random.Random,
) -> Row:
    """SIGKILL after a random time, again and again, until the run has come to its end."""
    row = Row("kill -9", "at random instants")
    number = 0
    while row.count < count:
        number += 1
        out, tries = directory / f"random-{number}", 0
        while not (out / "summary.json").is_file():
            tries += 1
            after = chance.uniform(0.02, 1.0) * seconds if tries <= 4 else None
            end = run(going_on(out), after=after)
            row.count += end.code == -signal.SIGKILL
            if end.code not in (0, -signal.SIGKILL):
                row.lost.append(f"{out.name}: exit {end.code}: {end.said[-300:]}")
                break
        row.lost += [f"{out.name}: {name}" for name in differences(whole, out)]
    return row


def kills_at(place: str, directory: Path, whole: Path) -> Row:
    """SIGKILL at a place, at its first, second, ... n-th time; resumed and compared."""
    row = Row("kill -9", place)
    for count in (1, 2, 3, 5):
        out = directory / f"{place.replace(' ', '-')}-{count}"
        end = forked(going_on(out), dies_at(place, count))
        if end.code == 0:  # it comes there less often
            continue
        row.count += 1
        if forked(going_on(out)).code != 0 and not (out / "summary.json").is_file():
            row.lost.append(f"{out.name} does not go on")
        row.lost += [f"{out.name}: {name}" for name in differences(whole, out)]
    return row


def asked(directory: Path, whole: Path, seconds: float, name: str, chance: random.Random) -> Row:
    """A signal that asks: the step is ended, the last whole epoch saved."""
    number = signal.Signals[name]
    row = Row({"SIGINT": "Ctrl-C"}.get(name, name), "at random instants")
    for k in range(100):
        out = directory / f"{name}-{k}"
        end = forked(going_on(out), after=chance.uniform(0.1, 0.9) * seconds, by=(number,))
        if end.code == 0:  # it was over by then: the machine is faster than it was
            seconds = min(seconds, end.seconds)
            continue
        if row.count == 10:
            break
        row.count += 1
        row.seconds.append(end.told_after or 0.0)
        if end.code != 128 + number or len(end.lines) != 1:
            row.lost.append(f"{out.name}: exit {end.code}: {end.said[-300:]}")
        over = (out / "summary.json").is_file()  # it was asked after its last word
        if not over and forked(going_on(out)).code != 0:
            row.lost.append(f"{out.name} does not go on")
        row.lost += [f"{out.name}: {problem}" for problem in differences(whole, out)]
    return row


def twice(directory: Path, whole: Path, seconds: float) -> Row:
    """A second Ctrl-C does not wait, here for a step that takes for ever."""
    row = Row("Ctrl-C twice", "in a step that does not end")

    def hangs() -> None:
        from kgraft.engines.stepper import Stepper

        real, seen = Stepper.step, [0]

        def step(self, data):
            seen[0] += 1
            while seen[0] >= 20:
                time.sleep(0.1)
            return real(self, data)

        Stepper.step = step

    for k in range(3):
        out = directory / f"twice-{k}"
        end = forked(going_on(out), hangs, after=2.0 * seconds, by=(signal.SIGINT, signal.SIGINT))
        row.count += 1
        row.seconds.append((end.told_after or 0.0) - 0.5)  # between the two
        if end.code != 130:
            row.lost.append(f"{out.name}: exit {end.code}: {end.said[-300:]}")
        forked(going_on(out))
        row.lost += [f"{out.name}: {name}" for name in differences(whole, out)]
    return row


def paused(directory: Path, whole: Path) -> Row:
    """A run that is stopped and goes on is as if nothing had happened."""
    row = Row("SIGSTOP, SIGCONT", "half a second apart")
    for k in range(3):
        out = directory / f"paused-{k}"
        end = forked(going_on(out), after=0.5 + 0.5 * k, by=(signal.SIGSTOP, signal.SIGCONT))
        row.count += 1
        row.seconds.append(0.0)
        row.lost += [] if end.code == 0 else [f"{out.name}: exit {end.code}"]
        row.lost += [f"{out.name}: {name}" for name in differences(whole, out)]
    return row


def full_disks(directory: Path, whole: Path, every: int) -> Row:
    """The n-th call that reaches the disk fails, for all n; then there is room again."""
    row = Row("full disk", "an OSError at the n-th call that writes, for all n")

    def fails(count: int) -> Callable[[], None]:
        def arrange() -> None:
            KEPT.append(calls_counted(count))
            KEPT[-1].__enter__()

        return arrange

    harmless = 0
    for count in range(1, 10_000, every):
        out = directory / f"full-{count}"
        end = forked(going_on(out), fails(count))
        row.lost += differences(whole, out) if end.code == 0 else []
        harmless = harmless + 1 if end.code == 0 else 0  # a lock, say, that cannot be had
        if harmless == 10:  # there are no more calls
            break
        if end.code == 0:
            continue
        row.count += 1
        row.seconds.append(0.0)
        if end.code != 1 or len(end.lines) != 1:
            row.lost.append(f"call {count}: exit {end.code}: {end.said[-300:]}")
        again = forked(going_on(out))
        if again.code != 0 and not (out / "summary.json").is_file():
            row.lost.append(f"call {count}: {again.said[-300:]}")
        row.lost += [f"call {count}: {name}" for name in differences(whole, out)]
    return row


def vanished(directory: Path, whole: Path, count: int = 3) -> Row:
    """A directory that is gone while one trains in it, as a disk that is unmounted; then back."""
    row = Row("the directory vanishes", "renamed away while the run trains, and back")
    for k in range(count):
        out = directory / f"vanished-{k}"
        away = out.with_name(f"away-{k}")
        leave = once_there(out / "metrics.jsonl", lambda out=out, away=away: out.rename(away))
        end = forked(going_on(out), meanwhile=leave)
        row.note(out, end, 1)
        row.lost += [f"{out.name}: something was left there"] if out.exists() else []
        away.rename(out)
        row.resumed(whole, out)
    return row


def read_only(directory: Path, whole: Path, count: int = 3) -> Row:
    """A directory that loses its right to write while one trains in it; then it has it again."""
    row = Row("the directory becomes read-only", "chmod while the run trains, not as root")
    for k in range(count):
        out = directory / f"read-only-{k}"

        def all_of(mode: int, out: Path = out) -> None:
            for path in [out, *(own for own in out.rglob("*") if own.is_dir())]:
                with contextlib.suppress(FileNotFoundError):  # a checkpoint that became old
                    path.chmod(mode)

        closes = once_there(out / "metrics.jsonl", lambda all_of=all_of: all_of(0o555))
        end = forked(going_on(out), as_anybody, meanwhile=closes)
        row.note(out, end, 1)
        all_of(0o755)
        row.resumed(whole, out)
    return row


def locked(directory: Path) -> Row:
    """A second process on a directory in which one trains is refused by name."""
    row = Row("two runs in one directory", "the second while the first trains")
    out = directory / "locked"
    child = os.fork()
    if child == 0:
        os._exit(forked([*TINY, "--out", str(out)]).code)
    while not (out / "metrics.jsonl").is_file():
        time.sleep(0.05)
    end = forked(["fit", "--resume", str(out)])
    row.count, row.seconds = 1, [end.seconds]
    if end.code != 2 or "another process is training in" not in end.said:
        row.lost.append(f"exit {end.code}: {end.said[-300:]}")
    _, status = os.waitpid(child, 0)
    row.lost += [] if status == 0 else ["the first one ended too"]
    return row


def comparisons(directory: Path, count: int, run: Callable[..., End], chance: random.Random) -> Row:
    """`kgraft compare` killed at random instants, and called again."""
    row = Row("kill -9", "`kgraft compare` at random instants")
    file = directory / "comparison.toml"
    file.write_text(COMPARISON)

    def command(out: Path) -> list[str]:
        return ["compare", str(file), "--out", str(out)]

    whole = directory / "compared"
    end = run(command(whole))
    assert end.code == 0, end.said
    number = 0
    while row.count < count:
        number += 1
        out, tries = directory / f"compared-{number}", 0
        while True:
            tries += 1
            after = chance.uniform(0.05, 0.9) * end.seconds if tries <= 6 else None
            again = run(command(out), after=after)
            if again.code != -signal.SIGKILL:
                break
            row.count += 1
        if again.code != 0:
            row.lost.append(f"{out.name}: exit {again.code}: {again.said[-300:]}")
        for summary in sorted(whole.rglob("summary.json")):
            own = summary.parent
            found = differences(own, out / own.relative_to(whole), (whole, out))
            row.lost += [f"{out.name}: {own.relative_to(whole)}: {name}" for name in found]
    return row


if __name__ == "__main__":
    sys.exit(main())
