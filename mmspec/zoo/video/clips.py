"""Clips: coloured shapes on a floor of nine tiles, to which something happens at every step, and a counter.

The floor has three rows of three tiles, each `edge` cells wide and high, and a strip above it where the counter stands.
A cell is 16 x 16 pixels, which is one visual token of the video target; a step is a pair of frames, which is one of its
temporal patches. So a clip of `steps` steps costs `steps * 3 * edge * (3 * edge + 1)` visual tokens: 48 for the
shortest, 2,496 for sixteen steps on the largest floor.
"""

from __future__ import annotations

import random
from typing import NamedTuple

from mmspec.zoo.scenes import HELD_OUT as PAIRS_HELD_OUT
from mmspec.zoo.scenes import PLACES

COLOURS = ("red", "green", "blue", "yellow", "purple", "orange")
SHAPES = ("circle", "square", "triangle", "cross", "star", "ring")
TURNING = frozenset({"square", "triangle", "cross", "star"})
"""Shapes that look different when they are turned."""

HELD_OUT = frozenset((colour, shape) for colour, shape in PAIRS_HELD_OUT if shape in SHAPES)
"""Pairs of colour and shape that only clips of the test split contain, at their natural rate."""

KINDS = ("nothing", "appears", "vanishes", "moves", "turns", "hits")
_WEIGHTS = (2, 4, 2, 4, 2, 3)
FIRST_NUMBERS = range(10, 40)
"""Numbers that the counter may begin with; it counts on by one at every step."""

Name = tuple[str, str]  # colour and shape, which no two figures of a clip share
Cell = tuple[int, int]  # row and column on the floor


class Event(NamedTuple):
    """Something that happens at one step.

    `name` is the figure that does it. `cell` is where it appears, moves to, or touches the `other` one, off which it
    bounces back to its place.
    """

    kind: str
    name: Name | None = None
    cell: Cell | None = None
    other: Name | None = None


class Clip(NamedTuple):
    """The cells along the edge of a tile, the first number, the figures that are there at first, an event per step."""

    edge: int
    first: int
    opening: tuple[tuple[Name, Cell], ...]
    events: tuple[Event, ...]

    @property
    def visual_tokens(self) -> int:
        """Visual tokens of the whole clip."""
        return len(self.events) * 3 * self.edge * (3 * self.edge + 1)


class Step(NamedTuple):
    """One step: the number shown, where the figures are before and after it, and its event."""

    number: int
    before: dict[Name, Cell]
    after: dict[Name, Cell]
    event: Event


def tile_of(cell: Cell, edge: int) -> int:
    """Return the tile of a cell in reading order (0 to 8)."""
    return 3 * (cell[0] // edge) + cell[1] // edge


def place_of(cell: Cell, edge: int) -> str:
    """Return the name of a cell's tile, such as `upper left`."""
    return PLACES[tile_of(cell, edge)]


def advance(figures: dict[Name, Cell], event: Event) -> dict[Name, Cell]:
    """Return where the figures are after an event."""
    after = dict(figures)
    if event.kind in ("appears", "moves"):
        assert event.name is not None and event.cell is not None
        after[event.name] = event.cell
    elif event.kind == "vanishes":
        assert event.name is not None
        del after[event.name]
    return after


def steps_of(clip: Clip) -> list[Step]:
    """Return the steps of a clip in order of time."""
    steps, figures = [], dict(clip.opening)
    for place, event in enumerate(clip.events):
        after = advance(figures, event)
        steps.append(Step(clip.first + place, figures, after, event))
        figures = after
    return steps


def _free_cell(rng: random.Random, edge: int, taken: dict[Name, Cell]) -> Cell:
    """Choose a cell of a tile on which no figure stands."""
    tiles = {tile_of(cell, edge) for cell in taken.values()}
    row, column = divmod(rng.choice([tile for tile in range(9) if tile not in tiles]), 3)
    return row * edge + rng.randrange(edge), column * edge + rng.randrange(edge)


def _new_name(rng: random.Random, used: set[Name], allow_held_out: bool) -> Name:
    while True:
        name = rng.choice(COLOURS), rng.choice(SHAPES)
        if name not in used and (allow_held_out or name not in HELD_OUT):
            return name


def _touching(figures: dict[Name, Cell], name: Name, other: Name, edge: int) -> Cell | None:
    """Return the cell beside `other` from which `name` hits it: the free one nearest to its own, or its own."""
    (row, column), home = figures[other], figures[name]
    beside = [(row - 1, column), (row + 1, column), (row, column - 1), (row, column + 1)]
    taken = {cell for figure, cell in figures.items() if figure != name}
    free = [cell for cell in beside if cell not in taken and all(0 <= line < 3 * edge for line in cell)]
    return min(free, key=lambda cell: abs(cell[0] - home[0]) + abs(cell[1] - home[1]), default=None)


def _happens(
    rng: random.Random, kind: str, figures: dict[Name, Cell], used: set[Name], clip: tuple[int, int, bool]
) -> Event | None:
    """Make an event of a kind, or None where there can be none."""
    edge, most, allow_held_out = clip
    names = list(figures)
    if kind == "nothing":
        return Event(kind)
    if kind == "appears":
        if len(names) >= most:
            return None
        name = _new_name(rng, used, allow_held_out)
        used.add(name)
        return Event(kind, name, _free_cell(rng, edge, figures))
    if kind == "turns":
        names = [name for name in names if name[1] in TURNING]
        return Event(kind, rng.choice(names)) if names else None
    if not names or (kind != "moves" and len(names) < 2):
        return None
    name = rng.choice(names)
    if kind == "vanishes":
        return Event(kind, name)
    if kind == "moves":
        return Event(kind, name, _free_cell(rng, edge, figures))
    other = rng.choice([figure for figure in names if figure != name])
    cell = _touching(figures, name, other, edge)
    return None if cell is None else Event(kind, name, cell, other)


def draw_clip(rng: random.Random, steps: int, edge: int = 1, most: int = 3, allow_held_out: bool = False) -> Clip:
    """Choose a clip with at most `most` figures at a time, of which one or more are there at first."""
    used: set[Name] = set()
    figures: dict[Name, Cell] = {}
    for _ in range(rng.randint(1, most - 1)):
        name = _new_name(rng, used, allow_held_out)
        used.add(name)
        figures[name] = _free_cell(rng, edge, figures)
    opening = tuple(figures.items())
    events: list[Event] = []
    while len(events) < steps:
        (kind,) = rng.choices(KINDS, _WEIGHTS)
        event = _happens(rng, kind, figures, used, (edge, most, allow_held_out))
        if event is not None:
            events.append(event)
            figures = advance(figures, event)
    return Clip(edge, rng.choice(FIRST_NUMBERS), opening, tuple(events))
