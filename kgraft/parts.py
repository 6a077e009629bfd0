"""Parts that are not kgraft's own, by `package.module:name`: found, called, and written down.

A run file names them where it would name kgraft's: `model.name = "mypkg.nets:build"`. Whatever they
do wrong is told in one line that says where.
"""

import contextlib
import hashlib
import importlib
import inspect
import pkgutil
import re
import sys
import traceback
import typing
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint, PackageNotFoundError, packages_distributions, version
from pathlib import Path
from typing import Any

from kgraft.errors import (
    DivergedError,
    DriftError,
    LostPeerError,
    StorageError,
    UserError,
    suggest,
    told,
)
from kgraft.settings import argument

_NAMED = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
_PLAIN = (bool, int, float, str)
_OWN_ERRORS = (UserError, StorageError, DivergedError, DriftError, LostPeerError, MemoryError)


def is_reference(name: Any) -> bool:
    """Whether a name is `package.module:name`.

    Example:
        >>> [is_reference(name) for name in ("mypkg.nets:build", "resnet8", "mnist:3.0.1")]
        [True, False, False]
    """
    if not isinstance(name, str):
        return False
    module, colon, attribute = name.partition(":")
    return bool(colon) and all(map(str.isidentifier, [*module.split("."), *attribute.split(".")]))


@dataclass(frozen=True)
class Part:
    """A function or a class that is called with arguments from a run's settings.

    Attributes:
        what: what it is called in errors, e.g. `"model 'mypkg.nets:build'"`.
        call: itself.
        given: its arguments that kgraft gives; nobody else may.
        hidden: others that nobody may give, and what to say of them.
        reference: what it was loaded by, `""` for one that comes with kgraft or Keras.
        distribution: the package that has brought it, if that is known.
        strict: whether `**options` of it are those of its base classes and no others.
    """

    what: str
    call: Callable[..., Any]
    given: tuple[str, ...] = ()
    hidden: Mapping[str, str] = field(default_factory=dict)
    reference: str = ""
    distribution: str | None = None
    strict: bool = False

    def check(self, own: Mapping[str, Any], where: Callable[[str], str]) -> None:
        """Refuse arguments that it has not, or of another kind, and say which it misses.

        A kind is known where the argument is annotated as a number, a string, true or false, or
        has such a default.

        Args:
            own: the arguments that somebody has given.
            where: name -> where that one comes from, for errors.

        Raises:
            UserError: names the first one.
        """
        if not callable(self.call):
            raise UserError(f"{self.what} is {told(self.call)}: expected a function.")
        known, takes_any = self._parameters()
        free = [name for name in known if name not in (*self.given, *self.hidden)]
        for name, value in own.items():
            if name in self.hidden:
                raise UserError(f"{where(name)} {name}: {self.hidden[name]}.")
            if name in self.given:
                raise UserError(f"{where(name)} {name}: kgraft itself gives it to {self.what}.")
            if name in free:
                _check_kind(self.call, known[name], value, f"{where(name)} ")
            elif not takes_any:
                near = suggest(name, free) if free else " It has none that one could set."
                raise UserError(
                    f"{where(name)} unknown key {name!r}: {self.what} has no such argument.{near}"
                )
        if missing := [name for name in self.missing() if name not in own]:
            raise UserError(f"{self.what} needs {missing[0]}: set it in its table.")
        strange = [name for name in self.given if name not in known]
        if strange and not takes_any:
            raise UserError(f"{self.what} takes no argument {strange[0]}, which it is called with.")

    def made(self, own: Mapping[str, Any], **given: Any) -> Any:
        """What it returns.

        Args:
            own: see `check`.
            given: the arguments that kgraft gives.

        Raises:
            UserError: what it has raised, in one line.
        """
        known, takes_any = self._parameters()
        fits = {name: value for name, value in given.items() if takes_any or name in known}
        return called(self.what, self.call, **_copied(own), **fits)

    def missing(self) -> list[str]:
        """The arguments that it cannot be called without, beside those that kgraft gives."""
        known, _ = self._parameters()
        needed = [name for name, own in known.items() if own.default is own.empty]
        return [name for name in needed if name not in self.given]

    def has(self, name: str) -> bool:
        """Whether it takes an argument."""
        known, takes_any = self._parameters()
        return takes_any or name in known

    def default(self, name: str) -> Any:
        """What an argument is where nobody gives it, None where it must be given."""
        known, _ = self._parameters()
        default = known[name].default if name in known else None
        return None if default is inspect.Parameter.empty else default

    def _parameters(self) -> tuple[dict[str, inspect.Parameter], bool]:
        """The arguments that can be given by name, and whether it takes any others."""
        try:
            every = [*inspect.signature(self.call).parameters.values()]
        except (TypeError, ValueError):  # of C's, which say nothing
            return {}, True
        takes_any = any(own.kind is own.VAR_KEYWORD for own in every)
        if takes_any and self.strict:
            bases = [vars(base) for base in inspect.getmro(self.call) if "__init__" in vars(base)]  # type: ignore[arg-type]
            for base in bases[1:]:
                every += [*inspect.signature(base["__init__"]).parameters.values()][1:]
        named: dict[str, inspect.Parameter] = {}
        for own in every:
            if own.kind in _NAMED:
                named.setdefault(own.name, own)
        return named, takes_any and not self.strict


def called(what: str, call: Callable[..., Any], /, *given: Any, **named: Any) -> Any:
    """What somebody else's function returns.

    Args:
        what: what it is called in errors.
        call: itself.
        given: its arguments by place.
        named: and by name.

    Raises:
        UserError: what it has raised, in one line, and where.
    """
    try:
        return call(*given, **named)
    except _OWN_ERRORS:
        raise
    except (Exception, SystemExit) as error:  # somebody else's code may raise anything
        raise UserError(f"{what} failed: {_told(error, call)}") from error


@contextlib.contextmanager
def blamed(
    files: Mapping[str, str | None], advice: Callable[[str], str] = lambda name: ""
) -> Iterator[None]:
    """Tell in one line what code of somebody else's raises in a block that calls it here and there.

    Args:
        files: where each of their parts comes from, by what a run file calls it.
        advice: what to do about one of them, sentences that follow the error; asked by its name.

    Raises:
        UserError: where an error comes out of one of these files, also by way of a library that it
            called; any other passes.
    """
    names: dict[str, list[str]] = {}
    for name, file in files.items():
        if file is not None:
            names.setdefault(file, []).append(name)
    try:
        yield
    except _OWN_ERRORS:
        raise
    except (Exception, SystemExit) as error:  # somebody else's code may raise anything
        for own in _chain(error):
            frames = traceback.extract_tb(own.__traceback__)
            file = next(
                (frame.filename for frame in reversed(frames) if frame.filename in names), ""
            )
            if file:
                found = names[file]
                who = repr(found[0]) if len(found) == 1 else Path(file).name
                said = " ".join(filter(None, [_told(own, file=file), advice(found[0])]))
                raise UserError(f"{who} failed: {said}") from error
        raise


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error, and what it was raised because of, or beside."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def brought_by(entry: EntryPoint, what: str) -> str:
    """What to call the part of a package's entry point in `load`.

    Args:
        entry: it.
        what: what is looked for, e.g. `"model"`.
    """
    package = "a package" if entry.dist is None else entry.dist.name
    return f"{what} {entry.name!r}, which {package} brings:"


def load(reference: str, what: str, example: str) -> Any:
    """What a reference names.

    Args:
        reference: `package.module:name`.
        what: what is looked for, e.g. `"model"`, for errors.
        example: a reference of that kind, for errors.

    Raises:
        UserError: it is no reference, there is no such module or no such name in it, or the module
            cannot be imported.
    """
    name = f"{what} {reference!r}"
    place, _, attribute = reference.partition(":")
    as_file = place.removesuffix(".py").replace("/", ".")
    if not is_reference(reference) or as_file != place:
        kind = "module:Class" if example.partition(":")[2][:1].isupper() else "module:function"
        meant = f"{as_file}:{attribute}"
        example = meant if as_file != place and is_reference(meant) else example
        raise UserError(f"{name}: expected {kind}, e.g. {example}.")
    try:
        module = importlib.import_module(place)
    except UserError:
        raise
    except (Exception, SystemExit) as error:  # somebody else's module may raise anything
        missing = error.name if isinstance(error, ModuleNotFoundError) else None
        if missing is not None and f"{place}.".startswith(f"{missing}."):
            raise UserError(
                f"{name} cannot be loaded: there is no module {missing!r}.{_near(missing)}"
            ) from None
        raise UserError(f"{name} cannot be loaded: {_told(error)}") from error
    found: Any = module
    for word in attribute.split("."):
        if word not in dir(found):
            known = [own for own, value in vars(found).items() if callable(value) and own[0] != "_"]
            near = suggest(word, known) if known else ""
            file = getattr(module, "__file__", None)
            raise UserError(
                f"{name} cannot be loaded: {f'{file} has' if file else 'it has'} no {word!r}.{near}"
            )
        found = getattr(found, word)
    return found


def origin(found: Any, reference: str, distribution: str | None = None) -> dict[str, Any]:
    """Where a part comes from, JSON-able.

    Args:
        found: the part.
        reference: what it was loaded by.
        distribution: the package that has brought it, if that is known.

    Returns:
        `file`, its `sha256`, and `distribution` and `version` of the package that has installed
        it; None for what nobody knows.
    """
    module = reference.partition(":")[0]
    if inspect.isroutine(found) or inspect.isclass(found):
        module = getattr(inspect.unwrap(found), "__module__", None) or module
    file = getattr(sys.modules.get(module), "__file__", None)
    if distribution is None:
        distribution = next(iter(packages_distributions().get(module.partition(".")[0], ())), None)
    return {
        "file": file,
        "sha256": None if file is None else checksum(Path(file)),
        "distribution": distribution,
        "version": _version(distribution),
    }


def checksum(file: Path) -> str | None:
    """SHA-256 of a file, None for one that cannot be read, in an archive say."""
    try:
        with file.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError:
        return None


def _version(distribution: str | None) -> str | None:
    try:
        return None if distribution is None else version(distribution)
    except PackageNotFoundError:
        return None


def _check_kind(
    call: Callable[..., Any], parameter: inspect.Parameter, value: Any, where: str
) -> None:
    kind, default = _hint(call, parameter.name), parameter.default
    if kind is None and type(default) in (bool, str):
        kind = type(default)
    elif kind is None and type(default) in (int, float):
        kind = float
    if kind is None or (inspect.isclass(kind) and kind not in _PLAIN):
        return
    argument(parameter.name, value, kind, where=where)


def _hint(call: Callable[..., Any], name: str) -> Any:
    """An argument's annotation, None where it has none that can be read."""
    own: Any = call.__init__ if inspect.isclass(call) else inspect.unwrap(call)
    try:
        return typing.get_type_hints(own).get(name)
    except Exception:  # of names that are known to type checkers alone
        return None


def _copied(value: Any) -> Any:
    """Lists that whoever gets them may change."""
    if isinstance(value, Mapping):
        return {name: _copied(own) for name, own in value.items()}
    return [_copied(own) for own in value] if isinstance(value, list) else value


def _told(error: BaseException, call: Any = None, file: str | None = None) -> str:
    """An error, in one line, and where it comes from: in the part's own file if it can be."""
    bold = re.findall(r"\x1b\[1m(.*?)\x1b\[0m", str(error), re.S)  # so Keras says it of a layer
    said = next(filter(None, map(str.strip, "".join(bold[-1:] or [str(error)]).splitlines())), "")
    frames = [own for own in traceback.extract_tb(error.__traceback__) if own.filename != __file__]
    frames = [own for own in frames if "importlib" not in own.filename]
    if inspect.isfunction(call):
        file = inspect.getfile(inspect.unwrap(call))
    own = [frame for frame in frames if frame.filename == file] or frames
    place = f" ({Path(own[-1].filename).name}:{own[-1].lineno})" if own else ""
    return f"{type(error).__name__}{': ' if said else ''}{said.rstrip('.')}{place}."


def _near(missing: str) -> str:
    """Where a module that is missing might be, or what it might be called."""
    parent, _, name = missing.rpartition(".")
    try:
        here = Path.cwd()
    except OSError:  # somebody has removed it
        return ""
    if not parent and str(here) not in sys.path and _is_module(here, name):
        return f" {here} has one: --here searches the current directory."
    folders = list(getattr(sys.modules.get(parent), "__path__", ())) if parent else [str(here)]
    if not parent and str(here) not in sys.path:
        folders = []
    known = [own.name for own in pkgutil.iter_modules(folders)]
    near = suggest(name, known) if known else ""
    return near if near.startswith(" Did") else ""


def _is_module(folder: Path, name: str) -> bool:
    return (folder / f"{name}.py").is_file() or (folder / name / "__init__.py").is_file()
