"""Peers that teach each other: K networks on one batch, pulled towards what the others say.

Deep mutual learning (`Mutual`: towards each other's predictions) and online distillation (`Online`:
towards the mean of all).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import keras
from keras import ops

from kgraft.engines.backends.lazy import LazyBatch, gathered
from kgraft.engines.engine import Engine
from kgraft.engines.steps import Logs
from kgraft.equations import distillation_loss, mean_probabilities, widened
from kgraft.errors import UserError
from kgraft.grafting.mixer import Independent
from kgraft.settings import setting
from kgraft.training.batches import Batch, Feed, view_of
from kgraft.training.learning import Learning
from kgraft.training.peer_optimizers import PeerOptimizers, Step
from kgraft.training.students import check_logits, check_loss, check_steps, own_loss, single


@dataclass(frozen=True)
class Mutual(Independent):
    """Deep mutual learning: K networks learn from labels and from each other.

    When: to train K networks from scratch that each end better than alone, without a teacher. Cost:
    a step of each network, on one batch for all; the activations of all K are held at once.

    Args:
        weight: of the others' opinion beside a peer's own loss.
        temperature: tau of all predictions; the paper's 1.

    Raises:
        UserError: `weight` is negative, `temperature` is not positive.

    Source: Zhang et al., "Deep Mutual Learning", CVPR 2018.
    """

    name = "mutual"
    peers = 2
    least = 2
    weight: float = setting(1.0, low=0.0)
    temperature: float = setting(1.0, above=0)

    def opinions(self, logits: Mapping[str, Any]) -> dict[str, Any]:
        """What each network loses by not saying what it should, per image.

        Args:
            logits: every network's, `(batch, classes)`, by name.

        Returns:
            Nats, `(batch,)`, by name.
        """
        return {
            name: mutual_loss(
                own, [z for other, z in logits.items() if other != name], self.temperature
            )
            for name, own in logits.items()
        }


@dataclass(frozen=True)
class Online(Mutual):
    """Online distillation: K networks learn from labels and from what all K say together.

    Every network is pulled towards the mean prediction of all (its own included, no gradient goes
    to it), as a `Distiller`'s student is towards its teachers (eq. 8-12 with M = K). Each sees the
    same images in the same order, by default with crops and flips of its own, so that the mean is
    over views too.

    When: to train K networks at once of which one is kept, without teachers. Cost: K trainings, no
    more; the activations of all K are held at once.

    Args:
        weight: w of the mean prediction beside a network's own loss.
        temperature: tau of all predictions.
        views: whether every network sees augmented images of its own.

    Raises:
        UserError: `weight` is negative, `temperature` is not positive.

    Source: the mean of all as teacher as in Guo et al., "Online Knowledge Distillation via
    Collaborative Learning" (KDCL), CVPR 2020, there with views of each network's own too; networks
    that teach each other while they train as in Anil et al., "Large scale distributed neural
    network training through online distillation", ICLR 2018.
    """

    name = "online"
    peers = 4
    weight: float = setting(1.0, low=0.0)
    temperature: float = setting(2.0, above=0)
    views: bool = setting(True)

    def opinions(self, logits: Mapping[str, Any]) -> dict[str, Any]:
        """See `Mutual`."""
        said = [ops.stop_gradient(own) for own in logits.values()]
        together = mean_probabilities(said, self.temperature)
        return {
            name: distillation_loss(own, together, self.temperature) for name, own in logits.items()
        }


def mutual_loss(own_logits: Any, other_logits: Sequence[Any], temperature: float = 1.0) -> Any:
    """What a network loses by not saying what the others say, per image.

    (1 / (K - 1)) sum_l KL(p_l || p_k), times tau^2, with p = softmax(z / tau). No gradient goes to
    the others.

    Args:
        own_logits: z_k, shape `(..., classes)`.
        other_logits: z_l of the K - 1 others, each of the same shape.
        temperature: tau, positive; the paper's 1.

    Returns:
        Nats, shape `(...)`.

    Source: Zhang et al., "Deep Mutual Learning", CVPR 2018, eq. 5 to 9.
    """
    own = ops.log_softmax(widened(own_logits) / temperature, axis=-1)
    total = 0.0
    for logits in other_logits:
        theirs = ops.log_softmax(ops.stop_gradient(widened(logits)) / temperature, axis=-1)
        total = total + ops.sum(ops.exp(theirs) * (theirs - own), axis=-1)
    return temperature**2 * total / len(other_logits)


class Views(NamedTuple):
    """The inputs of a batch as each peer sees them.

    Attributes:
        of_peers: one a peer, of the same examples in the same order.
    """

    of_peers: tuple[Any, ...]


class MutualLearning(keras.Model):
    """K compiled peers as one model whose step is one step of each: CE + the others' opinion.

    Every peer keeps its own optimizer and is moved by its own loss alone, which its own
    `compute_loss` says. All K predictions are those before the step (the paper's algorithm moves
    one network after the other).

    Args:
        peers: K >= 2 compiled, built models whose outputs are logits.
        mutual: whose opinion, and how much it weighs.

    Raises:
        UserError: a metric cannot be made anew.

    Source: Zhang et al., CVPR 2018.
    """

    def __init__(self, peers: Sequence[Any], mutual: Mutual) -> None:
        super().__init__(name="mutual", dtype=peers[0].dtype_policy)
        self.mutual = mutual
        self.names = names_of(peers)
        for name, peer in zip(self.names, peers, strict=True):
            # no list: torch zeroes the gradients of attributes, and of a list's models by their
            # variables' paths, which peers have in common
            setattr(self, name, peer)
        self._own_losses = [keras.metrics.Mean(name=f"{name}_loss") for name in self.names]
        self._opinions = [keras.metrics.Mean(name=f"{name}_mutual_loss") for name in self.names]
        self._step = Step()
        self.built = all(peer.built for peer in peers)
        metrics = {name: _metrics_anew(peer, name) for name, peer in self._peers()}
        self.compile(
            optimizer=PeerOptimizers(peers, self._step),
            metrics={name: found for name, (found, _) in metrics.items()},
            weighted_metrics={name: found for name, (_, found) in metrics.items()},
            run_eagerly=any(peer.run_eagerly for peer in peers),
            jit_compile=all(peer.jit_compile for peer in peers),
            auto_scale_loss=False,
        )
        self.loss = {name: peer.loss for name, peer in self._peers()}

    def call(self, inputs: Any, training: bool | None = None) -> dict[str, Any]:
        """Every peer's logits, by name; `inputs` are all peers', or `Views`."""
        logits = {}
        for k, (name, peer) in enumerate(self._peers()):
            own = inputs.of_peers[k] if isinstance(inputs, Views) else inputs
            logits[name] = peer(own, training=training)
            self._step.added[name] = list(peer.losses)
        return logits

    def compute_loss(
        self,
        x: Any = None,
        y: Any = None,
        y_pred: Any = None,
        sample_weight: Any = None,
        training: bool = True,
    ) -> Any:
        """Sum over the peers of their own loss and of the others' opinion."""
        self._step.losses = []
        opinions = self.mutual.opinions({name: y_pred[name] for name in self.names})
        for k, (name, peer) in enumerate(self._peers()):
            weights = None if sample_weight is None else sample_weight[name]
            loss = own_loss(
                peer,
                peer._compile_loss,
                self._step.added[name],
                x=x.of_peers[k] if isinstance(x, Views) else x,
                y=y[name],
                y_pred=y_pred[name],
                sample_weight=weights,
                training=training,
            )
            opinion = opinions[name]
            if weights is not None:
                opinion = opinion * ops.cast(weights, opinion.dtype)
            opinion = ops.mean(opinion)
            images = ops.shape(y_pred[name])[0]
            self._own_losses[k].update_state(loss, sample_weight=images)
            self._opinions[k].update_state(opinion, sample_weight=images)
            self._step.losses.append(loss + self.mutual.weight * opinion)
        self._step.added = {}
        return sum(self._step.losses)

    @property
    def metrics(self) -> list[keras.metrics.Metric]:
        """The model's, and what the peers' own `compute_loss` may keep."""
        return [
            *super().metrics,
            *(metric for _, peer in self._peers() for metric in peer._metrics),
        ]

    def get_metrics_result(self) -> dict[str, Any]:
        """Metrics by name, which begins with the peer's."""
        found = _results(super().metrics)
        for name, peer in self._peers():
            kept = _results(peer._metrics)
            found = {**{f"{name}_{metric}": value for metric, value in kept.items()}, **found}
        return found

    def _peers(self) -> list[tuple[str, Any]]:
        return [(name, getattr(self, name)) for name in self.names]


class FromEachOther(Learning):
    """Peers that learn from their targets and from each other, as one joint model.

    Args:
        students: the peers' own engine.
        mutual: see `MutualLearning`.

    Raises:
        UserError: fewer than two peers; a peer that gives probabilities, is compiled with
            `from_logits=False`, or has its own `train_step` or `compute_metrics`.
    """

    shared = True

    def __init__(self, students: Engine, mutual: Mutual) -> None:
        super().__init__(students)
        if len(self.peers) < 2:
            raise UserError("mutual learning needs 2 peers or more: each learns from the others.")
        for k, peer in enumerate(self.peers, start=1):
            name = f"peer {k} ({peer.name!r})"
            check_logits(peer, name)
            check_steps(peer, name)
        self._mutual = mutual

    def told(self) -> dict[str, Any]:
        """See `Learning`."""
        return self._mutual.get_config()

    def made(self) -> Engine:
        """See `Learning`."""
        for k, peer in enumerate(self.peers, start=1):
            check_loss(peer.loss, f"peer {k} ({peer.name!r})")
        return self.students.of([MutualLearning(self.peers, self._mutual)])

    def views(self, feed: Feed) -> list[Feed]:
        """See `Learning`: each peer's own crops of the same images, where that is wanted."""
        wanted = isinstance(self._mutual, Online) and self._mutual.views
        seen = [view_of(feed, k) if wanted else None for k in range(len(self.peers))]
        return [feed if own is None else own for own in seen]

    def given(self, batches: Sequence[Batch | LazyBatch]) -> Sequence[Batch]:
        """See `Learning`: the first batch with targets and weights for each of the peers."""
        whole = [gathered(batch) for batch in batches]
        x, *rest = whole[0]
        if any(batch is not whole[0] for batch in whole):  # one order, and crops of their own
            x = Views(tuple(batch[0] for batch in whole))
        names = names_of(self.peers)
        return [(x, *(None if part is None else dict.fromkeys(names, part) for part in rest))]

    def of_each(self, logs: list[Logs]) -> list[Logs]:
        """See `Learning`: `loss`, its parts `student_loss` and `mutual_loss`, and metrics."""
        found = []
        for peer in names_of(self.peers):
            prefix, items = f"{peer}_", logs[0].items()
            own = {name.removeprefix(prefix): v for name, v in items if name.startswith(prefix)}
            student = own.pop("loss")
            total = student + self._mutual.weight * own["mutual_loss"]
            found.append({"loss": total, "student_loss": student, **own})
        return found


def names_of(peers: Sequence[Any]) -> list[str]:
    """What the peers are called in a joint model: `peer1` and so on."""
    return [f"peer{k}" for k in range(1, len(peers) + 1)]


def _metrics_anew(peer: Any, name: str) -> tuple[Any, Any]:
    """A peer's metrics, and its weighted ones, as it was compiled with, without their state."""
    settings = peer.get_compile_config()
    wanted = [settings.get("metrics"), settings.get("weighted_metrics")]
    try:
        metrics, weighted = (keras.saving.deserialize_keras_object(part) for part in wanted)
    except (TypeError, ValueError) as error:
        raise UserError(
            f"a metric of {name} ({peer.name!r}) cannot be made anew: register it with "
            "keras.saving.register_keras_serializable."
        ) from error
    return single(metrics), single(weighted)


def _results(metrics: Sequence[Any]) -> dict[str, Any]:
    """Values of some metrics by name."""
    found: dict[str, Any] = {}
    for metric in metrics:
        value = metric.result()
        found.update(value if isinstance(value, dict) else {metric.name: value})
    return found
