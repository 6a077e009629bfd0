"""What the arguments of GraftCallback must be: each mistake is one line."""

from collections.abc import Iterable
from typing import Any

import keras

from kgraft.errors import UserError
from kgraft.training.feeds import is_arrays
from kgraft.training.fit_arguments import told


def checked_peers(peers: Any) -> list[keras.Model]:
    """The peers of a GraftCallback, in a list.

    Args:
        peers: models, in anything that can be iterated.

    Raises:
        UserError: none, something that is no model, or a model twice.
    """
    if isinstance(peers, keras.Model):
        raise UserError(f"peers is a model: pass a list, GraftCallback([{peers.name}]).")
    if not isinstance(peers, Iterable) or isinstance(peers, str | bytes | type):
        raise UserError(f"peers is {told(peers)}: expected a list of models.")
    found = list(peers)
    if not found:
        raise UserError("no peers: GraftCallback needs at least one model besides fit's.")
    for k, peer in enumerate(found):
        if not isinstance(peer, keras.Model):
            raise UserError(f"peers[{k}] is {told(peer)}: expected a keras.Model.")
        if any(peer is earlier for earlier in found[:k]):
            raise UserError(f"peers holds {peer.name!r} twice: every peer must be its own model.")
    return found


def check_data(data: Any, class_weight: Any) -> None:
    """Refuse what cannot be the peers' own data.

    Args:
        data: None, a data set, a tuple of arrays, or a list with one of these for every peer.
        class_weight: weights of the classes in it, or None.

    Raises:
        UserError: an array without targets, a tuple of another length, or weights twice.
    """
    if class_weight is not None and data is None:
        raise UserError(
            "class_weight= is for the peers' own data=: without it they learn from fit's batches, "
            "which have the weights that fit was given."
        )
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
