"""Whether peers lie in one basin: the loss along the straight line between their weights."""

from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import log_softmax

from kgraft.errors import UserError
from kgraft.runs.assembly import in_order, in_training
from kgraft.runs.evaluation import images_of_run, peers_of_run
from kgraft.runs.finished import numbers_of, read_run, told_numbers
from kgraft.runs.scoring import predict
from kgraft.runs.selection import copy_of, first_batches
from kgraft.training.soup import reestimate_statistics

STEPS = 11


def line_between(
    path: Path,
    first: int,
    second: int,
    *,
    steps: int = STEPS,
    data_dir: str | None = None,
    trusted: bool = False,
) -> dict[str, Any]:
    """Loss and accuracy on the test images along the line from one peer to another.

    At every point, the ends too, batch statistics are estimated anew from training images: those
    of a mean are no mean of statistics.

    Args:
        path: the directory of a finished run.
        first: a peer, counted from 1.
        second: another one.
        steps: points on the line, the ends counted.
        data_dir: where prepared data sets are, if not where the run found them.
        trusted: whether functions that the run names may be called.

    Returns:
        `"peers"`, the two; `"share"` of the second one's weights, `"loss"` (cross entropy, nats)
        and `"accuracy"`, a list each; `"barrier"`, by how much at most the loss is above the
        straight line between the ends' losses (Frankle et al., ICML 2020; 0 or near it within a
        basin), nats; `"distance"`, Euclidean, between the two's trainable weights, over the mean of
        their lengths.

    Raises:
        UserError: there is no finished run, or no such peers, or one's weights are not finite; or
            its images are searched.
    """
    if first == second:
        raise UserError(f"--line {first} {second}: expected two different peers.")
    if steps < 2:
        raise UserError(f"steps {steps}: expected 2 or more, the ends among them.")
    config, summary = read_run(path)
    if not {first, second} <= {*(known := numbers_of(summary))}:
        raise UserError(
            f"--line {first} {second}: the run in {path} has peers {told_numbers(known)}."
        )
    config, dataset = images_of_run(path, config, data_dir, ("test",), trusted=trusted)
    if dataset.open_set is not None:
        raise UserError(f"{path}: its images are searched, and not classified.")
    peers = [*peers_of_run(path, config, summary, dataset, (first, second), trusted=trusted)]
    test, train = in_order(config, dataset, dataset.test), in_training(config, dataset)
    labels, model = dataset.test.labels, copy_of(peers[0])
    ends = [peer.get_weights() for peer in peers]
    for number, weights in zip((first, second), ends, strict=True):
        if not all(np.isfinite(own).all() for own in weights):
            raise UserError(f"--line {first} {second}: peer {number}'s weights are not finite.")
    shares, losses, accuracies = np.linspace(0.0, 1.0, steps), [], []
    for share in shares.tolist():
        model.set_weights([(1 - share) * a + share * b for a, b in zip(*ends, strict=True)])
        reestimate_statistics(model, first_batches(train))
        logits = predict(model, test).astype(np.float64)
        losses.append(-log_softmax(logits, axis=1)[np.arange(len(labels)), labels].mean())
        accuracies.append((logits.argmax(axis=1) == labels).mean())
    straight = losses[0] + shares * (losses[-1] - losses[0])
    flat = [np.concatenate([np.ravel(np.asarray(w)) for w in _trainable(peer)]) for peer in peers]
    return {
        "peers": [first, second],
        "share": shares.tolist(),
        "loss": [float(own) for own in losses],
        "accuracy": [float(own) for own in accuracies],
        "barrier": float(np.max(np.array(losses) - straight)),
        "distance": float(
            np.linalg.norm(flat[0] - flat[1]) / np.mean([np.linalg.norm(own) for own in flat])
        ),
    }


def _trainable(peer: Any) -> list[np.ndarray]:
    values = peer.get_weights()
    own = {id(weight) for weight in peer.trainable_weights}
    return [v for v, weight in zip(values, peer.weights, strict=True) if id(weight) in own]
