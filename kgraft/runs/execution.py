"""One run: teachers, then grafted peers, then the test set, once."""

import logging
import time
from pathlib import Path
from typing import Any

import keras

from kgraft.data import BatchStream, PhotoStream
from kgraft.files import only_writer
from kgraft.grafting import Graft, Independent
from kgraft.grafting.lawa import mean_weights
from kgraft.links.link import Here
from kgraft.parts import blamed
from kgraft.runs import callbacks as of_the_user
from kgraft.runs import identities, images
from kgraft.runs.assembly import Assembly, seed_of, teacher_seed
from kgraft.runs.beside import Beside
from kgraft.runs.directory import RunDirectory, make_free
from kgraft.runs.ending import best_of, scores, summary_of
from kgraft.runs.environment import environment
from kgraft.runs.keras_file import read_model
from kgraft.runs.methods import Ema, method_of, mixer_of, taught_epochs
from kgraft.runs.metrics_csv import MetricsCsv
from kgraft.runs.recorder import Observer, Recorder, Silent
from kgraft.runs.stopping import Stopping
from kgraft.tensorboard import TensorBoard
from kgraft.training.checkpoint_files import CheckpointFiles
from kgraft.training.checkpoints import Checkpoints
from kgraft.training.fit import GraftingFit
from kgraft.training.saved_fit import place_of

_log = logging.getLogger("kgraft")


def execute(
    assembly: Assembly,
    out: Path,
    observer: Observer | None = None,
    stopping: Stopping | None = None,
    *,
    resume: bool = False,
) -> dict[str, Any]:
    """Train the teachers, train and graft the peers, test everything, leave a run directory.

    Args:
        assembly: what `assemble` built.
        out: the run's directory, new or empty.
        observer: who is told of every step and epoch.
        stopping: who may ask for an end after any step.
        resume: whether `out` holds the beginning of this run, which goes on there: with its last
            whole epoch that was saved, to the very end that it would have come to.

    Returns:
        What `summary.json` holds.

    Raises:
        UserError: `out` is not free, or another process trains in it.
        StorageError: something cannot be written; what was saved stays.
        Stopped: by `stopping`, when the last whole epoch is saved.
    """
    link, stopping = assembly.link, stopping or Stopping()
    link.check = stopping.check
    if not link.writes:
        beside = Beside(out)
        return _Execution(assembly, beside, Silent(), stopping).run()
    if not resume:
        make_free(out)
    with only_writer(out):
        if resume:
            images.check_same(out, assembly.dataset, ("train", "validation", "test"))
        told = environment(_seeds(assembly), assembly.config)
        told["images"] = images.told(assembly.dataset)
        directory = RunDirectory(out, assembly.config, told, resumed=resume)
        run = _Execution(assembly, directory, observer or Silent(), stopping)
        theirs = {name: part["file"] for name, part in told["parts"].items()}
        with blamed(run.classes, run.advice), blamed(theirs, run.advice):
            return run.run()


def grafting_fit(assembly: Assembly, teachers: list[keras.Model]) -> GraftingFit:
    """What trains a run's peers by the run's method.

    Args:
        assembly: what `assemble` built.
        teachers: of the peers, in order; none for a method without.
    """
    config = assembly.config
    return GraftingFit(
        assembly.peers,
        teachers,
        mixer=mixer_of(config),
        temperature=config.teachers.temperature,
        distillation_weight=config.teachers.weight,
        label_weight=config.teachers.labels if teachers else 1.0,
        triplet=identities.triplet_of(config, assembly.peers[0]),
        seed=config.run.seed,
        engine=config.run.engine,  # type: ignore[arg-type]
        link=assembly.link,
    )


class _Execution:
    """One run: what all of its phases have in common."""

    def __init__(
        self,
        assembly: Assembly,
        directory: RunDirectory | Beside,
        observer: Observer,
        stopping: Stopping,
    ) -> None:
        self._assembly, self._directory = assembly, directory
        self._observer, self._stopping = observer, stopping
        self._waiting: dict[str, float] = {}
        config = assembly.config
        self._watching = {  # before anything is trained that they watch
            k: of_the_user.made(config, k + 1, directory.path) for k in assembly.link.here
        }
        self.classes = of_the_user.files(config, next(iter(self._watching.values())))

    def advice(self, name: str) -> str:
        """What to do about a part that has failed in training."""
        found = [of_the_user.INSTEAD.get(name, "")]
        if any(self._directory.path.glob("checkpoints/*/epoch-*")) and (
            command := self._stopping.go_on()
        ):
            found.append(f"What was trained is saved, to go on: {command}")
        return " ".join(filter(None, found))

    def run(self) -> dict[str, Any]:
        """Train, test and tell; what `summary.json` holds, nothing where another process tells."""
        teachers, rows = self._taught()
        self._start(teachers)
        training, recorder = self._graft(teachers)
        summary = summary_of(self._assembly, self._directory, training, recorder, rows, teachers)
        summary |= self._waiting
        self._directory.finish(summary)
        return summary

    def _taught(self) -> tuple[list[keras.Model], list[dict[str, Any]]]:
        """Teachers, which one process trains while the others wait, and their rows."""
        link, assembly = self._assembly.link, self._assembly
        rows = self._teach()[1] if link.writes else []
        if link.restarted:  # the others are past this
            if not link.writes:
                self._read_teachers()
            return [*assembly.loaded, *assembly.untrained], rows
        for teacher in assembly.untrained:
            teacher.set_weights(link.share(teacher.get_weights()))
        link.share(None)
        return [*assembly.loaded, *assembly.untrained], rows

    def _read_teachers(self) -> None:
        """Take teachers from the files that another process has written."""
        first = len(self._assembly.loaded) + 1
        for number, teacher in enumerate(self._assembly.untrained, start=first):
            file = self._directory.path / "teachers" / f"teacher-{number}.keras"
            teacher.set_weights(read_model(file, str(file)).get_weights())

    def _teach(self) -> tuple[list[keras.Model], list[dict[str, Any]]]:
        assembly, directory = self._assembly, self._directory
        rows: list[dict[str, Any]] = []
        for file, teacher in zip(assembly.config.teachers.files, assembly.loaded, strict=True):
            rows.append({"teacher": len(rows) + 1, "file": file, **scores([teacher], assembly)})
        together = assembly.config.teachers.grafted and len(assembly.untrained) > 1
        groups = [assembly.untrained] if together else [[own] for own in assembly.untrained]
        for group in groups:
            first = len(rows) + 1
            numbers = range(first, first + len(group))
            ended = list(map(directory.ended_teacher, numbers, group))
            known = [row for row in ended if row is not None]
            whole = len(known) == len(group)
            rows += known if whole else self._trained_teachers(group, numbers)
        return [*assembly.loaded, *assembly.untrained], rows

    def _trained_teachers(self, group: list[keras.Model], numbers: range) -> list[dict[str, Any]]:
        """Train one teacher, or several as a ring; the rows of them."""
        assembly, directory = self._assembly, self._directory
        config, m = assembly.config, numbers[0] - 1 - len(assembly.loaded)
        several = len(group) > 1
        keras.utils.set_random_seed(teacher_seed(config, m))
        training = GraftingFit(
            group,
            mixer=Graft() if several else Independent(),
            seed=config.run.seed,
            engine=config.run.engine,  # type: ignore[arg-type]
        )
        phase = "teachers" if several else f"teacher {numbers[0]}"
        recorder = self._train(phase, training, assembly.teacher_stream(m))
        rows = []
        for k, (number, teacher) in enumerate(zip(numbers, group, strict=True)):
            directory.save_model(teacher, None, f"teachers/teacher-{number}")
            rows.append(
                {
                    "teacher": number,
                    **scores([teacher], assembly),
                    "last_epoch": recorder.last[k].get("epoch"),
                    **best_of(teacher, recorder, k, assembly),
                }
            )
            directory.end_teacher(number, rows[-1])
        return rows

    def _start(self, teachers: list[keras.Model]) -> None:
        """Give the peers their first weights, where these are teachers'."""
        start, peers = self._assembly.config.teachers.start, self._assembly.peers
        if start == "teacher":
            for k, peer in zip(self._assembly.link.here, peers, strict=True):
                peer.set_weights(teachers[k % len(teachers)].get_weights())
        elif start == "soup":
            for peer in peers:
                peer.set_weights(mean_weights([own.get_weights() for own in teachers]))

    def _graft(self, teachers: list[keras.Model]) -> tuple[GraftingFit, Recorder]:
        assembly = self._assembly
        training = grafting_fit(assembly, teachers)
        # what draws from the process' numbers draws others on each rank
        keras.utils.set_random_seed(seed_of(assembly.config, assembly.link.here.start))
        averaged = issubclass(method_of(assembly.config), Ema)
        train, began = assembly.train, time.perf_counter()
        before = train.waited if isinstance(train, PhotoStream) else 0.0  # in the teachers' time
        recorder = self._train("peers", training, train, averaged=averaged)
        if isinstance(train, PhotoStream):
            waited = (train.waited - before) / (time.perf_counter() - began)
            self._waiting = {"waiting": min(waited, 1.0)}  # several may wait at once
        return training, recorder

    def _train(
        self,
        phase: str,
        training: GraftingFit,
        stream: BatchStream | PhotoStream,
        *,
        averaged: bool = False,
    ) -> Recorder:
        """Train the models of a phase, from where it was broken off."""
        config, validation = self._assembly.config, self._assembly.validation
        link = self._assembly.link if phase == "peers" else None
        recorder = Recorder(
            phase,
            training.peers,
            self._observer,
            self._directory,
            training.records,
            self._stopping.check,
            link,
        )
        first = 0 if link is None else link.here.start

        def callbacks(k: int) -> list[keras.callbacks.Callback]:
            swaps = [keras.callbacks.SwapEMAWeights(swap_on_epoch=True)] if averaged else []
            own = self._watching[k] if phase == "peers" else []
            files = self._files(phase, training, recorder, k)
            return [*swaps, *own, *recorder.callbacks(k - first), *files]

        every = config.checkpoint.every
        if link is not None and not isinstance(link, Here) and config.ring.on_lost_peer != "stop":
            every = every or 1  # what a rank comes back with
        saved = Checkpoints(self._directory.checkpoints(phase), every, config.checkpoint.keep)
        if (
            self._directory.has_metrics(phase)
            and not CheckpointFiles(place_of(saved, link or Here())).epochs()
            and not any(Path(saved.directory).glob("rank-*"))  # else it is refused
        ):
            _log.warning(
                "%s: there is no checkpoint in %s; trained from the beginning.",
                phase,
                saved.directory,
            )
        epochs = config.run.epochs if phase == "peers" else taught_epochs(config)
        count = len(training.peers) if link is None else link.count
        self._observer.begin(phase, count, epochs, stream.steps)
        with self._stopping.held():
            training.fit(
                stream,
                epochs=epochs,
                verbose=0,
                validation_data=validation,
                callbacks=callbacks,
                shared_batches=config.data.shared and phase == "peers",
                checkpoint=saved,
            )
        return recorder

    def _files(
        self, phase: str, training: GraftingFit, recorder: Recorder, k: int
    ) -> list[keras.callbacks.Callback]:
        """What the run writes for others as it goes on."""
        run, path = self._assembly.config.run, self._directory.path
        found: list[keras.callbacks.Callback] = []
        writes = phase != "peers" or self._assembly.link.writes
        if run.tensorboard and writes and k == 0:
            name, _, number = phase.partition(" ")
            first = int(number) if number else 1
            folder = path / "tensorboard"
            found.append(TensorBoard(folder, training, name=name.removesuffix("s"), first=first))
        if run.csv and writes and k == len(training.peers) - 1:
            found.append(MetricsCsv(path, recorder))
        return found


def _seeds(assembly: Assembly) -> dict[str, Any]:
    config = assembly.config
    return {
        "run": config.run.seed,
        "peers": [seed_of(config, k) for k in range(assembly.link.count)],
        "teachers": [teacher_seed(config, m) for m in range(len(assembly.untrained))],
    }
