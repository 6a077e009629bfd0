"""`metrics.csv`: what `metrics.jsonl` has, for a spreadsheet."""

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from kgraft.files import storing, write_text
from kgraft.runs.recorder import Recorder
from kgraft.training.joint_state import StatefulCallback


class MetricsCsv(StatefulCallback):
    """A row an epoch and model in `metrics.csv`, for the last model of a phase.

    Where a run goes on, or a phase has further columns, the file is written anew: it never has
    what `metrics.jsonl` has not.

    Args:
        run: the run's directory.
        recorder: of the phase; its callback comes before this one.
    """

    def __init__(self, run: Path, recorder: Recorder) -> None:
        super().__init__()
        self._run, self._recorder = run, recorder
        self._columns: Sequence[str] = ()

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Write the epoch's rows, which `metrics.jsonl` has by now."""
        file, rows = self._run / "metrics.csv", self._recorder.rows
        if {name for row in rows for name in row} <= set(self._columns):
            with storing(file), file.open("a", encoding="utf-8") as lines:
                lines.write(_text(self._columns, rows))
            return
        with storing(file), (self._run / "metrics.jsonl").open(encoding="utf-8") as lines:
            every = [json.loads(line) for line in lines]
        self._columns = list(dict.fromkeys(name for row in every for name in row))
        heading = dict(zip(self._columns, self._columns, strict=True))
        write_text(file, _text(self._columns, [heading, *every]))


def _text(columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> str:
    text = io.StringIO()
    csv.DictWriter(text, columns, lineterminator="\n").writerows(rows)
    return text.getvalue()
