"""Acceptance by level and rank, learnt from verdicts."""

from __future__ import annotations

import pytest

from mmspec.speed import Acceptance
from mmspec.speed.learning import AcceptanceTracker


def test_what_is_learnt_by_hand():
    tracker = AcceptanceTracker((0.5, 0.25), levels=2, decay=0.5, weight=1.0)
    # Root 0 has children 1 and 2, node 2 has child 3; the path goes 0, 2, and stops although 3 was there.
    tracker.add([-1, 0, 0, 2], [0, 2])
    assert tracker.tries == [[1, 1], [1, 0]] and tracker.hits == [[0, 1], [0, 0]]
    pooled = (0.5 / 3, (1 + 0.25) / 2)
    # Level 1: ranks 0 and 1 come to (0 + pooled) / 2 and (1 + pooled) / 2; no rank has more than an earlier one.
    first = pooled[0] / 2
    assert tracker.acceptance().chances[0] == pytest.approx((first, first))
    assert tracker.acceptance().chances[1] == pytest.approx((first, first))
    tracker.fade()
    assert tracker.tries == [[0.5, 0.5], [0.5, 0]]
    assert AcceptanceTracker((0.5, 0.25), 2, 0.9, 1.0).acceptance() == Acceptance(((0.5, 0.25),) * 2)


def test_ranks_that_were_never_tried_take_nothing_from_the_first():
    """A chain tells nothing of siblings; that its guesses were all right must not be doubted for their sake."""
    tracker = AcceptanceTracker((0.7, 0.2, 0.1), levels=3, decay=1.0, weight=2.0)
    for _ in range(10):
        tracker.add([-1, 0, 1], [0, 1, 2])
    first, *others = tracker.acceptance().chances[0]
    assert first == pytest.approx((10 + 2 * (20 + 1.4) / 22) / 12)
    assert sum(others) == pytest.approx(1 - first) and others[0] == pytest.approx(2 * others[1])


def test_chains_are_counted_as_trees_are():
    one, two = (AcceptanceTracker((0.5, 0.25), levels=3, decay=0.9, weight=1.0) for _ in range(2))
    for length, accepted in ((4, 2), (2, 2), (1, 0), (5, 5)):
        one.add(range(-1, length), list(range(accepted + 1)))
        two.add_chain(length, accepted)
    assert (one.tries, one.hits) == (two.tries, two.hits)
    one.fade()
    one.fade()
    two.fade(2)
    assert one.tries[0] == pytest.approx(two.tries[0])
