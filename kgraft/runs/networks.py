"""The networks that a run trains: built, checked, started from what they start from."""

import collections
import contextlib
from collections.abc import Iterator, Sequence

import keras
import numpy as np

from kgraft import models
from kgraft.engines.precision import building_in
from kgraft.errors import UserError
from kgraft.keras_private import get_global_attribute
from kgraft.models import registry
from kgraft.models.neck import with_neck, without_neck
from kgraft.runs import own
from kgraft.runs.config import Config
from kgraft.runs.pretrained import freeze, start_from
from kgraft.training.students import check_logits

_TEACHERS = 1_000_000  # teachers' orders and seeds are counted from here, far from any peer's


def seed_of(config: Config, number: int) -> int:
    """The seed of one model's initial weights, different for every run seed and model."""
    return int(np.random.SeedSequence([config.run.seed, number]).generate_state(1)[0])


def teacher_number(m: int) -> int:
    """The number of the m-th teacher that a run trains, among all that it trains."""
    return _TEACHERS + m


def network(
    config: Config, name: str, shape: tuple[int, ...], classes: int, *, teaches: bool = False
) -> keras.Model:
    """A new network, with weights of its own from Keras' global seed.

    One of the peers' architecture has its settings, but for the dropout where it teaches.

    Args:
        config: the settings.
        name: the architecture.
        shape: height, width and channels of the images.
        classes: how many.
        teaches: whether it is a teacher.

    Raises:
        UserError: what `kgraft.models.build` raises; or a function of the user's own has made a
            model that ends in probabilities.
    """
    arguments = own.arguments(config, "model") if name == config.model.name else {}
    if teaches:
        arguments.pop("dropout", None)
    with building_in(config.run.precision), _names_from_the_first():
        model = models.build(name, input_shape=shape, classes=classes, **arguments)  # type: ignore[arg-type]
        wanted = config.retrieval
        if wanted.neck or wanted.dropout:
            _check_dense_head(model, name)
            dropout = 0.0 if teaches else wanted.dropout
            model = with_neck(model, normalised=wanted.neck, dropout=dropout)
    if registry.is_foreign(name):
        check_logits(model, f"model {name!r}")
    return model


def _check_dense_head(model: keras.Model, name: str) -> None:
    """Refuse to put something before a classifier that is no dense layer of features."""
    head = model.layers[-1]
    if not isinstance(head, keras.layers.Dense) or len(head.input.shape) != 2:
        raise UserError(
            f"retrieval.neck and dropout: {name!r} does not end with a dense layer on features: "
            "expected one."
        )


@contextlib.contextmanager
def _names_from_the_first() -> Iterator[None]:
    """Let Keras number layers without a name from the first one on: alike in all peers and runs."""
    taken = get_global_attribute(
        "object_name_uids", collections.defaultdict(int), set_to_default=True
    )
    before = dict(taken)
    taken.clear()
    try:
        yield
    finally:
        taken.clear()
        taken.update(before)


def start(config: Config, networks: Sequence[keras.Model]) -> None:
    """Give networks of the peers' architecture what all of them start from.

    Args:
        config: the settings.
        networks: the peers first; before they are compiled.

    Raises:
        UserError: the weights do not fit, or there is no layer of that name.
    """
    wanted = config.model
    if wanted.weights is not None and networks:
        first, *others = networks
        start_from([without_neck(first)], wanted.weights)
        for other in others:
            other.set_weights(first.get_weights())
    if wanted.trainable_from is not None:
        for model in networks:
            freeze(model, wanted.trainable_from)


def check_readable(config: Config, name: str, networks: Sequence[keras.Model]) -> None:
    """Refuse before a training what could not be read from its file after it.

    Args:
        config: the settings.
        name: the architecture; kgraft's own are known.
        networks: of it; the first is looked at.

    Raises:
        UserError: its layers cannot be made again from what they say of themselves.
    """
    if not networks or not registry.is_foreign(name):
        return
    model = networks[0]
    try:
        with building_in(config.run.precision):
            copy = type(model).from_config(model.get_config())
    except Exception as error:  # of layers that somebody else has written
        said = " ".join(str(error).split(". ")[0].split())[:200].rstrip(".")
        raise UserError(
            f"model {name!r} could not be read from its file: {type(error).__name__}: {said}. "
            "Layers of your own need get_config and @keras.saving.register_keras_serializable()."
        ) from error
    shapes = [[tuple(weight.shape) for weight in own.weights] for own in (model, copy)]
    if shapes[0] != shapes[1]:
        raise UserError(f"model {name!r} is another one when it is read from its file.")
