"""What the arguments of GraftingFit must be: each mistake is one line, before the first step."""

import inspect
import warnings
from collections.abc import Callable, Collection, Iterable
from typing import Any

import keras
import numpy as np

from kgraft.errors import UserError, told
from kgraft.grafting.graft import Graft
from kgraft.grafting.mixer import Independent, Mixer
from kgraft.grafting.peers import check_distinct, checked_models
from kgraft.keras_private import train_validation_split
from kgraft.links.link import Here, Link
from kgraft.settings import argument
from kgraft.training.feeds import check_listed, is_arrays, is_listed
from kgraft.training.mutual import Mutual
from kgraft.training.triplets import Triplet


def checked_peers(peers: Any) -> list[keras.Model]:
    """The peers as a list.

    Args:
        peers: what was given.

    Raises:
        UserError: it is no list of compiled models, an empty one, or holds one twice.
    """
    found = checked_models(peers, "peers", "peer")
    if not found:
        raise UserError("no peers: GraftingFit needs at least one compiled model.")
    for k, peer in enumerate(found, start=1):
        if not peer.compiled:
            raise UserError(f"peer {k} ({peer.name!r}) is not compiled: call compile() first.")
    check_distinct(found)
    return found


def checked_teachers(teachers: Any) -> list[keras.Model]:
    """The teachers as a list.

    Args:
        teachers: what was given.

    Raises:
        UserError: it is no list of models.
    """
    return checked_models(() if teachers is None else teachers, "teachers", "teacher")


def checked_mixer(mixer: Any, graft: Any = None) -> Mixer:
    """The mixer, the entropy ring where none was given.

    Args:
        mixer: what was given.
        graft: what was given by the argument's old name.

    Raises:
        UserError: it is no mixer, or given twice.
    """
    name = "mixer"
    if graft is not None:
        if mixer is not None:
            raise UserError("graft= is the old name of mixer=: give one of them.")
        warnings.warn("graft= is called mixer= now.", DeprecationWarning, stacklevel=3)
        name, mixer = "graft", graft
    if mixer is None:
        return Graft()
    if inspect.isclass(mixer) and issubclass(mixer, Mixer):
        raise UserError(f"{name} is the class {mixer.__name__}: pass {mixer.__name__}(...).")
    if not isinstance(mixer, Mixer):
        raise UserError(
            f"{name} is {told(mixer)}: expected a mixer of kgraft.grafting, e.g. "
            "Graft(criterion='entropy'), or Independent() for none."
        )
    if type(mixer) is Mixer:
        warnings.warn("Mixer() is called Independent() now.", DeprecationWarning, stacklevel=3)
        return Independent()
    mixer.check_class()
    return mixer


def checked_mutual(mutual: Any, mixer: Mixer, teachers: Collection[keras.Model]) -> Mutual | None:
    """The settings of mutual learning, of either argument.

    Args:
        mutual: what was given.
        mixer: what the peers are mixed by, which may be one.
        teachers: the teachers beside it.

    Raises:
        UserError: it is no `Mutual`, there are two, or there are teachers too.
    """
    if mutual is not None and not isinstance(mutual, Mutual):
        raise UserError(f"mutual is {told(mutual)}: expected kgraft.Mutual() or None.")
    own = mixer if isinstance(mixer, Mutual) else None
    if mutual is not None and own is not None:
        raise UserError(
            f"mutual={type(mutual).__name__}() and mixer={type(own).__name__}() are two ways to "
            "learn from each other: give one."
        )
    found, name = (mutual, "mutual=") if own is None else (own, f"mixer={type(own).__name__}()")
    if found is not None and teachers:
        raise UserError(f"{name} and teachers= exclude each other: peers learn from either.")
    return found


def check_lesson(
    teachers: Collection[keras.Model],
    temperature: float,
    distillation_weight: float,
    feature_losses: Any,
    label_weight: float,
) -> None:
    """Refuse settings of distillation where there are no teachers, unless they are the defaults.

    Args:
        teachers: whom the peers learn from.
        temperature: see `GraftingFit`.
        distillation_weight: see `GraftingFit`.
        label_weight: see `GraftingFit`.
        feature_losses: see `GraftingFit`.

    Raises:
        UserError: names the first that would not be read.
    """
    for name, is_default, mutual in (
        ("temperature", temperature == 2.0, " (of mutual learning it is Mutual(temperature=...))"),
        ("distillation_weight", distillation_weight == 1.0, ""),
        ("label_weight", label_weight == 1.0, ""),
        ("feature_losses", not feature_losses, ""),
    ):
        if not (teachers or is_default):
            raise UserError(
                f"{name} is a setting of distillation, and there are no teachers: give "
                f"teachers=[...], or leave it out{mutual}."
            )


def check_verbose(verbose: Any) -> None:
    """Refuse what is no way to show progress.

    Args:
        verbose: what was given; True and False are 1 and 0.

    Raises:
        UserError: it is none.
    """
    if not isinstance(verbose, int | str) or verbose not in ("auto", 0, 1, 2):
        raise UserError(f"verbose={told(verbose)}: expected 'auto', 0, 1 or 2.")


def check_steps(**given: Any) -> None:
    """Refuse numbers of steps that are neither None nor 1 or more.

    Args:
        **given: name of an argument = what was given.

    Raises:
        UserError: names the first that is.
    """
    for name, value in given.items():
        if value is not None:
            checked_count(name, value, least=1)


def checked_count(name: str, value: Any, least: int = 0) -> int:
    """A whole number.

    Args:
        name: of the argument.
        value: what was given.
        least: the smallest that makes sense.

    Raises:
        UserError: it is none, or smaller.
    """
    counted: int = argument(name, value, int, low=least)
    return counted


def check_targets(
    peers: Iterable[keras.Model], x: Any, y: Any = None, sample_weight: Any = None, *, name: str
) -> None:
    """Refuse arrays without targets where a peer's loss is of targets, and targets given twice.

    Args:
        peers: compiled models.
        x: arrays, or a data set, which is not looked at.
        y: their targets, None for none.
        sample_weight: their weights.
        name: of the argument.

    Raises:
        UserError: there are none, and a peer trains as Keras trains it, with a compiled loss; or
            `x` is a list of `(x, y)`, and there are targets or weights beside it.
    """
    check_listed(x, y, sample_weight)
    if x is None or y is not None or not is_arrays(x, y, sample_weight):
        return
    for k, peer in enumerate(peers, start=1):
        own = type(peer)
        plain = (
            own.train_step is keras.Model.train_step
            and own.compute_loss is keras.Model.compute_loss
        )
        if plain and peer.loss is not None:
            raise UserError(
                f"{name} is without targets, and peer {k} ({peer.name!r}) is compiled with a loss: "
                "expected x and y."
            )


def validated_epochs(freq: Any) -> Callable[[int], bool]:
    """Which epochs, counted from 0, end with the validation.

    Args:
        freq: every n-th epoch, or a collection of epochs, counted from 1.

    Raises:
        UserError: it is neither a whole number from 1 on nor a collection of numbers.
    """
    if isinstance(freq, Collection) and not isinstance(freq, str | bytes):
        return lambda epoch: epoch + 1 in freq
    if not isinstance(freq, int | np.integer) or isinstance(freq, bool) or freq < 1:
        raise UserError(
            f"validation_freq={freq!r}: every n-th epoch, n at least 1, or a list of epochs."
        )
    return lambda epoch: (epoch + 1) % freq == 0


def split(x: Any, y: Any, sample_weight: Any, share: float) -> tuple[Any, Any]:
    """Hold the end of some arrays out.

    Args:
        x: arrays.
        y: their targets.
        sample_weight: their weights.
        share: how much of them is held out, as in `Model.fit`.

    Returns:
        `(x, y, sample_weight)` to train on, and the same to validate with.

    Raises:
        UserError: these are no arrays, or nothing is left of either.
    """
    if is_listed(x, y, sample_weight) or not is_arrays(x, y, sample_weight):
        raise UserError("validation_split needs arrays: give validation_data with a data set.")
    try:
        return train_validation_split((x, y, sample_weight), validation_split=share)
    except ValueError as error:
        raise UserError(f"validation_split={share!r} leaves no example on one side.") from error


def check_link(link: Any, mutual: Mutual | None, triplet: Triplet | None) -> None:
    """Refuse what joins no processes, and peers of several that would have to see each other.

    Args:
        link: what was given.
        mutual: how peers learn from each other.
        triplet: how their features learn distances.

    Raises:
        UserError: says what is wrong.
    """
    if not isinstance(link, Link | None):
        raise UserError(f"link is {told(link)}: expected kgraft.RingLink(...) or None.")
    several = link is not None and not isinstance(link, Here)
    if several and mutual is not None:
        raise UserError(
            f"{type(mutual).__name__} needs all peers in one process, where each sees what the "
            "others say of a batch: leave out link=."
        )
    if link is not None and triplet is not None and link.lanes > 1:
        raise UserError(
            "triplet= looks for the hardest examples of whole batches, of which every replica has "
            "a part: leave out ranks_per_peer."
        )
