"""SageTree: the mapping by hand, templates as they grow, rounds that follow each other, and exactness."""

from __future__ import annotations

import math
import pickle
from dataclasses import replace

import models
import pytest
from laws import Enumeration, g_test, random_tables
from tiny_drafters import blurred_drafter, record_drafts
from tiny_requests import RAGGED, case
from toy_drafters import Ranked, falling, rows_of, shape, verdict
from toy_drafters import tree_of as grow
from toy_law import ALPHA, exact_law, sample, toy

import mmspec
from mmspec import Target
from mmspec.drafters import DraftModelDrafter, TextOnlyDrafter
from mmspec.trees import SageTree, TreeBuilder
from mmspec.trees.sage import confidence, geometric
from mmspec.verifiers import PointMassSampling, RejectionSampling

COIN = [0.5, 0.5, *[0.0] * 8]  # the counterexample to Lemma 4.3
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


def test_levels_are_rounded_to_the_nearest_and_cut_by_the_limit():
    sage = SageTree()
    assert [sage.levels_of(alpha) for alpha in (0.0, 0.41, 0.5, 1.0)] == [3, 5, 6, 8]  # 5.05, and 5.5 goes up
    assert SageTree(1, 2).levels_of(0.49) == 1
    assert [sage.levels_of(0.5, limit) for limit in (8, 6, 5, 3)] == [6, 6, 5, 3]
    assert [len(sage.template(CERTAIN, limit)) for limit in (8, 5, 3, 1)] == [8, 5, 3, 1]


def test_membership_of_the_counterexample():
    """Cumulative 1/2, 1/4, 1/8, 1/16 = 0.0625 > theta_4 = 0.0616, but 1/32 < theta_5: four of the six levels."""
    two = [(0,), (1,)]
    four = [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert SageTree().template(COIN) == [*two, *four, *((*path, 0) for path in four), *((*p, 0, 0) for p in four)]
    assert SageTree(max_nodes=5).template(COIN) == [*two, *four[:3]], "shallow ones first"


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
    sage = SageTree(min_width=4, max_width=4, threshold=0.0)
    second = [path for path in sage.template([0.8, 0.2, *[0.0] * 8]) if len(path) == 2]
    assert second == [(0, 0), (0, 1), (1, 0)]  # 4 / 2 * 1.3 = 2.6 and 4 / 2 * 0.7 = 1.4


def test_certain_gives_a_deep_chain_and_flat_gives_one_broad_level():
    assert SageTree().template(CERTAIN) == [(0,) * level for level in range(1, 9)]
    assert SageTree().template(FLAT) == [(rank,) for rank in range(10)], "0.01 < theta_2 = 0.067"


@pytest.mark.parametrize("alpha", [0.0, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("k", [2, 10])
def test_the_first_rounds_distribution_has_the_confidence_it_should(alpha, k):
    profile = geometric(alpha, k)
    assert sum(profile) == pytest.approx(1) and profile == sorted(profile, reverse=True)
    assert confidence(profile) == pytest.approx(alpha, abs=1e-6)


# Trees that grow.


SHARP, MIDDLE, BROAD = falling(0.97), falling(0.6, 0.2), falling()


def test_a_round_s_distribution_shapes_the_next_rounds_tree():
    sage, start = SageTree().fork(), SageTree().template(geometric(0.5, 10))
    wanted = [start, start]  # nothing is known yet: alpha is 0.5
    for profiles in ((SHARP, BROAD), (BROAD, SHARP), (SHARP, MIDDLE), (BROAD, BROAD)):
        tree = grow(sage, Ranked(*profiles))
        assert [shape(tree, row) for row in (0, 1)] == wanted
        wanted = [sage.template(profile) for profile in profiles]
        sage.observe(tree, None, verdict(tree, [3, 3]))


def test_depth_follows_entropy_and_width_goes_the_other_way():
    templates = [SageTree().template(falling(first)) for first in (0.15, 0.3, 0.5, 0.7, 0.9, 0.99)]
    depths = [len(template[-1]) for template in templates]
    widths = [sum(len(path) == 1 for path in template) for template in templates]
    assert depths == sorted(depths) and depths[0] <= 2 and depths[-1] == 8
    assert widths == sorted(widths, reverse=True) and widths[0] > widths[-1]


# The limit of the depth.


def after(sage: SageTree, *accepted: int) -> list[int]:
    """The limits after rounds in which so many drafted tokens were accepted."""
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
    assert after(SageTree(1, 5, window=1), 0, 0, 0, 0, 0) == [4, 3, 2, 1, 1]


def test_the_lowest_limit_is_no_trap():
    """Three levels yield three drafted tokens, and the limit rises above a mean of three: the target's token counts."""
    assert after(SageTree(window=1), 0, 0, 0, 0, 0, 3, 4) == [7, 6, 5, 4, 3, 4, 5]


def test_the_lowered_limit_holds_for_the_next_tree():
    sage = SageTree(window=1).fork()
    for accepted, depth in ((0, None), (0, 7), (6, 6), (0, 7)):
        tree = grow(sage, Ranked(CERTAIN))
        assert depth is None or tree.depth.max() == depth
        sage.observe(tree, None, verdict(tree, [accepted]))


def test_a_round_without_the_target_does_not_move_the_limit():
    sage = SageTree(window=1).fork()
    for settled, limit in ((True, 8), (False, 7), (True, 7)):
        tree = grow(sage, Ranked(CERTAIN))
        sage.observe(tree, None, replace(verdict(tree, [0]), settled=settled))
        assert sage._rows[0].limit == limit and sage._rows[0].profile == pytest.approx(CERTAIN)


# Rows and requests.


def test_a_row_that_has_finished_drafts_nothing_and_costs_the_others_no_pass():
    sage = SageTree().fork()
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
    assert builder._rows is None and builder._newest is None
    assert (len(first._rows), len(second._rows)) == (1, 2) and first._rows[0].limit == 5
    again = first.fork()
    assert again._rows is None and first._rows is not None
    assert shape(grow(again, Ranked(SHARP)), 0) == shape(grow(builder.fork(), Ranked(SHARP)), 0)
    assert repr(pickle.loads(pickle.dumps(builder))) == repr(builder)


# Exactness.


@pytest.mark.parametrize("name", ["llava", "qwen_vl"])
def test_a_ragged_batch_drafts_for_each_row_what_it_drafts_alone(name, monkeypatch):
    drafter, tree = blurred_drafter(name, "sdpa"), SageTree(window=2)
    inputs, _ = case(name, "sdpa", *RAGGED, 14)

    def drafted(inputs: dict) -> list[list]:
        """Per row, what was drafted in every round while it was active."""
        with monkeypatch.context() as patch:
            drafts = record_drafts(patch, DraftModelDrafter)
            mmspec.generate(drafter.target, drafter, inputs=inputs, max_new_tokens=14, tree=tree)
        padded.append(any(draft.tree.valid is not None for draft in drafts))
        rows = [(rows_of(draft.tree), draft.active) for draft in drafts]
        return [[row[i] for row, active in rows if active[i]] for i in range(len(inputs["input_ids"]))]

    padded: list[bool] = []
    assert drafted(inputs) == [drafted(models.one_row(inputs, row))[0] for row in range(4)]
    assert padded[0]


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


@pytest.mark.parametrize("width", [1, 2])
def test_drawn_trees_are_lossless(width):
    """A round, over all its random outcomes; the shape is known before the first draw."""
    sage = SageTree(1, 2, width, width, max_nodes=4, top_k=2, threshold=0.0)
    sage.check("sampled")
    target, draft = random_tables(3, 2, seed=1), random_tables(3, 2, seed=2)
    outcome = Enumeration(RejectionSampling(), target, draft, Forked(sage))
    assert outcome.tree.drafted[0] >= width and outcome.error() < 1e-9


@pytest.mark.parametrize("verifier", [RejectionSampling(), PointMassSampling()], ids=lambda rule: type(rule).__name__)
def test_sampled_text_follows_the_exact_law_while_the_tree_adapts(verifier):
    target = Target(toy(0))
    drafter = TextOnlyDrafter(target, toy(1))
    tree = SageTree(1, 3, 1, 3, max_nodes=5, window=1)
    assert g_test(sample(target, drafter, tree, verifier=verifier, seed=13), exact_law(target.model)) > ALPHA
