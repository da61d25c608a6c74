"""Verifiers on hand-made trees with known verdicts, what they refuse, and the coupling of point-mass sampling."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from models import inputs_for, llama
from refusals import refused

import mmspec
from mmspec import Target
from mmspec.decoding.sampling import LogitsPipeline
from mmspec.drafters import TextOnlyDrafter
from mmspec.outcome import Scores
from mmspec.tree import DraftTree
from mmspec.trees import Chain, StaticTree
from mmspec.verifiers import Greedy, PointMassSampling, RejectionSampling, Synthetic, follow
from mmspec.verifiers.base import node_prefixes

V = 6
#        0
#      1   2
#     3 4   5
#     6
PARENTS = [-1, 0, 0, 1, 1, 2, 3]
TOKENS = [0, 1, 2, 3, 4, 5, 1]


def batch(rows: list[tuple[list[int], list[int]]], valid=None) -> DraftTree:
    tokens, parents = (torch.tensor(column) for column in zip(*rows, strict=True))
    return DraftTree(tokens, parents, 3, None if valid is None else torch.tensor(valid))


def decided(choices: list[list[int]]) -> Scores:
    """Logits of +100 for the choice after each node and -100 for the rest."""
    return Scores(200.0 * torch.nn.functional.one_hot(torch.tensor(choices), V) - 100.0)


def forked(verifier, rows: int, temperature: float = 0.0):
    context = SimpleNamespace(logits=torch.zeros(rows, V), history=[[0]] * rows)
    return verifier.fork_for(context, LogitsPipeline(temperature), seed=0)


# choices after the nodes 0..6, and what must be emitted: accepted tokens, then the bonus
CASES = {
    "first mismatch": ([5, 0, 0, 0, 0, 0, 0], [5]),
    "one accepted": ([1, 5, 0, 0, 0, 0, 0], [1, 5]),
    "second child": ([2, 0, 5, 0, 0, 3, 0], [2, 5, 3]),
    "second child of the first": ([1, 4, 0, 0, 2, 0, 0], [1, 4, 2]),
    "to the deepest leaf": ([1, 3, 0, 1, 0, 0, 4], [1, 3, 1, 4]),
    "matches below a mismatch do not count": ([2, 3, 0, 1, 0, 0, 4], [2, 0]),
    "a token elsewhere in the tree does not count": ([3, 3, 0, 1, 0, 0, 0], [3]),
}


@pytest.mark.parametrize("temperature", [0.0, 1.0], ids=["greedy", "point_mass"])
def test_hand_made_verdicts_in_one_batch(temperature):
    choices = [case for case, _ in CASES.values()]
    tree = batch([(TOKENS, PARENTS)] * len(CASES))
    verifier = forked(PointMassSampling() if temperature else Greedy(), len(CASES), temperature)
    verdict = verifier.verify(tree, decided(choices))
    lengths, emitted = verdict.host(tree)
    assert dict(zip(CASES, emitted, strict=True)) == {name: want for name, (_, want) in CASES.items()}
    assert lengths == [len(want) for _, want in CASES.values()]


@pytest.mark.parametrize("nodes", [1, 2, 6])
def test_a_chain_gets_the_verdict_of_the_tree_that_it_is(nodes):
    """Of four tokens, so that paths of all lengths occur."""
    generator = torch.Generator().manual_seed(nodes)
    chain = DraftTree.chain(torch.randint(0, 4, (200, nodes), generator=generator))
    choices = torch.where(
        torch.rand(200, nodes, generator=generator) < 0.7,
        chain.tokens.roll(-1, dims=1),
        torch.randint(0, 4, (200, nodes), generator=generator),
    )
    ours, general = follow(chain, choices), follow(replace(chain, is_chain=False), choices)
    assert set(ours.length.tolist()) == set(range(1, nodes + 1))
    for name in ("path", "length", "bonus"):
        assert getattr(ours, name)[..., :nodes].equal(getattr(general, name)[..., :nodes]), name


def test_rows_of_different_trees_and_padding():
    short = ([0, 1, 1, 1, 1, 1, 1], [-1, 0, 1, 0, 0, 0, 0])  # two nodes, then padding that would match
    valid = [[True] * 7, [True, True, True] + [False] * 4]
    tree = batch([(TOKENS, PARENTS), short], valid).validate()
    verifier = forked(Greedy(), 2)
    _, emitted = verifier.verify(tree, decided([[2, 0, 4, 0, 0, 0, 0], [1, 2, 0, 0, 0, 0, 0]])).host(tree)
    assert emitted == [[2, 4], [1, 2]]
    only_padding = batch([([0, 1, 1, 1, 1, 1, 1], [-1, 0, 0, 0, 0, 0, 0])], [[True] + [False] * 6])
    _, emitted = forked(Greedy(), 1).verify(only_padding, decided([[1, 2, 2, 2, 2, 2, 2]])).host(only_padding)
    assert emitted == [[1]], "a padding node was accepted"


def test_rejection_sampling_never_accepts_padding():
    certain = torch.zeros(1, 1, V)
    certain[..., 1] = 1.0
    tree = DraftTree(
        torch.tensor([[0, 1]]),
        torch.tensor([[-1, 0]]),
        1,
        valid=torch.tensor([[True, False]]),
        expansion=torch.tensor([[0, -1]]),
        draft_probs=certain,
    )
    verifier = forked(RejectionSampling(), 1, 1.0)
    assert verifier.verify(tree, decided([[1, 2]])).host(tree) == ([1], [[1]])
    tree.valid = None
    assert verifier.verify(tree, decided([[1, 2]])).host(tree) == ([2], [[1, 2]])


def test_rows_of_rejection_sampling_do_not_leak_into_one_another():
    """Row 0 accepts both levels, row 1 nothing, row 2 the first level only: whatever the draws, by certain laws."""
    q = torch.full((3, 2, V), 1e-12)
    for row, path in enumerate(([1, 2], [3, 4], [5, 1])):
        for level, token in enumerate(path):
            q[row, level, token] = 1.0
    tree = DraftTree.chain(
        torch.tensor([[0, 1, 2], [0, 3, 4], [0, 5, 1]]),
        expansion=torch.tensor([[0, 1, -1]] * 3),
        draft_probs=q / q.sum(-1, keepdim=True),
    )
    scores = decided([[1, 2, 3], [2, 4, 5], [5, 0, 0]])
    assert forked(RejectionSampling(), 3, 1.0).verify(tree, scores).host(tree)[1] == [[1, 2, 3], [2], [5, 0]]


def test_prefixes_of_nodes():
    tree = batch([(TOKENS, PARENTS), ([9, 8, 7, 6, 5, 4, 3], [-1, 0, 1, 2, 3, 4, 5])])
    first, second = node_prefixes([[7, 0], [9]], tree)
    below = [[], [1], [2], [1, 3], [1, 4], [2, 5], [1, 3, 1]]
    assert first == [[7, 0, *path] for path in below]
    assert second == [list(range(9, 8 - n, -1)) for n in range(7)]


def test_lossless_follows_from_the_rule():
    assert Greedy().lossless and PointMassSampling().lossless and RejectionSampling().lossless
    assert not Synthetic(0.0).lossless and not Synthetic(1.0).lossless
    assert (Greedy().proposal, PointMassSampling().proposal, RejectionSampling().proposal) == (
        "point",
        "point",
        "sampled",
    )


@pytest.mark.parametrize("verifier", [PointMassSampling(), RejectionSampling()])
def test_samplers_refuse_temperature_zero_and_greedy_refuses_any_other(verifier):
    name = type(verifier).__name__
    refused(
        lambda: verifier.check(None, LogitsPipeline(0.0)), f"{name} samples: give temperature= above 0, or use Greedy"
    )
    refused(lambda: Greedy().check(None, LogitsPipeline(0.7)), "Greedy verifies at temperature 0 only, not ... use")
    verifier.check(None, LogitsPipeline(0.7))
    Greedy().check(None, LogitsPipeline(0.0))


def test_point_mass_sampling_refuses_sampled_trees():
    tree = DraftTree.chain(torch.tensor([[0, 1]]), draft_probs=torch.ones(1, 1, V) / V)
    refused(lambda: forked(PointMassSampling(), 1, 1.0).verify(tree, decided([[1, 2]])), "needs point proposals")


@pytest.mark.parametrize(("rate", "mean"), [(0.0, 1.0), (0.5, 1.75), (1.0, 3.0)])
def test_synthetic_acceptance_has_the_rate_asked_for(rate, mean):
    """A chain of two: 1 + rate + rate**2 tokens per pass."""
    target = Target(llama(layers=1))
    drafter = TextOnlyDrafter(target, llama(layers=1, seed=5), tree=Chain(2))
    out = mmspec.generate(
        target, drafter, inputs=inputs_for("llama", [0] * 40), max_new_tokens=60, verifier=Synthetic(rate)
    )
    assert out.stats.mean_acceptance_length == pytest.approx(mean, abs=0.12 if 0 < rate < 1 else 0.06)
    assert not out.stats.lossless


@pytest.mark.parametrize("tree", [Chain(3), StaticTree(["0", "1", "00", "10", "01", "000"])], ids=["chain", "static"])
def test_rejection_sampling_accepts_whatever_the_target_itself_drafts(tree):
    """q equals p, so nothing is refused: a token that the drafter missed, or read at a wrong place, would show. (Greedy
    text of tiny random models runs in circles, where a drafter may err and still guess right.)"""
    target = Target(llama())
    drafter = TextOnlyDrafter(target, target.model, tree=tree)
    inputs = inputs_for("llama", [0, 0, 0], [9, 4, 12])
    options = {"temperature": 1.0, "top_p": 0.95, "max_new_tokens": 41, "verifier": RejectionSampling()}
    out = mmspec.generate(target, drafter, inputs=inputs, **options)
    assert [record.accepted for record in out.stats.rounds] == [[3, 3, 3]] * 10
    assert all(len(set(row)) > 15 for row in out.token_ids), "the text runs in circles"
