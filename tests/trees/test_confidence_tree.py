"""ConfidenceTree: branching by confidence, beam and cut, rows of different sizes, and exactness."""

from __future__ import annotations

import math

import pytest
from toy_drafters import KNOWN, VOCAB, Ranked, Seeded, falling, ranked, shape
from toy_drafters import tree_of as grow

from mmspec.trees import ConfidenceTree


def branching(probs: list[float], certainty=0.8, branches=4, graded=True) -> int:
    """The children that a distribution is worth."""
    if max(probs) >= certainty:
        return 1
    entropy = -sum(p * math.log(p) for p in probs if p > 0)
    return min(branches, math.ceil(math.exp(entropy) - 1e-3)) if graded else branches


def naive(toy, row: int, builder: ConfidenceTree) -> list[tuple[int, ...]]:
    """The procedure with lists: paths in order of creation."""
    created: list[tuple[float, tuple[int, ...]]] = []
    newest = [(0.0, ())]
    for _ in range(builder.depth):
        best = sorted(newest, reverse=True)[: builder.beam]
        children = []
        for score, path in (node for node in newest if node in best):
            probs = toy.logits(row, path).double().softmax(-1).tolist()
            count = branching(probs, builder.certainty, builder.branches, builder.graded)
            children += [(score + lp, (*path, token)) for lp, token in ranked(toy, row, path)[:count]]
        created += children
        newest = children
    kept = sorted(created, reverse=True)[: builder.total - 1]
    return [path for score, path in created if (score, path) in kept]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"depth": 1},
        {"beam": 2, "total": 10},
        {"total": 2},
        {"certainty": 0.3, "depth": 4},
        {"graded": False, "branches": 3, "total": 500},
        {"beam": 1, "branches": 2},
        {"branches": 20, "depth": 3, "beam": 30, "total": 60},
    ],
    ids=str,
)
def test_it_equals_the_procedure_written_with_lists(options, seed):
    builder, toy = ConfidenceTree(**options), Seeded(12, *(10 * seed + row for row in range(3)))
    tree = grow(builder, toy)
    for row in range(3):
        assert shape(tree, row) == naive(toy, row, builder)
    assert tree.max_depth == builder.depth and tree.proposal == "point"


@pytest.mark.parametrize(
    ("probs", "children"),
    [
        ([0.8, 0.2], 1),
        ([0.79, 0.21], 2),  # exp(H) = 1.67
        ([0.5, 0.5], 2),  # exp(H) = 2, and not a hair more
        ([0.6, 0.3, 0.1], 3),  # 2.46
        ([0.25] * 4, 4),
        ([0.2] * 5, 4),
        ([0.1] * 10, 4),
        (falling(), 4),
        (falling(0.97), 1),
        (falling(0.7, 0.2), 3),  # 2.5
    ],
    ids=str,
)
def test_one_child_where_certain_and_several_where_not(probs, children):
    probs = probs + [0.0] * (10 - len(probs))
    assert branching(probs) == children
    tree = grow(ConfidenceTree(depth=1), Ranked(probs))
    assert tree.drafted.tolist() == [children]
    flat = grow(ConfidenceTree(depth=1, graded=False), Ranked(probs))
    assert flat.drafted.tolist() == [1 if children == 1 else min(4, sum(p > 0 for p in probs))]


def test_a_certain_drafter_makes_a_chain_and_a_flat_one_fills_the_budget():
    builder = ConfidenceTree()
    tree = grow(builder, Ranked(falling(0.97), falling()))
    assert tree.drafted.tolist() == [5, 32]
    assert shape(tree, 0) == [(0,) * level for level in range(1, 6)]
    children = [sum(path[:-1] == parent for path in shape(tree, 1)) for parent in shape(tree, 1)]
    assert max(children) == 4 == sum(len(path) == 1 for path in shape(tree, 1))


def test_the_beam_bounds_what_is_expanded():
    for beam in (1, 3, 8):
        passes = []

        class Counting(Ranked):
            def expand(self, block):
                passes.append(block.tokens.shape[1])  # noqa: B023
                return super().expand(block)

        grow(ConfidenceTree(beam=beam, total=500), Counting(falling(), falling()))
        assert passes == [min(beam, 4), *[min(beam, 16)] * 3]
        passes.clear()
        grow(ConfidenceTree(beam=beam), Counting(falling(0.97), falling(0.9)))
        assert passes == [1] * 4, "rows that are certain cost one node per level"


def test_children_that_are_impossible_are_left_out():
    """Literal branching wants four children where only two can be."""
    builder = ConfidenceTree(graded=False, depth=3, beam=6, total=9)
    coin = [0.55, 0.45, *[0.0] * 8]
    alone = grow(builder, Ranked(coin))
    together = grow(builder, Ranked(coin, falling(0.97), falling()))
    assert shape(together, 0) == shape(alone, 0) and {token for path in shape(alone, 0) for token in path} == {0, 1}
    assert grow(ConfidenceTree(graded=False, depth=2, total=99), Ranked(coin)).drafted.tolist() == [2 + 4]
    assert shape(together, 1) == [(0,) * level for level in range(1, 4)]


@pytest.mark.parametrize("size", range(2, 13))
def test_as_many_children_as_tokens_that_are_equally_likely(size):
    tree = grow(ConfidenceTree(depth=1, branches=20), Ranked([1 / size] * size + [0.0] * (20 - size)))
    assert tree.drafted.tolist() == [size]


def test_entropy_is_over_the_drafters_own_vocabulary():
    """Six flat tokens of twenty are worth six children, not what is left of twenty."""
    for size, branches in ((6, 20), (4, 20), (6, 3)):
        tree = grow(ConfidenceTree(branches=branches, depth=1), Ranked([1 / size] * size), None, KNOWN[:size], VOCAB)
        assert tree.drafted.tolist() == [min(size, branches)]
        assert set(tree.tokens[0, 1:].tolist()) <= set(KNOWN[:size].tolist())
