"""What the tests of families show their tiny models, and what `model.generate` writes about it."""

from __future__ import annotations

from functools import cache

import helpers
import torch
from tiny_families import FAMILIES, Row, Tiny

from mmspec.target import Target

NEW = 12
LENGTHS = (9, 20, 5, 13)
VISUAL = [name for name, tiny in FAMILIES.items() if "image" in tiny.kinds]
HEARING = [name for name, tiny in FAMILIES.items() if "audio" in tiny.kinds]


def target_of(name: str) -> Target:
    """One target per family for all tests of a process: requests must leave no trace."""
    return helpers.target_of(name, FAMILIES[name].attention)


def rows_of(tiny: Tiny) -> list[Row]:
    """Rows with one picture, none, several of all kinds, and one of the last kind."""
    if not tiny.kinds:
        return [[]] * 4
    return [[tiny.kinds[0]], [], [tiny.kinds[0], *tiny.kinds[::-1]], [tiny.kinds[-1]]]


@cache
def batch_of(name: str, alone: bool = False) -> tuple[dict[str, torch.Tensor], list[list[int]]]:
    """A ragged batch of four rows, or its third row alone, and what `generate` writes to every row by itself."""
    tiny, model = FAMILIES[name], target_of(name).model
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
