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
from kgraft.parts import blamed
from kgraft.runs import callbacks as of_the_user
from kgraft.runs import identities, images
from kgraft.runs.assembly import Assembly, peer_rate, seed_of, teacher_seed
from kgraft.runs.beside import Beside
from kgraft.runs.directory import RunDirectory, make_free
from kgraft.runs.environment import environment
from kgraft.runs.methods import Ema, method_of, mixer_of, taught_epochs
from kgraft.runs.metrics_csv import MetricsCsv
from kgraft.runs.recorder import Observer, Recorder, Silent
from kgraft.runs.scoring import accuracy, answers, ensemble, figures, predict
from kgraft.runs.stopping import Stopping
from kgraft.tensorboard import TensorBoard
from kgraft.training.checkpoint_files import CheckpointFiles
from kgraft.training.checkpoints import Checkpoints
from kgraft.training.fit import GraftingFit

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
    if link.rank != 0:
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


def _summary(
    assembly: Assembly,
    directory: RunDirectory | Beside,
    training: GraftingFit,
    recorder: Recorder,
    teacher_rows: list[dict[str, Any]],
    teachers: list[keras.Model],
) -> dict[str, Any]:
    """What a run ends with, in the process that writes it; every other one says what it has."""
    link, seconds = assembly.link, recorder.seconds
    rows, logits = [], []
    ended: dict[int, tuple[Any, ...]] = {}
    for number in range(max(map(len, link.holds.values()))):  # one peer of every process at a time
        mine = number < len(training.peers)
        told = _ended(assembly, training.peers[number], recorder, number) if mine else None
        for rank, own in link.collect(told).items():
            if own is not None:
                k = link.holds[rank][number]
                like = training.peers[min(number, len(training.peers) - 1)]
                directory.save_model(like, own["weights"], f"peers/peer-{k + 1}")
                directory.save_model(like, own["best_weights"], f"peers/peer-{k + 1}-best")
                ended[k] = own["row"], tuple(own["logits"])
    if link.rank != 0:
        return {}
    for _, (row, own) in sorted(ended.items()):
        rows.append(row)
        logits.append(own)
    lost = sorted(k + 1 for k in link.lost)
    summary = {
        "method": assembly.config.run.method,
        "peers": rows,
        **({"lost": lost} if lost else {}),
        "teachers": teacher_rows,
        "ensemble": _together(logits, assembly),
        **({"committee": _scores(teachers, assembly)} if len(teachers) > 1 else {}),
        "selected_on": assembly.config.run.select,
        "seconds": round(seconds, 3),
        "images_per_second": _trained_images(assembly, recorder) / seconds,
    }
    return summary


def _ended(assembly: Assembly, peer: keras.Model, recorder: Recorder, at: int) -> dict[str, Any]:
    """What one peer has come to; `at` is its place in this process."""
    k, logits = assembly.link.here[at], _logits(peer, assembly)
    row = {
        "peer": k + 1,
        "lr": peer_rate(assembly.config, k),
        **_together([logits], assembly),  # of what is saved, a mean of epochs too
        "last_epoch": recorder.last[at].get("epoch"),
    }
    weights = peer.get_weights()
    row |= _best(peer, recorder, at, assembly)
    best = recorder.best_weights[at]
    return {"row": row, "logits": [*logits], "weights": weights, "best_weights": best}


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
        summary = _summary(self._assembly, self._directory, training, recorder, rows, teachers)
        summary |= self._waiting
        self._directory.finish(summary)
        return summary

    def _taught(self) -> tuple[list[keras.Model], list[dict[str, Any]]]:
        """Teachers, which one process trains while the others wait, and their rows."""
        link, assembly = self._assembly.link, self._assembly
        rows = self._teach()[1] if link.rank == 0 else []
        for teacher in assembly.untrained:
            teacher.set_weights(link.share(teacher.get_weights()))
        link.barrier()
        return [*assembly.loaded, *assembly.untrained], rows

    def _teach(self) -> tuple[list[keras.Model], list[dict[str, Any]]]:
        assembly, directory = self._assembly, self._directory
        rows: list[dict[str, Any]] = []
        for file, teacher in zip(assembly.config.teachers.files, assembly.loaded, strict=True):
            rows.append({"teacher": len(rows) + 1, "file": file, **_scores([teacher], assembly)})
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
                    **_scores([teacher], assembly),
                    "last_epoch": recorder.last[k].get("epoch"),
                    **_best(teacher, recorder, k, assembly),
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
        keras.utils.set_random_seed(seed_of(assembly.config, 0))
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

        saved = Checkpoints(
            self._directory.checkpoints(phase), config.checkpoint.every, config.checkpoint.keep
        )
        if (
            self._directory.has_metrics(phase)
            and not CheckpointFiles(Path(saved.directory)).epochs()
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
        if run.tensorboard and k == 0:
            name, _, number = phase.partition(" ")
            first = int(number) if number else 1
            folder = path / "tensorboard"
            found.append(TensorBoard(folder, training, name=name.removesuffix("s"), first=first))
        writes = phase != "peers" or self._assembly.link.rank == 0
        if run.csv and writes and k == len(training.peers) - 1:
            found.append(MetricsCsv(path, recorder))
        return found


def _scores(models: list[keras.Model], assembly: Assembly) -> dict[str, float | None]:
    """What one network answers, or several together, on the test and the validation images."""
    return _together([_logits(model, assembly) for model in models], assembly)


def _logits(model: keras.Model, assembly: Assembly) -> tuple[Any, Any]:
    """What a network says of the test images, its logits for the validation images or None."""
    held_out = assembly.validation if assembly.dataset.validation is not None else None
    return _tested(model, assembly), held_out and predict(model, held_out)


def _tested(model: keras.Model, assembly: Assembly) -> Any:
    return answers(model, assembly.test, assembly.dataset, assembly.config.retrieval)


def _together(logits: list[tuple[Any, Any]], assembly: Assembly) -> dict[str, float | None]:
    dataset, (test, validation) = assembly.dataset, zip(*logits, strict=True)
    found = figures(test, dataset, assembly.config.retrieval)
    return {
        **{f"test_{name}": value for name, value in found.items()},
        "validation_accuracy": None
        if dataset.validation is None or validation[0] is None
        else accuracy(ensemble(list(validation)), dataset.validation.labels),
    }


def _best(model: keras.Model, recorder: Recorder, k: int, assembly: Assembly) -> dict[str, Any]:
    """The best-on-validation epoch; its test accuracy is read with the weights put back after."""
    last = model.get_weights()
    model.set_weights(recorder.best_weights[k])
    found = figures([_tested(model, assembly)], assembly.dataset, assembly.config.retrieval)
    model.set_weights(last)
    best = found if assembly.dataset.open_set is not None else {"accuracy": found["accuracy"]}
    return {
        "best_epoch": recorder.best_epoch[k],
        "best_validation_accuracy": recorder.best_accuracy[k],
        **{f"best_test_{name}": value for name, value in best.items()},
    }


def _trained_images(assembly: Assembly, recorder: Recorder) -> int:
    """A callback may have stopped the run before its last epoch."""
    epochs: int = recorder.last[0]["epoch"]
    return assembly.link.count * epochs * len(assembly.dataset.train)


def _seeds(assembly: Assembly) -> dict[str, Any]:
    config = assembly.config
    return {
        "run": config.run.seed,
        "peers": [seed_of(config, k) for k in range(assembly.link.count)],
        "teachers": [teacher_seed(config, m) for m in range(len(assembly.untrained))],
    }
