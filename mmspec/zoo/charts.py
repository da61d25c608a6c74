"""Charts: four or five coloured bars on a grid, read into a Markdown table."""

from __future__ import annotations

import random
from typing import NamedTuple

from PIL import Image, ImageDraw

from mmspec.zoo.drawing import ALPHABET, COLOURS, GRID, PATCH, SIZE, draw_text

LETTERS, DIGITS = ALPHABET[:24], ALPHABET[24:]
UNITS = (1, 2, 5)
"""Possible values of one grid line: the axis then ends at 10, 20 or 50."""
STEP = PATCH  # pixels between grid lines
FLOOR = 80  # the y coordinate of value zero; the labels stand below it
FONT, POINTS = "DejaVuSansMono-Bold.ttf", 12

PROMPTS = (
    "Read the chart into a table.",
    "Turn this chart into a Markdown table.",
    "Which values does the chart show? Answer with a table.",
    "Extract the data of the bar chart.",
    "Write the chart as a table.",
)
HEADER = ("label", "colour", "value")


class Bar(NamedTuple):
    """One bar: the label below it, its colour, and its height in grid lines (1 to 10)."""

    label: str
    colour: str
    level: int


class Chart(NamedTuple):
    """A chart: the value of a grid line, and the bars from left to right."""

    unit: int
    bars: tuple[Bar, ...]

    def value(self, bar: Bar) -> int:
        """Return the number that the bar stands for."""
        return bar.level * self.unit


def draw_chart(rng: random.Random, fewest: int = 4, most: int = 5) -> Chart:
    """Choose a chart; labels, colours and heights are all different within it."""
    number = rng.randint(fewest, most)
    labels: list[str] = []
    while len(labels) < number:
        label = rng.choice(LETTERS) + rng.choice(DIGITS)
        if label not in labels:
            labels.append(label)
    colours = rng.sample(list(COLOURS), number)
    levels = rng.sample(range(1, 11), number)
    return Chart(rng.choice(UNITS), tuple(Bar(*bar) for bar in zip(labels, colours, levels, strict=True)))


def render(chart: Chart, rng: random.Random) -> Image.Image:
    """Paint axis numbers, grid lines, bars and labels, all on patch boundaries."""
    paper = rng.choice(((255, 255, 255), (248, 246, 236), (236, 242, 248)))
    image = Image.new("RGB", (SIZE, SIZE), paper)
    draw = ImageDraw.Draw(image)
    for level in range(11):
        y = FLOOR - level * STEP
        draw.line((16, y, SIZE, y), fill=(120, 120, 120) if level % 5 == 0 else (212, 212, 212))
    for level, y in ((10, 0), (5, 32)):
        draw_text(image, f"{level * chart.unit:>2}", (0, y), (0, 0, 0), FONT, POINTS)
    for column, bar in enumerate(chart.bars):
        left = 16 + 16 * column
        draw.rectangle((left + 2, FLOOR - bar.level * STEP, left + 13, FLOOR - 1), fill=COLOURS[bar.colour])
        draw_text(image, bar.label, (left, FLOOR), (0, 0, 0), FONT, POINTS)
    return image


def patch_words(chart: Chart) -> dict[int, str]:
    """Return the word that each patch shows: the label below a bar, its colour inside, the digits of its value at its
    top."""
    words = {}
    floor = FLOOR // PATCH
    for number, bar in enumerate(chart.bars):
        for side in (0, 1):
            column = 2 + 2 * number + side
            for row in range(floor - bar.level + 1, floor):
                words[GRID * row + column] = f" {bar.colour}"
            words[GRID * (floor - bar.level) + column] = f"{chart.value(bar):>2}"[side]
            for row in (floor, floor + 1):
                words[GRID * row + column] = bar.label[side]
    return words


def tabulate(chart: Chart) -> str:
    """Return the Markdown table of the chart, one row per bar."""
    rows = [HEADER, ("---",) * 3, *((bar.label, bar.colour, str(chart.value(bar))) for bar in chart.bars)]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)
