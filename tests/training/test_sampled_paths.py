"""Losses on drawn paths: against an enumeration of all paths, with estimates that would be biased as controls."""

from __future__ import annotations

import itertools
from types import SimpleNamespace

import pytest
import torch
from refusals import refused
from test_chain_losses import ragged
from torch import Tensor

from mmspec.lesson import Guess
from mmspec.training import Objective
from mmspec.training.losses import Chains, ReverseKullbackLeibler, SampledPaths, truth_at

VOCAB, LENGTH, ROOTS = 5, 3, 30000


def logits_of(seed: int) -> Tensor:
    return 1.5 * torch.randn(LENGTH, VOCAB, generator=torch.Generator().manual_seed(seed))


P, Q = logits_of(0), logits_of(1)


def chains_of(q: Tensor) -> Chains:
    """Chains from `[roots, steps, vocab]` logits, each after the same answer."""
    roots = torch.arange(len(q))
    lesson = SimpleNamespace(logits=P.repeat(len(q), 1), tokens=torch.zeros(len(q) * LENGTH, dtype=torch.long))
    places = [roots * LENGTH + step for step in range(LENGTH)]
    guesses = [Guess(q[:, step], None, place, roots) for step, place in enumerate(places)]
    truths = [truth_at(lesson, place, None) for place in places]
    return Chains(guesses, truths, [torch.ones(len(q), dtype=torch.bool)] * LENGTH)


def by_enumeration(q: Tensor, temperature: float = 1.0) -> Tensor:
    """`E[log kappa]` over all paths, by the chance that each is drawn."""
    p, q = (P / temperature).softmax(-1), (q / temperature).softmax(-1)
    total = torch.zeros(())
    for path in itertools.product(range(VOCAB), repeat=LENGTH):
        drawn, kappa = torch.ones(()), torch.ones(())
        for step, token in enumerate(path):
            drawn = drawn * q[step, token]
            kappa = kappa * (p[step, token] / q[step, token]).clamp(max=1)
        total = total + drawn * kappa.log()
    return total


def exact(temperature: float = 1.0) -> tuple[float, Tensor]:
    """The loss and its gradient."""
    q = Q.clone().requires_grad_()
    value = -by_enumeration(q, temperature)
    return value.item(), torch.autograd.grad(value, q)[0]


def deviation(loss: SampledPaths) -> float:
    """How many standard errors the mean of many estimated gradients is away from the exact one, at most."""
    torch.manual_seed(0)
    q = Q.expand(ROOTS, -1, -1).clone().requires_grad_()
    (slopes,) = torch.autograd.grad(loss(chains_of(q)).sum(), q)
    error = slopes.std(0) / ROOTS**0.5
    return ((slopes.mean(0) - exact(loss.temperature)[1]).abs() / error).max().item()


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_the_expectation_is_that_over_all_paths(temperature):
    q = Q[None].clone().requires_grad_()
    value = SampledPaths(None, temperature)(chains_of(q)).sum()
    wanted, slope = exact(temperature)
    assert value.item() == pytest.approx(wanted, abs=1e-5) and wanted > 0.5
    ours = torch.autograd.grad(value, q)[0][0]
    assert (ours - slope).abs().max() < 1e-5 < slope.abs().max() / 100


class Own(SampledPaths):
    """The baseline has the path's own reward in it."""

    def baseline(self, kappa: Tensor) -> Tensor:
        return kappa.mean(0, keepdim=True)


class Indirect(SampledPaths):
    """What a path's own probabilities change about its acceptance is left out."""

    def _logs(self, guess, truth):
        accepted, log_q = super()._logs(guess, truth)
        return accepted.detach(), log_q


class NoBaseline(SampledPaths):
    """As right on the average, and noisier."""

    def baseline(self, kappa: Tensor) -> Tensor:
        return torch.zeros_like(kappa)


@pytest.mark.parametrize("samples", [2, 8])
@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_the_gradient_is_the_exact_one_on_the_average(samples, temperature):
    """Fifteen numbers, of which the largest of as many normal ones is seldom beyond four standard errors."""
    assert deviation(SampledPaths(samples, temperature)) < 4.5


@pytest.mark.parametrize("wrong", [Own, Indirect])
def test_a_biased_gradient_is_told_apart(wrong):
    assert deviation(wrong(3)) > 10


def test_the_other_paths_make_it_less_noisy():
    noise = []
    for kind in (SampledPaths, NoBaseline):
        assert deviation(kind(4)) < 4.5
        q = Q.expand(ROOTS, -1, -1).clone().requires_grad_()
        (slopes,) = torch.autograd.grad(kind(4)(chains_of(q)).sum(), q)
        noise.append(slopes.var(0).sum().item())
    assert noise[0] < 0.9 * noise[1]


def test_the_value_is_that_of_drawn_paths():
    torch.manual_seed(0)
    values = SampledPaths(4)(chains_of(Q.expand(ROOTS, -1, -1))).sum(1)
    assert abs(values.mean() - exact()[0]) < 5 * values.std() / ROOTS**0.5


def test_gradient_steps_make_whole_paths_likelier():
    torch.manual_seed(0)
    for samples in (None, 8):
        q = Q[None].clone().requires_grad_()
        for _ in range(60):
            (slope,) = torch.autograd.grad(SampledPaths(samples)(chains_of(q.expand(20, -1, -1))).mean(0).sum(), q)
            q.data -= slope
        assert by_enumeration(q[0]).item() > -exact()[0] / 3


def test_tokens_that_the_drafter_cannot_propose_have_no_part():
    q = Q[None].clone()
    q[..., 2] = float("-inf")
    q.requires_grad_()
    for loss in (SampledPaths(None), SampledPaths(4)):
        chains = chains_of(q)
        value = loss(chains).sum() + chains.each(ReverseKullbackLeibler()).sum()
        (slope,) = torch.autograd.grad(value, q)
        assert value.isfinite() and slope.isfinite().all() and not slope[..., 2].any() and slope.abs().max() > 0.01


def test_reverse_divergence_is_its_formula():
    chains = chains_of(Q[None])
    for temperature in (1.0, 2.0):
        p, q = ((logits / temperature).softmax(-1) for logits in (P, Q))
        wanted = temperature**2 * (q * (q / p).log()).sum(-1)
        assert (chains.each(ReverseKullbackLeibler(temperature=temperature))[0] - wanted).abs().max() < 1e-5


def test_places_that_do_not_count_change_nothing():
    chains = ragged()
    chains.kept[2][0] = False
    torch.manual_seed(0)
    values = SampledPaths(64)(Chains(chains.guesses, chains.truths, chains.kept))
    assert not values[0, 2].any() and not values[1, 2:].any() and (values[0, :2] != 0).all()


def test_the_draws_of_a_step_depend_on_its_seed_alone():
    from test_objective import scripted, taught

    lesson = taught()
    drafter, aim = scripted(lesson, 3, error=1.0), Objective([SampledPaths(4)], steps=3)
    first, again, other = (aim(drafter, lesson, seed)[0].item() for seed in ("1", "1", "2"))
    assert first == again != other


def test_what_is_refused():
    refused(lambda: SampledPaths(1), "SampledPaths: samples=1 must be a whole number, 2 or more")
    refused(lambda: SampledPaths(temperature=0), "SampledPaths: temperature=0 draws nothing; use AcceptedLength")
