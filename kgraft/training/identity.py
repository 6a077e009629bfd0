"""What must be the same where a training goes on, and what is said where it is not."""

import hashlib
import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import keras
import numpy as np

from kgraft.data import BatchStream, PhotoStream
from kgraft.grafting.mixer import Mixer
from kgraft.keras_private import flat_layers
from kgraft.nests import flat
from kgraft.training.batches import Feed, Limited, Weighted
from kgraft.training.data_sets import AdapterFeed, PyDatasetFeed
from kgraft.training.distiller import untaught
from kgraft.training.feeds import ArrayFeed, innermost
from kgraft.training.grain_feed import GrainFeed
from kgraft.training.learning import Learning
from kgraft.training.preflight import learning_rates

_ALL = 1 << 28  # bytes of what is looked at whole; else so many examples, spread over all:
_LOOKED_AT = 64
_COMPILED = ("loss", "loss_weights", "metrics", "weighted_metrics")
_NAMES = ("name", "shared_object_id")  # Keras numbers what is made, also what has been made before
_CHANGED_ELSEWHERE = ("trainable",)  # by callbacks; the optimizer's variables tell


@dataclass(frozen=True)
class Identity:
    """One training, as far as it can be told from another; JSON-able.

    Attributes:
        must: what is refused where it differs: going on would be another training.
        should: what is named where it differs, and goes on: who gives other data may mean it.
        at_first: the same, of what callbacks may have changed in an earlier fit.
    """

    must: dict[str, Any]
    should: dict[str, Any] = field(default_factory=dict)
    at_first: dict[str, Any] = field(default_factory=dict)

    def refused(self, kept: Mapping[str, Any]) -> list[str]:
        """What must be the same and is not, in words.

        Args:
            kept: the fields of the training that was saved.
        """
        was, now = kept["must"], self.must
        found = differences(was, now)
        # who learns from nobody has nothing to tell: what was told before must not be passed over
        for name in sorted(was.get("learning", {}).keys() - now["learning"].keys()):
            found.append(f"learning, {name}: none, was {_short(was['learning'][name])}")
        return found

    def changed(self, kept: Mapping[str, Any], *, at_first: bool) -> list[str]:
        """What should be the same and is not, in words.

        Args:
            kept: the fields of the training that was saved.
            at_first: whether the saved fit is the first, and both are at their beginning.
        """
        found = differences(kept["should"], self.should)
        if at_first:
            then, now = dict(kept["at_first"]), dict(self.at_first)
            then["layer"], now["layer"] = _unpacked(then["layer"]), _unpacked(now["layer"])
            found += differences(then, now)
        return found


def identity_of(
    learning: Learning,
    teachers: Sequence[keras.Model],
    mixer: Mixer,
    seed: int,
    feeds: Sequence[Feed],
    validation: Feed | None,
) -> Identity:
    """The training that a fit is.

    Args:
        learning: how the peers learn.
        teachers: whom they learn from.
        mixer: what is done to the peers' weights.
        seed: the data orders follow from it.
        feeds: the peers' batches; one, where all read the same data.
        validation: what they are validated on.
    """
    peers = learning.peers
    must = {
        "peers": len(peers),
        "teachers": len(teachers),
        "mixer": mixer.get_config(),
        "learning": learning.told(),
        "seed": seed,
        "steps an epoch": feeds[0].steps,
        "backend": keras.config.backend(),
        "optimizer": [_optimizer(peer) for peer in peers],
    }
    should = {
        "compile": [_compiled(peer) for peer in peers],
        "data": [_data(feed) for feed in feeds],
        "validation data": None if validation is None else _data(validation),
        "teacher": [_checksum([w.value for w in own.weights]) for own in teachers],
    }
    at_first = {
        "learning rate": learning_rates(peers),
        "layer": _packed([list(_layers(peer)) for peer in peers]),
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


def _compiled(model: keras.Model) -> Any:
    try:
        with warnings.catch_warnings():  # of lambdas, which nobody is going to load
            warnings.simplefilter("ignore")
            told = model.get_compile_config() or {}
        return _plain({name: told.get(name) for name in _COMPILED})
    except Exception:  # of a config that somebody else has written
        return type(model.loss).__name__


def _layers(model: keras.Model) -> Iterator[tuple[str, Any]]:
    for number, layer in enumerate(flat_layers(model), start=1):
        try:
            whole = isinstance(layer, keras.Sequential) or hasattr(layer, "_nodes_by_depth")
            config = None if whole else _plain(layer.get_config())  # its layers come one by one
        except Exception:  # of a config that somebody else has written, or has not
            config = None
        yield f"{number} ({type(layer).__name__})", config


def _packed(peers: list[list[tuple[str, Any]]]) -> dict[str, Any]:
    """Peers' layers, equal settings once: a ResNet has hundreds of layers, of a dozen kinds."""
    kinds: list[Any] = []
    for config in (config for layers in peers for _, config in layers):
        if config not in kinds:
            kinds.append(config)
    numbers = [[[name, kinds.index(config)] for name, config in layers] for layers in peers]
    return {"kinds": kinds, "peers": numbers}


def _unpacked(packed: Mapping[str, Any]) -> list[dict[str, Any]]:
    kinds, peers = packed["kinds"], packed["peers"]
    return [{name: kinds[number] for name, number in layers} for layers in peers]


def _data(feed: Feed) -> dict[str, Any]:
    told: dict[str, Any] = {"steps": feed.steps}
    while isinstance(feed, Limited | Weighted):
        if isinstance(feed, Weighted):
            weights = {str(own): float(value) for own, value in feed.class_weight.items()}
            told["class_weight"] = dict(sorted(weights.items()))
        feed = feed.feed
    if isinstance(feed, AdapterFeed | PyDatasetFeed | GrainFeed):
        told["kind"] = feed.kind
    if isinstance(feed, ArrayFeed | PyDatasetFeed | BatchStream):
        told["shuffle"] = feed.shuffle
    if isinstance(feed, ArrayFeed):
        told["batch_size"] = feed.batch_size
        names = ("x", "y", "sample_weight")
        told |= dict(zip(names, map(_values, untaught(feed.arrays)), strict=True))
    if isinstance(feed, BatchStream):
        told |= {"batch_size": feed.batch_size, "augmentation": repr(feed.augment)}
        images, labels = untaught((feed.images, feed.labels))
        told |= {"images": _values(images), "labels": _values(labels)}
    if isinstance(feed, PhotoStream):
        told |= {"batch_size": feed.batch_size, "crop": repr(feed.windows.crop)}
        told |= {
            "order": feed.order,
            "window": feed.windows.size,
            "augmentation": repr(feed.augment),
        }
        if feed.windows.identities is not None:
            told["instances"] = feed.windows.identities.instances
        told |= {"photographs": _names(feed), "labels": _values(feed.labels)}
    return told


def _names(stream: PhotoStream) -> str:
    """How many photographs there are, and a checksum of what they are called."""
    photos, found = stream.photos, hashlib.sha256()
    for number in photos.numbers.tolist():
        found.update(photos.source.name(number).rpartition("/")[2].encode(errors="surrogateescape"))
    return f"{len(photos)} photographs ({found.hexdigest()[:8]})"


def _values(nest: Any) -> str | None:
    """How many examples there are, and a checksum of them, or of some where they are many."""
    parts = [part for part in keras.tree.flatten(nest) if part is not None]
    if not parts:
        return None
    count = int(parts[0].shape[0])
    index = np.unique(np.linspace(0, count - 1, _LOOKED_AT).astype(np.int32))
    many = sum(8 * int(np.prod(part.shape)) for part in parts) > _ALL
    looked_at = [keras.ops.take(part, index, 0) for part in parts] if many else parts
    return f"{count} examples ({_checksum(looked_at)})"


def _checksum(parts: Sequence[Any]) -> str:
    found = hashlib.sha256()
    for part in parts:
        value = np.ascontiguousarray(keras.ops.convert_to_numpy(part))
        found.update(f"{value.shape[1:]} {value.dtype}".encode() + value.tobytes())
    return found.hexdigest()[:8]


def _plain(config: Any) -> Any:
    """A config as JSON has it, without names."""
    return json.loads(json.dumps(_without_names(config), default=_told))


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
    if isinstance(feed, AdapterFeed | PyDatasetFeed) and feed.own_chance:
        return (
            f"the {feed.kind} draws from random numbers of its own ({feed.own_chance}), which are "
            "not saved: they begin anew."
        )
    return ""
