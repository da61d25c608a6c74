"""Costs learnt from rounds: what they find out of rounds whose costs are known, and what an interruption does."""

from __future__ import annotations

import random

import pytest

from mmspec.errors import MMSpecError
from mmspec.speed import Costs, Line, Shape
from mmspec.speed.prediction import predict
from mmspec.speed.round_costs import RoundCosts


def seconds(shape: Shape, confirmed: float) -> dict[str, float]:
    """A target of 5 ms a step and 0.1 ms a node, a drafter of 0.5 ms a level."""
    plain = shape.nodes == 0
    draft = 0.0 if plain else 0.9e-3 + 2e-5 * confirmed + 5e-4 * (shape.passes - 1)
    return {
        "draft": draft,
        "score": 5e-3 + 1e-4 * shape.nodes,
        "verify": 1e-4,
        "commit": 1e-4,
        "observe": 1e-4,
        "other": 0.5e-4,
    }


def told(rounds: int, noise: float = 0.1, outliers: float = 0.0, plain: float = 0.02) -> RoundCosts:
    numbers, costs, confirmed = random.Random(0), RoundCosts(), 1
    for number in range(rounds):
        shape = Shape.plain() if numbers.random() < plain else Shape.chain(numbers.randint(1, 12))
        spent = {name: took * numbers.uniform(1 - noise, 1 + noise) for name, took in seconds(shape, confirmed).items()}
        if numbers.random() < outliers:
            spent = {name: 20 * took for name, took in spent.items()}
        costs.add(shape, confirmed, spent)
        confirmed = numbers.randint(1, int(shape.nodes) + 1)
        if number in (0, 1, 3, 7) or number % 16 == 0:
            costs.learn()
    costs.learn()
    return costs


@pytest.mark.parametrize("outliers", [0.0, 0.03])
def test_the_costs_of_the_parts_are_found(outliers):
    costs = told(150, outliers=outliers).costs
    assert costs.level(1) == pytest.approx(5e-4, rel=0.15 + 5 * outliers)
    assert costs.score(1) == pytest.approx(5e-3, rel=0.05 + 4 * outliers)
    assert costs.score(9) - costs.score(1) == pytest.approx(8e-4, rel=0.3 + 10 * outliers)
    assert costs.plain == pytest.approx(5.35e-3, rel=0.05 + 4 * outliers)


def test_two_rounds_tell_the_scale_and_the_guess_tells_the_rest():
    costs = told(2, noise=0.0, plain=0.0).costs
    assert costs.score(5) == pytest.approx(5.4e-3, rel=0.1)
    assert 0 < costs.level(1) < 1e-3 and costs.plain > 0


def test_a_dearer_drafter_is_thought_dearer_before_anything_is_known():
    assert RoundCosts(0.5).costs.level(1) > 3 * RoundCosts(0.1).costs.level(1)
    assert RoundCosts(0.0).costs.level(1) > 0, "launching takes time too"


def test_trees_of_marginals_have_a_price_of_their_own():
    """Levels that cost nothing are found out, and what a tree costs by its nodes."""
    numbers, costs = random.Random(1), RoundCosts(0.2, cheap=True)
    assert costs.costs.level(1) < 0.1 * RoundCosts(0.2).costs.level(1) and costs.costs.first(1) > costs.costs.level(1)
    for _ in range(200):
        size = numbers.choice([8, 16, 32])
        shape = numbers.choice([Shape.best_first(size, 8), Shape.chain(numbers.randint(1, 8))])
        own = 3e-4 + 1e-5 * size if shape.kind == "best_first" else 0.0
        costs.add(shape, 3, seconds(shape, 3) | {"draft": 1e-3 + own})
    costs.learn()
    tree, chain = (predict(costs.costs, one, 2.0).draft for one in (Shape.best_first(32, 8), Shape.chain(8)))
    assert tree == pytest.approx(1.62e-3, rel=0.1) and chain == pytest.approx(1e-3, rel=0.1)
    old = {name: value for name, value in costs.costs.to_dict().items() if name != "best_first"}
    assert Costs.from_dict(old).best_first == Line(), "costs that were measured before have no such price"


def test_what_is_written_is_read_again_and_nothing_else():
    costs, other = told(40), RoundCosts()
    other.load(costs.to_dict())
    assert other.costs == costs.costs and other.rounds == 40
    for wrong in ({}, costs.to_dict() | {"unit": "fast"}, costs.to_dict() | {"phases": {"draft": [[], []]}}):
        with pytest.raises(MMSpecError, match="RoundCosts"):
            RoundCosts().load(wrong)
