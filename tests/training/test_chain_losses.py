"""Losses of whole chains: against enumerations of all that can be drafted and accepted, and their gradients."""

from __future__ import annotations

import itertools
import math
from types import SimpleNamespace

import pytest
import torch
from laws import random_tables, sequence_law
from refusals import refused
from torch import Tensor

from mmspec.lesson import Guess
from mmspec.training.losses import (
    AcceptedLength,
    Chains,
    CrossEntropy,
    Decayed,
    DPace,
    EndToEndVariation,
    HybridAcceptance,
    KullbackLeibler,
    OnBase,
    truth_at,
)

VOCAB, LENGTH = 3, 3
PATHS = list(itertools.product(range(VOCAB), repeat=LENGTH))


# Every answer that a target may write, as a lesson with a chain from a root before it.


def logs(seed: int, independent: bool = False) -> list[Tensor]:
    """Logits of a distribution over sequences: `[vocab] * (d + 1)` after d tokens."""
    tables = [table.log().float() for table in random_tables(VOCAB, LENGTH - 1, seed)]
    if independent:
        tables = [table.reshape(-1, VOCAB)[0].expand_as(table).clone() for table in tables]
    return tables


def after(table: Tensor, prefixes: Tensor) -> Tensor:
    """The logits after each of some prefixes `[n, d]`, `[n, vocab]`."""
    return table[tuple(prefixes.T)] if prefixes.shape[1] else table.expand(len(prefixes), -1)


def all_answers(p: list[Tensor], q: list[Tensor], vocabulary: Tensor | None = None) -> Chains:
    """One chain per answer; its place d has the logits after the answer's first d tokens."""
    paths = torch.tensor(PATHS)
    logits = torch.stack([after(p[d], paths[:, :d]) for d in range(LENGTH)], dim=1).flatten(0, 1)
    lesson = SimpleNamespace(logits=logits, tokens=paths.flatten())
    guesses, truths = [], []
    for d in range(LENGTH):
        places = torch.arange(len(paths)) * LENGTH + d
        guesses.append(Guess(after(q[d], paths[:, :d]), None, places, torch.arange(len(paths))))
        truths.append(truth_at(lesson, places, vocabulary))
    return Chains(guesses, truths, [torch.ones(len(paths), dtype=torch.bool)] * LENGTH)


def length_of_drafts(p: list[Tensor], q: list[Tensor]) -> Tensor:
    """Expected accepted length by its definition: every draft, by the chance that it is drawn; each of its tokens is
    accepted with `min(1, p / q)` if all before it were."""
    total = torch.zeros(())
    for path in PATHS:
        drawn, length, going = torch.ones(()), torch.zeros(()), torch.ones(())
        for d, token in enumerate(path):
            theirs, ours = (tables[d][path[:d]].softmax(-1)[token] for tables in (p, q))
            drawn, going = drawn * ours, going * (theirs / ours).clamp(max=1)
            length = length + going
        total = total + drawn * length
    return total


def gradient(value: Tensor, q: list[Tensor]) -> Tensor:
    return torch.cat([each.flatten() for each in torch.autograd.grad(value, q)])


class TestAcceptedLength:
    def setup_method(self):
        self.p, self.q = logs(0), [table.requires_grad_() for table in logs(1)]
        self.law = sequence_law([table.double().softmax(-1) for table in self.p]).flatten().float()
        self.chains = all_answers(self.p, self.q)

    def missed(self, loss) -> Tensor:
        """The mean over the answers that the target draws."""
        return (self.law * loss(self.chains).sum(1)).sum()

    @pytest.mark.parametrize("first_order", [True, False])
    def test_is_the_expected_length_of_a_drawn_draft(self, first_order):
        wanted = LENGTH - length_of_drafts(self.p, self.q)
        assert self.missed(AcceptedLength(first_order=first_order)).item() == pytest.approx(wanted.item(), abs=1e-5)
        assert 0.5 < wanted < LENGTH - 0.5
        # Overlaps alone along the written tokens are not: here what a token was decides what follows.
        wrong = self.missed(AcceptedLength(reach="overlap"))
        assert abs(wrong - wanted) > 0.005

    def test_has_the_whole_gradient_of_that_length(self):
        wanted = gradient(-length_of_drafts(self.p, self.q), self.q)
        ours = gradient(self.missed(AcceptedLength(first_order=False)), self.q)
        assert (ours - wanted).abs().max() < 1e-5 < wanted.abs().max() / 100

    def test_to_first_order_weighs_total_variation_by_the_chance_to_get_there(self):
        ours = gradient(self.missed(AcceptedLength()), self.q)
        total = torch.zeros(())
        for d in range(LENGTH):
            for prefix in itertools.product(range(VOCAB), repeat=d):
                reached = 1.0
                for k in range(d):
                    p, q = (tables[k][prefix[:k]].softmax(-1)[prefix[k]].item() for tables in (self.p, self.q))
                    reached *= min(p, q)
                p, q = (tables[d][prefix].softmax(-1) for tables in (self.p, self.q))
                total = total + reached * (1 - torch.minimum(p, q).sum())
        wanted = gradient(total, self.q)
        assert (ours - wanted).abs().max() < 1e-5
        self.setup_method()
        whole = gradient(self.missed(AcceptedLength(first_order=False)), self.q)
        assert (ours - whole).abs().max() > 0.01, "which is another than the whole one"

    def test_gradient_steps_make_drafts_longer(self):
        for first_order in (True, False):
            q = [table.detach().clone().requires_grad_() for table in self.q]
            before = length_of_drafts(self.p, q).item()
            for _ in range(40):
                value = (self.law * AcceptedLength(first_order=first_order)(all_answers(self.p, q)).sum(1)).sum()
                for table, slope in zip(q, torch.autograd.grad(value, q), strict=True):
                    table.data -= slope
            assert length_of_drafts(self.p, q).item() > before + 0.3

    def test_at_another_temperature_is_that_of_tempered_distributions(self):
        tempered = [[table / 0.5 for table in tables] for tables in (self.p, self.q)]
        law = sequence_law([table.double().softmax(-1) for table in tempered[0]]).flatten().float()
        missed = (law * AcceptedLength(temperature=0.5)(self.chains).sum(1)).sum()
        assert missed.item() == pytest.approx(LENGTH - length_of_drafts(*tempered).item(), abs=1e-5)

    def test_at_temperature_0_is_about_the_greedy_answer(self):
        answer: list[int] = []
        for table in self.p:
            answer.append(int(table[tuple(answer)].argmax()))
        chances = [table[tuple(answer[:d])].softmax(-1)[answer[d]].item() for d, table in enumerate(self.q)]
        wanted = [1 - math.prod(chances[: d + 1]) for d in range(LENGTH)]
        for reach in AcceptedLength.REACHES:
            values = AcceptedLength(temperature=0, reach=reach)(self.chains)
            assert values[PATHS.index(tuple(answer))].tolist() == pytest.approx(wanted, abs=1e-5)

    def test_over_a_reduced_vocabulary_is_exact_too(self):
        """A drafter of the last two tokens, as one of three that never proposes the first."""
        few = [table[..., 1:].clone() for table in self.q]
        whole = [table.detach().clone().index_fill(-1, torch.tensor([0]), -1e4) for table in self.q]
        missed = (self.law * AcceptedLength()(all_answers(self.p, few, torch.tensor([1, 2]))).sum(1)).sum()
        assert missed.item() == pytest.approx(LENGTH - length_of_drafts(self.p, whole).item(), abs=1e-5)


def test_end_to_end_variation_is_the_share_of_a_draft_that_is_refused():
    """Where what a token was does not decide what follows, after any answer."""
    p, q = logs(2, independent=True), [table.requires_grad_() for table in logs(3, independent=True)]
    wanted = 1 - length_of_drafts(p, q) / LENGTH
    values = EndToEndVariation()(all_answers(p, q)).sum(1)
    assert (values - wanted).abs().max() < 1e-5 and 0.2 < wanted < 0.9
    weights = torch.full((len(PATHS),), 1 / len(PATHS))  # however often an answer is written
    ours, theirs = gradient((weights * values).sum(), q), gradient(wanted, q)
    assert (sum_by_place(ours) - sum_by_place(theirs)).abs().max() < 1e-5


def sum_by_place(flat: Tensor) -> Tensor:
    """The slopes of a place's logits, over all that may stand before it: `[places, vocab]`."""
    parts = flat.split([VOCAB ** (d + 1) for d in range(LENGTH)])
    return torch.stack([part.view(-1, VOCAB).sum(0) for part in parts])


# Ragged chains.

LENGTHS = (4, 2, 1, 3)


def ragged(seed: int = 0, first_root: int = 5) -> Chains:
    """Chains of different lengths, from roots that are not numbered from 0, some of whose guesses do not count."""
    generator = torch.Generator().manual_seed(seed)
    count = sum(LENGTHS)
    lesson = SimpleNamespace(
        logits=2 * torch.randn(count, VOCAB, generator=generator),
        tokens=torch.randint(0, VOCAB, (count,), generator=generator),
    )
    ends = torch.tensor(LENGTHS).cumsum(0)
    starts = ends - torch.tensor(LENGTHS)
    guesses, truths, kept = [], [], []
    for step in range(max(LENGTHS)):
        rows = torch.tensor([row for row, length in enumerate(LENGTHS) if step < length])
        places = starts[rows] + step
        logits = 2 * torch.randn(len(rows), VOCAB, generator=generator)
        guesses.append(Guess(logits.requires_grad_(), None, places, first_root + 2 * rows))
        truths.append(truth_at(lesson, places, None))
        kept.append(torch.ones(len(rows), dtype=torch.bool))
    return Chains(guesses, truths, kept)


def chance(chains: Chains, row: int, step: int) -> float:
    """The drafter's probability of the written token."""
    number = (chains.guesses[step].roots == chains.roots[row]).nonzero().item()
    q = chains.guesses[step].logits[number].softmax(-1)
    return q[chains.truths[step].tokens[number]].item()


def test_chains_lie_side_by_side():
    chains = ragged()
    assert chains.roots.tolist() == [5, 7, 9, 11]
    assert chains.valid.sum(1).tolist() == list(LENGTHS)
    places = chains.spread([guess.places.float() for guess in chains.guesses], fill=-1)
    assert places.tolist() == [[0, 1, 2, 3], [4, 5, -1, -1], [6, -1, -1, -1], [7, 8, 9, -1]]
    chains.kept[1][0] = False  # the second place of the first chain does not count, as under a dynamic mask
    again = Chains(chains.guesses, chains.truths, chains.kept)
    assert again.valid[0].tolist() == [True, False, True, True]
    assert again.spread([guess.places.float() for guess in chains.guesses])[0].tolist() == [0, 0, 2, 3]


class TestDPace:
    @pytest.mark.parametrize("alpha", [0.0, 0.3, 0.5, 1.0])
    def test_weighs_a_place_by_all_that_is_lost_when_it_fails(self, alpha):
        chains = ragged()
        weights = DPace(alpha=alpha).weights(chains)
        for row, length in enumerate(LENGTHS):
            smoothed = [(1 - alpha) * chance(chains, row, step) + alpha for step in range(length)]
            through = [math.prod(smoothed[: step + 1]) for step in range(length)]
            wanted = [sum(through[step:]) for step in range(length)] + [0.0] * (max(LENGTHS) - length)
            assert weights[row].tolist() == pytest.approx(wanted, abs=1e-5)
            assert all(a > b for a, b in itertools.pairwise(wanted[:length]))
            if alpha == 1:
                assert weights[row, :length].tolist() == list(range(length, 0, -1))
        values = DPace(alpha=alpha)(chains)
        assert (values - weights * chains.each(CrossEntropy())).abs().max() < 1e-5

    @pytest.mark.parametrize("alpha", [0.0, 0.5])
    def test_has_the_gradient_of_the_expected_accepted_length(self, alpha):
        """With w_j CE_j, each place's gradient is that of -sum_m C_m over dlog q~ / dlog q = (1 - alpha) q / q~."""
        chains = ragged()
        logits = [guess.logits for guess in chains.guesses]
        ours = torch.autograd.grad(DPace(alpha=alpha)(chains).sum(), logits)
        length = torch.zeros(())
        for row in range(len(LENGTHS)):
            through = torch.ones(())
            for step in range(LENGTHS[row]):
                number = (chains.guesses[step].roots == chains.roots[row]).nonzero().item()
                q = logits[step][number].softmax(-1)[chains.truths[step].tokens[number]]
                through = through * ((1 - alpha) * q + alpha)
                length = length + through
        wanted = torch.autograd.grad(-length, logits)
        for step, (mine, theirs) in enumerate(zip(ours, wanted, strict=True)):
            rows = torch.searchsorted(chains.roots, chains.guesses[step].roots).tolist()
            q = torch.tensor([chance(chains, row, step) for row in rows])
            factor = (1 - alpha) * q / ((1 - alpha) * q + alpha)
            assert (factor[:, None] * mine - theirs).abs().max() < 1e-5
        assert ours[0].abs().max() > 0.01

    def test_can_weigh_another_loss(self):
        chains, loss = ragged(), HybridAcceptance()
        assert DPace(loss)(chains).equal(DPace().weights(chains) * chains.each(loss))
        assert DPace(loss).name == "DPace HybridAcceptance"

    def test_a_token_that_cannot_be_proposed_ends_the_chain(self):
        """Cross-entropy is 0 there, which must not be taken for certainty."""
        p, q = logs(0), [table[..., 1:] for table in logs(1)]
        chains = all_answers(p, q, torch.tensor([1, 2]))
        weights = DPace(alpha=0).weights(chains)
        for row, path in enumerate(PATHS):
            if path[0] == 0:
                assert weights[row].tolist() == [0.0] * LENGTH
            elif path[1] != 0 == path[2]:
                assert weights[row, 2] == 0 < weights[row, 1]


def test_decayed_is_a_mean_over_each_chain():
    chains, gamma = ragged(), 1.5
    values, plain = Decayed(gamma=gamma)(chains), chains.each(CrossEntropy())
    for row, length in enumerate(LENGTHS):
        weights = [math.exp(-step / gamma) for step in range(length)]
        wanted = sum(w * plain[row, step].item() for step, w in enumerate(weights)) / sum(weights)
        assert values[row].sum().item() == pytest.approx(wanted, rel=1e-5)
    assert (Decayed(gamma=1e9)(chains).sum(1) - plain.sum(1) / torch.tensor(LENGTHS)).abs().max() < 1e-5


@pytest.mark.parametrize(
    "loss",
    [
        Decayed(),
        DPace(),
        DPace(KullbackLeibler()),
        EndToEndVariation(),
        AcceptedLength(),
        AcceptedLength(first_order=False),
        AcceptedLength(reach="overlap", first_order=False),
    ],
    ids=lambda loss: loss.name,
)
def test_places_that_do_not_count_change_nothing(loss):
    """A chain that is cut is what it would be if it had ended there, and guesses behind the cut learn nothing."""
    whole, cut = ragged(), ragged()
    for step in (2, 3):
        cut.kept[step][0] = False
    generator = torch.Generator().manual_seed(9)
    other = [guess for guess in cut.guesses]
    for step in (2, 3):
        logits = other[step].logits.detach().clone()
        logits[0] = 5 * torch.randn(VOCAB, generator=generator)
        other[step] = other[step]._replace(logits=logits.requires_grad_())
    once, again = loss(Chains(cut.guesses, cut.truths, cut.kept)), loss(Chains(other, cut.truths, cut.kept))
    assert once.equal(again) and once.shape == whole.valid.shape
    assert (once[0, 2:] == 0).all() and once[1:].equal(loss(whole)[1:])
    again.sum().backward()
    assert all((other[step].logits.grad[0] == 0).all() for step in (2, 3))
    assert other[0].logits.grad.abs().max() > 1e-3
    shorter = Chains(
        [guess._replace(**{name: getattr(guess, name)[1:] for name in ("logits", "places", "roots")}) if step > 1
         else guess for step, guess in enumerate(whole.guesses)],
        [truth_at(truth.lesson, truth.places[1:] if step > 1 else truth.places, None)
         for step, truth in enumerate(whole.truths)],
        [kept[1:] if step > 1 else kept for step, kept in enumerate(whole.kept)],
    )  # fmt: skip
    assert (loss(shorter) - once).abs().max() < 1e-6


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DPace(alpha=1.5), "DPace: alpha=1.5 must be a number from 0 to 1"),
        (lambda: DPace(AcceptedLength()), "DPace: loss=AcceptedLength must be a loss of single tokens"),
        (lambda: DPace(CrossEntropy(0.5)), "DPace: loss.weight=0.5 would not count; give the weight to DPace itself"),
        (lambda: Decayed(gamma=0), "Decayed: gamma=0 must be a number above 0"),
        (lambda: AcceptedLength(reach="writen"), "AcceptedLength: reach='writen' is unknown. Did you mean 'written'?"),
        (lambda: AcceptedLength(temperature=-1), "AcceptedLength: temperature=-1 must be a number of at least 0"),
        (lambda: EndToEndVariation(temperature=None), "EndToEndVariation: temperature=None must be a number"),
        (lambda: OnBase(DPace()), "OnBase: loss=DPace must be a loss of single tokens"),
    ],
)
def test_settings_that_cannot_be_right_are_refused(make, message):
    refused(make, message)
