"""The tables of README and the documents, and README's picture, made of what is kept of the runs.

`python -m tests.documents` makes them anew, tables between `<!-- table: NAME -->` and
`<!-- end -->`. `NAME.lines.json` has a comparison's lines as `comparison.json` has them,
`NAME.results.jsonl` a line a run.
"""

import json
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from kgraft.analysis.statistics import Spread, paired_difference
from kgraft.runs.pictures import draw
from kgraft.runs.tables.file import read_table
from kgraft.runs.tables.show import gains_markdown

ROOT = Path(__file__).parents[1]
DOCUMENTS = (ROOT / "README.md", *sorted((ROOT / "kgraft" / "docs").glob("*.md")))
_KEPT = ROOT / "configs" / "comparisons"
_TABLE = re.compile(r"(<!-- table: ([\w.-]+) -->\n)(.*?)(<!-- end -->)", re.S)
_OTHERS = ("best", "mean_peer", "uniform_soup", "ensemble")
_FULL = ("method", "networks", "trainings", "seeds", "last epoch", "against baseline (95 % CI)")
_FULL += ("best epoch on validation", "mean of the peers", "uniform soup", "ensemble")
_SCHEDULES = ("cosine", "step", "constant")


def percent(own: dict[str, Any] | None) -> str:
    """A mean with its deviation, percent."""
    if own is None:
        return ""
    return f"{100 * own['mean']:.2f} ± {100 * own['std']:.2f}"


def points(own: dict[str, Any] | None) -> str:
    """A difference with its interval, points."""
    if own is None:
        return ""
    low, high = own["ci95"]
    return f"{100 * own['mean']:+.2f} ({100 * low:+.2f} to {100 * high:+.2f})"


def kept(name: str) -> list[dict[str, Any]]:
    """A comparison's lines."""
    return json.loads((_KEPT / f"{name}.lines.json").read_text(encoding="utf-8"))["entries"]


def rows(path: Path) -> list[dict[str, Any]]:
    """A line a run."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def markdown(columns: list[str], cells: list[list[str]]) -> str:
    """A table."""
    told = [columns, ["---"] * len(columns), *cells]
    return "".join(f"| {' | '.join(row)} |\n".replace("|  |", "| |") for row in told)


def whole(name: str) -> str:
    """All columns of a comparison with its baseline alone."""
    cells = [
        [
            own["entry"],
            str(own["networks"]),
            f"{own['trainings']:g}",
            str(own["last"]["seeds"]),
            percent(own["last"]),
            points(own["against"]["baseline"]),
            *(percent(own[key]) for key in _OTHERS),
        ]
        for own in kept(name)
    ]
    return markdown(list(_FULL), cells)


def against(name: str, headings: dict[str, str], only: tuple[str, ...] = ()) -> str:
    """What lines cost and come to, and their differences to some of them."""
    cells = [
        [
            own["entry"],
            f"{own['trainings']:g}",
            percent(own["last"]),
            *(points(own["against"][other]) for other in headings),
        ]
        for own in kept(name)
        if not only or own["entry"] in only
    ]
    return markdown(["method", "trainings", "last epoch", *headings.values()], cells)


def gains(only: tuple[str, ...]) -> str:
    """Differences to the baseline under three schedules."""
    found = {name: {own["entry"]: own for own in kept(f"schedule-{name}")} for name in _SCHEDULES}
    cells = [
        [
            entry,
            f"{found['cosine'][entry]['trainings']:g}",
            *(points(found[name][entry]["against"]["baseline"]) for name in _SCHEDULES),
        ]
        for entry in only
    ]
    return markdown(["method", "trainings", "cosine", "step", "constant rate"], cells)


def schedules() -> str:
    """The same methods under three schedules."""
    found = {name: {own["entry"]: own for own in kept(f"schedule-{name}")} for name in _SCHEDULES}
    cells = [
        [
            entry,
            f"{own['trainings']:g}",
            *(
                word
                for name in _SCHEDULES
                for word in (
                    percent(found[name][entry]["last"]),
                    points(found[name][entry]["against"]["baseline"]),
                )
            ),
        ]
        for entry, own in found["cosine"].items()
    ]
    columns = [word for name in _SCHEDULES for word in (name, "")]
    return markdown(["method", "trainings", *columns], cells)


def open_set() -> str:
    """mAP and rank-1 of what was never learnt."""
    runs = rows(_KEPT / "open-set.results.jsonl")
    last: dict[tuple[str, str], dict[int, float]] = {}
    for run in runs:
        for figure in ("mAP", "rank1"):
            (seed,) = run["seeds"]
            last.setdefault((run["entry"], figure), {})[seed] = run["figures"][figure]["last"]
    cost = {run["entry"]: run["figures"]["trainings"] for run in runs}
    cells = []
    for entry, trainings in cost.items():
        row = [entry, f"{trainings:g}"]
        for figure in ("mAP", "rank1"):
            own, base = (list(last[name, figure].values()) for name in (entry, "baseline"))
            spread, gain = Spread.of(own), paired_difference(own, base)
            told = {"mean": gain.mean, "ci95": [gain.low, gain.high]}
            row.append(percent({"mean": spread.mean, "std": spread.std}))
            row.append("" if entry == "baseline" else points(told))
        cells.append(row)
    columns = [w for name in ("mAP", "rank-1") for w in (name, "against baseline (95 % CI)")]
    return markdown(["method", "trainings", *columns], cells)


def paper(name: str, budget: str, images: str) -> str:
    """Gains of a paper's table, ours and the published ones."""
    folder = ROOT / "configs" / "tables"
    found = rows(folder / f"{name}.{budget}.results.jsonl")
    return gains_markdown(read_table(folder / f"{name}.toml", budget), found, images)


TABLES: dict[str, Callable[[], str]] = {
    "cifar100-resnet8": partial(whole, "cifar100-resnet8"),
    "cifar100-resnet8-papa": partial(whole, "cifar100-resnet8-papa"),
    "committee": partial(
        against,
        "committee",
        {
            "baseline": "against baseline (95 % CI)",
            "baseline, 5 times longer": "against 5 times longer",
            "baseline, 10 times longer": "against 10 times longer",
            "ensemble of 4": "against the ensemble",
        },
    ),
    "committee-wrn": partial(
        against,
        "committee-wrn",
        {
            "baseline": "against baseline (95 % CI)",
            "baseline, 7 times longer": "against 7 times longer",
            "ensemble of 4": "against the ensemble",
        },
    ),
    "committee-short": partial(
        against,
        "committee",
        {"baseline": "against baseline (95 % CI)"},
        (
            *("baseline", "baseline, 10 times longer", "ensemble of 4", "committee"),
            *("committee, student 3 times longer", "online", "graft+ under the committee", "lawa"),
        ),
    ),
    "schedules": schedules,
    "schedules-short": partial(
        gains, ("graft, 2 peers", "graft, 4 peers", "graft, 4 peers, dlr", "ema", "ensemble of 4")
    ),
    "fg-table-5": partial(paper, "fg-table-5", "small", "CIFAR-100"),
    "open-set": open_set,
}


def written(text: str) -> str:
    """A document with its tables made anew."""
    return _TABLE.sub(lambda found: found[1] + TABLES[found[2]]() + found[4], text)


def intervals(text: str) -> Iterator[str]:
    """Every difference with its interval, as text."""
    yield from re.findall(r"[+-]\d+\.\d\d \([+-]\d+\.\d\d to [+-]\d+\.\d\d\)", text)


def picture(path: Path) -> None:
    """README's picture: the comparison of committees as `kgraft plot` draws it, the cheap first."""
    entries = [own for own in kept("committee") if own["entry"] != "soup of online"]
    entries.sort(key=lambda own: own["trainings"])
    with tempfile.TemporaryDirectory() as folder:
        told = json.dumps({"entries": entries})
        (Path(folder) / "comparison.json").write_text(told, encoding="utf-8")
        (drawn,) = draw([Path(folder)], Path(folder) / "drawn")
        shutil.copyfile(drawn, path)


if __name__ == "__main__":
    picture(ROOT / ".github" / "gains.png")
    for document in DOCUMENTS:
        before = document.read_text(encoding="utf-8")
        document.write_text(written(before), encoding="utf-8")
        print(document.relative_to(ROOT), "changed" if written(before) != before else "as it was")
