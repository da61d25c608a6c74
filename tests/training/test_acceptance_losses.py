"""Losses on acceptance, token by token: against their formulas, against verifiers, and their gradients."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from refusals import refused
from test_losses import FEW, PLACES, VOCAB, guess_at, lesson_of, order_of, softmax

from mmspec.lesson import Guess
from mmspec.training.losses import (
    Confidence,
    CrossEntropy,
    HybridAcceptance,
    KullbackLeibler,
    NegativeLogAcceptance,
    OnBase,
    ProbabilityDistance,
    TotalVariation,
    truth_at,
)
from mmspec.training.losses.acceptance import acceptance, log_overlap, overlap

EVERYWHERE = torch.arange(PLACES)


def overlap_of(target: list[float], known: list[int], drafter: list[float], temperature: float) -> float:
    """`sum min(p, q)` of two lists of logits; the target's is over the whole vocabulary."""
    if temperature == 0:
        best = order_of(target)[0]
        return softmax(drafter)[known.index(best)] if best in known else 0.0
    p = softmax([value / temperature for value in target])
    q = softmax([value / temperature for value in drafter])
    return sum(min(p[token], q[number]) for number, token in enumerate(known))


def divergence_of(target: list[float], known: list[int], drafter: list[float], temperature: float) -> float:
    """KL of the distributions over the drafter's tokens."""
    p = softmax([target[token] / temperature for token in known])
    q = softmax([value / temperature for value in drafter])
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


@pytest.mark.parametrize("vocabulary", [None, FEW], ids=["all", "few"])
@pytest.mark.parametrize("temperature", [0, 0.6, 1.0])
def test_they_equal_their_formulas(vocabulary, temperature, seed=6):
    lesson = lesson_of(seed)
    known = list(range(VOCAB)) if vocabulary is None else vocabulary.tolist()
    guess, truth = guess_at(EVERYWHERE, len(known), seed), truth_at(lesson, EVERYWHERE, vocabulary)
    losses = {"tv": TotalVariation(temperature=temperature), "nla": NegativeLogAcceptance(temperature=temperature)}
    if temperature:
        losses |= {"hybrid": HybridAcceptance(eta=2.0, temperature=temperature)}
        losses |= {"kl": KullbackLeibler(temperature=temperature)}
    values = {name: loss(guess, truth) for name, loss in losses.items()}
    outside = 0
    for place in range(PLACES):
        target, drafter = lesson.logits[place].tolist(), guess.logits[place].tolist()
        accepted = overlap_of(target, known, drafter, temperature)
        inside = order_of(target)[0] in known
        outside += not inside
        assert values["tv"][place].item() == pytest.approx(1 - accepted, abs=1e-5)
        assert values["nla"][place].item() == pytest.approx(-math.log(accepted) if inside else 0.0, abs=1e-4)
        if temperature:
            divergence, share = divergence_of(target, known, drafter, temperature), math.exp(-2 * accepted)
            mixed = share * divergence + (1 - share) * (1 - accepted)
            assert values["hybrid"][place].item() == pytest.approx(mixed if inside else 0.0, abs=1e-4)
            wanted = temperature**2 * divergence if inside else 0.0
            assert values["kl"][place].item() == pytest.approx(wanted, abs=1e-4)
    assert vocabulary is None or 0 < outside < PLACES


def test_what_is_accepted_of_the_written_tokens_has_the_overlap_as_its_mean():
    """Over all tokens that the target may write, by its probabilities: sum p min(1, q / p) = sum min(p, q)."""
    for vocabulary in (None, FEW):
        for temperature in (0.6, 1.0):
            mean = torch.zeros(PLACES)
            for token in range(VOCAB):
                lesson = lesson_of(1)
                lesson.tokens = torch.full((PLACES,), token)
                truth = truth_at(lesson, EVERYWHERE, vocabulary)
                guess = guess_at(EVERYWHERE, truth.logits.shape[-1], 1)
                p = (lesson.logits / temperature).softmax(-1)[:, token]
                mean += p * acceptance(guess, truth, temperature)[1].detach()
            assert (mean - overlap(guess, truth, temperature)).abs().max() < 1e-5


def test_at_temperature_0_the_logarithm_is_cross_entropy_on_the_likeliest_token():
    lesson = lesson_of(2)
    lesson.tokens = lesson.logits.argmax(-1)
    for vocabulary in (None, FEW):
        truth = truth_at(lesson, EVERYWHERE, vocabulary)
        guess = guess_at(EVERYWHERE, truth.logits.shape[-1], 2)
        ours, theirs = NegativeLogAcceptance(temperature=0), CrossEntropy()
        assert (ours(guess, truth) - theirs(guess, truth)).abs().max() < 1e-5
        gradients = [torch.autograd.grad(loss(guess, truth).sum(), guess.logits)[0] for loss in (ours, theirs)]
        assert (gradients[0] - gradients[1]).abs().max() < 1e-5 < gradients[0].abs().max()


def test_total_variation_is_half_the_distance_of_probabilities():
    guess, truth = guess_at(EVERYWHERE, VOCAB, 3), truth_at(lesson_of(3), EVERYWHERE, None)
    assert (2 * TotalVariation()(guess, truth) - ProbabilityDistance()(guess, truth)).abs().max() < 1e-5


def far_apart() -> tuple[Guess, object]:
    """A guess whose probability is nowhere near the target's."""
    lesson = SimpleNamespace(logits=torch.tensor([[90.0, 0.0, 0.0]]), tokens=torch.tensor([0]))
    logits = torch.tensor([[0.0, 90.0, 0.0]], requires_grad=True)
    place = torch.tensor([0])
    return Guess(logits, None, place, place), truth_at(lesson, place, None)


def test_where_nothing_is_accepted_divergence_leads_and_logarithms_have_a_gradient():
    guess, truth = far_apart()
    assert overlap(guess, truth).item() < 1e-30
    hybrid, divergence = HybridAcceptance()(guess, truth), KullbackLeibler()(guess, truth)
    assert hybrid.item() == pytest.approx(divergence.item(), rel=1e-5), "its weight there is 1"
    (slope,) = torch.autograd.grad(NegativeLogAcceptance()(guess, truth).sum(), guess.logits)
    assert slope[0, 0] < -0.3 and slope[0, 1] > 0.3 and slope.isfinite().all()
    (flat,) = torch.autograd.grad(TotalVariation()(guess, truth).sum(), guess.logits)
    assert flat.abs().max() < 1e-6, "which total variation has not"


@pytest.mark.parametrize("loss", [TotalVariation(), NegativeLogAcceptance(), HybridAcceptance()], ids=lambda x: x.name)
@pytest.mark.parametrize("vocabulary", [None, FEW], ids=["all", "few"])
def test_gradients_are_those_of_small_steps(loss, vocabulary):
    """The share of LK's hybrid is a constant in its gradient."""
    truth = truth_at(lesson_of(4), EVERYWHERE, vocabulary)
    guess = guess_at(EVERYWHERE, truth.logits.shape[-1], 4)
    (gradient,) = torch.autograd.grad(loss(guess, truth).sum(), guess.logits)
    fixed = (-3.0 * overlap(guess, truth)).exp().detach()

    def value(logits: torch.Tensor) -> float:
        moved = guess._replace(logits=logits)
        if not isinstance(loss, HybridAcceptance):
            return loss(moved, truth).sum().item()
        distance = TotalVariation()(moved, truth) * truth.inside
        return (fixed * KullbackLeibler()(moved, truth) + (1 - fixed) * distance).sum().item()

    step = 1e-2
    for place, token in ((0, 0), (3, 1), (7, 2), (11, 3), (12, 0), (19, 2)):
        around = [guess.logits.detach().clone() for _ in range(2)]
        around[0][place, token] += step
        around[1][place, token] -= step
        slope = (value(around[0]) - value(around[1])) / (2 * step)
        assert gradient[place, token].item() == pytest.approx(slope, abs=2e-3)
    assert gradient.abs().max() > 0.02


def test_tokens_that_a_draft_model_lacks_are_never_accepted():
    lesson = lesson_of(5)
    guess, truth = guess_at(EVERYWHERE, VOCAB, 5), truth_at(lesson, EVERYWHERE, None)
    lacking = guess.logits.detach().clone()
    lacking[:, -1] = float("-inf")
    lacking.requires_grad_()
    lesser = Guess(lacking, None, EVERYWHERE, EVERYWHERE)
    q = lacking.detach().softmax(-1)
    wanted = torch.minimum(lesson.logits.softmax(-1), q).sum(-1)
    assert (overlap(lesser, truth) - wanted).abs().max() < 1e-5
    assert (log_overlap(lesser, truth).exp() - wanted).abs().max() < 1e-5
    accepted = acceptance(lesser, truth)[1]
    assert (accepted[lesson.tokens == VOCAB - 1] == 0).all() and (lesson.tokens == VOCAB - 1).any()
    for temperature in (0, 1.0):
        value = NegativeLogAcceptance(temperature=temperature)(lesser, truth)
        (gradient,) = torch.autograd.grad(value.sum() + sum(acceptance(lesser, truth)).sum(), lacking)
        assert value.isfinite().all() and gradient.isfinite().all() and gradient.abs().max() > 0.01


def test_the_probabilities_of_a_token_stand_one_place_before_it():
    """Those that the target had when it wrote the token, not those after it."""
    import models
    from test_lesson import ragged, recompute  # a whole model

    inputs, lesson = ragged("llava", "sdpa")
    first = 0
    for row, answer in enumerate(lesson.answers):
        alone = models.one_row(inputs, row)
        logits = recompute(lesson.target.model, alone, [answer]).logits[0].log_softmax(-1)
        prompt = alone["input_ids"].shape[1]
        places = torch.arange(first, first + len(answer))
        log_p = truth_at(lesson, places, None).log_p()
        assert (log_p - logits[prompt - 1 : -1]).abs().max() < 1e-4
        assert (log_p - logits[prompt:]).abs().max() > 0.1, "one place later they are others"
        first += len(answer)


class TestConfidence:
    def test_is_the_cross_entropy_to_the_chance_of_acceptance(self):
        truth = truth_at(lesson_of(6), EVERYWHERE, None)
        logits = torch.randn(PLACES, generator=torch.Generator().manual_seed(0)).requires_grad_()
        guess = guess_at(EVERYWHERE, VOCAB, 6)._replace(confidence=logits)
        for temperature in (0, 1.0):
            accepted = overlap(guess, truth, temperature).detach()
            sure = logits.sigmoid()
            wanted = -(accepted * sure.log() + (1 - accepted) * (1 - sure).log())
            values = Confidence(temperature=temperature)(guess, truth)
            assert (values - wanted).abs().max() < 1e-5
            towards, away = torch.autograd.grad(values.sum(), [logits, guess.logits], allow_unused=True)
            assert away is None, "guesses do not become easier to judge"
            assert (towards - (sure - accepted)).abs().max() < 1e-5

    def test_of_a_drafter_without_a_head_is_refused(self):
        truth = truth_at(lesson_of(6), EVERYWHERE, None)
        refused(lambda: Confidence()(guess_at(EVERYWHERE, VOCAB, 6), truth), "Confidence: this drafter has no confid")


class TestOnBase:
    def test_is_the_loss_of_the_logits_before_the_correction(self):
        truth, guess, base = (
            truth_at(lesson_of(7), EVERYWHERE, None),
            guess_at(EVERYWHERE, VOCAB, 7),
            guess_at(EVERYWHERE, VOCAB, 8),
        )
        loss = OnBase(CrossEntropy())
        assert loss(guess._replace(base=base.logits), truth).equal(CrossEntropy()(base, truth))
        assert loss.name == "OnBase CrossEntropy"

    def test_of_a_drafter_without_correction_is_refused(self):
        truth = truth_at(lesson_of(7), EVERYWHERE, None)
        refused(lambda: OnBase(CrossEntropy())(guess_at(EVERYWHERE, VOCAB, 7), truth), "this drafter corrects no log")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TotalVariation(temperature=-1), "TotalVariation: temperature=-1 must be a number of at least 0"),
        (lambda: NegativeLogAcceptance(temperature="hot"), "NegativeLogAcceptance: temperature='hot' must be"),
        (lambda: HybridAcceptance(temperature=0), "HybridAcceptance: temperature=0 has no divergence; use Neg"),
        (lambda: HybridAcceptance(eta=-1), "HybridAcceptance: eta=-1 must be a number of at least 0"),
        (lambda: KullbackLeibler(temperature=0), "KullbackLeibler: temperature=0 must be a number above 0"),
        (lambda: OnBase("CrossEntropy"), "OnBase: loss=str must be a loss of single tokens"),
        (lambda: CrossEntropy(weight="2"), "CrossEntropy: weight='2' must be a number or a Ramp"),
        (lambda: CrossEntropy(weight=True), "CrossEntropy: weight=True must be a number or a Ramp"),
    ],
)
def test_settings_that_cannot_be_right_are_refused(make, message):
    refused(make, message)
