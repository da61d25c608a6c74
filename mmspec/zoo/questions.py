"""Questions about scenes and charts, each answered with its reasons and then `So the answer is ...`.

The evidence comes before the conclusion, as a person would count: the model looks, says what it sees, and concludes.
"""

from __future__ import annotations

import random

from mmspec.zoo.charts import Chart
from mmspec.zoo.drawing import COLOURS, SHAPES
from mmspec.zoo.scenes import NUMBERS, Scene, Thing, article, listed, relation

CONCLUSION = "So the answer is"


def _spot(thing: Thing) -> str:
    return f"the {thing.name} in the {thing.place}"


def _conclude(evidence: str, answer: str) -> str:
    return f"{evidence} {CONCLUSION} {answer}."


def _evidence(things: list[Thing], kind: str) -> str:
    """Name every shape that was counted."""
    if not things:
        return f"Nothing in the picture is {kind}."
    verb = "is" if len(things) == 1 else "are"
    return f"I can see {listed([_spot(t) for t in things])}, which {verb} {kind}."


def _count_colour(scene: Scene, rng: random.Random) -> tuple[str, str]:
    colour = rng.choice(scene.things).colour if rng.random() < 0.8 else rng.choice(list(COLOURS))
    found = [t for t in scene.things if t.colour == colour]
    return f"How many shapes are {colour}?", _conclude(_evidence(found, colour), NUMBERS[len(found)])


def _count_shape(scene: Scene, rng: random.Random) -> tuple[str, str]:
    shape = rng.choice(scene.things).shape if rng.random() < 0.8 else rng.choice(SHAPES)
    found = [t for t in scene.things if t.shape == shape]
    plural = shape + ("es" if shape.endswith("s") else "s")
    return f"How many {plural} are there?", _conclude(
        _evidence(found, f"{article(shape)} {shape}"), NUMBERS[len(found)]
    )


def _count_size(scene: Scene, rng: random.Random) -> tuple[str, str]:
    size = rng.choice(("small", "large"))
    found = [t for t in scene.things if t.size == size]
    return f"How many {size} shapes are there?", _conclude(_evidence(found, size), NUMBERS[len(found)])


def _what_is_at(scene: Scene, rng: random.Random) -> tuple[str, str]:
    thing = rng.choice(scene.things)
    others = len(scene.things) - 1
    rest = "one other shape" if others == 1 else f"{NUMBERS[others]} other shapes"
    question = rng.choice((f"What is in the {thing.place}?", f"Which shape is in the {thing.place}?"))
    evidence = f"The {thing.place} holds a {thing.size} {thing.shape} whose colour is {thing.colour}, besides {rest}."
    return question, _conclude(evidence, f"{article(thing.name)} {thing.name}")


def _where(scene: Scene, rng: random.Random) -> tuple[str, str]:
    thing = rng.choice(scene.things)
    twins = [t for t in scene.things if (t.colour, t.shape) == (thing.colour, thing.shape)]
    if len(twins) > 1:  # not one place: ask something else
        return _what_is_at(scene, rng)
    evidence = f"The only {thing.colour} {thing.shape} is {thing.size} and lies in the {thing.place}."
    return f"Where is the {thing.colour} {thing.shape}?", _conclude(evidence, f"the {thing.place}")


def _colour_of(scene: Scene, rng: random.Random) -> tuple[str, str]:
    thing = rng.choice(scene.things)
    if sum(t.shape == thing.shape for t in scene.things) > 1:
        return _what_is_at(scene, rng)
    evidence = f"There is only one {thing.shape}, a {thing.size} one in the {thing.place}, and it is {thing.colour}."
    return f"What colour is the {thing.shape}?", _conclude(evidence, thing.colour)


def _compare(scene: Scene, rng: random.Random) -> tuple[str, str]:
    first, second = rng.sample(scene.things, 2)
    side = relation(first, second) if rng.random() < 0.5 else relation(second, first)
    question = f"Is the shape in the {first.place} {side} the shape in the {second.place}?"
    evidence = f"The {first.name} is {relation(first, second)} the {second.name}."
    return question, _conclude(evidence, "yes" if side == relation(first, second) else "no")


def _same(scene: Scene, rng: random.Random) -> tuple[str, str]:
    first, second = rng.sample(scene.things, 2)
    question = f"Do the shapes in the {first.place} and the {second.place} have the same size?"
    evidence = (
        f"The {first.colour} {first.shape} is {first.size} and the {second.colour} {second.shape} is {second.size}."
    )
    return question, _conclude(evidence, "yes" if first.size == second.size else "no")


def _highest(chart: Chart, rng: random.Random) -> tuple[str, str]:
    highest = rng.random() < 0.5
    word, pick = ("highest", max) if highest else ("lowest", min)
    bar = pick(chart.bars, key=lambda b: b.level)
    values = listed([f"{b.label} {chart.value(b)}" for b in chart.bars])
    return f"Which bar is the {word}?", _conclude(f"The bars are {values}, and {bar.label} is the {word}.", bar.label)


def _value_of(chart: Chart, rng: random.Random) -> tuple[str, str]:
    bar = rng.choice(chart.bars)
    top = 10 * chart.unit
    if rng.random() < 0.5:
        question, name = f"What is the value of {bar.label}?", f"The bar {bar.label} is {bar.colour}"
    else:
        question, name = f"What is the value of the {bar.colour} bar?", f"The {bar.colour} bar is {bar.label}"
    return question, _conclude(
        f"{name}. The axis ends at {top}, and the bar reaches {chart.value(bar)}.", str(chart.value(bar))
    )


def _bar_colour(chart: Chart, rng: random.Random) -> tuple[str, str]:
    bar = rng.choice(chart.bars)
    ordinal = ("first", "second", "third", "fourth", "fifth")[chart.bars.index(bar)]
    evidence = f"{bar.label} is the {ordinal} of {NUMBERS[len(chart.bars)]} bars and has the value {chart.value(bar)}."
    return f"What colour is the bar {bar.label}?", _conclude(evidence, bar.colour)


def _difference(chart: Chart, rng: random.Random) -> tuple[str, str]:
    first, second = rng.sample(chart.bars, 2)
    one, two = chart.value(first), chart.value(second)
    question = f"Is {first.label} higher than {second.label}?"
    evidence = (
        f"The {first.colour} bar {first.label} stands at {one} and the {second.colour} bar {second.label} at {two}."
    )
    return question, _conclude(evidence, "yes" if one > two else "no")


def _count_bars(chart: Chart, rng: random.Random) -> tuple[str, str]:
    half = 5 * chart.unit
    found = [b for b in chart.bars if chart.value(b) > half]
    names = listed([f"{b.label} with {chart.value(b)}" for b in found]) if found else "no bar"
    verb = "is" if len(found) == 1 else "are"
    evidence = f"Above {half} {verb} {names}." if found else f"Above {half} there is no bar."
    return f"How many bars are higher than {half}?", _conclude(evidence, NUMBERS[len(found)])


SCENE_QUESTIONS = (_count_colour, _count_shape, _count_size, _what_is_at, _where, _colour_of, _compare, _same)
CHART_QUESTIONS = (_highest, _value_of, _bar_colour, _difference, _count_bars)


def ask(subject: Scene | Chart, rng: random.Random) -> tuple[str, str]:
    """Make a question about the scene or chart, and its answer with reasons."""
    if isinstance(subject, Scene):
        return rng.choice(SCENE_QUESTIONS)(subject, rng)
    return rng.choice(CHART_QUESTIONS)(subject, rng)
