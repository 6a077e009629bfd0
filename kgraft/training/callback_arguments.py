"""What the arguments of GraftCallback must be: each mistake is one line."""

from typing import Any

import keras

from kgraft.errors import UserError
from kgraft.grafting.peers import check_distinct, checked_models
from kgraft.training.batches import check_class_weight
from kgraft.training.feeds import is_arrays


def checked_peers(peers: Any) -> list[keras.Model]:
    """The peers of a GraftCallback, in a list.

    Args:
        peers: models, in anything that can be iterated.

    Raises:
        UserError: none, something that is no model, or a model twice.
    """
    found = checked_models(peers, "peers", "peer")
    if not found:
        raise UserError("no peers: GraftCallback needs at least one model besides fit's.")
    check_distinct(found)
    return found


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
