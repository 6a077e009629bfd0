"""Deep mutual learning: K networks on one batch, each pulled towards the others' predictions."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import keras
from keras import ops

from kgraft.engines.choose import Engine
from kgraft.engines.eager import Logs
from kgraft.equations import widened
from kgraft.errors import UserError
from kgraft.training.feeds import Batch


@dataclass(frozen=True)
class Mutual:
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

    weight: float = 1.0
    temperature: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.weight < math.inf:
            raise UserError(f"Mutual(weight={self.weight}): must be 0 or more.")
        if not 0 < self.temperature < math.inf:
            raise UserError(f"Mutual(temperature={self.temperature}): must be positive.")


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


class MutualLearning(keras.Model):
    """K compiled peers as one model whose step is one step of each: CE + the others' opinion.

    Every peer keeps its own optimizer and is moved by its own loss alone. All K predictions are
    those before the step (the paper's algorithm moves one network after the other).

    Args:
        peers: K >= 2 compiled, built models whose outputs are logits.
        mutual: weight and temperature.

    Raises:
        UserError: fewer than two peers, or a metric that cannot be made anew.

    Source: Zhang et al., CVPR 2018.
    """

    def __init__(self, peers: Sequence[keras.Model], mutual: Mutual) -> None:
        if len(peers) < 2:
            raise UserError("mutual learning needs 2 peers or more: each learns from the others.")
        super().__init__(name="mutual")
        self.mutual = mutual
        self.names = [f"peer{k}" for k in range(1, len(peers) + 1)]
        for name, peer in zip(self.names, peers, strict=True):
            # no list: torch zeroes the gradients of attributes, and of a list's models by their
            # variables' paths, which peers have in common
            setattr(self, name, peer)
        self._opinions = [keras.metrics.Mean(name=f"{name}_mutual_loss") for name in self.names]
        self.built = all(peer.built for peer in peers)
        owner = {id(v): peer.optimizer for peer in peers for v in peer.trainable_variables}
        self.compile(
            optimizer=keras.optimizers.MultiOptimizer(lambda variable: owner[id(variable)]),
            loss={name: peer.loss for name, peer in zip(self.names, peers, strict=True)},
            metrics={
                name: _metrics_anew(peer, k)
                for k, (name, peer) in enumerate(zip(self.names, peers, strict=True), start=1)
            },
            run_eagerly=any(peer.run_eagerly for peer in peers),
        )

    def call(self, inputs: Any, training: bool | None = None) -> dict[str, Any]:
        """Every peer's logits, by name."""
        return {name: getattr(self, name)(inputs, training=training) for name in self.names}

    def compute_loss(
        self,
        x: Any = None,
        y: Any = None,
        y_pred: Any = None,
        sample_weight: Any = None,
        training: bool = True,
    ) -> Any:
        """Sum over the peers of their own loss and of the others' opinion."""
        loss = super().compute_loss(
            x=x, y=y, y_pred=y_pred, sample_weight=sample_weight, training=training
        )
        if not training:
            return loss
        for name, metric in zip(self.names, self._opinions, strict=True):
            others = [y_pred[other] for other in self.names if other != name]
            opinion = mutual_loss(y_pred[name], others, self.mutual.temperature)
            if sample_weight is not None and sample_weight[name] is not None:
                opinion = opinion * ops.cast(sample_weight[name], opinion.dtype)
            opinion = ops.mean(opinion)
            metric.update_state(opinion, sample_weight=ops.shape(y_pred[name])[0])
            loss = loss + self.mutual.weight * opinion
        return loss


class MutualEngine:
    """Steps of K peers that learn mutually; stands where an `Engine` does.

    Args:
        peers: see `MutualLearning`.
        mutual: see `MutualLearning`.
        wanted: see `Engine`.
    """

    def __init__(self, peers: Sequence[keras.Model], mutual: Mutual, wanted: str) -> None:
        self._peers, self._mutual, self._wanted = peers, mutual, wanted
        self._joint: Engine | None = None

    @property
    def _engine(self) -> Engine:
        if self._joint is None:
            self._joint = Engine([MutualLearning(self._peers, self._mutual)], self._wanted)
        return self._joint

    def describe(self) -> str:
        """See `Engine`."""
        return f"{self._engine.describe()} of {len(self._peers)} peers"

    def choose(self) -> None:
        """See `Engine`; the peers are built by now."""
        self._engine.choose()

    def begin_epoch(self) -> None:
        """See `Engine`."""
        self._engine.begin_epoch()

    def step(self, batches: Sequence[Batch]) -> list[Logs]:
        """One step of all peers on the first batch, which is everybody's.

        Returns:
            Each peer's metrics so far: `loss`, and its parts `student_loss` and `mutual_loss`.
        """
        return self._of_each(self._engine.step([self._of_all(batches[0])])[0])

    def logs(self) -> list[dict[str, Any]]:
        """See `Engine`."""
        return self._of_each(self._engine.logs()[0])

    def end_epoch(self) -> None:
        """See `Engine`."""
        self._engine.end_epoch()

    def _of_each(self, logs: Logs) -> list[Logs]:
        found = []
        for k in range(1, len(self._peers) + 1):
            prefix = f"peer{k}_"
            own = {
                name.removeprefix(prefix): value
                for name, value in logs.items()
                if name.startswith(prefix)
            }
            student = own.pop("loss")
            total = student + self._mutual.weight * own["mutual_loss"]
            found.append({"loss": total, "student_loss": student, **own})
        return found

    def _of_all(self, batch: Batch) -> Batch:
        """The batch with targets and weights for each of the peers."""
        x, *rest = batch
        names = [f"peer{k}" for k in range(1, len(self._peers) + 1)]
        return (x, *(None if part is None else dict.fromkeys(names, part) for part in rest))


def _metrics_anew(peer: Any, k: int) -> Any:
    """A peer's metrics as it was compiled with, without their state."""
    settings = peer.get_compile_config()
    try:
        return keras.saving.deserialize_keras_object(settings.get("metrics"))
    except (TypeError, ValueError) as error:
        raise UserError(
            f"a metric of peer {k} ({peer.name!r}) cannot be made anew: register it with "
            "keras.saving.register_keras_serializable."
        ) from error
