"""Peers that learn distances beside labels: the triplet loss of their features."""

from dataclasses import dataclass
from typing import Any

import keras
from keras import ops

from kgraft.engines.engine import Engine
from kgraft.equations import widened
from kgraft.errors import UserError
from kgraft.keras_private import graph_of, nodes_of
from kgraft.settings import check, setting
from kgraft.training.learning import Learning
from kgraft.training.students import check_steps, compile_as, own_loss


@dataclass(frozen=True)
class Triplet:
    """Features of the same label near each other, those of others far (batch-hard triplet loss).

    The loss is what a model is compiled with, plus `weight` times the mean of `triplet_loss` over
    the batch's images that have both another image of their label and one of another. Batches need
    several images a label: `kgraft.data.PhotoStream(..., instances=4)` deals them so. Sample and
    class weights multiply an image's triplet loss as they do its cross entropy, and the mean stays
    over the same images; one of weight 0 still stands beside the others.

    Training also logs `student_loss`, the model's own, and `triplet_loss`; `evaluate` and
    `val_loss` have the model's own alone.

    Args:
        weight: of the triplet loss beside the model's own.
        margin: what distances to the same and to another label should differ by; None for the soft
            margin.
        layer: the layer whose output are the features, `(batch, d)`; by default what goes into the
            last layer with weights.

    Raises:
        UserError: `weight` or `margin` is negative.

    Source: Hermans, Beyer, Leibe, "In defense of the triplet loss for person re-identification",
    arXiv 1703.07737, eq. 5.
    """

    weight: float = setting(1.0, low=0.0)
    margin: float | None = setting(0.3, low=0.0)
    layer: str | None = None

    def __post_init__(self) -> None:
        check(self)


class TripletLearner(keras.Model):
    """A model in training whose features are looked at beside its outputs.

    Args:
        student: a functional or Sequential model.
        triplet: what is asked of its features.

    Raises:
        UserError: the model has no graph, no such layer, or what comes out there are no features;
            or it has a `train_step` or `compute_metrics` of its own.
    """

    def __init__(self, student: Any, triplet: Triplet) -> None:
        super().__init__(name=student.name, dtype=student.dtype_policy)
        check_steps(student, f"peer {student.name!r}")
        self.triplet, self.student = triplet, student
        inputs, output, features = _parts(student, triplet.layer)
        # a model of its own, so that engines see the graph that is run
        self.both = keras.Model(inputs, [output, features], name=f"{student.name}_both")
        self.built = True
        self._student_loss = keras.metrics.Mean(name="student_loss")
        self._triplet_loss = keras.metrics.Mean(name="triplet_loss")
        self._features: Any = None

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        """The student's outputs; in training its features are kept for the loss."""
        if not training:
            return self.student(inputs, training=training)
        output, self._features = self.both(inputs, training=True)
        return output

    def compute_loss(
        self,
        x: Any = None,
        y: Any = None,
        y_pred: Any = None,
        sample_weight: Any = None,
        training: bool = True,
    ) -> Any:
        """The student's own loss, in training with that of its features.

        Args:
            x: a batch of inputs.
            y: its labels.
            y_pred: the student's outputs for it.
            sample_weight: weights of the images, in both alike.
            training: whether the features count.

        Returns:
            Scalar loss.
        """
        loss = own_loss(
            self.student,
            self._compile_loss,
            self.losses,
            x=x,
            y=y,
            y_pred=y_pred,
            sample_weight=sample_weight,
            training=training,
        )
        features, self._features = self._features, None
        if not training:
            return loss
        losses, counts = triplet_loss(features, _numbers(y), self.triplet.margin)
        if sample_weight is not None:
            losses = losses * ops.cast(ops.reshape(sample_weight, (-1,)), losses.dtype)
        apart = ops.sum(losses) / ops.maximum(ops.sum(counts), 1.0)
        images = ops.shape(features)[0]
        self._student_loss.update_state(loss, sample_weight=images)
        self._triplet_loss.update_state(apart, sample_weight=images)
        return loss + self.triplet.weight * apart

    @property
    def metrics(self) -> list[keras.metrics.Metric]:
        """What the student's own `compute_loss` may keep, and this model's."""
        return [*self.student._metrics, *super().metrics]


class FromTriplets(Learning):
    """Peers that learn from their targets and from the distances of their features.

    Args:
        students: the peers' own engine.
        triplet: what is asked of their features.

    Raises:
        UserError: see `TripletLearner`; a peer whose metrics cannot be made anew.
    """

    def __init__(self, students: Engine, triplet: Triplet) -> None:
        super().__init__(students)
        self._triplet = triplet
        self.engine()

    def told(self) -> dict[str, Any]:
        """See `Learning`."""
        own = self._triplet
        return {"triplet": own.weight, "margin": own.margin, "layer": own.layer}

    def made(self) -> Engine:
        """See `Learning`."""
        learners = [TripletLearner(peer, self._triplet) for peer in self.peers]
        for learner in learners:
            compile_as(learner, learner.student)
        return self.students.of(learners)


def triplet_loss(features: Any, labels: Any, margin: float | None = 0.3) -> Any:
    """What an image loses by being nearer to another's than to its own kind, of a batch's hardest.

    L_i = max(0, margin + max_p |f_i - f_p| - min_n |f_i - f_n|), p being the other images of the
    batch with i's label, n those with another one; without a margin it is log(1 + exp(...)). An
    image of which the batch has no p or no n loses nothing.

    Args:
        features: f, shape `(batch, d)`. Half precision is computed in float32.
        labels: integers, shape `(batch,)`.
        margin: what the two distances should differ by; None for the soft one.

    Returns:
        `(losses, counts)`: of each image, shape `(batch,)`, and whether it has both, as 0 or 1.

    Source: Hermans, Beyer, Leibe, "In defense of the triplet loss for person re-identification",
    arXiv 1703.07737, eq. 5 ("batch hard") and section 2.
    """
    own = widened(features)
    own = own - ops.mean(own, axis=0, keepdims=True)  # products of what is near 0 err less
    squares = ops.sum(own * own, axis=1)
    squared = squares[:, None] + squares[None, :] - 2 * ops.matmul(own, ops.transpose(own))
    distances = ops.sqrt(ops.maximum(squared, 1e-12))  # whose slope at 0 is infinite
    same = ops.cast(labels[:, None] == labels[None, :], distances.dtype)
    others = same - ops.eye(features.shape[0] or ops.shape(features)[0], dtype=same.dtype)
    far = 2.0 * ops.stop_gradient(ops.max(distances)) + 1.0  # beyond all
    nearest = ops.min(distances + far * same, axis=1)
    farthest = ops.max(distances * others, axis=1)
    counts = ops.max(others, axis=1) * ops.max(1.0 - same, axis=1)
    excess = farthest - nearest
    losses = ops.softplus(excess) if margin is None else ops.relu(margin + excess)
    return losses * counts, counts


def _parts(model: Any, layer: str | None) -> tuple[Any, Any, Any]:
    """A model's symbolic inputs, output and features."""
    graph = graph_of(model)
    name = f"peer {model.name!r}"
    if graph is None:
        raise UserError(f"{name} has no graph: features can be taken from functional models only.")
    if len(graph.outputs) != 1:
        raise UserError(f"{name} has {len(graph.outputs)} outputs: one is needed.")
    # not `layer.output`: a layer that was called elsewhere too says another graph's there
    nodes = nodes_of(graph)
    if layer is None:
        decides = [own for own in nodes if getattr(own.operation, "weights", None)]
        if not decides:
            raise UserError(f"{name} has no layer with weights.")
        features, where = decides[-1].input_tensors[0], f"{decides[-1].operation.name!r} takes"
    else:
        known = {node.operation.name: node.outputs[0] for node in reversed(nodes)}
        if layer not in known:
            raise UserError(f"{name} has no layer {layer!r}; it has {', '.join(known)}.")
        features, where = known[layer], f"{layer!r} gives"
    if len(features.shape) != 2:
        raise UserError(f"{name}: {where} {tuple(features.shape)}; expected (None, d), features.")
    inputs = graph.inputs
    return (inputs[0] if len(inputs) == 1 else inputs), graph.outputs[0], features


def _numbers(labels: Any) -> Any:
    """Class numbers, `(batch,)`, of those or of shares of classes."""
    labels = ops.convert_to_tensor(labels)
    if len(labels.shape) == 2 and labels.shape[1] != 1:
        return ops.argmax(labels, axis=1)
    return ops.reshape(labels, (-1,))
