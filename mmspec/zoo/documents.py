"""Documents: lines of random words and codes, printed in several fonts, to transcribe character by character.

Nothing in the text can be guessed by a language model: every character has to be read from the picture.
"""

from __future__ import annotations

import random
from typing import NamedTuple

from PIL import Image

from mmspec.zoo.drawing import ALPHABET, CELL, FONTS, GRID, SIZE, draw_text

COLUMNS = 11
ROWS = 6
BLOCK = 3  # lines
INKS = (  # ink, paper
    ((0, 0, 0), (255, 255, 255)),
    ((20, 30, 110), (250, 246, 230)),
    ((120, 10, 20), (255, 255, 255)),
    ((255, 255, 255), (20, 30, 60)),
)
POINTS = (11, 12, 13)

PROMPTS = (
    "Transcribe the text.",
    "What does the document say?",
    "Read the text in the picture.",
    "Copy the printed text exactly.",
    "Write down every line of the page.",
)


class Document(NamedTuple):
    """The printed lines and their look."""

    lines: tuple[str, ...]
    font: str
    points: int
    ink: int


def _line(rng: random.Random, columns: int) -> str:
    """Return words of letters, numbers and mixed codes that fill most of a line."""
    words: list[str] = []
    room = columns
    while room >= 2:
        length = min(rng.randint(2, 7), room)
        kind = rng.random()
        letters = ALPHABET[:24] if kind < 0.5 else ALPHABET[24:] if kind < 0.7 else ALPHABET
        words.append("".join(rng.choice(letters) for _ in range(length)))
        room -= length + 1
    return " ".join(words)


def draw_document(rng: random.Random, fewest: int = 5, most: int = ROWS, columns: int = COLUMNS) -> Document:
    """Choose the text, the font and the colours of a page."""
    lines = tuple(_line(rng, columns) for _ in range(rng.randint(fewest, most)))
    return Document(lines, rng.choice(FONTS), rng.choice(POINTS), rng.randrange(len(INKS)))


def render(document: Document) -> Image.Image:
    """Print the page: line i fills patch rows 2i and 2i + 1, character j fills patch column j."""
    ink, paper = INKS[document.ink]
    image = Image.new("RGB", (SIZE, SIZE), paper)
    for row, line in enumerate(document.lines):
        draw_text(image, line, (0, row * CELL[1]), ink, document.font, document.points)
    return image


def patch_words(document: Document) -> dict[int, str]:
    """Return the word that each patch shows: both patches of a cell show its character."""
    words: dict[int, str] = {}
    for row, line in enumerate(document.lines):
        for column, character in enumerate(line):
            corner = GRID * 2 * row + column
            words |= dict.fromkeys((corner, corner + GRID), character)
    return words


def regions(document: Document) -> list[tuple[str, tuple[int, int, int, int]]]:
    """Return the blocks of a page, of three lines each, as a layout parser would: text and box in pixels."""
    return [
        ("\n".join(document.lines[first : first + BLOCK]), (0, first * CELL[1], SIZE, min(last * CELL[1], SIZE)))
        for first in range(0, len(document.lines), BLOCK)
        for last in [min(first + BLOCK, len(document.lines))]
    ]


def transcribe(document: Document) -> str:
    """Return the text of the page, line by line."""
    return "\n".join(document.lines)
