"""Texts about clips: the long account in order of time, and questions that need one moment.

An account has a line for the beginning, one for every number that the counter shows, and one for the end. A question is
answered with what was seen at its moment and then `So the answer is ...`.
"""

from __future__ import annotations

import random
from collections.abc import Callable

from mmspec.zoo.questions import CONCLUSION
from mmspec.zoo.scenes import NUMBERS, PLACES, article, listed
from mmspec.zoo.video.clips import Cell, Clip, Event, Name, Step, place_of, steps_of, tile_of

PROMPTS = (
    "Tell what happens in the clip.",
    "Describe the video in order of time.",
    "What happens, number by number?",
    "Give a full account of the clip.",
)

PICTURE_PROMPTS = (
    "What is in the picture?",
    "Describe the picture.",
)


def called(name: Name) -> str:
    """Return a figure's name, as in `the red star`."""
    return f"the {name[0]} {name[1]}"


def introduced(name: Name, cell: Cell, edge: int, verb: str = "") -> str:
    """Return a figure and its place, as in `a red star in the upper left`, or `a red star appears in the centre`."""
    return f"{article(name[0])} {name[0]} {name[1]}{verb} in the {place_of(cell, edge)}"


def _scene(figures: dict[Name, Cell], edge: int) -> str:
    """List figures in reading order of their tiles."""
    ordered = sorted(figures.items(), key=lambda figure: tile_of(figure[1], edge))
    return listed([introduced(name, cell, edge) for name, cell in ordered])


def told(event: Event, edge: int) -> str:
    """Say what happens, as in `the red star moves to the centre`."""
    if event.name is None:
        return "nothing changes"
    name = called(event.name)
    if event.kind == "appears":
        assert event.cell is not None
        return introduced(event.name, event.cell, edge, " appears")
    if event.kind == "moves":
        assert event.cell is not None
        return f"{name} moves to the {place_of(event.cell, edge)}"
    if event.kind == "hits":
        assert event.other is not None
        return f"{name} hits {called(event.other)}"
    return f"{name} {event.kind}"


def account(clip: Clip) -> str:
    """Return the long answer: what is there at first, what happens at every number, what is there at last."""
    steps = steps_of(clip)
    lines = [f"At first: {_scene(steps[0].before, clip.edge)}."]
    lines += [f"{step.number}: {told(step.event, clip.edge)}." for step in steps]
    lines.append(f"At last: {_scene(steps[-1].after, clip.edge)}.")
    return "\n".join(lines)


def caption(clip: Clip) -> str:
    """Return what the first frame of a clip shows: the number, and every figure with its place."""
    return f"The number is {clip.first}. There is {_scene(dict(clip.opening), clip.edge)}."


def _still(step: Step) -> dict[Name, Cell]:
    """Return the figures that stand in one place in both frames of a step."""
    moving = step.event.name if step.event.kind in ("moves", "hits") else None
    return {name: cell for name, cell in step.after.items() if step.before.get(name) == cell and name != moving}


def _conclude(evidence: str, answer: str) -> str:
    return f"{evidence} {CONCLUSION} {answer}."


def _at(step: Step, figures: dict[Name, Cell], edge: int) -> str:
    return f"At {step.number} there was {_scene(figures, edge)}."


Question = tuple[str, str]


def _where(clip: Clip, step: Step, rng: random.Random) -> Question | None:
    still = _still(step)
    if not still:
        return None
    name = rng.choice(sorted(still))
    place = place_of(still[name], clip.edge)
    evidence = f"At {step.number} there was {introduced(name, still[name], clip.edge)}."
    return f"Where was {called(name)} when the number was {step.number}?", _conclude(evidence, f"the {place}")


def _what_is_at(clip: Clip, step: Step, rng: random.Random) -> Question | None:
    if step.event.kind not in ("nothing", "turns"):
        return None
    tiles = {tile_of(cell, clip.edge): called(name) for name, cell in step.after.items()}
    tile = rng.choice(sorted(tiles)) if rng.random() < 0.8 else rng.choice([t for t in range(9) if t not in tiles])
    question = f"What was in the {PLACES[tile]} when the number was {step.number}?"
    return question, _conclude(_at(step, step.after, clip.edge), tiles.get(tile, "nothing"))


def _beside(clip: Clip, step: Step, rng: random.Random) -> Question | None:
    """Ask for the one figure that is above another, or below it."""
    if step.event.kind not in ("nothing", "turns"):
        return None
    rows = {name: tile_of(cell, clip.edge) // 3 for name, cell in sorted(step.after.items())}
    sides = {
        (name, side): [other for other in rows if (rows[other] < own if side == "above" else rows[other] > own)]
        for name, own in rows.items()
        for side in ("above", "below")
    }
    clear = [(name, side, found[0]) for (name, side), found in sides.items() if len(found) == 1]
    if not clear:
        return None
    name, side, answer = rng.choice(clear)
    question = f"What was {side} {called(name)} when the number was {step.number}?"
    return question, _conclude(_at(step, step.after, clip.edge), called(answer))


def _happened(clip: Clip, step: Step, rng: random.Random) -> Question | None:
    question = f"What happened when the number was {step.number}?"
    return question, f"{CONCLUSION} that {told(step.event, clip.edge)}."


def _when(clip: Clip, step: Step, rng: random.Random) -> Question | None:
    if step.event.kind not in ("appears", "vanishes"):
        return None
    assert step.event.name is not None
    verb = {"appears": "appear", "vanishes": "vanish"}[step.event.kind]
    evidence = f"{told(step.event, clip.edge).capitalize()} at {step.number}."
    return f"When does {called(step.event.name)} {verb}?", _conclude(evidence, str(step.number))


def _count(clip: Clip, step: Step, rng: random.Random) -> Question | None:
    if step.event.kind in ("appears", "vanishes"):
        return None
    question = f"How many shapes were there when the number was {step.number}?"
    evidence = f"At {step.number} there was {listed([called(name) for name in step.after])}."
    return question, _conclude(evidence, NUMBERS[len(step.after)])


QUESTIONS: tuple[Callable[[Clip, Step, random.Random], Question | None], ...] = (
    _where,
    _what_is_at,
    _beside,
    _happened,
    _when,
    _count,
)


def ask(clip: Clip, rng: random.Random) -> Question:
    """Make a question about one moment of a clip, and its answer with reasons. All kinds of question have the same
    chance where a clip has a moment for them."""
    steps = steps_of(clip)
    kinds = rng.sample(QUESTIONS, len(QUESTIONS))
    found = (kind(clip, step, rng) for kind in kinds for step in rng.sample(steps, len(steps)))
    return next(question for question in found if question is not None)
