"""What a run ends with: its networks tested and saved, and the summary of it all."""

from pathlib import Path
from typing import Any

import keras

from kgraft.analysis.records import read_metrics
from kgraft.runs.assembly import Assembly, peer_rate
from kgraft.runs.beside import Beside
from kgraft.runs.directory import RunDirectory
from kgraft.runs.recorder import Recorder
from kgraft.runs.scoring import accuracy, answers, ensemble, figures, predict
from kgraft.training.fit import GraftingFit


def summary_of(
    assembly: Assembly,
    directory: RunDirectory | Beside,
    training: GraftingFit,
    recorder: Recorder,
    teacher_rows: list[dict[str, Any]],
    teachers: list[keras.Model],
) -> dict[str, Any]:
    """What a run ends with, in the process that writes it; every other one says what it has."""
    link, seconds = assembly.link, recorder.seconds
    if link.lane:
        return {}
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
        **({"committee": scores(teachers, assembly)} if len(teachers) > 1 else {}),
        "selected_on": assembly.config.run.select,
        "seconds": round(seconds, 3),
        "images_per_second": trained_epochs(directory.path) * len(assembly.dataset.train) / seconds,
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
    row |= best_of(peer, recorder, at, assembly)
    best = recorder.best_weights[at]
    return {"row": row, "logits": [*logits], "weights": weights, "best_weights": best}


def scores(models: list[keras.Model], assembly: Assembly) -> dict[str, float | None]:
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


def best_of(model: keras.Model, recorder: Recorder, k: int, assembly: Assembly) -> dict[str, Any]:
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


def trained_epochs(run: Path) -> int:
    """Of all peers: a callback may have stopped the run, and a lost one missed some.

    Args:
        run: its directory.
    """
    return int(read_metrics(run).is_there.sum())
