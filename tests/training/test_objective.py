"""Objective: losses over the steps of chains, their weights, the dynamic mask; noise; and no influence of batching."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import models
import pytest
import torch
from refusals import refused
from tiny_requests import ragged_inputs, target_of

from mmspec.compressors import Elastic
from mmspec.drafters import Drafter, Eagle3Drafter, EagleDrafter
from mmspec.inputs import prepare
from mmspec.lesson import Guess, Lesson
from mmspec.models.states import LAST
from mmspec.training.journal import Sums
from mmspec.training.losses import (
    AcceptedLength,
    ChainLoss,
    CrossEntropy,
    Decayed,
    DPace,
    EndToEndVariation,
    HybridAcceptance,
    KullbackLeibler,
    ListMLE,
    Ramp,
    SmoothL1Features,
    SoftCrossEntropy,
    TopKCrossEntropy,
    truth_at,
)
from mmspec.training.objective import Objective, UniformNoise
from mmspec.training.teacher import Teacher

ANSWERS = (7, 2, 9, 5)
FEW = torch.arange(1, 60, 3)


@cache
def taught(name: str = "llava", rows: tuple[int, ...] = (0, 1, 2, 3)) -> Lesson:
    """Some rows of one batch: prompts with pictures and random answers, each row padded to the longest of them."""
    inputs = ragged_inputs(name)
    generator = torch.Generator().manual_seed(2)
    answers = [torch.randint(1, 50, (n,), generator=generator).tolist() for n in ANSWERS]
    if len(rows) == 1:
        inputs = models.one_row(inputs, rows[0])
    elif len(rows) < 4:
        inputs = joined([models.one_row(inputs, row) for row in rows])
    target = target_of(name, "sdpa")
    return Teacher(target, range(3)).study(prepare(target, inputs=inputs), [answers[row] for row in rows])


def joined(singles: list[dict]) -> dict:
    width = max(single["input_ids"].shape[1] for single in singles)
    batch = {}
    for name in ("input_ids", "attention_mask"):
        padded = [torch.nn.functional.pad(single[name], (width - single[name].shape[1], 0)) for single in singles]
        batch[name] = torch.cat(padded)
    pixels = [single["pixel_values"] for single in singles if "pixel_values" in single]
    pictures = [row["pixel_values"] for row in singles if (row["input_ids"] == models.IMAGE).any()]
    return {**batch, "pixel_values": torch.cat(pictures)} if pixels and pictures else batch


@cache
def drafter_of(cls: type[Drafter], few: bool = False) -> Drafter:
    drafter = cls(target_of("llava", "sdpa"), draft_vocab_size=len(FEW) if few else None)
    if few:
        drafter.choose_vocabulary(FEW)
    return models.redraw(drafter, seed=5)


class Scripted(Drafter):
    """Guesses given logits: `[steps, places, vocab]`."""

    def __init__(self, target, logits: torch.Tensor, vocabulary: torch.Tensor | None = None):
        super().__init__(target)
        self.script, self.vocabulary = logits, vocabulary
        self.draft_vocab_size = None if vocabulary is None else len(vocabulary)

    @property
    def draft_vocabulary(self):
        return self.vocabulary

    def unroll(self, lesson, steps=1, detach=False):
        for step in range(steps):
            valid, places = lesson.drafted(step)
            if valid.any():
                yield Guess(self.script[step, places], None, places, valid.flatten().nonzero()[:, 0])


def scripted(lesson: Lesson, steps: int, seed: int = 0, vocabulary=None, error: float = 3.0) -> Scripted:
    generator = torch.Generator().manual_seed(seed)
    width = models.VOCAB if vocabulary is None else len(vocabulary)
    logits = error * torch.randn(steps, sum(ANSWERS), width, generator=generator)
    # The target's own view shines through, or the likeliest tokens would hardly ever be the same.
    theirs = lesson.logits if vocabulary is None else lesson.logits[:, vocabulary]
    return Scripted(lesson.target, logits + theirs, vocabulary)


@pytest.mark.parametrize("vocabulary", [None, FEW], ids=["all", "few"])
def test_the_total_is_the_sum_over_losses_and_steps(vocabulary):
    lesson, steps = taught(), 3
    drafter = scripted(lesson, steps, vocabulary=vocabulary)
    losses = [SoftCrossEntropy(0.1), CrossEntropy(2.0)]
    objective = Objective(losses, steps, decay=0.8)
    total, marks = objective(drafter, lesson)
    wanted, sums, right = 0.0, [0.0, 0.0], [0] * steps
    for step in range(steps):
        first = 0
        for answer in lesson.answers:
            for root in range(len(answer)):
                place = root + 1 + step  # within the answer
                if place >= len(answer):
                    continue
                index = torch.tensor([first + place])
                guess = Guess(drafter.script[step, index], None, index, index)
                for number, loss in enumerate(losses):
                    value = loss(guess, truth_at(lesson, index, vocabulary)).item()
                    wanted += loss.weight * 0.8**step * value
                    sums[number] += value
                token = int(guess.logits.argmax())
                right[step] += (token if vocabulary is None else int(vocabulary[token])) == answer[place]
            first += len(answer)
    assert total.item() == pytest.approx(wanted, rel=1e-5)
    assert marks.tolist() == pytest.approx([*sums, *right], rel=1e-5)
    assert objective.names == ["SoftCrossEntropy", "CrossEntropy", "right 0", "right 1", "right 2"]


def test_tokens_that_were_written_are_counted_as_right():
    lesson = taught()
    certain = torch.nn.functional.one_hot(lesson.tokens, models.VOCAB).float().expand(2, -1, -1)
    _, marks = Objective([CrossEntropy()], 2)(Scripted(lesson.target, certain), lesson)
    assert marks[1:].tolist() == [sum(n - 1 for n in ANSWERS), sum(max(n - 2, 0) for n in ANSWERS)]
    vocabulary = torch.arange(30)
    _, marks = Objective([CrossEntropy()])(Scripted(lesson.target, certain[..., :30], vocabulary), lesson)
    firsts = torch.tensor([0, *ANSWERS[:-1]]).cumsum(0)
    later = [token for place, token in enumerate(lesson.tokens.tolist()) if place not in firsts]
    assert marks[1] == sum(token < 30 for token in later)


@pytest.mark.parametrize("vocabulary", [None, torch.arange(45)], ids=["all", "fewer"])
def test_a_chain_goes_on_while_the_target_is_among_the_likeliest(vocabulary):
    """A loop over chains, each of which stops counting behind the first step that missed the target's choice."""
    lesson, steps, within = taught(), 4, 2
    drafter = scripted(lesson, steps, 1, vocabulary, error=1.0)
    known = list(range(models.VOCAB)) if vocabulary is None else vocabulary.tolist()
    objective = Objective([KullbackLeibler()], steps, decay=0.5, keep_within=within)
    total, marks = objective(drafter, lesson)
    wanted, stops, counted, first = 0.0, [], 0, 0
    for answer in lesson.answers:
        for root in range(len(answer)):
            for step in range(steps):
                place = root + 1 + step
                if place >= len(answer):
                    break
                index = torch.tensor([first + place])
                guess = Guess(drafter.script[step, index], None, index, index)
                wanted += 0.5**step * KullbackLeibler()(guess, truth_at(lesson, index, vocabulary)).item()
                counted += 1
                best = [known[i] for i in guess.logits[0].topk(within).indices]
                if int(lesson.logits[index].argmax()) not in best:
                    stops.append(step)
                    break
        first += len(answer)
    assert total.item() == pytest.approx(wanted, rel=1e-5)
    everything, all_marks = Objective([KullbackLeibler()], steps, decay=0.5)(drafter, lesson)
    assert len(stops) < counted and {0, 1} <= set(stops) and total < 0.95 * everything
    assert marks[1:].equal(all_marks[1:]), "what is logged as right does not depend on the mask"


def test_the_mask_may_be_wider_than_the_vocabulary():
    lesson = taught()
    drafter = scripted(lesson, 2)
    assert Objective([CrossEntropy()], 2, keep_within=999)(drafter, lesson)[0].equal(
        Objective([CrossEntropy()], 2)(drafter, lesson)[0]
    )


# Losses of whole chains.


class Places(ChainLoss):
    """Counts the places of chains, so that every total can be told beforehand."""

    def __call__(self, chains):
        return chains.valid.float()


class AtSomeRoots(Scripted):
    """Guesses at the given roots alone, as block drafters do at the anchors that they draw."""

    def __init__(self, whole: Scripted, roots: list[int]):
        super().__init__(whole.target, whole.script)
        self.roots = torch.tensor(roots)

    def unroll(self, lesson, steps=1, detach=False):
        for guess in super().unroll(lesson, steps):
            mine = torch.isin(guess.roots, self.roots)
            yield Guess(guess.logits[mine], None, guess.places[mine], guess.roots[mine])


def test_losses_of_chains_and_of_steps_add_up():
    lesson, steps = taught(), 3
    drafter = scripted(lesson, steps)
    losses = [KullbackLeibler(2.0), DPace(weight=3.0), Places(0.5)]
    total, marks = Objective(losses, steps, decay=0.5)(drafter, lesson)
    alone = [Objective([type(loss)()], steps, decay=0.5)(drafter, lesson) for loss in losses]
    weighted = [loss.weight * value.item() for loss, (value, _) in zip(losses, alone, strict=True)]
    assert total.item() == pytest.approx(sum(weighted), rel=1e-5)
    assert marks[:3].tolist() == pytest.approx([counted[0].item() for _, counted in alone], rel=1e-5)
    assert alone[2][0] == sum(max(n - 1 - step, 0) for n in ANSWERS for step in range(steps)), "without decay"
    assert Objective(losses).names == ["KullbackLeibler", "DPace CrossEntropy", "Places", "right 0"]
    # In chains of one step there is nothing to see beyond it.
    step, chain = (Objective([loss])(drafter, lesson)[0] for loss in (CrossEntropy(), DPace(alpha=1.0)))
    assert step.item() == pytest.approx(chain.item(), rel=1e-6)


def test_places_behind_the_dynamic_mask_are_not_valid():
    lesson, steps = taught(), 4
    drafter = scripted(lesson, steps, 1, error=1.0)
    counted = []
    for losses in ([Places()], [CrossEntropy(), Places()]):
        _, marks = Objective(losses, steps, keep_within=2)(drafter, lesson)
        counted.append(marks[len(losses) - 1].item())
    everything, _ = Objective([Places()], steps)(drafter, lesson)
    assert counted[0] == counted[1] < everything.item()


def test_a_weight_follows_the_course_of_a_training():
    lesson = taught()
    drafter = scripted(lesson, 2)
    losses = [CrossEntropy(Ramp(1.0, 0.0)), DPace(weight=Ramp(0.0, 2.0, begin=0.5, end=0.5))]
    objective = Objective(losses, 2)
    one, other = (Objective([each], 2)(drafter, lesson)[0].item() for each in (CrossEntropy(), DPace()))
    for progress, shares in {0.0: (1, 0), 0.4: (0.6, 0), 0.5: (0.5, 2), 0.75: (0.25, 2)}.items():
        total, marks = objective(drafter, lesson, "", progress)
        assert total.item() == pytest.approx(shares[0] * one + shares[1] * other, rel=1e-5)
        assert marks[:2].tolist() == pytest.approx([one, other], rel=1e-5), "the log is undiscounted"


def test_roots_that_were_drawn_stand_for_all_of_their_row():
    """So the mean over all draws of anchors is what all roots give, for losses and for what is logged."""
    lesson, steps = taught(), 3
    whole = scripted(lesson, steps)
    objective = Objective([CrossEntropy(), DPace()], steps, decay=0.8)
    total, marks = objective(whole, lesson)
    firsts = [row * lesson.root_slots.shape[1] for row in range(len(ANSWERS))]
    roots = [list(range(first, first + n - 1)) for first, n in zip(firsts, ANSWERS, strict=True)]
    alone = [[objective(AtSomeRoots(whole, [root]), lesson) for root in row] for row in roots]
    means = [torch.stack([value for value, _ in row]).mean() for row in alone]
    logged = sum(torch.stack([counted for _, counted in row]).mean(0) for row in alone)
    assert sum(means).item() == pytest.approx(total.item(), rel=1e-5)
    assert (logged - marks).abs().max() < 1e-4 * marks.abs().max()
    drawn, _ = objective(AtSomeRoots(whole, [row[-1] for row in roots]), lesson)
    assert drawn.item() == pytest.approx(sum(row[-1][0].item() for row in alone), rel=1e-5)
    again, counted = objective(AtSomeRoots(whole, [root for row in roots for root in row]), lesson)
    assert again.equal(total) and counted.equal(marks), "with all roots nothing is rescaled"


RECIPES = {
    "eagle": (EagleDrafter, False, Objective([SmoothL1Features(), SoftCrossEntropy(0.1)], noise=UniformNoise())),
    "eagle, few": (EagleDrafter, True, Objective([SmoothL1Features(layer=1), ListMLE(4)], 2, noise=UniformNoise())),
    "eagle3": (Eagle3Drafter, True, Objective([SoftCrossEntropy()], 4, decay=0.8, noise=UniformNoise())),
    "hivis": (EagleDrafter, False, Objective([TopKCrossEntropy()], 3, detach=True, keep_within=20)),
    "chains": (
        EagleDrafter,
        False,
        Objective([DPace(), EndToEndVariation(5.0), AcceptedLength(2.0), Decayed(HybridAcceptance())], 3),
    ),
    "chains, few": (Eagle3Drafter, True, Objective([DPace(), AcceptedLength()], 4, keep_within=20)),
}


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_batch_in_parts_gives_the_same_total_and_gradient(recipe):
    cls, few, objective = RECIPES[recipe]
    drafter = drafter_of(cls, few)
    results = []
    for parts in ([(0, 1, 2, 3)], [(0, 2), (1, 3)], [(0,), (1,), (2,), (3,)]):
        drafter.zero_grad()
        total, marks = 0.0, 0.0
        for rows in parts:
            value, counts = objective(drafter, taught(rows=rows), "step 7")
            value.backward()
            total, marks = total + value.item(), marks + counts
        gradient = torch.cat([parameter.grad.flatten() for parameter in drafter.parameters()])
        results.append((total, marks, gradient))
    whole = results[0]
    assert torch.isfinite(whole[2]).all() and whole[2].abs().max() > 1e-3
    for total, marks, gradient in results[1:]:
        assert total == pytest.approx(whole[0], rel=1e-5)
        assert (marks - whole[1]).abs().max() < 1e-5 * whole[1].abs().max()
        assert (gradient - whole[2]).norm() < 1e-4 * whole[2].norm()


def test_detached_steps_have_the_same_value_and_another_gradient():
    drafter, lesson = drafter_of(EagleDrafter), taught()
    values, gradients = [], []
    for detach in (False, True):
        drafter.zero_grad()
        total, _ = Objective([SoftCrossEntropy()], 3, detach=detach)(drafter, lesson)
        total.backward()
        values.append(total.item())
        gradients.append(drafter.fc.weight.grad.clone())
    assert values[0] == pytest.approx(values[1], rel=1e-6)
    assert (gradients[0] - gradients[1]).norm() > 0.01 * gradients[0].norm()


# Noise.


def test_noise_is_uniform_and_shrinks_with_the_length():
    lesson, noise = taught(), UniformNoise(scale=0.2, reference=512)
    noisy = noise(lesson, "0")
    assert noisy.keys() == lesson.features.keys()
    for layer, states in lesson.features.items():
        for row, length in enumerate(lesson.request.lengths):
            drawn = (noisy[layer] - states)[row, :length] * length / (0.2 * 512)  # u - 1/2
            assert drawn.abs().max() <= 0.5 + 1e-5 and drawn.abs().max() > 0.48
            assert abs(drawn.mean()) < 0.05 and abs(drawn.var() - 1 / 12) < 0.02
            assert noisy[layer][row, length:].equal(states[row, length:])
    assert len({drawn.flatten()[0].item() for drawn in noisy.values()}) == len(noisy), "each layer has its own"
    assert UniformNoise(0.0)(lesson, "0")[LAST].equal(lesson.features[LAST])


def test_noise_depends_on_the_seed_and_leaves_the_lesson_alone():
    lesson, noise = taught(), UniformNoise()
    before = {layer: states.clone() for layer, states in lesson.features.items()}
    torch.manual_seed(0)
    first = noise(lesson, "a")
    torch.manual_seed(1)  # other draws of the process do not matter
    again, other = noise(lesson, "a"), noise(lesson, "b")
    assert all(first[layer].equal(again[layer]) and not first[layer].equal(other[layer]) for layer in first)
    assert all(lesson.features[layer].equal(states) for layer, states in before.items())

    drafter = drafter_of(EagleDrafter)
    objective = Objective([SmoothL1Features()], noise=noise)
    totals = [objective(drafter, lesson, seed)[0].item() for seed in ("a", "a", "b")]
    assert totals[0] == totals[1] != totals[2]
    assert all(lesson.features[layer].equal(states) for layer, states in before.items())
    # The drafter reads the noise, but its guesses are held against the target's own states.
    disturbed = replace(lesson, features=noise(lesson, "a"))
    guess = next(drafter.unroll(disturbed, 1))
    total = SmoothL1Features()(guess, truth_at(lesson, guess.places, None)).sum().item()
    assert totals[0] == pytest.approx(total, rel=1e-6)


def test_what_a_drafter_draws_depends_on_the_seed_alone():
    """So a training that was interrupted goes on with the same branches."""
    drafter = models.redraw(EagleDrafter(target_of("llava", "sdpa"), compressor=Elastic()), seed=5).train()
    objective, before = Objective([KullbackLeibler()]), torch.get_rng_state()
    totals = [objective(drafter, taught(), f"0/{step}")[0].item() for step in (1, 2, 3, 4, 1, 2, 3, 4)]
    assert totals[:4] == totals[4:] and len(set(totals)) > 1
    assert torch.get_rng_state().equal(before)


def test_a_row_gets_the_same_noise_in_every_batch():
    """Neither its place in a batch nor its neighbours nor the padding count."""
    whole = UniformNoise()(taught(), "5")
    for rows in ((2,), (1, 3), (0, 2)):
        lesson = taught(rows=rows)
        part = UniformNoise()(lesson, "5")
        for place, row in enumerate(rows):
            length = lesson.request.lengths[place]
            for layer in whole:
                ours = part[layer][place, :length] - lesson.features[layer][place, :length]
                theirs = whole[layer][row, :length] - taught().features[layer][row, :length]
                assert (ours - theirs).abs().max() < 1e-4 and ours.abs().max() > 0.5
    noises = [(whole[LAST] - taught().features[LAST])[row, :3] * n for row, n in enumerate(taught().request.lengths)]
    assert (noises[0] - noises[2]).abs().max() > 1, "rows have draws of their own"
    others = replace(taught(), answers=[answer[::-1] for answer in taught().answers])
    assert not UniformNoise()(others, "5")[LAST].equal(whole[LAST]), "also after prompts of one length"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"losses": []}, "an objective needs at least one loss"),
        ({"losses": [CrossEntropy()], "steps": 0}, "objective: steps=0 must be a positive integer"),
        ({"losses": [{"weight": 1}]}, "objective: losses.0={'weight': 1} is no loss; name its class as _target_"),
    ],
)
def test_an_objective_without_terms_or_steps_is_refused(arguments, message):
    refused(lambda: Objective(**arguments), message)


def test_losses_of_one_class_have_names_of_their_own_in_the_log():
    losses = [SmoothL1Features(layer=1), CrossEntropy(), SmoothL1Features(layer=2), SmoothL1Features()]
    names = Objective(losses).names
    assert names == ["SmoothL1Features", "CrossEntropy", "SmoothL1Features 2", "SmoothL1Features 3", "right 0"]
    _, marks = Objective(losses)(drafter_of(EagleDrafter), taught())
    logged = Sums(names)
    logged.add(torch.cat([torch.ones(3), marks]))  # loss, norm of the gradient, tokens
    for name, loss in zip(names, losses, strict=False):
        _, (alone, _) = Objective([loss])(drafter_of(EagleDrafter), taught())
        assert logged.means()[name] == pytest.approx(alone.item(), rel=1e-5)


def test_an_objective_asks_for_the_layers_of_its_losses():
    assert Objective([CrossEntropy()]).feature_layers == ()
    losses = [SmoothL1Features(), SmoothL1Features(layer=2), SmoothL1Features(layer=2)]
    assert Objective(losses).feature_layers == (LAST, 2)
