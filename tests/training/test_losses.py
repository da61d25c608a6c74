"""Losses against their formulas, written as sums over tokens."""

from __future__ import annotations

import itertools
import math
from types import SimpleNamespace

import pytest
import torch
from refusals import refused

from mmspec.lesson import Guess
from mmspec.models.states import LAST
from mmspec.training.losses import (
    CrossEntropy,
    KullbackLeibler,
    ListMLE,
    ProbabilityDistance,
    SmoothL1Features,
    SoftCrossEntropy,
    TopKCrossEntropy,
    TopKMargin,
    truth_at,
)

VOCAB, PLACES, HIDDEN = 8, 20, 4
FEW = torch.tensor([1, 4, 5, 7])
ON_PROBABILITIES = [
    CrossEntropy(),
    SoftCrossEntropy(),
    KullbackLeibler(),
    ProbabilityDistance(),
    TopKCrossEntropy(3),
    ListMLE(3),
]


def lesson_of(seed: int):
    """Just what losses look at: logits and tokens of the target, and its states."""
    generator = torch.Generator().manual_seed(seed)
    states = {layer: torch.randn(PLACES, HIDDEN, generator=generator) for layer in (LAST, 2)}
    return SimpleNamespace(
        logits=2 * torch.randn(PLACES, VOCAB, generator=generator),
        tokens=torch.randint(0, VOCAB, (PLACES,), generator=generator),
        states=states.__getitem__,
    )


def guess_at(places: torch.Tensor, vocab: int, seed: int) -> Guess:
    generator = torch.Generator().manual_seed(100 + seed)
    logits = 2 * torch.randn(len(places), vocab, generator=generator)
    features = torch.randn(len(places), HIDDEN, generator=generator)
    return Guess(logits.requires_grad_(), features.requires_grad_(), places, places)


def softmax(values) -> list[float]:
    total = sum(math.exp(value) for value in values)
    return [math.exp(value) / total for value in values]


def order_of(values) -> list[int]:
    return sorted(range(len(values)), key=lambda i: -values[i])


def formula(name: str, p: list[float], q: list[float], written: int | None, k: int) -> float:
    """One value, from the target's and the drafter's probabilities of the drafter's tokens."""
    if name == "CrossEntropy":
        return -math.log(q[written]) if written is not None else 0.0
    if name == "SoftCrossEntropy":
        return -sum(a * math.log(b) for a, b in zip(p, q, strict=True))
    if name == "KullbackLeibler":
        return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
    if name == "ProbabilityDistance":
        return sum(abs(a - b) for a, b in zip(p, q, strict=True))
    if name == "TopKCrossEntropy":
        return -sum(p[i] * math.log(q[i]) for i in order_of(p)[:k])
    # ListMLE: the list is drawn item by item, each from what is left of it.
    best, value = order_of(p)[:k], 0.0
    while best:
        value -= math.log(q[best[0]] / sum(q[i] for i in best))
        best = best[1:]
    return value


@pytest.mark.parametrize("loss", ON_PROBABILITIES, ids=lambda loss: loss.name)
@pytest.mark.parametrize("vocabulary", [None, FEW], ids=["all", "few"])
def test_losses_equal_their_formulas(loss, vocabulary, seed=6):
    """Over a reduced vocabulary: renormalised there, and nothing where the target's choice is outside."""
    lesson, places = lesson_of(seed), torch.cat([torch.arange(PLACES).flip(0), torch.tensor([7, 7])])
    known = list(range(VOCAB)) if vocabulary is None else vocabulary.tolist()
    guess = guess_at(places, len(known), seed)
    values = loss(guess, truth_at(lesson, places, vocabulary))
    assert values.shape == places.shape
    outside = 0
    for number, place in enumerate(places.tolist()):
        logits, token = lesson.logits[place].tolist(), int(lesson.tokens[place])
        p, q = softmax([logits[i] for i in known]), softmax(guess.logits[number].tolist())
        wanted = formula(loss.name, p, q, known.index(token) if token in known else None, 3)
        if loss.name != "CrossEntropy" and order_of(logits)[0] not in known:
            wanted, outside = 0.0, outside + 1
        assert values[number].item() == pytest.approx(wanted, abs=1e-4)
    assert loss.name == "CrossEntropy" or 0 < outside < PLACES or vocabulary is None
    values.sum().backward()
    assert guess.logits.grad.isfinite().all()


def test_truth_of_a_reduced_vocabulary():
    lesson, places = lesson_of(0), torch.arange(PLACES)
    truth = truth_at(lesson, places, FEW)
    assert truth.logits.equal(lesson.logits[:, FEW])
    for place in range(PLACES):
        token, best = int(lesson.tokens[place]), int(lesson.logits[place].argmax())
        assert truth.written[place] == (token in FEW) and truth.inside[place] == (best in FEW)
        assert truth.tokens[place] == (FEW.tolist().index(token) if token in FEW else 0)
    assert 0 < truth.written.sum() < PLACES and 0 < truth.inside.sum() < PLACES
    whole = truth_at(lesson, places, None)
    assert whole.written.all() and whole.inside.all() and whole.tokens.equal(lesson.tokens)


def test_divergence_is_zero_at_equality_alone():
    lesson, places = lesson_of(1), torch.arange(PLACES)
    truth = truth_at(lesson, places, None)
    # A shift of all logits changes no probability.
    for loss in (KullbackLeibler(), ProbabilityDistance()):
        assert loss(Guess(truth.logits + 3, None, places, places), truth).abs().max() < 1e-5
        assert loss(guess_at(places, VOCAB, 1), truth).min() > 1e-2


def test_list_mle_is_the_likelihood_of_an_order():
    """Over all orders that the target might have, exp(-loss) sums to 1."""
    guess = guess_at(torch.tensor([0]), 5, 3)
    total = 0.0
    for order in itertools.permutations(range(5)):
        target = torch.empty(1, 5)
        target[0, list(order)] = torch.arange(5, 0, -1).float()
        lesson = SimpleNamespace(logits=target, tokens=torch.tensor([0]))
        total += math.exp(-ListMLE(5)(guess, truth_at(lesson, torch.tensor([0]), None)).item())
    assert total == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("loss", [TopKCrossEntropy(50), ListMLE(50)], ids=lambda loss: loss.name)
def test_lists_end_with_the_vocabulary(loss):
    lesson, places = lesson_of(2), torch.arange(4)
    whole = type(loss)(VOCAB)
    guess, truth = guess_at(places, VOCAB, 2), truth_at(lesson, places, None)
    assert loss(guess, truth).equal(whole(guess, truth))


@pytest.mark.parametrize("layer", [LAST, 2])
def test_features_are_compared_with_the_states_of_a_layer(layer):
    lesson, places = lesson_of(7), torch.cat([torch.arange(PLACES).flip(0), torch.tensor([7, 7])])
    guess, loss = guess_at(places, VOCAB, 7), SmoothL1Features(layer=layer)
    values = loss(guess, truth_at(lesson, places, FEW))
    assert loss.feature_layers == (layer,)
    for number, place in enumerate(places.tolist()):
        wanted = 0.0
        for ours, theirs in zip(guess.features[number].tolist(), lesson.states(layer)[place].tolist(), strict=True):
            distance = abs(ours - theirs)
            wanted += distance**2 / 2 if distance < 1 else distance - 0.5
        assert values[number].item() == pytest.approx(wanted / HIDDEN, abs=1e-5)
    values.sum().backward()
    assert guess.features.grad.isfinite().all()


def test_features_that_a_drafter_does_not_guess_are_refused():
    places = torch.arange(3)
    guess = guess_at(places, VOCAB, 0)._replace(features=None)
    refused(lambda: SmoothL1Features()(guess, truth_at(lesson_of(0), places, None)), "SmoothL1Features: this drafter")


@pytest.mark.parametrize("loss", ON_PROBABILITIES[:4], ids=lambda loss: loss.name)
def test_tokens_that_a_draft_model_lacks_do_not_spoil_the_rest(loss):
    """Embedding tables are padded differently: what is beyond the draft model's has logits of -inf."""
    lesson, places = lesson_of(4), torch.arange(PLACES)
    guess = guess_at(places, VOCAB, 4)
    lacking = guess.logits.detach().clone()
    lacking[:, -1] = float("-inf")
    lacking.requires_grad_()
    values = loss(guess._replace(logits=lacking), truth_at(lesson, places, None))
    values.sum().backward()
    assert values.isfinite().all() and lacking.grad.isfinite().all()
    assert (lacking.grad[:, -1] == 0).all() and lacking.grad[:, :-1].abs().max() > 0.01


def test_half_precision_logits_are_judged_in_single_precision():
    lesson, places = lesson_of(5), torch.arange(PLACES)
    lesson.logits = lesson.logits.bfloat16()
    guess = guess_at(places, VOCAB, 5)
    rounded = guess._replace(logits=guess.logits.detach().bfloat16())
    for loss in ON_PROBABILITIES:
        value = loss(rounded, truth_at(lesson, places, None))
        exact = loss(rounded._replace(logits=rounded.logits.float()), truth_at(lesson, places, None))
        assert value.dtype == torch.float32 and value.equal(exact)


@pytest.mark.parametrize("vocabulary", [None, FEW], ids=["all tokens", "few tokens"])
def test_the_margin_is_to_the_kth_of_the_others(vocabulary):
    """By its formula, token by token; k and more tokens that are ahead cost, whichever is first does not matter."""
    lesson, places = lesson_of(3), torch.arange(PLACES)
    known = list(range(VOCAB)) if vocabulary is None else vocabulary.tolist()
    guess, loss, counted = guess_at(places, len(known), 3), TopKMargin(2, 0.7), 0
    values = loss(guess, truth_at(lesson, places, vocabulary))
    for place, value in enumerate(values.tolist()):
        best = int(lesson.logits[place].argmax())
        if best not in known:
            assert value == 0
            continue
        scores = guess.logits[place].tolist()
        own = scores.pop(known.index(best))
        wanted = math.log1p(math.exp(0.7 - (own - sorted(scores)[-2])))
        assert math.isclose(value, wanted, rel_tol=1e-5)
        counted += 1
    assert counted > 5
    values.sum().backward()
    assert guess.logits.grad.isfinite().all()
    swapped = guess._replace(logits=guess.logits.detach().clone())
    top = swapped.logits.argmax(-1, keepdim=True)
    raised = swapped._replace(logits=swapped.logits + 5.0 * torch.zeros_like(swapped.logits).scatter(-1, top, 1.0))
    truth = truth_at(lesson, places, vocabulary)
    others = truth.logits.argmax(-1) != top[:, 0]
    assert torch.allclose(loss(raised, truth)[others], loss(swapped, truth)[others]), "the first of the others is free"
    assert not loss(swapped._replace(logits=swapped.logits[:, :2]), truth._replace(logits=truth.logits[:, :2])).any()
    refused(lambda: TopKMargin(0), "TopKMargin: k=0 must be a positive integer")
    refused(lambda: TopKMargin(margin=-1.0), "TopKMargin: margin=-1.0 must be a number above 0")
