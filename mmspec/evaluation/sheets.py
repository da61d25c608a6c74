"""Tables as text: Markdown, and terminals of any width; rich lays both out."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from rich import box
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderableType
from rich.table import Table
from rich.text import Text

from ..errors import printable

SAME = "same text as plain"
BATCH_SIZE = "batch size"
MATCH = "exact match with single prompts"
TEXTS = ("method", "figure", "measured on", SAME)
"""Headings of columns of texts. The others are numbers, and end at the right."""
BROKEN = ("measured on", SAME)
"""Headings of columns in which a cell may break."""
DASH = "-"
"""Cell of a figure that is not known."""
WIDTH = 120
"""Characters in a line, where there is no terminal."""
MARKDOWN = str.maketrans({"|": "\\|", "<": "&lt;", ">": "&gt;", "[": "\\[", "]": "\\]"})
GAP = 2  # between columns


@dataclass
class Sheet:
    """One table of texts.

    Args:
        title: above it in a terminal.
        headings, rows: the cells.
        names: how many columns at the left say what the row is.
        apart: columns that get a table of their own where not everything fits in a terminal.
    """

    title: str
    headings: Sequence[str]
    rows: Sequence[Sequence[str]]
    names: int = 1
    apart: range = range(0)

    def markdown(self) -> str:
        """Return a Markdown table, in which a name is no more than its letters: it ends no cell and is no link."""
        table = Table(box=box.MARKDOWN)
        for heading in self.headings:
            table.add_column(Text(markdown_text(heading)), justify=_side(heading))
        for row in self.rows:
            table.add_row(*(Text(markdown_text(cell)) for cell in row))
        _, head, rule, *rows, _, _ = as_text(table, 1_000_000).split("\n")
        # What rich leaves out: a colon in the rule puts a column at the right.
        parts = zip(self.headings, rule.split("|")[1:-1], strict=True)
        aligned = [part if heading in TEXTS else f"{part[:-1]}:" for heading, part in parts]
        return "\n".join([head, f"|{'|'.join(aligned)}|", *rows])

    def tables(self, width: int) -> Iterator[Table]:
        """Yield a table for a terminal of that width, or as many as the columns need; each has the names.

        Headings break at their spaces; cells stay whole, because they are what people copy.
        """
        columns = range(len(self.headings))
        least = [self._least(i) for i in columns]
        apart = list(self.apart) if _total(least) > width else []
        least[: self.names] = [min(one, width // (2 * self.names)) for one in least[: self.names]]
        parts = {self.title: [i for i in columns[self.names :] if i not in apart]}
        parts |= {f"{self.title}, by task": apart} if apart else {}
        for title, part in parts.items():
            shown = list(columns[: self.names])
            for i in part:
                if len(shown) > self.names and _total([least[j] for j in (*shown, i)]) > width:
                    yield self._table(shown, least, title)
                    shown = shown[: self.names]
                shown.append(i)
            yield self._table(shown, least, title)

    def _least(self, column: int) -> int:
        """Return the characters that a column needs."""
        cells = [row[column] for row in self.rows]
        if self.headings[column] in BROKEN:
            cells = [word for cell in cells for word in cell.split()]
        return max(map(cell_len, [*self.headings[column].split(), *cells]), default=1)

    def _table(self, columns: Sequence[int], least: Sequence[int], title: str) -> Table:
        table = Table(
            title=Text(f"\n{printable(title)}"),
            title_justify="left",
            title_style="bold",
            box=box.SIMPLE_HEAD,
            show_edge=False,
            padding=(0, GAP - 1, 0, 0),
            pad_edge=False,
        )
        for i in columns:
            heading, longest = self.headings[i], max([least[i], *(cell_len(row[i]) for row in self.rows)])
            table.add_column(
                Text(printable(heading)),
                justify=_side(heading),
                width=None if heading in BROKEN else least[i],  # what may break gets what the others leave
                max_width=longest,
                overflow="fold",
            )
        for row in self.rows:
            table.add_row(*(Text(printable(row[i])) for i in columns))
        return table


@dataclass
class Shown:
    """Tables and the lines under them, which print as text and show as Markdown in a notebook."""

    sheets: list[Sheet]
    notes: list[str]

    def markdown(self) -> str:
        """Return Markdown tables and the lines under them."""
        lines = "\n".join(f"- {markdown_text(note)}" for note in self.notes)
        return "\n\n".join([*(sheet.markdown() for sheet in self.sheets), f"{lines}\n"])

    def cells(self) -> tuple[Sequence[str], Sequence[Sequence[str]]]:
        """Return the headings and the rows of the first table."""
        return self.sheets[0].headings, self.sheets[0].rows

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        for sheet in self.sheets:
            yield from sheet.tables(options.max_width)
        yield from (Text(f"- {note}") for note in self.notes)

    def __str__(self) -> str:
        return as_text(self, WIDTH)

    def _repr_markdown_(self) -> str:
        return self.markdown()


def as_text(renderable: RenderableType, width: int) -> str:
    """Return what a terminal of that width would show, without colours."""
    out = io.StringIO()
    Console(file=out, width=width, color_system=None).print(renderable)
    return out.getvalue()


def markdown_text(text: str) -> str:
    """Return a text for Markdown: no tag, no comment, no link or picture, no end of a cell or line."""
    return printable(text).translate(MARKDOWN)


def _side(heading: str) -> Literal["left", "right"]:
    return "left" if heading in TEXTS else "right"


def _total(widths: Sequence[int]) -> int:
    return sum(widths) + GAP * (len(widths) - 1)
