"""Ranks that die, stop and come back: each policy held against a run that nothing happens to.

    OMP_NUM_THREADS=1 python -m tests.faults.ranks DIRECTORY [--times 10] [--seed 0]

prints a row of the table for every policy and fault, and exits with 1 where a run came to something
else than it should, or a lost rank was not named.
"""

import argparse
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.faults.victims import differences
from tests.processes import free_port

RUN = (
    *("fit", "--peers", "4", "--teachers", "0", "--batch-size", "32"),
    *("--limit-train", "256", "--limit-test", "60"),
)
RANKS = 2
TIMEOUT = 2.0
_LIMIT = 120.0  # seconds that one trial may take
_NAMED = re.compile(r"rank (\d+) on \S+ \(peers? [\d, ]+\)(?: is lost|.* was stopped)")


def run_ranks(
    out: Path, policy: str, meet: Path | None, *more: str, launcher: Sequence[str] = ()
) -> "Ranks":
    """Start all ranks of a run.

    Args:
        out: its directory.
        policy: `on_lost_peer`.
        meet: the directory that they meet in; None for a store that rank 0 makes.
        more: further arguments.
        launcher: what starts them all, e.g. torchrun; by default each is started here.
    """
    epochs = "50" if policy == "skip" else "6"  # long enough to come back in
    arguments = [*RUN, "--epochs", epochs, "--out", str(out), "--on-lost-peer", policy, *more]
    arguments += ["--set", f"ring.timeout={TIMEOUT}"]
    if meet is not None:
        arguments += ["--set", f'ring.directory="{meet}"']
    return Ranks(arguments, out.with_suffix(".log"), free_port(), launcher)


@dataclass
class Ranks:
    """The processes of one run, which write one log each."""

    arguments: list[str]
    log: Path
    port: int
    launcher: Sequence[str] = ()
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def __post_init__(self) -> None:
        for rank in range(1 if self.launcher else RANKS):
            self.processes.append(self.start(rank))

    def start(self, rank: int) -> subprocess.Popen[bytes]:
        """Start one rank, or the launcher."""
        environment = {**os.environ, "KERAS_BACKEND": "torch", "OMP_NUM_THREADS": "1"}
        program = [*self.launcher, "-m", "kgraft_cli"] if self.launcher else _program()
        if not self.launcher:
            environment |= {"RANK": str(rank), "WORLD_SIZE": str(RANKS)}
            environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(self.port)}
        with self.log_of(rank).open("ab") as log:
            return subprocess.Popen(
                [*program, *self.arguments], env=environment, stdout=log, stderr=log
            )

    def log_of(self, rank: int) -> Path:
        """What a rank says."""
        return self.log.with_suffix(f".{rank}.log")

    def said(self) -> str:
        """What all say."""
        return "\n".join(self.log_of(rank).read_text() for rank in range(len(self.processes)))

    def wait(self) -> list[int]:
        """Exit codes of all, which are killed past the limit."""
        until = time.monotonic() + _LIMIT
        for process in self.processes:
            try:
                process.wait(max(0.1, until - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        return [process.returncode for process in self.processes]

    def until(self, done: Callable[[], bool], limit: float = _LIMIT) -> float:
        """Wait for something to happen; seconds that it took."""
        began = time.monotonic()
        while not done() and time.monotonic() - began < limit:
            time.sleep(0.01)
        return time.monotonic() - began

    def named(self, victim: int) -> bool:
        """Whether somebody has said that the victim is lost."""
        return any(int(found[1]) == victim for found in _NAMED.finditer(self.said()))


def _program() -> list[str]:
    return [sys.executable, "-m", "kgraft_cli"]


@dataclass
class Row:
    """One policy and one fault."""

    policy: str
    fault: str
    times: int = 0
    wrong: list[str] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    ends: dict[str, int] = field(default_factory=dict)

    def __str__(self) -> str:
        ends = "; ".join(f"{count} {end}" for end, count in self.ends.items())
        wrong = f" WRONG: {self.wrong}" if self.wrong else ""
        told = f"{min(self.seconds):.1f} to {max(self.seconds):.1f} s" if self.seconds else "-"
        return f"| {self.policy} | {self.fault} | {self.times} | {ends}{wrong} | {told} |"


def trial(row: Row, out: Path, whole: Path, number: signal.Signals, chance: random.Random) -> None:
    """One run, one fault at a random instant of its training."""
    meet = out.with_suffix(".meet") if chance.random() < 0.5 else None
    # of a store that rank 0 holds nothing is left without it; under skip it writes the run
    victim = chance.randrange(0 if meet is not None and row.policy != "skip" else 1, RANKS)
    ranks = run_ranks(out, row.policy, meet)
    metrics = out / "metrics.jsonl"
    ranks.until(metrics.exists)
    time.sleep(chance.uniform(0.0, 1.0))
    row.times += 1
    process = ranks.processes[victim]
    if process.poll() is not None or (out / "summary.json").exists():
        row.times -= 1
        ranks.wait()
        return
    process.send_signal(number)
    took = ranks.until(lambda: ranks.named(victim) or (out / "summary.json").exists(), 30.0)
    if ranks.named(victim):
        row.seconds.append(took)
    elif not (out / "summary.json").exists():
        row.wrong.append(f"{out.name}: rank {victim} is not named: {ranks.said()[-300:]}")
    if number == signal.SIGSTOP:
        if row.policy == "stop":
            process.kill()
        else:
            process.send_signal(signal.SIGCONT)
    elif row.policy != "stop":
        process.wait()
        ranks.processes[victim] = ranks.start(victim)
    codes = ranks.wait()
    end = _end(row, out, codes)
    if row.policy == "stop" and not (out / "summary.json").exists():
        again = Ranks(["fit", "--resume", str(out)], out.with_suffix(".again"), free_port())
        if any(again.wait()):
            row.wrong.append(f"{out.name} does not go on: {again.said()[-300:]}")
        end = "named, all ended with 1, resumed to the same"
    if row.policy != "skip":
        found = [name for name in differences(whole, out) if name != "run.toml"]  # its policy
        row.wrong += [f"{out.name}: {name}" for name in found]
    row.ends[end] = row.ends.get(end, 0) + 1


def _end(row: Row, out: Path, codes: list[int]) -> str:
    if (out / "summary.json").exists():
        lost = '"lost"' in (out / "summary.json").read_text()
        if lost:
            return "went on without the lost peers"
        return "the same as without" if row.policy == "wait" else "went on, the peers came back"
    if row.policy != "stop" or 1 not in codes:
        said = "".join(out.with_suffix(f".{rank}.log").read_text()[-300:] for rank in range(RANKS))
        row.wrong.append(f"{out.name}: exit {codes}: {said}")
    return "ended"


def main() -> int:
    """Run all policies and faults.

    Returns:
        The exit code.
    """
    parser = argparse.ArgumentParser()
    parser.add_argument("directory", type=Path)
    parser.add_argument("--times", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--policies", nargs="+", default=["stop", "skip", "wait"])
    wanted = parser.parse_args()
    wanted.directory.mkdir(parents=True)
    chance = random.Random(wanted.seed)
    whole = wanted.directory / "whole"
    ranks = run_ranks(whole, "stop", None)
    assert not any(ranks.wait()), ranks.said()
    print("| on_lost_peer | fault | times | outcome | named after |\n|---|---|---|---|---|")
    wrong = 0
    for policy in wanted.policies:
        for number, name in ((signal.SIGKILL, "kill -9"), (signal.SIGSTOP, "SIGSTOP")):
            row = Row(policy, name)
            tries = 0
            while row.times < wanted.times and tries < 3 * wanted.times:
                tries += 1
                trial(
                    row, wanted.directory / f"{policy}-{number.name}-{tries}", whole, number, chance
                )
            print(row, flush=True)
            wrong += len(row.wrong)
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
