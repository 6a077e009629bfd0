"""A finished run, evaluated again."""

from pathlib import Path

import keras

from kgraft.errors import UserError
from kgraft.runs.assembly import images_of, in_order
from kgraft.runs.directory import read_run
from kgraft.runs.run import accuracy, ensemble, predict


def evaluate_run(
    path: Path, *, peer: int | None = None, data_dir: str | None = None
) -> dict[str, float]:
    """Test accuracy of a run's peers, from their files.

    Args:
        path: the directory of a finished run.
        peer: which peer, counted from 1; None for all of them and their ensemble.
        data_dir: where prepared data sets are, if not where the run found them.

    Returns:
        `"peer 1"` ... and, for all of them, `"ensemble"` -> accuracy on the run's test images.

    Raises:
        UserError: there is no finished run, or no such peer.
    """
    config, summary = read_run(path)
    count = len(summary["peers"])
    if peer is not None and not 1 <= peer <= count:
        raise UserError(f"--peer {peer}: the run in {path} has peers 1..{count}.")
    _, dataset = images_of(config, data_dir)
    test = in_order(dataset, dataset.test)
    chosen = range(1, count + 1) if peer is None else [peer]
    logits = {f"peer {k}": predict(_load(path, k), test) for k in chosen}
    scores = {name: accuracy(part, dataset.test.labels) for name, part in logits.items()}
    if peer is None:
        scores["ensemble"] = accuracy(ensemble(list(logits.values())), dataset.test.labels)
    return scores


def _load(path: Path, peer: int) -> keras.Model:
    file = path / "peers" / f"peer-{peer}.keras"
    if not file.is_file():
        raise UserError(f"{file} is missing: the run in {path} is not whole.")
    return keras.models.load_model(file, compile=False)
