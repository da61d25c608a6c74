"""Metrics of the right answers: one strict, explainable count per task.

`measure(task, reference, answer)` returns pairs (count, out of how many) under the name of the metric; `total` adds
the pairs of many examples and divides. Nothing is matched loosely: an attribute, a cell or a conclusion is right when
the text says exactly the right thing.

- scenes: `attribute_accuracy`. Every shape of the reference has four attributes: its place must be mentioned, and the
  shape said to be there must have the right size, colour and shape. A place mentioned wrongly adds four misses.
  `held_out_accuracy` is the same over the shapes whose pair of colour and shape no training picture contained.
- charts: `cell_accuracy`, over the cells of the body of the table, row by row; missing and surplus rows are misses.
- documents: `character_error_rate`, the edit distance divided by the length of the reference (lower is better).
- questions: `answer_accuracy`, on the words behind "So the answer is".
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from mmspec.similarity import edit_distance
from mmspec.zoo.charts import HEADER
from mmspec.zoo.data import TASKS
from mmspec.zoo.drawing import COLOURS, SHAPES
from mmspec.zoo.questions import CONCLUSION
from mmspec.zoo.scenes import HELD_OUT, PLACES, SIZES

Counts = dict[str, tuple[int, int]]

_THING = re.compile(rf"\b({'|'.join(SIZES)}) ({'|'.join(COLOURS)}) ({'|'.join(SHAPES)})\b")
_PLACE = re.compile(rf"\b[Ii]n the ({'|'.join(PLACES)})\b")
_CONCLUSION = re.compile(rf"{CONCLUSION} (.+?)\.?\s*$", re.DOTALL)


def parse_scene(text: str) -> dict[str, tuple[str, str, str]]:
    """Parse a description into place -> (size, colour, shape), from the sentences that name both."""
    found: dict[str, tuple[str, str, str]] = {}
    for sentence in text.split("."):
        place, thing = _PLACE.search(sentence), _THING.search(sentence)
        if place and thing:
            found.setdefault(place[1], (thing[1], thing[2], thing[3]))
    return found


def parse_table(text: str) -> list[list[str]]:
    """Parse the rows of a Markdown table into cells, without its header and rule."""
    rows = []
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if line.strip().startswith("|") and tuple(cells) != HEADER and not set("".join(cells)) <= set("-: "):
            rows.append(cells)
    return rows


def parse_conclusion(text: str) -> str | None:
    """Return the words behind the last `So the answer is`, or None."""
    found = _CONCLUSION.search(text)
    return found[1].strip() if found else None


def _scene(reference: str, answer: str) -> Counts:
    truth, said = parse_scene(reference), parse_scene(answer)
    right = {}
    for place, attributes in truth.items():
        told = said.get(place)
        right[place] = 0 if told is None else 1 + sum(a == b for a, b in zip(attributes, told, strict=True))
    surplus = len(said.keys() - truth.keys())
    unseen = [place for place, (_, colour, shape) in truth.items() if (colour, shape) in HELD_OUT]
    return {
        "attribute_accuracy": (sum(right.values()), 4 * (len(truth) + surplus)),
        "held_out_accuracy": (sum(right[place] for place in unseen), 4 * len(unseen)),
    }


def _chart(reference: str, answer: str) -> Counts:
    truth, said = parse_table(reference), parse_table(answer)
    pairs = zip(truth, said, strict=False)
    right = sum(a == b for left, row in pairs for a, b in zip(left, row, strict=False))
    return {"cell_accuracy": (right, len(HEADER) * max(len(truth), len(said)))}


def measure(task: str, reference: str, answer: str) -> Counts:
    """Compare an answer with the reference of its task."""
    if task == "scenes":
        return _scene(reference, answer)
    if task == "charts":
        return _chart(reference, answer)
    if task == "documents":
        return {"character_error_rate": (edit_distance(reference, answer.strip()), len(reference))}
    if task == "questions":
        return {"answer_accuracy": (int(parse_conclusion(reference) == parse_conclusion(answer)), 1)}
    raise ValueError(f"unknown task {task!r}: choose one of {', '.join(TASKS)}")


def total(counts: Iterable[Counts]) -> dict[str, float | None]:
    """Add up the pairs of many answers: metric -> ratio (None where nothing was counted)."""
    sums: dict[str, list[int]] = {}
    for entry in counts:
        for name, (part, whole) in entry.items():
            pair = sums.setdefault(name, [0, 0])
            pair[0] += part
            pair[1] += whole
    return {name: part / whole if whole else None for name, (part, whole) in sums.items()}
