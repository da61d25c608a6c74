"""The weights of mixtures against the formulas, worked out with plain loops."""

from __future__ import annotations

import math

import pytest
import torch
from refusals import refused

from mmspec.drafters.mixture import FixedWeights, GridWeights, InverseWeights, weights
from mmspec.drafters.mixture.weights import grid, weights_of

ROWS, PLACES, MEMBERS, VOCAB = 3, 7, 3, 5
CPU = torch.device("cpu")
RULES = {name: lambda name=name, **options: GridWeights(name, **options) for name in ("matches", "kl", "tv")} | {
    f"inverse_{name}": lambda name=name, **options: InverseWeights(name, **options) for name in ("kl", "tv")
}


def said(seed: int = 0, members: int = MEMBERS):
    """p, q, and which places count: all of the first row, some of the second, none of the third."""
    generator = torch.Generator().manual_seed(seed)
    p = (2 * torch.randn(ROWS, PLACES, VOCAB, generator=generator)).softmax(-1)
    noise = torch.randn(ROWS, PLACES, members, VOCAB, generator=generator)
    q = (p.log()[:, :, None] * 0.5 + torch.tensor([1.0, 1.5, 2.0, 3.0])[:members, None] * noise).softmax(-1)
    known = torch.ones(ROWS, PLACES, dtype=torch.bool)
    known[1, 2:5] = known[2] = False
    return p, q, known


def apart(measure: str, p: list[float], q: list[float]) -> float:
    if measure == "tv":
        return 0.5 * sum(abs(a - b) for a, b in zip(p, q, strict=True))
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


def by_hand(rule: str, p: list[list[float]], q: list[list[list[float]]]) -> list[float]:
    """Weights from `[places][vocab]` and `[places][members][vocab]`, as the paper and its release say."""
    members = len(q[0])
    if rule.startswith("inverse_"):
        measure = rule.removeprefix("inverse_")
        sums = [sum(apart(measure, a, b[m]) for a, b in zip(p, q, strict=True)) for m in range(members)]
        return [(1 / one) / sum(1 / other for other in sums) for one in sums]
    best = None
    for first in range(11):
        for second in range(11 - first):
            w = [first / 10, second / 10, (10 - first - second) / 10]
            matches, sums = 0, 0.0
            for a, b in zip(p, q, strict=True):
                mixed = [sum(w[m] * b[m][v] for m in range(members)) for v in range(len(a))]
                matches += mixed.index(max(mixed)) == a.index(max(a))
                sums += apart("tv" if rule == "tv" else "kl", a, mixed)
            key = (-matches, sums) if rule == "matches" else (sums,)
            if best is None or key < best[0]:
                best = key, w
    return best[1]


@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("rule", RULES)
def test_weights_are_those_of_the_formula(rule, window, monkeypatch):
    """Heard in parts, with places that do not count; a row that has heard nothing stays uniform."""
    monkeypatch.setattr(weights, "AT_ONCE", 4 * ROWS * 2 * VOCAB)  # a few points of the grid at once
    p, q, known = said()
    learner = RULES[rule](window=window)
    learner.start(MEMBERS, ROWS, CPU)
    assert learner.now().equal(torch.full((ROWS, MEMBERS), 1 / MEMBERS))
    for start in range(0, PLACES, 2):
        learner.learn(*(each[:, start : start + 2] for each in (p, q, known)))
    found = learner.now()
    for row in range(2):
        places = known[row].nonzero()[:, 0].tolist()[-window if window else 0 :]
        expected = by_hand(rule, p[row, places].tolist(), q[row, places].tolist())
        torch.testing.assert_close(found[row], torch.tensor(expected), rtol=1e-3, atol=1e-5)
        assert (found[row] - 1 / MEMBERS).abs().max() > 0.02, "the rule has chosen"
    assert found[2].equal(torch.full((MEMBERS,), 1 / MEMBERS))


def test_a_window_that_forgets_nothing_would_be_seen():
    p, q, known = said()
    found = []
    for window in (None, 2):
        learner = GridWeights("kl", window=window)
        learner.start(MEMBERS, ROWS, CPU)
        learner.learn(p, q, known)
        found.append(learner.now())
    assert not found[0].equal(found[1])


@pytest.mark.parametrize(("members", "points"), [(2, 11), (3, 66), (4, 286)])
def test_the_grid_has_all_points_once(members, points):
    found = grid(members, 10)
    assert found.shape == (points, members) and len(found.unique(dim=0)) == points
    torch.testing.assert_close(found.sum(-1), torch.ones(points))
    assert found.min() == 0 and found.max() == 1


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("twin", range(MEMBERS))
def test_a_member_that_is_the_target_wins(rule, twin):
    """Where only matches count, others may have as many; the divergence breaks the tie."""
    p, q, known = said(3)
    q[:, :, twin] = p
    learner = RULES[rule]()
    learner.start(MEMBERS, ROWS, CPU)
    learner.learn(p, q, known)
    assert (learner.now()[:2, twin] > 0.999).all()


def test_places_without_a_distribution_and_impossible_tokens_spoil_nothing():
    p, q, known = said(4)
    clean = GridWeights("kl")
    clean.start(MEMBERS, ROWS, CPU)
    clean.learn(p[:, 1:], q[:, 1:], known[:, 1:])
    spoilt = GridWeights("kl")
    spoilt.start(MEMBERS, ROWS, CPU)
    q[:, 0, 1, 2] = float("nan")
    spoilt.learn(p, q, known)
    assert spoilt.now().equal(clean.now())
    q[:, 1, 0] = torch.tensor([0.0, 0.0, 1.0, 0.0, 0.0])
    spoilt.learn(p[:, 1:2], q[:, 1:2], known[:, 1:2])
    assert spoilt.now().isfinite().all()


def test_fixed_weights_are_the_given_ones():
    rule = weights_of([0.2, 0.8], 2)
    rule.start(2, 3, CPU)
    assert rule.now().equal(torch.tensor([[0.2, 0.8]]).expand(3, -1)) and not rule.learns


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: FixedWeights([0.5, 0.6]), "values= ... must be numbers of 0 or more that sum to 1"),
        (lambda: FixedWeights([1.5, -0.5]), "must be numbers of 0 or more"),
        (lambda: FixedWeights(["a"]), "must be numbers of 0 or more"),
        (lambda: FixedWeights([0.5, 0.5]).start(3, 1, CPU), "are 2 weights for 3 members"),
        (lambda: GridWeights("likes"), "measure='likes' must be one of matches, kl, tv"),
        (lambda: GridWeights(step=0.3), "step=0.3 must go into 1 a whole number of times"),
        (lambda: GridWeights(step=0), "step=0 must be a number"),
        (lambda: GridWeights(window=0), "window=0 must be a positive integer"),
        (lambda: GridWeights().start(9, 1, CPU), "gives 43758 points for 9 members"),
        (lambda: InverseWeights("matches"), "measure='matches' must be one of kl, tv"),
        (lambda: weights_of("best", 2), "weights='best' must be one of uniform, matches, kl"),
        (lambda: weights_of(3, 2), "weights=3 must be one of"),
    ],
)
def test_what_cannot_be_weights_is_refused(make, message):
    refused(make, message)
