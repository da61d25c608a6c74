"""Tables as text: Markdown, and terminals of any width."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal

from ..errors import printable

if TYPE_CHECKING:
    from rich.table import Table

TEXT_COLUMNS = ("method", "measured on", "same text as plain")  # the others are numbers, and end at the right
BROKEN = ("measured on", "same text as plain")  # columns in which a cell may break
MARKDOWN = str.maketrans({"|": "\\|", "<": "&lt;", ">": "&gt;", "[": "\\[", "]": "\\]"})
FORMULA = ("=", "+", "-", "@", "\t", "\r")
GAP = 2  # between columns
WIDTH = 120  # in characters, where there is no terminal


class Shown:
    """A table that prints as text and shows as Markdown in a notebook; rich prints it by `__rich_console__`."""

    def markdown(self) -> str:
        """Return a Markdown table and the lines under it."""
        raise NotImplementedError

    def __str__(self) -> str:
        return as_text(self, WIDTH)

    def _repr_markdown_(self) -> str:
        return self.markdown()


def markdown_table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table, in which a name is no more than its letters: it ends no cell and links to nothing."""
    rule = ["---" if heading in TEXT_COLUMNS else "--:" for heading in headings]
    escaped = [[markdown_text(cell) for cell in line] for line in (headings, *rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in [escaped[0], rule, *escaped[1:]])


def markdown_text(text: str) -> str:
    """Return a text for Markdown: no tag, no comment, no link or picture, no end of a cell or line."""
    return printable(text).translate(MARKDOWN)


def csv_text(value: Any) -> Any:
    """Return a value for a CSV cell: a text that a spreadsheet would take for a formula begins with an apostrophe."""
    return f"'{value}" if isinstance(value, str) and value.startswith(FORMULA) else value


def terminal_tables(
    title: str,
    headings: Sequence[str],
    rows: Sequence[Sequence[str]],
    width: int,
    names: int,
    broken: Sequence[str] = (),
) -> Iterator[Table]:
    """Yield a table for a terminal of that width, or as many as its columns need.

    Args:
        title: above each of them.
        headings, rows: the cells. Headings break at their spaces; cells stay whole, because they are what people copy.
        width: in characters.
        names: how many columns at the left say what the row is; every table has them.
        broken: headings of columns whose cells may break at their spaces as well.
    """
    least = [_least(headings, rows, i, broken) for i in range(len(headings))]
    least[:names] = [min(one, width // (2 * names)) for one in least[:names]]  # in a narrow terminal names break too
    columns: list[int] = []
    for i in range(names, len(headings)):
        if columns and _total([*least[:names], *(least[j] for j in columns), least[i]]) > width:
            yield _table(title, headings, rows, [*range(names), *columns], least, width)
            columns = []
        columns.append(i)
    yield _table(title, headings, rows, [*range(names), *columns], least, width)


def least_width(headings: Sequence[str], rows: Sequence[Sequence[str]], broken: Sequence[str] = ()) -> int:
    """Return the characters that a single table needs; see `terminal_tables`."""
    return _total([_least(headings, rows, i, broken) for i in range(len(headings))])


def _total(widths: Sequence[int]) -> int:
    return sum(widths) + GAP * (len(widths) - 1)


def _least(headings: Sequence[str], rows: Sequence[Sequence[str]], column: int, broken: Sequence[str]) -> int:
    cells = [row[column] for row in rows]
    if headings[column] in broken:
        cells = [word for cell in cells for word in cell.split()]
    return max(map(len, [*headings[column].split(), *cells]), default=1)


def _table(
    title: str,
    headings: Sequence[str],
    rows: Sequence[Sequence[str]],
    columns: Sequence[int],
    least: Sequence[int],
    width: int,
) -> Table:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    spare = width - _total([least[i] for i in columns])
    table = Table(
        title=Text(f"\n{printable(title)}"),  # as rich's Text a name is no markup
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD,
        show_edge=False,
        padding=(0, 1, 0, 0),
        pad_edge=False,
    )
    for i in columns:
        # What would break gets what is left over.
        more = max((len(row[i]) for row in rows), default=0) - least[i]
        more = min(more, spare) if more > 0 and spare > 0 else 0
        spare -= more
        least_or_all = min(least[i] + more, width)
        justify: Literal["left", "right"] = "left" if headings[i] in TEXT_COLUMNS else "right"
        table.add_column(Text(printable(headings[i])), justify=justify, width=least_or_all, overflow="fold")
    for row in rows:
        table.add_row(*(Text(printable(row[i])) for i in columns))
    return table


def as_text(renderable: object, width: int) -> str:
    """Return what a terminal of that width would show, without colours."""
    import io

    from rich.console import Console

    out = io.StringIO()
    Console(file=out, width=width, color_system=None).print(renderable)
    return out.getvalue()
