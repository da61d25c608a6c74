"""SageTree: the mapping by hand, templates as they grow, rounds that follow each other, and exactness."""

from __future__ import annotations

import math
import pickle
from dataclasses import replace

import models
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from laws import Enumeration, g_test, random_tables
from tiny_drafters import blurred_drafter, eagle3_drafter, record_drafts
from tiny_requests import RAGGED, case
from toy_drafters import ROOT, Ranked, Seeded, falling, shape
from toy_drafters import tree_of as grow
from toy_law import ALPHA, exact_law, sample, toy

import mmspec
from mmspec import MMSpecError, Target
from mmspec.drafters import DraftModelDrafter
from mmspec.outcome import Verdict
from mmspec.trees import SageTree, TreeBuilder
from mmspec.trees.sage import confidence, geometric
from mmspec.verifiers import PointMassSampling, RejectionSampling

COIN = [0.5, 0.5, *[0.0] * 8]  # the facts' counterexample to Lemma 4.3
CERTAIN = [1.0, *[0.0] * 9]
FLAT = [0.1] * 10


# The mapping, worked out by hand.


def test_confidence():
    assert confidence(COIN) == pytest.approx(1 - math.log(2) / math.log(10)) == pytest.approx(0.69897, abs=1e-5)
    assert (confidence(CERTAIN), confidence(FLAT)) == (1.0, pytest.approx(0.0))
    assert confidence([0.25] * 4) == pytest.approx(0.0), "as far as the vocabulary goes"
    bound = 1 / 10 + confidence(COIN) * 9 / 10
    assert COIN[0] < bound - 0.2, "Lemma 4.3 would have it the other way round"


def test_depth_width_children_and_threshold_of_the_counterexample():
    sage, alpha = SageTree(), confidence(COIN)
    assert sage.depth_of(alpha) == pytest.approx(3 + 0.69897 * 5, abs=1e-4)  # 6.49485
    assert sage.levels_of(alpha) == 6
    assert sage.width_of(alpha) == pytest.approx(2 + 0.30103 * 8, abs=1e-4)  # 4.40824
    assert [sage.children_of(alpha, level, 0.5) for level in range(1, 6)] == [4, 2, 1, 1, 1]  # 4.41 2.20 1.47 1.10 0.88
    assert [sage.children_of(alpha, 2, parent) for parent in (0.0, 0.3, 0.5, 0.9)] == [1, 1, 2, 3]
    assert sage.threshold_of(alpha, 1) == pytest.approx(0.0153968, abs=1e-6)
    assert sage.threshold_of(alpha, 4) == pytest.approx(0.0615872, abs=1e-6)


@pytest.mark.parametrize(
    ("options", "alpha", "levels"),
    [
        ({}, 0.0, 3),
        ({}, 1.0, 8),
        ({}, 0.5, 6),  # 5.5, and halves go up
        ({"round_depth": "floor"}, 0.5, 5),
        ({"round_depth": "ceil"}, 0.41, 6),
        ({}, 0.41, 5),
        ({"min_depth": 1, "max_depth": 2}, 0.49, 1),
    ],
)
def test_levels(options, alpha, levels):
    assert SageTree(**options).levels_of(alpha) == levels


@pytest.mark.parametrize(
    ("options", "level", "parent", "children"),
    [
        ({}, 1, 1.0, 6),  # W(0.5) = 6
        ({"first_level": "factor"}, 1, 1.0, 9),
        ({}, 2, 0.4, 2),  # 2.7
        ({"round_width": "nearest"}, 2, 0.4, 3),
        ({"round_width": "ceil"}, 3, 0.55, 3),  # 2.1
        ({}, 5, 0.1, 1),  # 0.72
        ({"round_width": "nearest"}, 9, 0.0, 1),  # 0.33: one at least
        ({"min_width": 4, "max_width": 4}, 1, 1.0, 4),
    ],
)
def test_children(options, level, parent, children):
    assert SageTree(**options).children_of(0.5, level, parent) == children


def test_membership_of_the_counterexample():
    """Cumulative 1/2, 1/4, 1/8, 1/16 = 0.0625 > theta_4 = 0.0616, but 1/32 < theta_5: four of the six levels."""
    two = [(0,), (1,)]
    four = [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert SageTree().template(COIN) == [*two, *four, *((*path, 0) for path in four), *((*p, 0, 0) for p in four)]
    # On conditional probabilities the threshold never bites: six levels.
    deep = SageTree(compare="conditional").template(COIN)
    assert len(deep) == 2 + 4 * 5 and len(deep[-1]) == 6
    # With the path's probability as the parent's: W_2 = 4.41/2 * 1.0, but W_3 = 4.41/3 * 0.75 = 1.10 and so on.
    assert SageTree(parent="cumulative").template(COIN) == SageTree().template(COIN)


def test_ranks_are_cut_by_the_width_or_by_the_threshold_whichever_comes_first():
    profile = [0.4, 0.3, 0.2, 0.06, 0.04, *[0.0] * 5]
    sage, alpha = SageTree(), confidence(profile)
    assert sage.children_of(alpha, 1) == 6 and sage.threshold_of(alpha, 1) == pytest.approx(0.0197, abs=1e-4)
    first = [path for path in sage.template(profile) if len(path) == 1]
    assert first == [(0,), (1,), (2,), (3,), (4,)], "the sixth has probability 0"
    # W_2 = 6.68 / 2 * (0.5 + p) = 3.01, 2.67, 2.34, 1.87, 1.80. theta_2 = 0.0394, so (3, 0) and (4, 0) with 0.024 and
    # 0.016 are out; (1, 2) and (2, 2) with 0.06 and 0.04 would be in.
    second = [path for path in sage.template(profile) if len(path) == 2]
    assert second == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (2, 0), (2, 1)]


def test_two_parents_that_differ_in_probability_differ_in_children():
    profile = [0.8, 0.2, *[0.0] * 8]
    sage = SageTree(min_width=4, max_width=4, threshold=0.0)
    second = [path for path in sage.template(profile) if len(path) == 2]
    assert second == [(0, 0), (0, 1), (1, 0)]  # 4 / 2 * 1.3 = 2.6 and 4 / 2 * 0.7 = 1.4


def test_the_cap_binds_by_breadth_or_by_depth():
    options = {"max_nodes": 5, "min_width": 4, "max_width": 4, "threshold": 0.0}
    breadth, depth = SageTree(**options), SageTree(**options, order="depth")
    assert breadth.template(COIN) == [(0,), (1,), (0, 0), (0, 1), (1, 0)]
    assert depth.template(COIN) == [(0,), (0, 0), (0, 0, 0), (0, 0, 0, 0), (0, 0, 0, 0, 0)]


def test_certain_gives_a_deep_chain_and_flat_gives_one_broad_level():
    assert SageTree().template(CERTAIN) == [(0,) * level for level in range(1, 9)]
    assert SageTree().template(FLAT) == [(rank,) for rank in range(10)], "0.01 < theta_2 = 0.067"


@pytest.mark.parametrize("alpha", [0.0, 0.2, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("k", [2, 5, 10])
def test_the_first_rounds_distribution_has_the_confidence_it_should(alpha, k):
    profile = geometric(alpha, k)
    assert sum(profile) == pytest.approx(1) and profile == sorted(profile, reverse=True)
    assert confidence(profile) == pytest.approx(alpha, abs=1e-6)


# Trees that grow.


def verdict(tree, nodes) -> Verdict:
    """The path to a node of each row was accepted; None for a row that has finished."""
    path, length = tree.path_to(torch.tensor([node or 0 for node in nodes]))
    length = length * torch.tensor([node is not None for node in nodes])
    return Verdict(path, length, torch.zeros(len(nodes), dtype=torch.long))


SHARP, MIDDLE, BROAD = falling(0.97), falling(0.6, 0.2), falling()


def test_a_round_s_distribution_shapes_the_next_rounds_tree():
    sage = SageTree(lower_below=0).fork()
    first = grow(sage, Ranked(SHARP, BROAD))
    start = sage.template(geometric(0.5, 10))
    assert shape(first, 0) == shape(first, 1) == start, "nothing is known yet: alpha is 0.5"
    sage.observe(first, None, verdict(first, [3, 3]))
    second = grow(sage, Ranked(BROAD, SHARP))
    assert shape(second, 0) == sage.template(SHARP) and shape(second, 1) == sage.template(BROAD)
    sage.observe(second, None, verdict(second, [3, 3]))
    third = grow(sage, Ranked(SHARP, SHARP))
    assert shape(third, 0) == sage.template(BROAD) and shape(third, 1) == sage.template(SHARP)


def test_the_same_round_may_be_asked_instead():
    sage = SageTree(when="same_round", lower_below=0).fork()
    for rows in ((SHARP, BROAD), (BROAD, MIDDLE)):
        tree = grow(sage, Ranked(*rows))
        assert [shape(tree, row) for row in (0, 1)] == [sage.template(profile) for profile in rows]
        sage.observe(tree, None, verdict(tree, [3, 3]))


def test_depth_follows_entropy_and_width_goes_the_other_way():
    depths, widths = [], []
    for first in (0.15, 0.3, 0.5, 0.7, 0.9, 0.99):
        sage = SageTree(when="same_round")
        tree = grow(sage, Ranked(falling(first)))
        depths.append(int(tree.depth[0].max()))
        widths.append(int((tree.parents[0] == 0).sum()))
    assert depths == sorted(depths) and depths[0] <= 2 and depths[-1] == 8
    assert widths == sorted(widths, reverse=True) and widths[0] > widths[-1]


@pytest.mark.parametrize("source", ["root", "tip", "mean"])
def test_whose_distribution_counts(source):
    """A drafter that is sharp after the root and ever less so below it."""
    levels = [SHARP, falling(0.8, 0.1), falling(0.5, 0.3), BROAD]

    class Drifting(Ranked):
        def logits(self, row, path):
            return torch.tensor(levels[min(len(path), 3)]).log()

    sage = SageTree(source=source, window=1, lower_below=0, raise_above=99, threshold=0.01).fork()
    tree = grow(sage, Drifting(SHARP))
    assert len(shape(tree, 0)[-1]) >= 3
    path = (0, 0)
    assert tree.expansion[0, 1 + shape(tree, 0).index(path)] > 0, "the accepted path ends in an inner node"
    sage.observe(tree, None, verdict(tree, [1 + shape(tree, 0).index(path)]))
    mean = [sum(column) / 3 for column in zip(*levels[:3], strict=True)]
    wanted = {"root": SHARP, "tip": levels[2], "mean": mean}[source]
    assert sage._rows[0].profile == pytest.approx(wanted, abs=1e-6)
    assert shape(grow(sage, Ranked(MIDDLE)), 0) == sage.template(wanted)


@pytest.mark.parametrize("source", ["tip", "mean"])
def test_a_leaf_that_was_accepted_has_no_distribution_and_its_parent_s_is_the_newest(source):
    class OneLevel(Ranked):
        def logits(self, row, path):
            return torch.tensor(BROAD if path else SHARP).log()

    sage = SageTree(source=source, min_depth=1, max_depth=1).fork()
    tree = grow(sage, OneLevel(SHARP))
    sage.observe(tree, None, verdict(tree, [1]))
    assert sage._rows[0].profile == pytest.approx(SHARP, abs=1e-6)


# The limit of the depth.


def after(sage: SageTree, *accepted: int) -> list[int]:
    """The limits after rounds in which so many tokens were accepted."""
    sage, limits = sage.fork(), []
    for count in accepted:
        tree = grow(sage, Ranked(CERTAIN))
        sage.observe(tree, None, verdict(tree, [min(count, tree.num_nodes - 1)]))
        limits.append(sage._rows[0].limit)
    return limits


def test_the_window_lowers_and_raises_the_limit_within_bounds():
    sage = SageTree(window=2)
    assert after(sage, 0, 0, 0, 0, 0, 0, 0) == [7, 6, 5, 4, 3, 3, 3]
    assert after(sage, 8, 8) == [8, 8]
    #  means: 1, 1, 2 and 3 (neither below 2 nor above 3), 3.5, 4
    assert after(sage, 0, 0, 2, 2, 3, 3) == [7, 6, 6, 6, 7, 8]
    assert after(SageTree(window=3), 0, 0, 8, 8) == [7, 6, 6, 7], "the mean of what there is"
    assert after(SageTree(window=3, full_window=True), 0, 0, 0, 0) == [8, 8, 7, 6]
    assert after(SageTree(window=1, step=3), 0, 0, 8) == [5, 3, 6]
    assert after(SageTree(window=1, lowest_limit=1, highest_limit=5), 0, 0, 0, 0, 0) == [4, 3, 2, 1, 1]
    assert after(SageTree(window=1, lower_below=1.0), 0) == [8]


def test_a_round_without_the_target_does_not_move_the_limit():
    sage = SageTree(window=1).fork()
    for settled, limit in ((True, 8), (False, 7), (True, 7)):
        tree = grow(sage, Ranked(CERTAIN))
        nobody = verdict(tree, [0])
        sage.observe(tree, None, replace(nobody, settled=settled))
        assert sage._rows[0].limit == limit and sage._rows[0].profile == pytest.approx(CERTAIN)


def test_without_the_bonus_the_lowest_limit_would_be_a_trap():
    """Three levels yield three accepted tokens at most, and the paper raises the limit above a mean of three."""
    assert after(SageTree(window=1), 1, 2, 3) == [8, 8, 8]
    assert after(SageTree(window=1, count_bonus=False), 1, 2, 4) == [7, 7, 8]
    assert after(SageTree(window=1, step=5), 0, 8) == [3, 8]
    assert after(SageTree(window=1, step=5, count_bonus=False), 0, 8, 8, 8) == [3, 3, 3, 3]


def test_the_limit_cuts_trees_or_scales_their_depth():
    assert [len(SageTree().template(CERTAIN, limit)) for limit in (8, 5, 3, 1)] == [8, 5, 3, 1]
    cap, scale = SageTree(), SageTree(limit="scale")
    assert [cap.levels_of(0.5, limit) for limit in (8, 6, 5, 3)] == [6, 6, 5, 3]
    assert [scale.levels_of(0.5, limit) for limit in (8, 6, 5, 3)] == [6, 5, 4, 3]
    assert scale.threshold_of(0.5, 2, 5) == pytest.approx(0.1 * 2 / 4)
    below = SageTree(limit="scale", lowest_limit=1)
    assert [below.depth_of(alpha, 1) for alpha in (0.0, 0.5, 1.0)] == [1, 1, 1], "certainty must not make it shallower"


def test_the_lowered_limit_holds_for_the_next_tree():
    sage = SageTree(window=1, step=4).fork()
    for accepted, depth in ((0, None), (4, 4), (4, 8)):
        tree = grow(sage, Ranked(CERTAIN))
        assert depth is None or tree.depth.max() == depth
        sage.observe(tree, None, verdict(tree, [accepted]))


# Rows and requests.


def rounds(sage: SageTree, seeds: list[int], accepted, kind="random") -> list:
    """Four rounds of trees; in each the last node but `accepted(row)` of a row is accepted."""
    sage, trees = sage.fork(), []
    for number in range(4):
        tree = grow(sage, Seeded(14, *(100 * number + seed for seed in seeds), kind=kind))
        trees.append(tree)
        last = [max(0, n - accepted(seed)) for n, seed in zip(tree.drafted.tolist(), seeds, strict=True)]
        sage.observe(tree, None, verdict(tree, last))
    return trees


@pytest.mark.parametrize("kind", ["random", "ties", "certain", "impossible"])
@pytest.mark.parametrize("when", ["next_round", "same_round"])
@pytest.mark.parametrize("source", ["root", "tip", "mean"])
def test_each_row_of_a_batch_has_the_tree_that_it_has_alone(when, source, kind):
    sage, seeds = SageTree(when=when, source=source, window=2), [1, 2, 3, 4]

    def drawn(trees, row):
        result = []
        for tree in trees:
            n = 1 + int(tree.drafted[row])
            result.append((tree.tokens[row, :n].tolist(), tree.parents[row, :n].tolist(), shape(tree, row)))
        return result

    together = rounds(sage, seeds, lambda seed: 2 * seed, kind)
    for row, seed in enumerate(seeds):
        assert drawn(together, row) == drawn(rounds(sage, [seed], lambda seed: 2 * seed, kind), 0)
    if kind == "random":
        assert any(tree.valid is not None for tree in together), "all rows had trees of one size"
        assert any(len(set(tree.depth.amax(-1).tolist())) > 1 for tree in together)


def test_padding_is_no_node():
    sage = SageTree(when="same_round")
    tree = grow(sage, Ranked(SHARP, MIDDLE))
    assert tree.valid is not None and tree.drafted.tolist() == [len(sage.template(p)) for p in (SHARP, MIDDLE)]
    padding = ~tree.valid
    assert (tree.parents[padding] == 0).all() and (tree.tokens[padding] == ROOT).all()
    assert (tree.depth[padding] == 1).all() and (tree.expansion[padding] == -1).all()
    assert torch.equal(tree.depth, tree.ancestors.sum(-1) - 1)
    inner = {(row, parent) for row in (0, 1) for parent in tree.parents[row, 1:][tree.valid[row, 1:]].tolist()}
    # A row may have expanded leaves to keep the others company, but every inner node was expanded.
    assert all(tree.expansion[row, node] >= 0 for row, node in inner)


def test_a_row_that_has_finished_drafts_nothing_and_costs_the_others_no_pass():
    for when in ("next_round", "same_round"):
        sage = SageTree(when=when, lower_below=0).fork()
        tree = grow(sage, Ranked(SHARP, MIDDLE))
        sage.observe(tree, None, verdict(tree, [None, 3]))
        tree = grow(sage, Ranked(SHARP, MIDDLE))
        assert tree.drafted.tolist() == [0, len(sage.template(MIDDLE))]
        assert tree.max_depth == len(sage.template(MIDDLE)[-1]) < 8


def test_requests_share_nothing():
    builder = SageTree(window=1)
    first, second = builder.fork(), builder.fork()
    for _ in range(3):
        for sage, rows in ((first, [CERTAIN]), (second, [BROAD, BROAD])):
            tree = grow(sage, Ranked(*rows))
            sage.observe(tree, None, verdict(tree, [0] * len(rows)))
    assert builder._rows is None and builder._profiles == []
    assert (len(first._rows), len(second._rows)) == (1, 2) and first._rows[0].limit == 5
    again = first.fork()
    assert again._rows is None and first._rows[0].lengths is not None
    assert shape(grow(again, Ranked(SHARP)), 0) == shape(grow(builder.fork(), Ranked(SHARP)), 0)
    assert repr(pickle.loads(pickle.dumps(builder))) == repr(builder)


OPTIONS = st.fixed_dictionaries(
    {
        "min_depth": st.integers(1, 3),
        "max_depth": st.integers(3, 6),
        "min_width": st.integers(1, 3),
        "max_width": st.integers(3, 8),
        "max_nodes": st.integers(1, 30),
        "top_k": st.integers(2, 12),
        "threshold": st.sampled_from([0.0, 0.1, 0.5, 1.0]),
        "initial": st.sampled_from([0.0, 0.5, 1.0]),
        "when": st.sampled_from(["next_round", "same_round"]),
        "source": st.sampled_from(["root", "tip", "mean"]),
        "round_width": st.sampled_from(["floor", "nearest", "ceil"]),
        "first_level": st.sampled_from(["plain", "factor"]),
        "parent": st.sampled_from(["conditional", "cumulative"]),
        "compare": st.sampled_from(["cumulative", "conditional"]),
        "order": st.sampled_from(["breadth", "depth"]),
        "limit": st.sampled_from(["cap", "scale"]),
        "window": st.integers(1, 3),
    }
)


@given(OPTIONS, st.integers(0, 50), st.sampled_from(["random", "ties", "certain", "impossible"]), st.integers(2, 9))
def test_every_tree_keeps_the_contract(options, seed, kind, vocab):
    """Topological, one root, within the budget, likeliest children first and none skipped, no token twice."""
    builder = SageTree(**options)
    sage = builder.fork()
    for number in range(3):
        toy = Seeded(vocab, *(seed + 1000 * number + row for row in range(3)), kind=kind)
        tree = grow(sage, toy)
        assert tree.max_depth <= max(1, builder.highest_limit) and tree.proposal == "point"
        for row in range(3):
            nodes = shape(tree, row)
            assert len(nodes) <= builder.max_nodes and len(set(nodes)) == len(nodes)
            for parent in {(), *nodes}:
                children = [path[-1] for path in nodes if path[:-1] == parent]
                log_probs = toy.logits(row, parent).log_softmax(-1)
                best = log_probs.topk(len(children)).values.tolist()
                assert log_probs[children].tolist() == pytest.approx(best)
        sage.observe(tree, None, verdict(tree, [min(number, int(tree.drafted[0])), None, int(tree.drafted[2])]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_nodes": 0}, "SageTree: max_nodes=0 must be a positive integer"),
        ({"max_depth": 2.5}, "SageTree: max_depth=2.5 must be a positive integer"),
        ({"min_depth": 9}, "SageTree: min_depth=9 is larger than max_depth=8"),
        ({"lowest_limit": 9}, "SageTree: lowest_limit=9 is larger than highest_limit=8"),
        ({"lower_below": 4.0}, r"SageTree: lower_below=4\.0 is larger than raise_above=3\.0"),
        ({"top_k": 1}, "SageTree: top_k=1 tells nothing about uncertainty"),
        ({"threshold": 1.5}, r"SageTree: threshold=1\.5 must be from 0 to 1"),
        ({"initial": -1}, "SageTree: initial=-1 must be from 0 to 1"),
        ({"source": "top"}, r"SageTree: source='top' is unknown\. Did you mean 'tip'\? Available: mean, root, tip\."),
        ({"when": 1}, "SageTree: when=1 is unknown"),
        ({"order": "bfs"}, "SageTree: order='bfs' is unknown"),
    ],
)
def test_settings_that_make_no_sense_are_refused(options, message):
    with pytest.raises(MMSpecError, match=message):
        SageTree(**options)


# Exactness.

VARIANTS = {
    "default": {},
    "same round": {"when": "same_round"},
    "tip": {"source": "tip", "order": "depth", "max_nodes": 9},
    "mean": {"source": "mean", "compare": "conditional", "round_width": "ceil", "limit": "scale", "window": 2},
    "nothing passes": {"threshold": 1.0},
}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("name", ["llava", "qwen_vl", "gemma3"])
def test_greedy_text_is_that_of_plain_decoding(name, variant):
    inputs, expected = case(name, "sdpa", *RAGGED, 14)
    for drafter in (blurred_drafter(name, "sdpa"), eagle3_drafter(name, "sdpa")):
        out = mmspec.generate(
            drafter.target, drafter, inputs=inputs, max_new_tokens=14, tree=SageTree(**VARIANTS[variant])
        )
        assert out.token_ids == expected and out.stats.lossless
        assert variant == "nothing passes" or out.stats.num_accepted_draft_tokens


def trees_of(drafts, row: int) -> list[tuple]:
    """Per round, what was drafted for a row while it was active."""
    result = []
    for draft in drafts:
        if draft.active[row]:
            n = 1 + int(draft.tree.drafted[row])
            result.append((draft.tree.tokens[row, :n].tolist(), draft.tree.parents[row, :n].tolist()))
    return result


@pytest.mark.parametrize("name", ["llava", "qwen_vl"])
def test_a_ragged_batch_drafts_for_each_row_what_it_drafts_alone(name, monkeypatch):
    drafter, tree = blurred_drafter(name, "sdpa"), SageTree(window=2, source="tip")
    inputs, _ = case(name, "sdpa", *RAGGED, 14)
    together = record_drafts(monkeypatch, DraftModelDrafter)
    mmspec.generate(drafter.target, drafter, inputs=inputs, max_new_tokens=14, tree=tree)
    together = list(together)
    assert any(draft.tree.valid is not None for draft in together)
    for row in range(4):
        with monkeypatch.context() as patch:
            alone = record_drafts(patch, DraftModelDrafter)
            mmspec.generate(drafter.target, drafter, inputs=models.one_row(inputs, row), max_new_tokens=14, tree=tree)
        assert trees_of(together, row) == trees_of(alone, 0)


class Watched(SageTree):
    """Writes down the shape of every tree of every request."""

    def fork(self):
        builder = super().fork()
        builder.shapes = []
        self.requests.append(builder.shapes)
        return builder

    def build(self, growth):
        tree = super().build(growth)
        self.shapes.append(tree.parents.tolist())
        return tree


def test_interleaved_requests_draft_what_they_draft_one_after_the_other():
    drafter, tree = blurred_drafter("llava", "sdpa"), Watched(window=2)
    tree.requests = []
    inputs, _ = case("llava", "sdpa", *RAGGED, 14)
    options = [
        {"inputs": models.one_row(inputs, 0), "max_new_tokens": 14},
        {"inputs": models.one_row(inputs, 3), "max_new_tokens": 9},
    ]
    for each in options:
        mmspec.generate(drafter.target, drafter, tree=tree, **each)
    streams = [mmspec.stream(drafter.target, drafter, tree=tree, **each) for each in options]
    while streams:
        for stream in list(streams):
            if next(stream, None) is None:
                streams.remove(stream)
    one, two, interleaved_one, interleaved_two = tree.requests
    assert one != two and len(one) > 2 and len(two) > 1
    assert (interleaved_one, interleaved_two) == (one, two)


class Forked(TreeBuilder):
    """Builds every tree as the first of a request."""

    def __init__(self, builder):
        self.builder = builder

    def build(self, growth):
        return self.builder.fork().build(growth)


@pytest.mark.parametrize("when", ["next_round", "same_round"])
@pytest.mark.parametrize("width", [1, 2])
def test_drawn_trees_are_lossless(when, width):
    """A round, over all its random outcomes; the shape is known before the first draw."""
    sage = SageTree(1, 2, width, width, max_nodes=4, top_k=2, when=when, threshold=0.0)
    sage.check("sampled")
    target, draft = random_tables(3, 2, seed=1), random_tables(3, 2, seed=2)
    outcome = Enumeration(RejectionSampling(), target, draft, Forked(sage))
    assert outcome.tree.drafted[0] >= width and outcome.error() < 1e-9


@pytest.mark.parametrize("verifier", [RejectionSampling(), PointMassSampling()], ids=lambda rule: type(rule).__name__)
@pytest.mark.parametrize("options", [{"source": "tip"}, {"when": "same_round"}], ids=str)
def test_sampled_text_follows_the_exact_law_while_the_tree_adapts(options, verifier):
    target = Target(toy(0))
    drafter = DraftModelDrafter(target, toy(1), "text_only")
    tree = SageTree(1, 3, 1, 3, max_nodes=5, window=1, **options)
    assert g_test(sample(target, drafter, tree, verifier=verifier, seed=13), exact_law(target.model)) > ALPHA
