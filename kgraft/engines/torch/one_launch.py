"""All peers' training steps as one CUDA graph: each on a stream of its own, gathering included.

Stands at the end of a step's way, behind `traced_steps`: once every peer has a trace for its batch
the next step is taken by the traces, captured in the shadow of it, and from then on launched. A
batch that is still to be gathered (`LazyBatch`) is gathered inside the graph, which counts its
steps on the device: the host hands over an epoch's numbers, and nothing more.
"""

import contextlib
import logging
from collections.abc import Sequence
from typing import Any

import torch

from kgraft.engines.backends.lazy import LazyBatch, gathered
from kgraft.engines.steps import Logs, Steps, as_handed, on_device
from kgraft.engines.torch.cuda_graph import (
    Graphs,
    as_before,
    captured,
    check,
    restore,
)
from kgraft.engines.torch.trace import Trace, tensors_of
from kgraft.engines.torch.traced_steps import Form, Play, TracedSteps, form_of
from kgraft.errors import line_of

_log = logging.getLogger("kgraft")

Batches = Sequence[Any]


class OneLaunch:
    """The graphs of all of an engine's models together, one for each form of their batches.

    Args:
        graphs: of its single models, whose training steps get none unless this fails.

    Attributes:
        failed: why this process makes none any more, empty where it does.
    """

    failed = ""

    def __init__(self, graphs: Graphs) -> None:
        self._graphs = graphs
        self._feeds: list[Any] = []  # what the lazy batches are gathered by
        self._made: dict[Any, _Launch] = {}
        self._forms: dict[Any, Form] = {}  # of what lazy batches become
        self._refused = False  # of these models alone, whoever else may have one

    def take(self, steps: Sequence[Steps], batches: Batches) -> list[Logs] | None:
        """See `Backend.as_one`."""
        own = [step for step in steps if isinstance(step, TracedSteps)]
        failed = OneLaunch.failed or Graphs.failed or self._refused
        self._graphs.each = bool(failed) or len(own) < len(steps)
        if self._graphs.each or not all(step.has_plays for step in own):
            return None
        self._notice_feeds(batches)
        batches = [own if isinstance(own, LazyBatch) else _whole(own) for own in batches]
        forms = tuple(map(self._form_of, batches))
        plays = [step.play_of(form) for step, form in zip(own, forms, strict=True)]
        found = [play for play in plays if play is not None]
        if len(found) < len(plays):
            self._graphs.each = any(map(TracedSteps.is_untraced, own, forms))
            return None
        key = tuple(zip(forms, map(_numbers_of, batches), strict=True))
        launch = self._made.get(key)
        if launch is not None and launch.plays == found:
            return launch(batches)
        return self._captured(key, own, found, batches)

    def _notice_feeds(self, batches: Batches) -> None:
        """Let the graphs of earlier data go, which would keep them on the device."""
        feeds = [own.gather for own in batches if isinstance(own, LazyBatch)]
        if feeds != self._feeds:
            self._feeds = feeds
            self._made.clear()
            self._forms.clear()

    def _form_of(self, batch: Any) -> Form:
        if not isinstance(batch, LazyBatch):
            return form_of("train", batch)
        key = batch.gather, batch.size
        if key not in self._forms:
            self._forms[key] = form_of("train", _whole(batch))
        return self._forms[key]

    def _captured(
        self, key: Any, steps: list[TracedSteps], plays: list[Play], batches: Batches
    ) -> list[Logs]:
        """The next step, taken by the traces; and one graph of all, where it comes to the same."""
        given = [tensors_of(_whole(batch)) for batch in batches]
        variables = [own for step in steps for own in step.variables()]
        before = [value.clone() for value in variables]
        logs = [play.trace(own) for play, own in zip(plays, given, strict=True)]
        after = [value.clone() for value in variables]
        expected = [*after, *(value.clone() for value in tensors_of(logs))]
        most = max(play.most or 0.0 for play in plays)
        count = f"{len(plays)} peers" if len(plays) > 1 else "the peer"
        try:
            with as_before(variables, before):
                objections = [
                    play.trace.objection(own) for play, own in zip(plays, given, strict=True)
                ]
            objection = _shared(variables, before, after) or "".join(objections)
            if objection:
                self._refused = True
                _log.info("no CUDA graph of %s together: %s", count, objection)
                return logs
            with as_before(variables, before):
                launch = _Launch(plays, batches, self._graphs.pool())
            check(lambda: launch(batches), variables, before, expected, most)
        except Exception as error:
            OneLaunch.failed = line_of(error)
            self._graphs.each = True
            _log.info("no CUDA graph of %s together: %s", count, OneLaunch.failed)
        else:
            self._made[key] = launch
            _log.info("a step of %s is one CUDA graph", count)
        finally:
            restore(variables, after)
        return logs


class _Launch:
    """Traces of several models' steps as one launch.

    Args:
        plays: one a model.
        batches: one a model, lazy ones of the same form as those that it will be called with.
        pool: memory, see `Graphs`.
    """

    def __init__(self, plays: list[Play], batches: Batches, pool: Any) -> None:
        self.plays = plays
        self._inputs = [_input(batch) for batch in batches]
        self._sides = [torch.cuda.Stream() for _ in plays[1:]]
        self._load(batches)
        self._graph, (self._numbers, self._others) = captured(self._steps, pool)
        for own in self._inputs:
            own.moved()

    def __call__(self, batches: Batches) -> list[Logs]:
        """Take the next step."""
        self._load(batches)
        self._graph.replay()
        numbers = iter(self._numbers.clone().unbind())
        return [
            {name: next(numbers) if own is None else own.clone() for name, own in logs.items()}
            for logs in self._others
        ]

    def _load(self, batches: Batches) -> None:
        for own, batch in zip(self._inputs, batches, strict=True):
            own.load(batch)

    def _steps(self, stream: Any) -> tuple[torch.Tensor, list[dict[str, torch.Tensor | None]]]:
        """A step of every model; their metrics, the single numbers among them in one tensor."""
        answers: list[Logs] = []
        for side in self._sides:
            side.wait_stream(stream)
        for play, own, side in zip(self.plays, self._inputs, [None, *self._sides], strict=True):
            with contextlib.nullcontext() if side is None else torch.cuda.stream(side):
                answers.append(play.trace(own.tensors()))
        for side in self._sides:
            stream.wait_stream(side)
        numbers = [value for logs in answers for value in logs.values() if _is_number(value)]
        others = [
            {name: None if _is_number(value) else value for name, value in logs.items()}
            for logs in answers
        ]
        return torch.stack(numbers) if numbers else torch.zeros(0), others


class _Copied:
    """A batch that is copied to where the graph reads it."""

    def __init__(self, batch: Any) -> None:
        self._own = [tensor.clone() for tensor in tensors_of(_whole(batch))]

    def load(self, batch: Any) -> None:
        """Have the next step read a batch."""
        for own, given in zip(self._own, tensors_of(_whole(batch)), strict=True):
            own.copy_(given, non_blocking=True)

    def moved(self) -> None:
        """See `_Gathered`."""

    def tensors(self) -> list[torch.Tensor]:
        """What the step reads, inside the graph."""
        return self._own


class _Gathered:
    """A batch that the graph gathers, of the numbers of its epoch and the place it has come to."""

    def __init__(self, batch: LazyBatch) -> None:
        self._size, self._gather = batch.size, batch.gather
        self._numbers, self._loaded = batch.numbers.clone(), batch.numbers
        self._within = torch.arange(batch.size, device=batch.numbers.device)
        self._place = torch.zeros((), dtype=torch.int64, device=batch.numbers.device)
        self._known: int | None = None  # where that stands, as far as the host knows
        self._trace = Trace(lambda parts: self._gather(parts[0]), (self._part(),))

    def load(self, batch: LazyBatch) -> None:
        """Have the next step gather a batch; the device counts on by itself within an epoch."""
        if batch.numbers is not self._loaded:
            self._numbers.copy_(batch.numbers, non_blocking=True)
            self._loaded = batch.numbers
        if batch.start != self._known:
            self._place.fill_(batch.start)
        self._known = batch.start + self._size

    def moved(self) -> None:
        """The place is no longer known."""
        self._known = None

    def tensors(self) -> list[torch.Tensor]:
        """What the step reads, inside the graph; the next one's is further on."""
        tensors = tensors_of(self._trace([self._part()]))
        self._place += self._size
        return tensors

    def _part(self) -> torch.Tensor:
        places = (self._place + self._within).clamp(max=self._numbers.shape[-1] - 1)
        return self._numbers.index_select(-1, places)  # the warm-up may have gone past the end


def _input(batch: Any) -> _Copied | _Gathered:
    return _Gathered(batch) if isinstance(batch, LazyBatch) else _Copied(batch)


def _whole(batch: Any) -> Any:
    return on_device(as_handed(gathered(batch)))


def _numbers_of(batch: Any) -> tuple[int, ...] | None:
    """The shape of what a batch is gathered by."""
    return tuple(batch.numbers.shape) if isinstance(batch, LazyBatch) else None


def _is_number(value: Any) -> bool:
    return value.dim() == 0 and value.dtype == torch.float32


def _shared(
    variables: list[torch.Tensor], before: list[torch.Tensor], after: list[torch.Tensor]
) -> str:
    """Why models' steps would meet in a variable that they share and change, empty if not."""
    seen: set[int] = set()
    for variable, began, ended in zip(variables, before, after, strict=True):
        if variable.numel() and variable.data_ptr() in seen and not torch.equal(began, ended):
            return "the models share a variable that a step changes"
        seen.add(variable.data_ptr())
    return ""
