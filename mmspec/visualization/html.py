"""An answer as HTML: every token coloured by its origin, with a tooltip about the round that wrote it."""

from __future__ import annotations

from html import escape
from typing import Protocol

from ..decoding.stats import Stats, speed_in_words
from .colours import ACCEPTED, BONUS

STYLE = "white-space:pre-wrap;font-family:ui-monospace,monospace;line-height:1.6;max-width:60em"


class ShownOutput(Protocol):
    """The part of `mmspec.Output` that is shown."""

    text: list[str | None]
    token_ids: list[list[int]]
    drafted: list[list[bool]]
    stats: Stats

    def pieces(self, row: int) -> list[str]:
        """Return the text of each token of a row."""
        ...


def rounds_of(out: ShownOutput, row: int) -> list[int]:
    """Return, for each token of a row, the round that wrote it; 0 is the pass over the prompt."""
    numbers = [0]
    for number, record in enumerate(out.stats.rounds, start=1):
        numbers += [number] * record.emitted[row]
    return numbers[: len(out.token_ids[row])]


def answer(out: ShownOutput) -> str:
    """Return all rows of an output as HTML, with a legend and the figures."""
    stats = out.stats
    figures = f"{stats.origin} | {speed_in_words(stats.tokens_per_second)}"
    figures += "" if stats.lossless else " | NOT lossless, so the text may be another than the target's"
    legend = f"{mark('drafted and accepted', True)} {mark('the target itself', False)}"
    rows = "".join(f'<div style="{STYLE}">{tokens(out, row)}</div>' for row in range(len(out.token_ids)))
    return f'<div>{rows}<div style="font-size:small;margin-top:.5em">{legend} &nbsp; {escape(figures)}</div></div>'


def tokens(out: ShownOutput, row: int) -> str:
    """Return one row as marked text, or as token ids where the target has no tokenizer."""
    pieces = out.pieces(row) if out.text[row] is not None else [f"{token} " for token in out.token_ids[row]]
    parts = []
    for number, (piece, drafted, written) in enumerate(zip(pieces, out.drafted[row], rounds_of(out, row), strict=True)):
        record = out.stats.rounds[written - 1] if written else None
        tip = f"token {number + 1} ({out.token_ids[row][number]})"
        if record is None:
            tip += ": the prompt's pass"
        else:
            kept = f"{record.accepted[row]} of {record.drafted[row]} drafted tokens kept"
            kept += ", without asking the target" if record.settled else ""
            tip += f": {'drafted' if drafted else 'bonus'}, round {written}, {kept}"
        if piece:
            parts.append(mark(piece, drafted, tip))
    return "".join(parts)


def mark(text: str, drafted: bool, tip: str = "") -> str:
    """Return a text with the mark of its origin."""
    colour = ACCEPTED if drafted else BONUS
    title = f' title="{escape(tip)}"' if tip else ""
    return f'<span{title} style="{style_of(colour)}">{escape(text)}</span>'


def style_of(colour: str) -> str:
    """Return the CSS style of marked text in a colour."""
    return f"background:{colour}22;border-bottom:2px solid {colour}"
