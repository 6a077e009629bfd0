"""After training: one network out of K, on the same images for all candidates."""

import json
from pathlib import Path
from typing import Any

import keras
import numpy as np

from kgraft.data import BatchStream, OrderedPhotos, PhotoStream
from kgraft.errors import UserError
from kgraft.files import check_plain, write_text
from kgraft.grafting.lawa import mean_weights
from kgraft.runs.assembly import in_order, in_training
from kgraft.runs.directory import read_json, save_uncompiled
from kgraft.runs.evaluation import images_of_run, peers_of_run
from kgraft.runs.finished import best_peer, numbers_of, read_run
from kgraft.runs.scoring import TOP, accuracy, answers, ensemble, figures, predict
from kgraft.training.soup import greedy_soup, reestimate_statistics

_MEASURED = {"networks": int, "test_accuracy": float}
_BATCHES = 100  # of the training images, for a soup's batch statistics


def select(path: Path, *, data_dir: str | None = None, trusted: bool = False) -> dict[str, Any]:
    """Measure every way to get one network, or one answer, out of a finished run's peers.

    The best peer by validation, the uniform soup, the greedy soup (by validation), both with batch
    statistics estimated anew from training images, augmented as they were in training (borders and
    flips are part of the statistics), and the ensemble. The soups are saved in the
    run's directory as `soup-uniform.keras` and `soup-greedy.keras`, the figures as `select.json`.

    Args:
        path: the directory of a finished run.
        data_dir: where prepared data sets are, if not where the run found them.
        trusted: whether functions that the run names may be called.

    Returns:
        `"best peer"`, `"uniform soup"`, `"greedy soup"` and `"ensemble"` -> a dict with
        `test_accuracy`, `validation_accuracy` (None without a validation part), `networks` that
        have to be run, and which `peers`, counted from 1, went into it.

    Raises:
        UserError: there is no finished run, or its models or images are gone.
    """
    config, summary = read_run(path)
    config, dataset = images_of_run(path, config, data_dir, ("validation", "test"), trusted=trusted)
    check_plain(path)
    everybody = numbers_of(summary)
    peers = [*peers_of_run(path, config, summary, dataset, everybody, trusted=trusted)]
    _check_alike(peers)
    test = in_order(config, dataset, dataset.test)
    held_out: tuple[BatchStream | OrderedPhotos, np.ndarray] | None = None
    if dataset.validation is not None and config.run.select != "test":
        held_out = (in_order(config, dataset, dataset.validation), dataset.validation.labels)
    train = in_training(config, dataset)

    def soup_of(weights: list[np.ndarray]) -> keras.Model:
        model = copy_of(peers[0])
        model.set_weights(weights)
        reestimate_statistics(model, first_batches(train))
        return model

    def measured(models: list[keras.Model], numbers: list[int]) -> dict[str, Any]:
        given = [answers(model, test, dataset, config.retrieval) for model in models]
        found: dict[str, Any] = {
            f"test_{name}": value
            for name, value in figures(given, dataset, config.retrieval).items()
            if name != f"top{TOP}"
        }
        found["validation_accuracy"] = None
        if held_out is not None:
            scores = ensemble([predict(model, held_out[0]) for model in models])
            found["validation_accuracy"] = accuracy(scores, held_out[1])
        return {**found, "networks": len(models), "peers": numbers}

    weights = [peer.get_weights() for peer in peers]
    best = best_peer(summary)
    uniform = soup_of(mean_weights(weights))
    results = {
        "best peer": measured([peers[everybody.index(best)]], [best]),
        "uniform soup": measured([uniform], everybody),
    }
    save_uncompiled(uniform, path / "soup-uniform.keras")
    if held_out is not None:
        stream, labels = held_out
        _, chosen = greedy_soup(
            weights, lambda part: accuracy(predict(soup_of(part), stream), labels)
        )
        greedy = soup_of(mean_weights([weights[k] for k in chosen]))
        results["greedy soup"] = measured([greedy], [everybody[k] for k in chosen])
        save_uncompiled(greedy, path / "soup-greedy.keras")
    results["ensemble"] = measured(peers, everybody)
    write_text(path / "select.json", json.dumps(results, indent=2) + "\n")
    return results


def selected(path: Path) -> dict[str, Any]:
    """What `select` found earlier, or finds now.

    Args:
        path: the directory of a finished run whose settings are known: it is trusted.
    """
    file = path / "select.json"
    if not file.is_file():
        return select(path, trusted=True)
    return read_json(file, dict.fromkeys(("best peer", "uniform soup", "ensemble"), _MEASURED))


def _check_alike(peers: list[keras.Model]) -> None:
    first, *others = [[tuple(weight.shape) for weight in peer.weights] for peer in peers]
    for k, shapes in enumerate(others, 2):
        if shapes != first:
            raise UserError(f"peer {k} is another network than peer 1: they have no soup.")


def first_batches(stream: BatchStream | PhotoStream) -> Any:
    """Training batches for a model's batch statistics, the first hundred of an epoch.

    Args:
        stream: a peer's batches.
    """
    for number, batch in enumerate(stream.epoch(0)):
        if number == _BATCHES:
            return
        yield batch


def copy_of(model: keras.Model) -> keras.Model:
    """A model of the same architecture, with weights of its own.

    Args:
        model: the other one.
    """
    return type(model).from_config(model.get_config())
