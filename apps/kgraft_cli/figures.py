"""Figures on a terminal of any width: a table, or where that is too wide a list; none is cut."""

from collections.abc import Sequence

from rich.console import Console, ConsoleOptions, RenderResult
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

_ANY_WIDTH = 10_000


class Figures:
    """Rows of figures, each with a name.

    Args:
        title: what they are.
        columns: what is in them; the first one has the rows' names.
        left: columns that are words, besides the first.
    """

    def __init__(self, title: str, columns: Sequence[str], *, left: Sequence[str] = ()) -> None:
        self._title, self._columns = title, columns
        self._left = {columns[0], *left}
        self._rows: list[Sequence[str]] = []
        self._ends: set[int] = set()

    def add_row(self, *cells: str) -> None:
        """Add a row: its name, and the other columns; an empty cell is no figure."""
        self._rows.append(cells)

    def add_section(self) -> None:
        """Draw a line below the last row."""
        self._ends.add(len(self._rows))

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Draw the table, or the list."""
        table = self._table()
        wide = options.update(max_width=_ANY_WIDTH)
        if Measurement.get(console, wide, table).maximum <= options.max_width:
            yield table
        else:
            yield from self._list(options.max_width)

    def _table(self) -> Table:
        table = Table(title=Text(self._title, style="italic"), title_justify="left")
        for name in self._columns:
            justify = "left" if name in self._left else "right"
            table.add_column(name, justify=justify)  # type: ignore[arg-type]
        for number, cells in enumerate(self._rows, start=1):
            table.add_row(*map(Text, cells), end_section=number in self._ends)
        return table

    def _list(self, width: int) -> RenderResult:
        yield Text(self._title, style="italic")
        for name, *cells in self._rows:
            yield Text(f"{self._columns[0]} {name}", style="bold")
            told = zip(self._columns[1:], cells, strict=True)
            line = ""
            for figure in (f"{column} {cell}" for column, cell in told if cell):
                longer = f"{line}, {figure}" if line else f"  {figure}"
                if line and len(longer) >= width:  # a comma may follow
                    yield Text(f"{line},", overflow="fold")
                    longer = f"  {figure}"
                line = longer
            yield Text(line, overflow="fold")
