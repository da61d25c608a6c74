"""TwoKinds: Bayes' rule on accepted lengths, and the mixture that is learnt by it."""

from __future__ import annotations

import math
import random

import pytest

from mmspec.speed.two_kinds import HOLD, TwoKinds, chance_of, odds_of


def test_a_round_changes_the_odds_as_bayes_says():
    kinds = TwoKinds()
    first, second = kinds.chances
    for drafted, accepted in ((4, 4), (4, 2), (1, 0)):
        refused = accepted < drafted
        likely = [chance**accepted * (1 - chance) ** refused for chance in (first, second)]
        before = 0.2
        expected = before * likely[0] / (before * likely[0] + (1 - before) * likely[1])
        found = kinds.after(odds_of(before) / HOLD, drafted, accepted)
        assert chance_of(found) == pytest.approx(min(max(expected, chance_of(-4)), chance_of(4)))


def test_odds_and_chances_are_each_other_s_inverse_within_bounds():
    assert all(chance_of(odds_of(chance)) == pytest.approx(chance) for chance in (0.02, 0.3, 0.5, 0.9))
    assert odds_of(0.0) == pytest.approx(-4) and odds_of(1.5) == pytest.approx(4)


@pytest.mark.parametrize("true", [(0.9, 0.4), (0.75, 0.2)])
def test_both_chances_and_the_share_are_learnt_from_answers_of_unknown_kind(true):
    kinds, draws, found = TwoKinds(), random.Random(0), []
    for number in range(120):
        suited = number % 3 != 0
        odds = kinds.odds
        for place in range(12):
            accepted = 0
            while accepted < 6 and draws.random() < true[not suited]:
                accepted += 1
            odds = kinds.after(odds, 6, accepted)
            kinds.add([odds], [[0.8] * 6], [accepted])
            if place == 3:
                kinds.count(chance_of(odds))
        found.append((odds > 0) == suited)
    assert sum(found[-60:]) >= 54
    assert kinds.chances == pytest.approx(true, abs=0.1)
    worth = [confidence.chance(0.8) for confidence in kinds.confidences]
    assert worth == pytest.approx(true, abs=0.15), "the same probability is worth more in one kind than in the other"
    assert 0.4 < chance_of(kinds.odds) < 0.95 and math.isfinite(kinds.odds)


def test_the_chances_stay_apart_and_away_from_certainty():
    kinds = TwoKinds()
    for _ in range(3000):
        kinds.add([4.0, -4.0], [[0.8] * 8] * 2, [8, 8])
    first, second = kinds.chances
    assert first <= 0.99 and second <= first - 0.15
    for _ in range(3000):
        kinds.add([4.0, -4.0], [[0.8] * 8] * 2, [0, 0])
    first, second = kinds.chances
    assert second > 0.019 and second <= first - 0.15 + 1e-12
