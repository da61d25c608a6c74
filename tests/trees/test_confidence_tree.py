"""ConfidenceTree: branching by confidence, beam and cut, rows of different sizes, and exactness."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_drafters import blurred_drafter, eagle3_drafter
from tiny_requests import RAGGED, case
from toy_drafters import KNOWN, ROOT, VOCAB, Ranked, Seeded, falling, ranked, shape
from toy_drafters import tree_of as grow

import mmspec
from mmspec import MMSpecError
from mmspec.trees import ConfidenceTree
from mmspec.verifiers import PointMassSampling, RejectionSampling


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


def test_each_row_of_a_batch_has_the_tree_that_it_has_alone():
    builder, seeds = ConfidenceTree(certainty=0.4, depth=4), [1, 2, 3, 4]

    def rows(tree):
        counts = (1 + tree.drafted).tolist()
        return [(tree.tokens[r, :n].tolist(), tree.parents[r, :n].tolist()) for r, n in enumerate(counts)]

    for kind in ("random", "ties", "certain", "impossible"):
        together = grow(builder, Seeded(14, *seeds, kind=kind))
        assert rows(together) == [rows(grow(builder, Seeded(14, seed, kind=kind)))[0] for seed in seeds]
        assert kind != "random" or together.valid is not None, "all rows had trees of one size"


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


def test_padding_is_no_node():
    tree = grow(ConfidenceTree(), Ranked(falling(0.97), falling()))
    padding = ~tree.valid
    assert padding.sum() == 27
    assert (tree.parents[padding] == 0).all() and (tree.tokens[padding] == ROOT).all()
    assert torch.equal(tree.depth, tree.ancestors.sum(-1) - 1) and (tree.expansion[padding] == -1).all()
    assert grow(ConfidenceTree(), Ranked(falling(), falling())).valid is None


@given(
    st.fixed_dictionaries(
        {
            "certainty": st.sampled_from([0.0, 0.3, 0.8, 1.0]),
            "branches": st.integers(1, 6),
            "beam": st.integers(1, 6),
            "depth": st.integers(1, 5),
            "total": st.integers(1, 40),
            "graded": st.booleans(),
        }
    ),
    st.integers(0, 50),
    st.sampled_from(["random", "ties", "certain", "impossible"]),
    st.integers(1, 8),
)
def test_every_tree_keeps_the_contract(options, seed, kind, vocab):
    """Topological, one root, within the budget, likeliest children first and none skipped, no token twice."""
    builder, toy = ConfidenceTree(**options), Seeded(vocab, seed, seed + 1, seed + 2, kind=kind)
    tree = grow(builder, toy)
    assert tree.max_depth == builder.depth and not builder.value_independent
    for row in range(3):
        nodes = shape(tree, row)
        assert min(1, builder.max_nodes) <= len(nodes) <= builder.max_nodes and len(set(nodes)) == len(nodes)
        for parent in {(), *nodes}:
            children = [path[-1] for path in nodes if path[:-1] == parent]
            log_probs = toy.logits(row, parent).log_softmax(-1)
            probs = log_probs.exp().tolist()
            if max(probs) < builder.certainty - 1e-3:
                assert len(children) <= branching(probs, builder.certainty, builder.branches, builder.graded)
            elif max(probs) > builder.certainty + 1e-3:
                assert len(children) <= 1
            assert log_probs[children].tolist() == pytest.approx(log_probs.topk(len(children)).values.tolist())


def test_entropy_is_over_the_drafters_own_vocabulary():
    """Six flat tokens of twenty are worth six children, not what is left of twenty."""
    for size, branches in ((6, 20), (4, 20), (6, 3)):
        tree = grow(ConfidenceTree(branches=branches, depth=1), Ranked([1 / size] * size), None, KNOWN[:size], VOCAB)
        assert tree.drafted.tolist() == [min(size, branches)]
        assert set(tree.tokens[0, 1:].tolist()) <= set(KNOWN[:size].tolist())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"branches": 0}, "ConfidenceTree: branches=0 must be a positive integer"),
        ({"beam": 1.5}, "ConfidenceTree: beam=1.5 must be a positive integer"),
        ({"certainty": 1.1}, "ConfidenceTree: certainty=1.1 must be from 0 to 1"),
    ],
)
def test_settings_that_make_no_sense_are_refused(options, message):
    with pytest.raises(MMSpecError, match=message):
        ConfidenceTree(**options)


def test_it_refuses_to_be_drawn():
    drafter = blurred_drafter("llava", "sdpa")
    inputs, _ = case("llava", "sdpa", *RAGGED, 14)
    with pytest.raises(MMSpecError, match="ConfidenceTree keeps the likeliest nodes.*use PointMassSampling"):
        mmspec.generate(
            drafter.target,
            drafter,
            inputs=inputs,
            tree=ConfidenceTree(),
            verifier=RejectionSampling(),
            temperature=1.0,
        )


@pytest.mark.parametrize("options", [{}, {"certainty": 0.3, "total": 7}, {"graded": False, "beam": 2}], ids=str)
@pytest.mark.parametrize("name", ["llava", "qwen_vl", "gemma3"])
def test_text_is_that_of_plain_decoding(name, options):
    inputs, expected = case(name, "sdpa", *RAGGED, 14)
    for drafter in (blurred_drafter(name, "sdpa"), eagle3_drafter(name, "sdpa")):
        settings = {"inputs": inputs, "max_new_tokens": 14}
        out = mmspec.generate(drafter.target, drafter, tree=ConfidenceTree(**options), **settings)
        assert out.token_ids == expected and out.stats.num_accepted_draft_tokens
        settings |= {"temperature": 0.8, "seed": 3, "verifier": PointMassSampling()}
        plain = mmspec.generate(drafter.target, **settings)
        drafted = mmspec.generate(drafter.target, drafter, tree=ConfidenceTree(**options), **settings)
        assert drafted.token_ids == plain.token_ids
