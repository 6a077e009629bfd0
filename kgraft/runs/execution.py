"""One run: teachers, then grafted peers, then the test set, once."""

import time
from pathlib import Path
from typing import Any

import keras

from kgraft.runs.assembly import Assembly, peer_rate, seed_of, teacher_seed
from kgraft.runs.directory import RunDirectory, environment
from kgraft.runs.methods import Ema, method_of, mixer_of
from kgraft.runs.recorder import Observer, Recorder, Silent
from kgraft.runs.scoring import accuracy, ensemble, predict
from kgraft.training.fit import GraftingFit


def execute(assembly: Assembly, out: Path, observer: Observer | None = None) -> dict[str, Any]:
    """Train the teachers, train and graft the peers, test everything, leave a run directory.

    Args:
        assembly: what `assemble` built.
        out: the run's directory, new or empty.
        observer: who is told of every step and epoch.

    Returns:
        What `summary.json` holds.

    Raises:
        UserError: `out` is not free.
    """
    observer = observer or Silent()
    directory = RunDirectory(out, assembly.config, environment(_seeds(assembly)))
    teachers, teacher_rows = _teach(assembly, directory, observer)
    training, recorder, seconds = _graft(assembly, teachers, directory, observer)
    test, validation = assembly.test, assembly.validation
    rows, logits = [], []
    for k, peer in enumerate(training.peers):
        directory.save_model(peer, None, f"peers/peer-{k + 1}")
        directory.save_model(peer, recorder.best_weights[k], f"peers/peer-{k + 1}-best")
        logits.append(predict(peer, test))
        rows.append(
            {
                "peer": k + 1,
                "lr": peer_rate(assembly.config, k),
                "test_accuracy": accuracy(logits[-1], assembly.dataset.test.labels),
                "validation_accuracy": recorder.last[k].get("val_accuracy"),
                "last_epoch": recorder.last[k].get("epoch"),
                **_best(peer, recorder, k, assembly),
            }
        )
    summary = {
        "method": assembly.config.run.method,
        "peers": rows,
        "teachers": teacher_rows,
        "ensemble": {
            "test_accuracy": accuracy(ensemble(logits), assembly.dataset.test.labels),
            "validation_accuracy": None
            if validation is None or assembly.dataset.validation is None
            else accuracy(
                ensemble([predict(peer, validation) for peer in training.peers]),
                assembly.dataset.validation.labels,
            ),
        },
        "selected_on": assembly.config.run.select,
        "seconds": round(seconds, 3),
        "images_per_second": _trained_images(assembly) / seconds,
    }
    directory.finish(summary)
    return summary


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
        seed=config.run.seed,
        engine=config.run.engine,  # type: ignore[arg-type]
    )


def _teach(
    assembly: Assembly, directory: RunDirectory, observer: Observer
) -> tuple[list[keras.Model], list[dict[str, Any]]]:
    rows: list[dict[str, Any]] = []
    for file, teacher in zip(assembly.config.teachers.files, assembly.loaded, strict=True):
        rows.append({"teacher": len(rows) + 1, "file": file, **_scores(teacher, assembly)})
    for m, teacher in enumerate(assembly.untrained):
        phase = f"teacher {len(rows) + 1}"
        recorder = Recorder(phase, [teacher], observer, directory.add_metrics)
        stream = assembly.teacher_stream(m)
        epochs = assembly.config.run.epochs
        observer.begin(phase, 1, epochs, stream.steps)
        keras.utils.set_random_seed(teacher_seed(assembly.config, m))
        GraftingFit([teacher], engine=assembly.config.run.engine).fit(  # type: ignore[arg-type]
            stream,
            epochs=epochs,
            verbose=0,
            validation_data=assembly.validation,
            callbacks=recorder.callbacks,
        )
        directory.save_model(teacher, None, f"teachers/teacher-{len(rows) + 1}")
        rows.append(
            {
                "teacher": len(rows) + 1,
                **_scores(teacher, assembly),
                "last_epoch": recorder.last[0].get("epoch"),
                **_best(teacher, recorder, 0, assembly),
            }
        )
    return [*assembly.loaded, *assembly.untrained], rows


def _graft(
    assembly: Assembly,
    teachers: list[keras.Model],
    directory: RunDirectory,
    observer: Observer,
) -> tuple[GraftingFit, Recorder, float]:
    config = assembly.config
    training = grafting_fit(assembly, teachers)
    written = 0

    def write(rows: list[dict[str, Any]]) -> None:
        nonlocal written
        directory.add_metrics(rows)
        for epoch, record in training.records[written:]:
            directory.add_grafts(record.to_rows(epoch=epoch + 1))
        written = len(training.records)

    recorder = Recorder("peers", training.peers, observer, write)

    def callbacks(k: int) -> list[keras.callbacks.Callback]:
        averaged = (
            [keras.callbacks.SwapEMAWeights(swap_on_epoch=True)]
            if issubclass(method_of(config), Ema)
            else []
        )
        return [*averaged, *recorder.callbacks(k)]

    observer.begin("peers", len(training.peers), config.run.epochs, assembly.train.steps)
    keras.utils.set_random_seed(seed_of(config, 0))
    started = time.perf_counter()
    training.fit(
        assembly.train,
        epochs=config.run.epochs,
        verbose=0,
        validation_data=assembly.validation,
        callbacks=callbacks,
        shared_batches=config.data.shared,
    )
    return training, recorder, time.perf_counter() - started


def _scores(model: keras.Model, assembly: Assembly) -> dict[str, float | None]:
    dataset, validation = assembly.dataset, assembly.validation
    return {
        "test_accuracy": accuracy(predict(model, assembly.test), dataset.test.labels),
        "validation_accuracy": None
        if validation is None or dataset.validation is None
        else accuracy(predict(model, validation), dataset.validation.labels),
    }


def _best(model: keras.Model, recorder: Recorder, k: int, assembly: Assembly) -> dict[str, Any]:
    """The best-on-validation epoch; its test accuracy is read with the weights put back after."""
    last = model.get_weights()
    model.set_weights(recorder.best_weights[k])
    test_accuracy = accuracy(predict(model, assembly.test), assembly.dataset.test.labels)
    model.set_weights(last)
    return {
        "best_epoch": recorder.best_epoch[k],
        "best_validation_accuracy": recorder.best_accuracy[k],
        "best_test_accuracy": test_accuracy,
    }


def _trained_images(assembly: Assembly) -> int:
    return len(assembly.peers) * assembly.config.run.epochs * len(assembly.dataset.train)


def _seeds(assembly: Assembly) -> dict[str, Any]:
    config = assembly.config
    return {
        "run": config.run.seed,
        "peers": [seed_of(config, k) for k in range(len(assembly.peers))],
        "teachers": [teacher_seed(config, m) for m in range(len(assembly.untrained))],
    }
