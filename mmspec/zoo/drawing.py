"""Drawing primitives shared by the tasks: colours, shapes, and glyphs in fixed cells.

Everything is aligned to the 8-pixel patches of the vision tower: a glyph fills a cell of 8 x 16 pixels (two patches),
a shape lives in a cell of 32 x 32 pixels, a bar is 16 pixels wide. The pictures are small (96 x 96) on purpose: a
model that two CPU cores can train in an hour must be able to read them.
"""

from __future__ import annotations

import functools
import math
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

SIZE = 96
"""Width and height of every picture in pixels."""
PATCH = 8
"""Width and height of a patch of the vision tower in pixels."""
GRID = SIZE // PATCH
"""Patches in a row of the picture; patch `GRID * row + column` is the one in that row and column."""
CELL = (8, 16)
"""Width and height of a glyph cell in pixels."""
OVERSAMPLE = 4

COLOURS = {
    "red": (220, 30, 40),
    "green": (30, 150, 60),
    "blue": (40, 80, 225),
    "yellow": (245, 215, 30),
    "purple": (140, 50, 180),
    "orange": (245, 130, 20),
    "pink": (255, 140, 200),
    "brown": (120, 70, 30),
}
SHAPES = ("circle", "square", "triangle", "diamond", "cross", "star", "ring")

# Letters that look alike with digits (I, O) are left out: at 8 pixels even a person cannot tell them from 1 and 0.
ALPHABET = "ABCDEFGHJKLMNPQRSTUVWXYZ0123456789"

FONTS = (
    "DejaVuSans.ttf",
    "DejaVuSans-Bold.ttf",
    "DejaVuSansMono.ttf",
    "DejaVuSansMono-Bold.ttf",
    "DejaVuSerif.ttf",
    "DejaVuSerif-Bold.ttf",
    "STIXGeneral.ttf",
    "STIXGeneralBol.ttf",
)


def draw_shape(
    image: Image.Image, shape: str, centre: tuple[float, float], size: float, colour: tuple[int, int, int]
) -> None:
    """Paint one filled shape of the given width onto `image`, smoothed by drawing it larger first."""
    pixels = round(size) * OVERSAMPLE
    mask = Image.new("L", (pixels, pixels), 0)
    draw = ImageDraw.Draw(mask)
    end = pixels - 1
    if shape == "circle":
        draw.ellipse((0, 0, end, end), fill=255)
    elif shape == "square":
        inset = pixels * 0.05
        draw.rectangle((inset, inset, end - inset, end - inset), fill=255)
    elif shape == "triangle":
        draw.polygon([(end / 2, 0), (end, end), (0, end)], fill=255)
    elif shape == "diamond":
        draw.polygon([(end / 2, 0), (end, end / 2), (end / 2, end), (0, end / 2)], fill=255)
    elif shape == "cross":
        third = end / 3
        draw.rectangle((third, 0, end - third, end), fill=255)
        draw.rectangle((0, third, end, end - third), fill=255)
    elif shape == "star":
        points = []
        for tip in range(10):
            radius = end / 2 * (1.0 if tip % 2 == 0 else 0.42)
            angle = math.pi * (tip / 5 - 0.5)
            points.append((end / 2 + radius * math.cos(angle), end / 2 + radius * math.sin(angle)))
        draw.polygon(points, fill=255)
    elif shape == "ring":
        draw.ellipse((0, 0, end, end), fill=255)
        hole = pixels * 0.28
        draw.ellipse((hole, hole, end - hole, end - hole), fill=0)
    else:
        raise ValueError(f"unknown shape {shape!r}: choose one of {', '.join(SHAPES)}")
    mask = mask.resize((pixels // OVERSAMPLE, pixels // OVERSAMPLE), Image.Resampling.BOX)
    corner = (round(centre[0] - size / 2), round(centre[1] - size / 2))
    image.paste(colour, (*corner, corner[0] + mask.width, corner[1] + mask.height), mask)


@functools.cache
def font_folder() -> Path:
    """Return the folder of the fonts that come with matplotlib (DejaVu and STIX)."""
    import matplotlib

    return Path(matplotlib.get_data_path()) / "fonts" / "ttf"


@functools.lru_cache(maxsize=4096)
def glyph(character: str, font: str, points: int) -> Image.Image:
    """Draw one character as an 8 x 16 coverage mask, centred in its cell; wide letters are squeezed to fit."""
    face = ImageFont.truetype(str(font_folder() / font), points * OVERSAMPLE)
    width, height = CELL[0] * OVERSAMPLE, CELL[1] * OVERSAMPLE
    left, _, right, _ = face.getbbox(character, anchor="ls")
    wide = Image.new("L", (max(int(right - left), 1), height), 0)
    ImageDraw.Draw(wide).text((-left, int(height * 0.78)), character, font=face, fill=255, anchor="ls")
    room = width - OVERSAMPLE  # half a pixel of air on both sides
    if wide.width > room:
        wide = wide.resize((room, height), Image.Resampling.BOX)
    mask = Image.new("L", (width, height), 0)
    mask.paste(wide, ((width - wide.width) // 2, 0))
    return mask.resize(CELL, Image.Resampling.BOX)


def draw_text(
    image: Image.Image, text: str, corner: tuple[int, int], ink: tuple[int, int, int], font: str, points: int
) -> None:
    """Print one line, one character per 8 x 16 cell, starting at `corner` (x, y)."""
    for column, character in enumerate(text):
        if character != " ":
            x, y = corner[0] + column * CELL[0], corner[1]
            image.paste(ink, (x, y, x + CELL[0], y + CELL[1]), glyph(character, font, points))
