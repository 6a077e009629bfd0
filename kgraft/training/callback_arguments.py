"""What the arguments of GraftCallback must be: each mistake is one line."""

from typing import Any

import keras

from kgraft.errors import UserError, told
from kgraft.grafting.peers import check_distinct, checked_models
from kgraft.links.link import Link
from kgraft.links.ring_link import RingLink
from kgraft.training.batches import check_class_weight
from kgraft.training.feeds import is_arrays


def checked_ring(peers: Any, link: Any) -> tuple[list[keras.Model], RingLink | None]:
    """The peers of a GraftCallback, in a list, and what joins others to them.

    Args:
        peers: models, in anything that can be iterated, or a link.
        link: a link, or None.

    Raises:
        UserError: neither, something that is no model, a model twice, or a link that is none or
            that promises what Keras' `fit` cannot keep.
    """
    if isinstance(peers, Link):
        if link is not None:
            raise UserError("there is a link in the place of peers and link=: give one of them.")
        peers, link = (), peers
    found = checked_models(peers, "peers", "peer")
    if not found and link is None:
        raise UserError("no peers: GraftCallback needs at least one model besides fit's.")
    check_distinct(found)
    return found, None if link is None else _checked_link(link)


def _checked_link(link: Any) -> RingLink:
    if not isinstance(link, RingLink):
        raise UserError(f"link is {told(link)}: expected kgraft.RingLink(...) or None.")
    if link.waits:
        raise UserError(
            'on_lost_peer="wait" goes on from checkpoints, which fit has none of: use '
            'GraftingFit(link=) with fit(checkpoint=), or "stop" or "skip".'
        )
    if link.lanes > 1:
        raise UserError(
            f"ranks_per_peer={link.lanes} averages gradients, and Keras' fit takes its steps "
            "alone: use GraftingFit."
        )
    return link


def check_data(data: Any, class_weight: Any) -> None:
    """Refuse what cannot be the peers' own data.

    Args:
        data: None, a data set, a tuple of arrays, or a list with one of these for every peer.
        class_weight: weights of the classes in it, or None.

    Raises:
        UserError: an array without targets, a tuple of another length, weights twice, or weights
            that are none.
    """
    if class_weight is not None and data is None:
        raise UserError(
            "class_weight= is for the peers' own data=: without it they learn from fit's batches, "
            "which have the weights that fit was given."
        )
    if class_weight is not None:
        check_class_weight(class_weight)
    named = [(f"data[{k}]", own) for k, own in enumerate(data)] if isinstance(data, list) else []
    for name, own in named or [("data", data)]:
        if isinstance(own, tuple):
            if not 1 <= len(own) <= 3:
                raise UserError(
                    f"{name} holds {len(own)} parts: expected (x, y) or (x, y, sample_weight)."
                )
            if class_weight is not None and len(own) == 3 and own[2] is not None:
                raise UserError(
                    f"class_weight= and the sample_weight in {name} exclude each other."
                )
        elif own is not None and is_arrays(own):
            raise UserError(f"{name} is an array without targets: expected a tuple (x, y).")
        elif named and own is None:
            raise UserError(f"{name} is None: a list holds one data set for every peer.")
