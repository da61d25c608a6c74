"""Costs, shapes, acceptance and predictions, against numbers worked out by hand."""

from __future__ import annotations

import itertools
import json

import pytest
from refusals import refused

from mmspec.errors import MMSpecError
from mmspec.speed import Acceptance, Costs, Curve, Line, Prediction, Shape, predict
from mmspec.speed.choosing import candidates, fastest
from mmspec.trees import BestFirstTree, Chain, ConfidenceTree, DynamicTree, StaticTree

COSTS = Costs(
    score=Curve((1, 5, 9), (8.0, 9.0, 13.0)),
    plain_overhead=1.0,
    overhead=Line(0.5, 0.125),
    branching=0.25,
    first=Line(1.0, 0.5),
    level=Line(0.75, 0.25),
    static=Line(0.5, 0.125),
    dynamic=Line(0.25, 0.5),
    conditions={"batch_size": 1},
)


def test_a_curve_is_flat_before_linear_between_and_goes_on_behind():
    curve = COSTS.score
    assert [curve(n) for n in (0.5, 1, 3, 5, 7, 9, 11)] == [8, 8, 8.5, 9, 11, 13, 15]
    assert Curve((4,), (2.0,))(40) == 2.0


def test_noise_that_falls_is_pooled():
    curve = Curve.through([(4, 5.0), (1, 1.0), (2, 4.0), (3, 2.0), (3, 4.0), (8, 9.0)])
    # 4.0 and the mean 3.0 of two samples pool to (4 + 2 * 3) / 3; everything else is in order.
    assert curve.counts == (1, 2, 3, 4, 8)
    assert curve.seconds == pytest.approx((1, 10 / 3, 10 / 3, 5, 9))


@pytest.mark.parametrize(
    ("counts", "seconds", "message"),
    [((), (), "as many"), ((1, 2), (1.0,), "as many"), ((2, 1), (1.0, 2.0), "rise"), ((1, 2), (2.0, 1.0), "not fall")],
)
def test_points_that_make_no_curve_are_refused(counts, seconds, message):
    refused(lambda: Curve(counts, seconds), message)


def test_costs_survive_json():
    assert Costs.from_dict(json.loads(json.dumps(COSTS.to_dict()))) == COSTS
    block = Costs(Curve((1,), (1.0,)), block=0.25)
    assert Costs.from_dict(json.loads(json.dumps(block.to_dict()))) == block
    for broken in ({}, COSTS.to_dict() | {"score": {"counts": [1]}}, COSTS.to_dict() | {"more": 1}):
        with pytest.raises(MMSpecError, match="not costs"):
            Costs.from_dict(broken)


def test_shapes_count_what_builders_expand_and_score():
    assert Shape.of(Chain(3)) == Shape("chain", (1, 1, 1), 3)
    # The root has two children, of which the first has two and the second one; one grandchild goes on.
    paths = [(0,), (1,), (0, 0), (0, 1), (1, 0), (0, 1, 0)]
    assert Shape.of(StaticTree(paths)) == Shape("static", (1, 2, 1), 6)
    assert Shape.of(DynamicTree(3, 4, 13)) == Shape("dynamic", (1, 4, 4), 12)
    assert Shape.of(BestFirstTree(12, depth=5)) == Shape("best_first", (1,), 12, 5)
    assert Shape.of(DynamicTree(2, 2, 60)).nodes == 2 + 4  # no more than there are candidates
    refused(lambda: Shape.of(ConfidenceTree()), "ConfidenceTree is known only when")


def test_expected_lengths():
    acceptance = Acceptance(((0.5, 0.25), (0.5, 0.125)))
    assert acceptance.chain(3) == 0.5 + 0.25 + 0.125  # behind the last level the last one's chances hold
    assert acceptance.static([(0,), (1,), (0, 0), (1, 0), (0, 1)]) == 0.5 + 0.25 + 0.25 + 0.125 + 0.0625
    assert acceptance.chance(1, 2) == 0.0
    rates = Acceptance.of_positions([0.75, 0.375, 0.0])
    assert rates.chances == ((0.75,), (0.5,), (0.0,)) and rates.chain(3) == 0.75 + 0.375
    assert Acceptance.of_positions([]).chain(2) == 0.0


@pytest.mark.parametrize("chances", [(), ((),), ((-0.1,),), ((0.7, 0.4),)])
def test_what_is_no_distribution_over_ranks_is_refused(chances):
    refused(lambda: Acceptance(chances), "Acceptance")


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5])
def test_the_likeliest_nodes_are_the_best_tree_of_their_size(size):
    """Against all rank trees of depth and width 3."""
    acceptance = Acceptance(((0.5, 0.3, 0.1), (0.6, 0.2, 0.1), (0.7, 0.1, 0.1)))
    every = [path for depth in (1, 2, 3) for path in itertools.product(range(3), repeat=depth)]
    trees = [
        tree
        for tree in itertools.combinations(every, size)
        if all(len(path) == 1 or path[:-1] in tree for path in tree)
    ]
    best = max(acceptance.static(tree) for tree in trees)
    found = acceptance.likeliest(size, 3, 3)
    assert sum(node.probability for node in found) == pytest.approx(best)
    assert acceptance.static([node.path for node in found]) == pytest.approx(best)
    StaticTree([node.path for node in found])  # refuses what is no tree


def test_a_chain_by_hand():
    one = predict(COSTS, Shape.chain(4), accepted=2.0)
    # first(3 confirmed) = 2.5, three more levels of one node = 3; score of 5 nodes = 9; overhead = 0.5 + 4 / 8.
    assert (one.draft, one.score, one.overhead, one.step, one.plain) == (5.5, 9.0, 1.0, 8.0, 9.0)
    assert one.seconds == 15.5 and one.tokens == 3.0 and one.depth == 4
    assert one.speedup == 3 * 9 / 15.5
    assert one.limit == 3 * 9 / (5.5 + 8)
    assert one.share == pytest.approx(one.speedup / one.limit) and one.share == 13.5 / 15.5
    assert one.levers == {
        "no_overhead": 27 / 14.5,
        "cheap_scoring": 27 / 14.5,
        "free_drafting": 27 / 10,
        "perfect_acceptance": 5 * 9 / 15.5,
    }
    assert one.tokens_per_second == 3 / 15.5


def test_trees_and_blocks_by_hand():
    static = predict(COSTS, Shape("static", (1, 2, 1), 6), accepted=1.0)
    assert static.draft == (1 + 0.5 * 2) + (0.75 + 0.5) + (0.75 + 0.25) + (0.5 + 2 * 0.125)
    assert static.overhead == 0.5 + 6 * 0.125 + 0.25 and static.score == 11.0
    dynamic = predict(COSTS, Shape.dynamic(3, 4, 9), accepted=1.0)
    assert dynamic.draft == 2.0 + 2 * 1.75 + (0.25 + 2 * 0.5)
    block = predict(Costs(COSTS.score, block=0.125), Shape("block", (), 8, depth=5), accepted=1.0, rows=2)
    assert block.draft == 0.125 and block.levers["perfect_acceptance"] == 6 * 8 / block.seconds
    assert block.tokens_per_second == 4 / block.seconds


def test_a_lever_never_makes_it_slower_and_a_depth_may_be_unknown():
    cheap = Prediction(tokens=2.0, draft=1.0, score=6.0, overhead=1.0, step=8.0, plain=9.0)  # scoring below a step
    assert cheap.levers["cheap_scoring"] == cheap.speedup
    assert cheap.levers["perfect_acceptance"] is None


def costs(draft: float, node: float = 0.1) -> Costs:
    """A target of 8 seconds a step and a drafter of so many a level."""
    return Costs(Curve((1, 33), (8.0, 8.0 + 32 * node)), 0.5, Line(0.5), 0.1, Line(draft), Line(draft))


def best(costs: Costs, *ranks: float, **options):
    return fastest(candidates(costs, Acceptance((ranks,)), **options))


def test_the_fastest_shape_follows_costs_and_acceptance():
    assert best(costs(4.0), 0.1).shape == Shape.chain(1)
    assert best(costs(0.2), 0.95).shape == Shape.chain(8)
    wide = best(costs(1.0, node=0.0), 0.4, 0.3, 0.2)  # unsure, and more nodes cost nothing
    assert wide.shape.kind != "chain" and wide.shape.nodes == 32
    assert best(costs(1.0, node=4.0), 0.4, 0.3, 0.2).shape.nodes < 4
    assert best(costs(0.2), 0.95, max_depth=3).shape == Shape.chain(3)
    assert best(costs(0.2), 0.95, max_nodes=2).shape == Shape.chain(2)


def test_candidates_keep_their_bounds_and_only_fixed_shapes_are_drawn():
    acceptance = Acceptance(((0.5, 0.2, 0.1, 0.05),))
    found = candidates(costs(1.0), acceptance, max_depth=5, max_nodes=24)
    assert {one.shape.kind for one in found} == {"chain", "static", "dynamic"}
    assert all(one.shape.nodes <= 24 and one.shape.passes <= 5 for one in found)
    assert {one.shape.kind for one in candidates(costs(1.0), acceptance, kinds=["chain", "static"])} == {
        "chain",
        "static",
    }
    for one in found:
        if one.shape.kind == "dynamic":
            assert one.prediction.tokens == pytest.approx(1 + one.ranked)
            assert Shape.of(DynamicTree(*one.settings)) == one.shape
        elif one.shape.kind == "static":
            assert one.prediction.tokens == pytest.approx(1 + acceptance.static(one.paths))
            assert Shape.of(StaticTree(one.paths)) == one.shape
