"""Losses among candidates, against loops over places: where a right choice could get to, and what it costs there."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from refusals import refused

from mmspec.lesson import Guess
from mmspec.training.losses import (
    CandidateMargin,
    CandidatePenalty,
    Chains,
    CrossEntropy,
    ForcedPrefix,
    truth_at,
)

VOCAB, STEPS, CANDIDATES = 7, 4, 4
LENGTHS = (4, 3, 1, 4, 4, 2, 4, 4, 4, 3)
FEW = torch.tensor([0, 2, 3, 5, 6])


def chains_of(seed: int = 0, vocabulary: torch.Tensor | None = None, candidates: int = CANDIDATES) -> Chains:
    """Chains of different lengths, each of whose guesses has a few candidates."""
    generator = torch.Generator().manual_seed(seed)
    count, known = sum(LENGTHS), VOCAB if vocabulary is None else len(vocabulary)
    lesson = SimpleNamespace(
        logits=2 * torch.randn(count, VOCAB, generator=generator),
        tokens=torch.randint(0, VOCAB, (count,), generator=generator),
    )
    starts = torch.tensor(LENGTHS).cumsum(0) - torch.tensor(LENGTHS)
    guesses, truths, kept = [], [], []
    for step in range(STEPS):
        rows = torch.tensor([row for row, length in enumerate(LENGTHS) if step < length])
        scores = 2 * torch.randn(len(rows), known, generator=generator)
        left_out = scores.topk(known - candidates, largest=False).indices
        scores = scores.scatter(-1, left_out, float("-inf")).requires_grad_()
        guesses.append(Guess(scores, None, starts[rows] + step, rows))
        truths.append(truth_at(lesson, starts[rows] + step, vocabulary))
        kept.append(torch.ones(len(rows), dtype=torch.bool))
    return Chains(guesses, truths, kept)


def formula(loss, z: list[float], p: list[float], known: list[int], token: int) -> float:
    """What a choice by scores z costs where the target's logits are p, both by the tokens that can be proposed."""
    among = [k for k, score in enumerate(z) if math.isfinite(score)]
    x, total = known.index(token), sum(math.exp(z[k]) for k in among)
    if isinstance(loss, CrossEntropy):
        return math.log(total) - z[x]
    if isinstance(loss, CandidatePenalty):
        return sum(math.exp(z[k]) / total * max(0.0, p[known[x]] - p[known[k]]) for k in among)
    return max(0.0, loss.margin - (z[x] - max(z[k] for k in among if k != x)))


LOSSES = [CrossEntropy(), CandidateMargin(1.5), CandidateMargin(4.0), CandidatePenalty()]


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: loss.name)
@pytest.mark.parametrize("vocabulary", [None, FEW], ids=["all", "few"])
def test_they_count_up_to_the_first_token_that_is_no_candidate(loss, vocabulary):
    chains = chains_of(1, vocabulary)
    values, known = ForcedPrefix(loss)(chains), list(range(VOCAB)) if vocabulary is None else vocabulary.tolist()
    reached = missed = behind = 0
    for row, length in enumerate(LENGTHS):
        going = True
        for step in range(STEPS):
            if step >= length:
                assert values[row, step] == 0
                continue
            number = chains.guesses[step].roots.tolist().index(row)
            place = chains.guesses[step].places[number]
            z, lesson = chains.guesses[step].logits[number].tolist(), chains.truths[step].lesson
            token, was = lesson.tokens[place].item(), going
            here = token in known and math.isfinite(z[known.index(token)])
            going = going and here
            wanted = formula(loss, z, lesson.logits[place].tolist(), known, token) / length if going else 0.0
            assert values[row, step].item() == pytest.approx(wanted, abs=1e-5), (row, step)
            reached, missed, behind = reached + going, missed + (was and not here), behind + (here and not was)
    assert min(reached, missed, behind) >= 3, "a loss at every candidate, wherever it stands, would be another"
    values.sum().backward()
    assert all(guess.logits.grad.isfinite().all() for guess in chains.guesses)
    assert max(guess.logits.grad.abs().max() for guess in chains.guesses) > 0.01


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: loss.name)
def test_its_gradient_is_that_of_small_steps(loss):
    chains = chains_of(2)
    (slope,) = torch.autograd.grad(ForcedPrefix(loss)(chains).sum(), chains.guesses[0].logits)
    compared = 0
    for row, token in chains.guesses[0].logits.isfinite().nonzero().tolist():
        around = []
        for sign in (1, -1):
            moved = chains.guesses[0].logits.detach().clone()
            moved[row, token] += sign * 1e-2
            guesses = [chains.guesses[0]._replace(logits=moved), *chains.guesses[1:]]
            around.append(ForcedPrefix(loss)(Chains(guesses, chains.truths, chains.kept)).sum().item())
        assert slope[row, token].item() == pytest.approx((around[0] - around[1]) / 2e-2, abs=2e-3)
        compared += abs(slope[row, token].item()) > 0.01
    assert compared > 4


def test_a_single_candidate_has_nothing_to_be_ahead_of():
    chains = chains_of(0, candidates=1)
    assert not ForcedPrefix(CandidateMargin())(chains).any() and not ForcedPrefix(CandidatePenalty())(chains).any()
    assert not ForcedPrefix(CrossEntropy())(chains).any()


def test_without_candidates_the_prefix_is_the_chain():
    chains = chains_of(0, candidates=VOCAB)
    shares = chains.each(CrossEntropy()) / torch.tensor(LENGTHS)[:, None]
    assert ForcedPrefix(CrossEntropy())(chains).equal(shares)


def test_what_is_refused():
    refused(lambda: CandidateMargin(0), "CandidateMargin: margin=0 must be a number above 0")
    refused(
        lambda: ForcedPrefix(CrossEntropy(0.5)),
        "ForcedPrefix: loss.weight=0.5 would not count; give the weight to ForcedPrefix itself",
    )
