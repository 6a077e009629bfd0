"""What arguments and options have in common."""

import math
import sys
from pathlib import Path
from typing import Any

import click


class _Place(click.types.StringParamType):
    """The name of a file or directory; an empty one is a variable of a shell that is not set."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Refuse an empty name, which would mean the working directory."""
        if value == "" and param is not None:
            option = isinstance(param, click.Option)
            name = param.opts[-1] if option else param.human_readable_name
            raise click.UsageError(f"{name} is empty: expected a file or a directory.", ctx)
        return super().convert(value, param, ctx)


class _Finite(click.FloatRange):
    """A finite number in a range."""

    name = "number"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """Refuse nan, which lies in every range, and infinity."""
        found = super().convert(value, param, ctx)
        if not math.isfinite(found):
            self.fail(f"{value} is no finite number.", param, ctx)
        return found


def _search_here(ctx: click.Context, param: click.Parameter, value: bool) -> bool:
    """Let Python search the current directory, last: a random.py in it stands before no library."""
    if value and str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))
    return value


PLACE = _Place()
POSITIVE = _Finite(min=0, min_open=True)
NOT_NEGATIVE = _Finite(min=0)
HERE = click.option(
    "--here",
    is_flag=True,
    callback=_search_here,
    is_eager=True,
    help="Search the current directory for parts of your own.",
)
TRUST = click.option("--trust", is_flag=True, help="Call the code that the run's files name.")
DATA_DIR = click.option(
    "--data-dir", type=PLACE, metavar="DIR", help="Where prepared data sets are."
)
JOBS = click.option(
    "--jobs",
    type=click.IntRange(1, 256),
    default=1,
    show_default=True,
    metavar="N",
    help="Runs at a time, each in a process with its share of the cores.",
)
THRESHOLD = click.option(
    "--threshold",
    type=POSITIVE,
    default=0.1,
    show_default=True,
    help="The l1 norm below which a filter is invalid.",
)
RECORDS_ONLY = click.option("--records-only", is_flag=True, help="Leave the peers' weights alone.")
