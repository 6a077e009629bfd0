"""Mistakes that a user can make, told in one line."""

import difflib
import inspect
from collections.abc import Iterable
from numbers import Real
from typing import Any


class UserError(ValueError):
    """A mistake in what the user gave: one line that names what, where and the nearest valid thing.

    Library code raises it like any `ValueError`; the command line prints it and exits with code 2.
    """


class StorageError(OSError):
    """Something that could not be written: one line that names the file and the machine's reason.

    The command line prints it and exits with code 1.
    """


class DivergedError(RuntimeError):
    """A training with nothing left to train: one line that says when, and what may help.

    The command line prints it and exits with code 1.
    """


class LostPeerError(RuntimeError):
    """A rank that others wait for and that does not come: one line that names it, and its host.

    The command line prints it and exits with code 1.
    """


class DriftError(RuntimeError):
    """Processes that should train the same weights do not: one line that names the first of them.

    The command line prints it and exits with code 1.
    """


def suggest(word: str, candidates: Iterable[str]) -> str:
    """Sentence that points from a wrong `word` to what is valid.

    Args:
        word: What the user wrote.
        candidates: Everything valid in its place.

    Returns:
        `" Did you mean 'x'?"` when one candidate is close, else `" Known: a, b, c."`; each with a
        leading space, to be appended to an error's first sentence.

    Example:
        >>> suggest("resnet23", ["resnet20", "resnet32", "mobilenet_v2"])
        " Did you mean 'resnet32'?"
        >>> suggest("AdamW", ["adam", "adamw"])
        " Did you mean 'adamw'?"
        >>> suggest("vit", ["resnet20", "resnet32"])
        ' Known: resnet20, resnet32.'
    """
    known = sorted(candidates)
    close = [own for own in known if own.lower() == word.lower()]
    close = close or difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    return f" Did you mean {close[0]!r}?" if close else f" Known: {', '.join(known)}."


def line_of(error: BaseException) -> str:
    r"""The first line of what an error says; its kind where it says nothing.

    Args:
        error: anybody's.

    Example:
        >>> line_of(RuntimeError("gone\nframe #0")), line_of(KeyboardInterrupt())
        ('gone', 'KeyboardInterrupt')
    """
    return str(error).strip().partition("\n")[0] or type(error).__name__


def kind_and_line_of(error: BaseException) -> str:
    """An error's kind before what it says, in one line.

    Args:
        error: anybody's.

    Example:
        >>> kind_and_line_of(ValueError("x is 3")), kind_and_line_of(KeyboardInterrupt())
        ('ValueError: x is 3', 'KeyboardInterrupt')
    """
    kind = type(error).__name__
    return f"{kind}: {line_of(error)}" if str(error).strip() else kind


def told(value: Any) -> str:
    """What a user has given, in a few words for an error.

    Args:
        value: anything.

    Example:
        >>> told(None), told("x"), told([1]), told(len)
        ('None', "'x'", 'a list', "the function 'len'")
    """
    if inspect.isclass(value):
        return f"the class {value.__name__}"
    if inspect.isroutine(value):
        return f"the function {value.__name__!r}"
    if isinstance(value, Real):
        return str(value)
    if isinstance(value, str | bytes | None):
        return repr(value)
    name = type(value).__name__
    return f"an {name}" if name[0].lower() in "aeiou" else f"a {name}"
