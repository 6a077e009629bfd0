"""A finished run, evaluated again."""

from pathlib import Path

from kgraft.runs.assembly import images_of, in_order
from kgraft.runs.directory import peer_file, read_run
from kgraft.runs.keras_file import read_classifier
from kgraft.runs.scoring import TOP, accuracy, ensemble, has_top, predict, top_accuracy


def evaluate_run(
    path: Path, *, peer: int | None = None, data_dir: str | None = None
) -> dict[str, float]:
    """Test accuracy of a run's peers, from their files.

    Args:
        path: the directory of a finished run.
        peer: which peer, counted from 1; None for all of them and their ensemble.
        data_dir: where prepared data sets are, if not where the run found them.

    Returns:
        `"peer 1"` ... and, for all of them, `"ensemble"` -> accuracy on the run's test images; with
        20 classes or more also `"peer 1, top 5"` ..., where five guesses count.

    Raises:
        UserError: there is no finished run, or no such peer.
    """
    config, summary = read_run(path)
    chosen = range(1, len(summary["peers"]) + 1) if peer is None else [peer]
    files = {k: peer_file(path, summary, k) for k in chosen}
    config, dataset = images_of(config, data_dir)
    test = in_order(config, dataset, dataset.test)
    shape = dataset.test.images.shape[1:]
    logits = {
        f"peer {k}": predict(read_classifier(file, str(file), shape, dataset.classes), test)
        for k, file in files.items()
    }
    if peer is None:
        logits["ensemble"] = ensemble(list(logits.values()))
    scores: dict[str, float] = {}
    for name, part in logits.items():
        scores[name] = accuracy(part, dataset.test.labels)
        if has_top(dataset.classes):
            scores[f"{name}, top {TOP}"] = top_accuracy(part, dataset.test.labels)
    return scores
