"""Family x drafter x tree x batch: greedy text is that of `model.generate`, token for token."""

from __future__ import annotations

from functools import cache

import pytest
from tiny_drafters import NEED_NO_WINDOWS, NEED_PICTURES, TINY_DRAFTERS
from tiny_families import FAMILIES
from tiny_requests import HEARING, NEW, VISUAL, batch_of, target_of, windowed

import mmspec
from mmspec.drafters import NGramDrafter, SkippingDrafter, SparseToDenseDrafter
from mmspec.trees import Chain, DynamicTree, StaticTree

TREES = {
    "chain": Chain(4),
    "static": StaticTree([[0], [1], [0, 0], [1, 0], [0, 0, 0]]),
    "dynamic": DynamicTree(8, 3, 3),
}
DRAFTERS = {
    "ngram": lambda name, attention: NGramDrafter(target_of(name)),
    "skipping": lambda name, attention: SkippingDrafter(target_of(name, attention), skipped=(3, 4)),
    "sparse": lambda name, attention: SparseToDenseDrafter(target_of(name, attention), keep=0.4),
    **TINY_DRAFTERS,
}
# A picture in tiles is no rectangle, so nothing can be pooled.
NO_GRID = {"llava_next", "llava_onevision"}
NEED_GRID = {"specvlm"}

# The last layers of this one read more than the states before them, so no pass begins there or skips layers.
NOT_CUT = {"gemma4"}
CUT = {label for label in DRAFTERS if label.startswith(("early exit", "skipping"))}

# Behind their encoders, models that hear are like those that see. Most of their matrix is slow.
HEARD_BY = {"ngram", "own model", "eagle3, fewer tokens", "hivis"}


# What reads the target in each way meets all families by default; of the others, every family meets a third.
EVERYWHERE = {"ngram", "own model", "shared vision", "eagle3, fewer tokens", "dflash", "early exit, block"}


def is_slow(name: str, label: str) -> bool:
    if label not in EVERYWHERE and (list(FAMILIES).index(name) + list(DRAFTERS).index(label)) % 3:
        return True
    return name in HEARING and label not in (HEARD_BY if name == "qwen2_audio" else {"own model"})


CASES = [
    pytest.param(name, label, marks=[pytest.mark.slow] if is_slow(name, label) else [])
    for name in FAMILIES
    for label in DRAFTERS
    if (name in VISUAL or label not in NEED_PICTURES or (name in HEARING and label == "hivis"))
    and not (name in NO_GRID and label in NEED_GRID)
    and not (name in NOT_CUT and label in CUT)
    and not (label in NEED_NO_WINDOWS and windowed(name))
]


@cache
def drafter_of(name: str, label: str):
    return DRAFTERS[label](name, FAMILIES[name].attention)


def shape_of(name: str, label: str) -> tuple[str, bool]:
    """A tree, in a batch or with a row alone. Every family meets every tree and both kinds of batch with some drafter,
    and so does every drafter with some family; all trees are met in tests/exactness/test_conformance.py."""
    family, drafter = list(FAMILIES).index(name), list(DRAFTERS).index(label)
    tree = list(TREES)[(family // 3 + drafter // 3) % 3]
    return tree if drafter_of(name, label).tree is not None else "its own", (family + drafter) // 3 % 2 == 1


def same_text(name: str, label: str, shape: str, alone: bool) -> None:
    drafter, (inputs, expected) = drafter_of(name, label), batch_of(name, alone)
    out = mmspec.generate(drafter.target, drafter, inputs=inputs, max_new_tokens=NEW, tree=TREES.get(shape))
    assert out.token_ids == expected, (shape, "alone" if alone else "batch")
    assert out.stats.lossless


@pytest.mark.parametrize(("name", "label"), CASES)
def test_greedy_text_is_that_of_generate(name, label):
    same_text(name, label, *shape_of(name, label))


@pytest.mark.slow
@pytest.mark.parametrize(("name", "label"), CASES)
def test_every_drafter_with_every_tree_on_every_family(name, label):
    for shape in TREES if drafter_of(name, label).tree is not None else ():
        for alone in (False, True):
            same_text(name, label, shape, alone)


@pytest.mark.parametrize("name", FAMILIES)
def test_the_matrix_is_about_something(name):
    """Rows write different texts, and a drafter that resembles the target is right some of the time."""
    inputs, expected = batch_of(name)
    assert len({tuple(row) for row in expected}) == len(expected)
    drafter = drafter_of(name, "own model")
    out = mmspec.generate(drafter.target, drafter, inputs=inputs, max_new_tokens=NEW, tree=TREES["dynamic"])
    assert out.stats.mean_acceptance_length > 1
