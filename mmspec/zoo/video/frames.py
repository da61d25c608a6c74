"""Frames of clips: two for every step, and the words for what each visual token shows.

Whatever happens at a step is seen between its two frames. Who appears is in the second alone, and who vanishes in the
first alone; who moves is in another place in the second; who turns is turned in the second; who hits another touches it
in the second, and both have jumped a little.
"""

from __future__ import annotations

import functools

import numpy
from PIL import Image

from mmspec.zoo.drawing import COLOURS as INKS
from mmspec.zoo.drawing import OVERSAMPLE, draw_shape, glyph
from mmspec.zoo.video.clips import Cell, Clip, Event, Name, Step, place_of, steps_of

CELL = 16
"""Width and height of a cell in pixels: two patches of 8, merged into one visual token."""
FRAMES_PER_STEP = 2
FRAMES_PER_SECOND = 2.0
"""At this rate a step is a second."""
SIZE = 14  # of a shape, in pixels
JUMP = 3  # how far the two figures of a collision are moved, in pixels
STRIP = (40, 40, 48)
FONT, POINTS = "DejaVuSansMono-Bold.ttf", 12


@functools.cache
def mask_of(shape: str, turned: bool) -> numpy.ndarray:
    """Return the coverage of a shape, `[14, 14]` from 0 to 1; turned, it is rotated by an eighth of a circle."""
    large = SIZE * OVERSAMPLE
    image = Image.new("RGB", (large, large))
    draw_shape(image, shape, (large / 2, large / 2), large, (255, 255, 255))
    mask = image.convert("L").rotate(45 if turned else 0, Image.Resampling.BILINEAR)
    return numpy.asarray(mask.resize((SIZE, SIZE), Image.Resampling.BOX), dtype=numpy.float32) / 255


@functools.cache
def floor_of(edge: int) -> numpy.ndarray:
    """Return the empty frame: the dark strip above, and nine tiles whose shades tell row and column."""
    width = 3 * edge * CELL
    frame = numpy.empty((width + CELL, width, 3), numpy.float32)
    frame[:CELL] = STRIP
    for tile in range(9):
        row, column = divmod(tile, 3)
        top, left = CELL + row * edge * CELL, column * edge * CELL
        frame[top : top + edge * CELL, left : left + edge * CELL] = (255 - 45 * row, 255 - 45 * column, 225)
    return frame


@functools.cache
def number_mask(number: int) -> numpy.ndarray:
    """Return the coverage of a number of two digits in its cell, `[16, 16]` from 0 to 1."""
    digits = [numpy.asarray(glyph(digit, FONT, POINTS), dtype=numpy.float32) for digit in f"{number:02}"]
    return numpy.concatenate(digits, axis=1) / 255


def _blend(frame: numpy.ndarray, mask: numpy.ndarray, corner: tuple[int, int], colour: tuple[int, int, int]) -> None:
    """Paint onto a frame; what stands out over its edges or into the strip is cut off."""
    top, left = corner
    height, width = mask.shape
    above, before = max(0, CELL - top), max(0, -left)
    below, behind = max(0, top + height - frame.shape[0]), max(0, left + width - frame.shape[1])
    mask = mask[above : height - below, before : width - behind, None]
    part = frame[top + above : top + height - below, left + before : left + width - behind]
    part += mask * (numpy.asarray(colour, numpy.float32) - part)


def paint(frame: numpy.ndarray, name: Name, cell: Cell, shift: tuple[int, int] = (0, 0), turned: bool = False) -> None:
    """Paint one figure onto a frame: in its cell, or moved by so many pixels down and to the right."""
    margin = (CELL - SIZE) // 2
    corner = (CELL + cell[0] * CELL + margin + shift[0], cell[1] * CELL + margin + shift[1])
    _blend(frame, mask_of(name[1], turned), corner, INKS[name[0]])


def _second_frame(frame: numpy.ndarray, step: Step) -> None:
    """Paint the figures as they are when the event of the step is seen."""
    event = step.event
    for name, cell in step.after.items():
        if event.kind == "hits" and name in (event.name, event.other):
            assert event.cell is not None and event.other is not None
            target = step.after[event.other]
            shift = JUMP * (target[0] - event.cell[0]), JUMP * (target[1] - event.cell[1])
            paint(frame, name, event.cell if name == event.name else cell, shift)
        else:
            paint(frame, name, cell, turned=event.kind == "turns" and name == event.name)


def render(clip: Clip) -> numpy.ndarray:
    """Paint a clip: `[2 * steps, height, width, 3]` of uint8."""
    frames = []
    for step in steps_of(clip):
        empty = floor_of(clip.edge).copy()
        part = empty[:CELL, :CELL]
        part += number_mask(step.number)[..., None] * (255 - part)
        first, second = empty, empty.copy()
        for name, cell in step.before.items():
            paint(first, name, cell)
        _second_frame(second, step)
        frames += [first, second]
    return numpy.stack(frames).round().astype(numpy.uint8)


def _seen(event: Event, name: Name) -> list[str]:
    """Return the verb of the figure that does something."""
    return [f" {event.kind}"] if name == event.name else []


def patch_words(clip: Clip) -> dict[int, list[str]]:
    """Return the words that single visual tokens show: colour, shape, place, and what is happening; or the number.

    Tokens are numbered as the model reads them: step by step, row by row. Where a figure was before it moved or jumped
    off has no words, for seen alone it might have vanished.
    """
    width = 3 * clip.edge
    size = width * (width + 1)
    words: dict[int, list[str]] = {}
    for place, step in enumerate(steps_of(clip)):
        words[place * size] = [str(step.number)]
        event = step.event
        shown = step.before | step.after if event.kind == "vanishes" else step.after
        for name, home in shown.items():
            hitting = event.kind == "hits" and name == event.name
            cell = event.cell if hitting and event.cell is not None else home
            where = [] if hitting else [f" {word}" for word in place_of(cell, clip.edge).split()]
            token = place * size + (1 + cell[0]) * width + cell[1]
            words[token] = [f" {name[0]}", f" {name[1]}", *where, *_seen(event, name)]
    return words
