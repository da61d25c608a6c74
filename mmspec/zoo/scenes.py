"""Scenes: two to five coloured shapes on a three by three grid, described in full sentences."""

from __future__ import annotations

import random
from typing import NamedTuple

from PIL import Image

from mmspec.zoo.drawing import COLOURS, GRID, SHAPES, SIZE, draw_shape

SIZES = {"small": 14, "large": 28}
ROWS, COLUMNS = ("upper", "middle", "lower"), ("left", "middle", "right")
PLACES = tuple("centre" if (r, c) == ("middle", "middle") else f"{r} {c}" for r in ROWS for c in COLUMNS)
BACKGROUNDS = {"white": (252, 252, 252), "grey": (188, 188, 188), "black": (12, 12, 16)}
NUMBERS = ("no", "one", "two", "three", "four", "five")

HELD_OUT = frozenset({("red", "star"), ("green", "ring"), ("blue", "diamond"), ("yellow", "cross")})
"""Pairs of colour and shape that only pictures of the test split contain, at their natural rate."""

PROMPTS = (
    "Describe the picture in detail.",
    "Describe this image.",
    "What can you see in the picture?",
    "Give a full description of the scene.",
    "Tell me everything that is shown here.",
)


class Thing(NamedTuple):
    """One shape: its attributes by name, and its cell in reading order (0 to 8)."""

    size: str
    colour: str
    shape: str
    cell: int

    @property
    def place(self) -> str:
        """Name of the cell."""
        return PLACES[self.cell]

    @property
    def name(self) -> str:
        """Size, colour and shape, as in `large red circle`."""
        return f"{self.size} {self.colour} {self.shape}"


class Scene(NamedTuple):
    """A background and its shapes in reading order."""

    background: str
    things: tuple[Thing, ...]


def draw_scene(rng: random.Random, most: int = 5, allow_held_out: bool = False) -> Scene:
    """Choose a scene with two to `most` shapes."""
    things = []
    for cell in sorted(rng.sample(range(9), rng.randint(2, most))):
        while True:
            colour, shape = rng.choice(list(COLOURS)), rng.choice(SHAPES)
            if allow_held_out or (colour, shape) not in HELD_OUT:
                break
        things.append(Thing(rng.choice(list(SIZES)), colour, shape, cell))
    return Scene(rng.choice(list(BACKGROUNDS)), tuple(things))


def render(scene: Scene, rng: random.Random) -> Image.Image:
    """Paint the scene; small shapes wander a little inside their cell."""
    image = Image.new("RGB", (SIZE, SIZE), BACKGROUNDS[scene.background])
    for thing in scene.things:
        row, column = divmod(thing.cell, 3)
        wander = 3 if thing.size == "small" else 1
        centre = (32 * column + 16 + rng.randint(-wander, wander), 32 * row + 16 + rng.randint(-wander, wander))
        draw_shape(image, thing.shape, centre, SIZES[thing.size], COLOURS[thing.colour])
    return image


def patch_words(scene: Scene) -> dict[int, str]:
    """Return the words that the four patches in the middle of every shape show: its colour in the upper two, its kind
    in the lower."""
    words: dict[int, str] = {}
    for thing in scene.things:
        row, column = divmod(thing.cell, 3)
        corner = GRID * (4 * row + 1) + 4 * column + 1
        words |= dict.fromkeys((corner, corner + 1), f" {thing.colour}")
        words |= dict.fromkeys((corner + GRID, corner + GRID + 1), f" {thing.shape}")
    return words


def article(name: str) -> str:
    """Return `a` or `an`, whichever the name needs."""
    return "an" if name[0] in "aeiou" else "a"


def listed(parts: list[str]) -> str:
    """Join as in `a, b and c`."""
    return parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1]


def count(number: int, noun: str) -> str:
    """Return a number word and its noun: `one circle`, `two circles`, `three crosses`."""
    plural = noun + ("es" if noun.endswith("s") else "s")
    return f"{NUMBERS[number]} {noun if number == 1 else plural}"


def relation(first: Thing, second: Thing) -> str:
    """Return where the first shape is, seen from the second."""
    (row, column), (other_row, other_column) = divmod(first.cell, 3), divmod(second.cell, 3)
    if row != other_row:
        return "above" if row < other_row else "below"
    return "to the left of" if column < other_column else "to the right of"


def _sentence(thing: Thing, rng: random.Random) -> str:
    """Describe a shape in one of three wordings: the picture decides the attributes, chance decides the wording."""
    name = f"{article(thing.name)} {thing.name}"
    style = rng.random()
    if style < 0.6:
        return f"There is {name} in the {thing.place}."
    if style < 0.8:
        return f"In the {thing.place} there is {name}."
    return f"{name[0].upper()}{name[1:]} is in the {thing.place}."


def describe(scene: Scene, rng: random.Random) -> str:
    """Return the long answer: every shape with its attributes, two relations, the totals and the colours."""
    things = scene.things
    parts = [f"The picture shows {count(len(things), 'shape')} on a {scene.background} background."]
    parts += [_sentence(thing, rng) for thing in things]
    first, last = things[0], things[-1]
    parts.append(f"The {first.name} is {relation(first, last)} the {last.name}.")
    if len(things) > 2:
        before = things[-2]
        parts.append(f"The {last.name} is {relation(last, before)} the {before.name}.")
    shapes = [count(sum(t.shape == s for t in things), s) for s in SHAPES if any(t.shape == s for t in things)]
    parts.append(f"In total there {'is' if shapes[0].startswith('one') else 'are'} {listed(shapes)}.")
    colours = list(dict.fromkeys(t.colour for t in things))
    parts.append(f"The colours are {listed(colours)}." if len(colours) > 1 else f"The only colour is {colours[0]}.")
    large = sum(t.size == "large" for t in things)
    parts.append(f"{count(large, 'shape').capitalize()} {'is' if large == 1 else 'are'} large.")
    return " ".join(parts)
