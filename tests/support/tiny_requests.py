"""Tiny targets, requests to them, and what `model.generate` writes: shared by all tests of a process."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import models
import tiny_families
import torch
from tiny_families import Row, Tiny

import mmspec
from mmspec.target import Target

BACK_ENDS = [(name, attention) for name in models.MODELS for attention in ("sdpa", "eager")]


# Pictures and text tokens per row of the batch that most tests are about.
RAGGED = ((1, 0, 2, 1), (9, 20, 5, 13))


def target_of(name: str, attention: str | None = None) -> Target:
    """Return the one tiny target of a family and back end (its usual one by default): requests must leave no trace."""
    return _built(name, attention or tiny_families.FAMILIES[name].attention)


@cache
def _built(name: str, attention: str) -> Target:
    return Target(((models.MODELS | models.ALONE).get(name) or tiny_families.FAMILIES[name].build)(attention))


def windowed(name: str, attention: str | None = None) -> bool:
    """Whether some layers of a family attend to a sliding window."""
    return any(window is not None for window in target_of(name, attention).windows.values())


def one_picture(name: str) -> dict:
    """A prompt with one picture."""
    return models.inputs_for(name, [1]) if name in models.MODELS else tiny_families.FAMILIES[name].inputs([["image"]])


@cache
def case(name: str, attention: str, images: tuple, lengths: tuple, new: int, seed: int = 0) -> tuple[dict, list]:
    """Inputs and what `model.generate` writes to them."""
    inputs = models.inputs_for(name, pictures_for(name, images), list(lengths), seed)
    return inputs, models.reference(target_of(name, attention).model, inputs, new)


def pictures_for(name: str, images: Sequence[int]) -> list[int]:
    """The pictures per row, or none for a model that takes none."""
    return list(images) if name in models.VISUAL else [0] * len(images)


def ragged_inputs(name: str, seed: int = 0) -> dict:
    """Return the batch that most tests are about: rows that differ in length and in pictures."""
    return models.inputs_for(name, pictures_for(name, RAGGED[0]), list(RAGGED[1]), seed)


# What every family is shown, and the text tokens of its rows.
NEW = 12
LENGTHS = (9, 20, 5, 13)
VISUAL = [name for name, tiny in tiny_families.FAMILIES.items() if "image" in tiny.kinds]
HEARING = [name for name, tiny in tiny_families.FAMILIES.items() if "audio" in tiny.kinds]


def rows_of(tiny: Tiny) -> list[Row]:
    """Rows with one picture, none, several of all kinds, and one of the last kind."""
    if not tiny.kinds:
        return [[]] * 4
    return [[tiny.kinds[0]], [], [tiny.kinds[0], *tiny.kinds[::-1]], [tiny.kinds[-1]]]


@cache
def batch_of(name: str, alone: bool = False) -> tuple[dict[str, torch.Tensor], list[list[int]]]:
    """A ragged batch of four rows, or its third row alone, and what `generate` writes to every row by itself."""
    tiny, model = tiny_families.FAMILIES[name], target_of(name).model
    rows, inputs = list(enumerate(rows_of(tiny))), tiny.inputs(rows_of(tiny), list(LENGTHS))
    if alone:
        rows = rows[2:3]
        inputs = tiny.inputs([rows[0][1]], [LENGTHS[2]], seed=2)
    written = []
    for number, row in rows:
        single = tiny.inputs([row], [LENGTHS[number]], seed=number)
        ids = model.generate(**single, max_new_tokens=NEW, do_sample=False)
        written.append(ids[0, single["input_ids"].shape[1] :].tolist())
    return inputs, written


def interleaved(target, drafter, requests):
    """Several requests, one round of each at a time: the outputs."""
    running = {n: mmspec.stream(target, drafter, **request) for n, request in enumerate(requests)}
    outputs = {}
    while running:
        for n, pieces in list(running.items()):
            try:
                next(pieces)
            except StopIteration as end:
                outputs[n] = end.value
                del running[n]
    return [outputs[n] for n in sorted(outputs)]
