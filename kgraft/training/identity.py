"""What must be the same where a training goes on, and what is said where it is not."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import keras
import numpy as np

from kgraft.data import BatchStream
from kgraft.grafting.mixer import Mixer
from kgraft.keras_private import flat_layers
from kgraft.training.batches import Batch, Feed, Limited, Weighted
from kgraft.training.checkpoint_files import flat
from kgraft.training.data_sets import AdapterFeed, PyDatasetFeed
from kgraft.training.distiller import untaught
from kgraft.training.feeds import ArrayFeed, innermost
from kgraft.training.learning import Learning
from kgraft.training.preflight import learning_rates

_LOOKED_AT = 64  # examples: of a million images as of a hundred, spread over all of them
_NAMES = ("name", "shared_object_id")  # Keras numbers what is made, also what has been made before
_CHANGED_ELSEWHERE = ("trainable",)  # by callbacks; the optimizer's variables tell


@dataclass(frozen=True)
class Identity:
    """One training, as far as it can be told from another.

    Attributes:
        must: what is refused where it differs: going on would be another training.
        should: what is named where it differs, and goes on: who gives other data may mean it.
        at_first: the same, of what callbacks may have changed in an earlier fit.
    """

    must: dict[str, Any]
    should: dict[str, Any] = field(default_factory=dict)
    at_first: dict[str, Any] = field(default_factory=dict)


def identity_of(
    learning: Learning, teachers: int, mixer: Mixer, seed: int, feeds: Sequence[Feed]
) -> Identity:
    """The training that a fit is.

    Args:
        learning: how the peers learn.
        teachers: how many there are.
        mixer: what is done to the peers' weights.
        seed: the data orders follow from it.
        feeds: the peers' batches; one, where all read the same data.
    """
    peers = learning.peers
    must = {
        "peers": len(peers),
        "teachers": teachers,
        "mixer": mixer.get_config(),
        "learning": learning.told(),
        "seed": seed,
        "steps an epoch": feeds[0].steps,
        "backend": keras.config.backend(),
        "optimizers": [_optimizer(peer) for peer in peers],
    }
    should = {
        "loss": [_loss(peer) for peer in peers],
        "data": [_data(feed) for feed in feeds],
    }
    at_first = {
        "learning rate": learning_rates(peers),
        "layer": [dict(_layers(peer)) for peer in peers],
    }
    return Identity(*(flat(part, {}) for part in (must, should, at_first)))


def differences(then: Any, now: Any, place: str = "") -> list[str]:
    """Where two nests are not the same, in words.

    Args:
        then: what JSON gave.
        now: what there is; keys that only `then` has are nothing.
        place: of these in what they are part of.
    """
    if isinstance(now, Mapping) and isinstance(then, Mapping):
        parts = ((f"{place}{name}, ", then.get(name), now[name]) for name in now)
    elif isinstance(now, list) and isinstance(then, list) and len(now) == len(then):
        many = len(now) > 1
        numbers = (f"{place}peer {k + 1}, " if many else place for k in range(len(now)))
        parts = ((who, *both) for who, *both in zip(numbers, then, now, strict=True))
    else:
        return [] if then == now else [f"{place[:-2]}: {_short(now)}, was {_short(then)}"]
    return [said for who, old, new in parts for said in differences(old, new, who)]


def _short(value: Any) -> str:
    value = f"{value:.6g}" if isinstance(value, float) else value
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) < 80 else f"{text[:76]}..."


def _optimizer(model: keras.Model) -> dict[str, Any]:
    """A constant learning rate is left out: callbacks change it, and it is kept."""
    optimizer = model.optimizer
    try:
        config = {name: value for name, value in optimizer.get_config().items() if name != "name"}
        if isinstance(config.get("learning_rate"), float):
            del config["learning_rate"]
        return {"optimizer": type(optimizer).__name__, **flat(config, {})}
    except Exception:  # of a config that somebody else has written
        return {"optimizer": type(optimizer).__name__}


def _loss(model: keras.Model) -> str:
    try:
        told = model.get_compile_config() or {}
        kept = {name: told.get(name) for name in ("loss", "loss_weights")}
        return _text(kept["loss"] if kept["loss_weights"] is None else kept)
    except Exception:  # of a config that somebody else has written
        return type(model.loss).__name__


def _layers(model: keras.Model) -> Iterator[tuple[str, str]]:
    for number, layer in enumerate(flat_layers(model)):
        try:
            whole = isinstance(layer, keras.Sequential) or hasattr(layer, "_nodes_by_depth")
            config = {} if whole else layer.get_config()  # its layers come one by one
            told = f"settings {_checksum(_text(config).encode())}"
        except Exception:  # of a config that somebody else has written, or has not
            told = "settings"
        yield f"{number + 1} ({type(layer).__name__})", told


def _data(feed: Feed) -> dict[str, Any]:
    told: dict[str, Any] = {"steps": feed.steps}
    while isinstance(feed, Limited | Weighted):
        if isinstance(feed, Weighted):
            weights = {str(own): float(value) for own, value in feed.class_weight.items()}
            told["class_weight"] = dict(sorted(weights.items()))
        feed = feed.feed
    if isinstance(feed, AdapterFeed | PyDatasetFeed):
        told["kind"] = feed.kind
    if isinstance(feed, ArrayFeed | PyDatasetFeed | BatchStream):
        told["shuffle"] = feed.shuffle
    if isinstance(feed, ArrayFeed):
        told |= {"batch_size": feed.batch_size, "values": _values(untaught(feed.arrays))}
    if isinstance(feed, BatchStream):
        arrays = untaught((feed.images, feed.labels))
        told |= {"batch_size": feed.batch_size, "values": _values(arrays)}
        told["augmentation"] = repr(feed.augment)
    return told


def _values(arrays: Batch) -> str:
    """How many examples there are, and what some of them are."""
    parts = [part for part in keras.tree.flatten(arrays) if part is not None]
    count = int(parts[0].shape[0])
    index = np.unique(np.linspace(0, count - 1, _LOOKED_AT).astype(np.int32))
    found = b""
    for part in parts:
        own = part[index] if isinstance(part, np.ndarray) else keras.ops.take(part, index, 0)
        value = np.ascontiguousarray(keras.ops.convert_to_numpy(own))
        found += f"{part.shape[1:]} {value.dtype}".encode() + value.tobytes()
    return f"{count} examples, {_checksum(found)}"


def _text(config: Any) -> str:
    return json.dumps(_without_names(config), sort_keys=True, default=_told)


def _without_names(value: Any) -> Any:
    if isinstance(value, Mapping):
        left = (*_NAMES, *_CHANGED_ELSEWHERE)
        return {str(key): _without_names(own) for key, own in value.items() if key not in left}
    if isinstance(value, list | tuple):
        return [_without_names(own) for own in value]
    return value


def _told(value: Any) -> Any:
    """What JSON has not; an address in memory is another one next time."""
    return value.tolist() if hasattr(value, "tolist") else type(value).__name__


def _checksum(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:8]


def lost_place(feed: Feed) -> str:
    """What of a feed's place in its data is lost where a training goes on in another process.

    Args:
        feed: any feed.

    Returns:
        A sentence; empty where every epoch is known by its number.
    """
    feed = innermost(feed)
    if isinstance(feed, AdapterFeed) and feed.reads_on:
        return "the data set is read from its beginning: how far it was read is not saved."
    if isinstance(feed, PyDatasetFeed) and feed.changes:
        return "what the PyDataset's on_epoch_end has changed is not saved: it begins anew."
    return ""
