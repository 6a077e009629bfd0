"""What arguments and options have in common."""

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


PLACE = _Place()
