"""Layouts: the regions of a page as a parser has them, and a parser for whoever has none, made of an OCR package."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from .errors import MMSpecError, shown
from .extras import missing
from .settings.arguments import is_number, number


class Region(NamedTuple):
    """A part of a page, as a layout parser has it.

    Args:
        text: what it has read there, right or wrong.
        box: left, top, right and bottom in pixels.
    """

    text: str
    box: tuple[float, float, float, float]


Layout = Callable[[Image.Image], Sequence[Region]]
"""A layout parser: a function that takes a picture and returns its regions in the order in which they are read."""


def regions_of(given: Any, picture: Image.Image) -> list[Region]:
    """Return what was given as the regions of a picture.

    Raises:
        MMSpecError: for what is no list of regions, and for a box that is none or lies outside of the picture.
    """
    if isinstance(given, str) or not isinstance(given, Iterable):
        raise MMSpecError(f"regions={shown(given, 60)} must be a list of Region(text, box)")
    found = [*given]
    text: Any
    box: Any
    for place, region in enumerate(found):
        text, box = region if isinstance(region, tuple) and len(region) == 2 else (None, ())
        numbers = isinstance(box, Sequence) and len(box) == 4 and all(map(is_number, box))
        if not isinstance(text, str) or not numbers or box[0] >= box[2] or box[1] >= box[3]:
            raise MMSpecError(
                f"region {place} is {shown(region, 60)}: give Region(text, (left, top, right, bottom)) in pixels"
            )
        if box[0] >= picture.width or box[1] >= picture.height or box[2] <= 0 or box[3] <= 0:
            raise MMSpecError(
                f"region {place} is {shown(region, 60)}, which lies outside of the page of {picture.width} x "
                f"{picture.height} pixels: give boxes in pixels of this picture"
            )
    return [Region(*region) for region in found]


class OcrLayout:
    """Reads the lines of a page by RapidOCR, and joins those that stand close below each other to regions.

    RapidOCR brings its weights (PP-OCR's, some 25 MB), runs on a processor and asks for no network. It knows lines of
    text and no tables or formulas: for those, wrap a parser of your own. Needs the extra `ocr`.

    Args:
        gap: space between two lines of a region at most, in heights of the line above.
        least: confidence of a line from which on it counts, from 0 to 1.

    Raises:
        MMSpecError: for numbers out of range, and where RapidOCR is not installed.
    """

    def __init__(self, gap: float = 0.8, least: float = 0.5):
        self.gap = number(self, gap=gap, lowest=0)
        self.least = number(self, least=least, lowest=0, highest=1)
        try:
            import rapidocr  # noqa: F401
        except ImportError:
            raise MMSpecError(missing("OcrLayout", "rapidocr")) from None

    def __call__(self, picture: Image.Image) -> list[Region]:
        """Return the regions of a picture, from the top to the bottom; none where it shows no text."""
        blocks: list[list[Region]] = []
        for line in self.lines(picture):
            block = next((block for block in blocks if self._goes_on(block[-1], line)), None)
            if block is None:
                blocks.append([line])
            else:
                block.append(line)
        return [_joined(block) for block in blocks]

    def lines(self, picture: Image.Image) -> list[Region]:
        """Return the lines of a picture, from the top to the bottom and from the left to the right."""
        read = self._reader(np.asarray(picture.convert("RGB"))[..., ::-1])
        if read.boxes is None:
            return []
        lines = [
            Region(text, (*corners.min(0).tolist(), *corners.max(0).tolist()))
            for corners, text, score in zip(read.boxes, read.txts, read.scores, strict=True)
            if score >= self.least and text.strip()
        ]
        return sorted(lines, key=lambda line: (line.box[1], line.box[0]))

    @cached_property
    def _reader(self) -> Any:
        """The OCR engine, which loads its weights."""
        from rapidocr import RapidOCR

        return RapidOCR(params={"Global.log_level": "error"})

    def _goes_on(self, above: Region, line: Region) -> bool:
        """Return True if a line stands below another one, and close to it."""
        left, top, right, bottom = above.box
        beside = line.box[0] >= right or line.box[2] <= left
        return not beside and line.box[1] - bottom <= self.gap * (bottom - top)


def _joined(lines: Sequence[Region]) -> Region:
    """Return the lines of a region as one, with a line break between two."""
    lefts, tops, rights, bottoms = zip(*(line.box for line in lines), strict=True)
    return Region("\n".join(line.text for line in lines), (min(lefts), min(tops), max(rights), max(bottoms)))
