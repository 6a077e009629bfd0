"""All that a training knows between two epochs: of peers, their grafting, callbacks and chance."""

import collections
import collections.abc
import functools
import inspect
import logging
import random
from collections.abc import Iterable, Sequence
from dataclasses import fields
from typing import Any

import keras
import numpy as np

from kgraft.engines.backends import BACKEND
from kgraft.errors import UserError
from kgraft.grafting.ring import GraftRecord
from kgraft.keras_private import flat_layers, get_global_attribute, global_seed_generator
from kgraft.nests import flat, nested

_log = logging.getLogger("kgraft")

Arrays = dict[str, np.ndarray]

# `min_delta`: Keras turns its sign when it first sees the metric, and would do so again.
_NOT_KEPT = ("params", "min_delta")


_STATES: tuple[Any, ...] = (  # what may know something, of what a checkpoint does not hold
    *(set, dict, list, tuple, bytes, bytearray, complex, collections.deque, random.Random),
    *(collections.abc.Iterator, np.ndarray),
    *(np.random.Generator, np.random.RandomState),
    *(keras.Variable, keras.Metric, keras.random.SeedGenerator, np.generic),
)


class StatefulCallback(keras.callbacks.Callback):
    """A callback that says itself what is kept of it.

    Of others it is the attributes that have changed since the training began, as far as they are
    numbers, words, arrays or nests of these (`EarlyStopping`'s patience spent, its best weights).
    """

    def save(self) -> dict[str, Any]:
        """What `restore` needs: JSON-able values and NumPy arrays."""
        return {}

    def restore(self, saved: dict[str, Any]) -> None:
        """Go on from what `save` gave.

        Args:
            saved: that.
        """


def variables_of(
    models: Sequence[keras.Model], without: Iterable[keras.Model] = ()
) -> list[keras.Variable]:
    """Weights, seeds and optimizers of some built models, each variable once.

    Args:
        models: the models; optimizers are built where they are not.
        without: models whose variables are somebody else's (a shared teacher's, say).
    """
    foreign = {id(variable) for model in without for variable in model.variables}
    unique: dict[int, Any] = {}
    for model in models:
        optimizer = model.optimizer if model.compiled else None
        if optimizer is not None and not optimizer.built:
            optimizer.build(model.trainable_variables)
        own = optimizer.variables if optimizer is not None else []
        for variable in [*model.variables, *own]:
            if id(variable) not in foreign:
                unique.setdefault(id(variable), variable)
    return list(unique.values())


def values_of(variables: Sequence[keras.Variable]) -> Arrays:
    """Copies on the host, by number; bfloat16 becomes float32, which is exact.

    Args:
        variables: what `variables_of` gave.
    """
    return {f"{k:06d}": _copied(variable) for k, variable in enumerate(variables)}


def assign(variables: Sequence[keras.Variable], arrays: Arrays, where: str) -> None:
    """Put values back.

    Args:
        variables: what `variables_of` gives now.
        arrays: what `values_of` gave, among others.
        where: where they come from, for errors.

    Raises:
        UserError: they are of other models; nothing is assigned then.
    """
    kept = [arrays[name] for name in sorted(arrays) if name.isdecimal()]
    pairs = zip(variables, kept, strict=False)
    wrong = [
        f"{variable.path} has the shape {tuple(variable.shape)}, was {value.shape}"
        for variable, value in pairs
        if value.shape != tuple(variable.shape)
    ]
    if len(kept) != len(variables):
        wrong.append(f"these have {len(variables)} variables, those {len(kept)}")
    if wrong:
        raise UserError(
            f"{where} is of other peers: {wrong[0]}. Remove it, or use the peers that it was made "
            "of."
        )
    for variable, value in zip(variables, kept, strict=True):
        variable.assign(value)


def save_random(arrays: Arrays) -> Any:
    """What generators of random numbers know: Python's, NumPy's, the backend's, Keras'.

    Args:
        arrays: gets the arrays.

    Returns:
        The rest, JSON-able.
    """
    generator = get_global_attribute("global_seed_generator")
    kind, *numpy = np.random.get_state(legacy=True)
    state = {
        "python": random.getstate(),
        "numpy": [kind, *numpy],
        "backend": BACKEND.random_state(),
        "keras": None if generator is None else _copied(generator.state),
    }
    return flat(state, arrays)


def restore_random(saved: Any, arrays: Arrays) -> None:
    """Go on from what `save_random` gave.

    Args:
        saved: what it returned.
        arrays: the arrays that it put aside.
    """
    state = nested(saved, arrays)
    if state["keras"] is not None:
        global_seed_generator().state.assign(state["keras"])
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))
    np.random.set_state(tuple(state["numpy"]))
    BACKEND.set_random_state(state["backend"])


def save_records(records: Sequence[tuple[int, GraftRecord]], arrays: Arrays) -> Any:
    """What graftings measured and did.

    Args:
        records: as `(epoch, GraftRecord)`.
        arrays: gets the arrays.

    Returns:
        The rest, JSON-able.
    """
    kinds: list[Any] = []  # of groups, which stay the same for a whole training
    rows = []
    for epoch, record in records:
        if record.groups not in kinds:
            kinds.append(record.groups)
        own = {field.name: getattr(record, field.name) for field in fields(record)}
        own["groups"] = kinds.index(record.groups)
        rows.append({"epoch": epoch, **own, "sick": sorted(record.sick)})
    numbers = {name: [row.pop(name) for row in rows] for name in ("information", "coefficients")}
    alike = len({value.shape for value in numbers["information"]}) == 1
    joined = {name: np.stack(own) if alike else own for name, own in numbers.items()}
    return flat({"groups": kinds, "rows": rows, **joined}, arrays)


def restore_records(saved: Any, arrays: Arrays) -> list[tuple[int, GraftRecord]]:
    """What `save_records` was given.

    Args:
        saved: what it returned.
        arrays: the arrays that it put aside.
    """
    state = nested(saved, arrays)
    numbers = zip(state["rows"], state["information"], state["coefficients"], strict=True)
    return [
        (
            row["epoch"],
            GraftRecord(
                groups=tuple(state["groups"][row["groups"]]),
                information=information,
                coefficients=coefficients,
                donors=tuple(row["donors"]),
                sick=frozenset(row["sick"]),
            ),
        )
        for row, information, coefficients in numbers
    ]


class CallbackStates:
    """What callbacks know that they did not know when the training began.

    Args:
        callbacks: each peer's, after `on_train_begin`.
    """

    def __init__(self, callbacks: Sequence[Sequence[keras.callbacks.Callback]]) -> None:
        self._callbacks = [
            [own for own in each if not isinstance(own, keras.callbacks.ProgbarLogger)]
            for each in callbacks
        ]
        self._begun = [[_attributes(own) for own in each] for each in self._callbacks]

    def save(self, arrays: Arrays) -> list[list[Any]]:
        """JSON-able, of each peer's callbacks in their order.

        Args:
            arrays: gets the arrays.
        """
        return [
            [
                [type(own).__name__, flat(_changed(own, begun), arrays), _lost(own, begun)]
                for own, begun in zip(each, before, strict=True)
            ]
            for each, before in zip(self._callbacks, self._begun, strict=True)
        ]

    def restore(self, saved: list[list[Any]], arrays: Arrays) -> None:
        """Put it back into the callbacks of the same kinds, in their order.

        Args:
            saved: what `save` gave.
            arrays: the arrays that it put aside.
        """
        for each, before, kept in zip(self._callbacks, self._begun, saved, strict=False):
            rest = [(name, state, lost) for name, state, lost in kept]
            for own, begun in zip(each, before, strict=True):
                name = type(own).__name__
                found = next((entry for entry in rest if entry[0] == name), None)
                if found is None:
                    continue
                rest.remove(found)
                state = nested(found[1], arrays)
                if isinstance(own, StatefulCallback):
                    own.restore(state)
                else:
                    if isinstance(own, keras.callbacks.CSVLogger) and not own.append:
                        _log.warning("CSVLogger begins %s anew: give append=True.", own.filename)
                    kept_names = [name for name in state if _is_kept(own, begun, name, state)]
                    _put_back(own, {name: state[name] for name in kept_names})
                    _warn_of_lost(own, {*found[2], *_lost(own, begun)})


def _is_kept(callback: Any, begun: dict[str, Any], name: str, state: dict[str, Any]) -> bool:
    """Whether a value that a file gives may take an attribute's place.

    Words stay the callback's own (where it writes to, say), and so does what is no value: methods,
    the model. A number stays a number.
    """
    if name not in begun:
        taken = inspect.getattr_static(callback, name, None)
        return taken is None or isinstance(taken, bool | int | float)
    old, new = begun[name], state[name]
    if isinstance(old, int | float):
        return isinstance(new, int | float)
    return not isinstance(old, str) and not isinstance(new, str)


def _put_back(callback: keras.callbacks.Callback, state: dict[str, Any]) -> None:
    """Set attributes; lists and dicts stay the objects that somebody else may hold too."""
    for name, new in state.items():
        old = vars(callback).get(name)
        if type(old) is list and type(new) is list:
            old[:] = new
        elif type(old) is dict and type(new) is dict:
            old.clear()
            old.update(new)
        else:
            vars(callback)[name] = new


def _lost(callback: keras.callbacks.Callback, begun: dict[str, Any]) -> list[str]:
    """Which attributes of somebody's own callback look like state and are in no checkpoint."""
    if isinstance(callback, StatefulCallback) or _is_of_keras(callback):
        return []
    now = _attributes(callback)
    words = [name for name, own in now.items() if isinstance(own, str) and own != begun.get(name)]
    held = [
        name
        for name, value in vars(callback).items()
        if name not in now and name not in _NOT_KEPT
        if isinstance(value, _STATES) or keras.ops.is_tensor(value)
    ]
    return [*(name for name in words if name in begun), *held]


def _warn_of_lost(callback: keras.callbacks.Callback, names: Iterable[str]) -> None:
    if lost := sorted(name for name in names if name.isidentifier()):
        _log.warning(
            "%s has %s, which no checkpoint holds: that begins anew. Make it a "
            "kgraft.training.joint_state.StatefulCallback, with save and restore, to keep it.",
            type(callback).__name__,
            ", ".join(lost),
        )


def plain_attributes(models: Sequence[keras.Model]) -> dict[str, Any]:
    """Numbers and words that somebody's own models and layers hold beside their variables.

    Args:
        models: the models.

    Returns:
        By `layer.attribute`.
    """
    layers = [layer for model in models for layer in flat_layers(model)]
    return {
        f"{layer.name}.{name}": value
        for layer in layers
        if not _is_of_keras(layer)
        for name, value in vars(layer).items()
        if isinstance(value, bool | int | float | str)
        if name not in _of_every_model() and not name.startswith("_")
    }


@functools.cache
def _of_every_model() -> frozenset[str]:
    return frozenset(vars(keras.Model()))


def _is_of_keras(thing: Any) -> bool:
    return type(thing).__module__.split(".")[0] in ("keras", "kgraft")


def _changed(callback: keras.callbacks.Callback, begun: dict[str, Any]) -> dict[str, Any]:
    if isinstance(callback, StatefulCallback):
        return callback.save()
    now = _attributes(callback)
    return {name: value for name, value in now.items() if not _same(value, begun.get(name, now))}


def _attributes(callback: keras.callbacks.Callback) -> dict[str, Any]:
    """The attributes that can be kept."""
    found = {}
    for name, value in vars(callback).items():
        if name not in _NOT_KEPT:
            try:
                flat(value, {})
            except (TypeError, RecursionError):  # a list that holds itself
                continue
            found[name] = keras.tree.map_structure(_own, value)
    return found


def _own(value: Any) -> Any:
    return value.copy() if isinstance(value, np.ndarray) else value


def _same(one: Any, other: Any) -> bool:
    here: Arrays = {}
    there: Arrays = {}
    alike = flat(one, here) == flat(other, there) and here.keys() == there.keys()
    return alike and all(np.array_equal(here[name], there[name], equal_nan=True) for name in here)


def _copied(variable: keras.Variable) -> np.ndarray:
    half = keras.backend.standardize_dtype(variable.dtype) == "bfloat16"
    value = keras.ops.cast(variable.value, "float32") if half else variable.value
    return np.array(keras.ops.convert_to_numpy(value), order="C")
