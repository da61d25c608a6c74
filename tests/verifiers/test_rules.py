"""Acceptance rules: what each lets pass, by enumeration of every outcome; their exact limits, bit for bit; refusals."""

from __future__ import annotations

from itertools import product
from types import SimpleNamespace

import pytest
import torch
from laws import Enumeration, ForcedNoise, TableModel, point_tree, random_tables, sequence_law
from models import inputs_for, llama
from refusals import refused

import mmspec
from mmspec import MMSpecError, Target
from mmspec.decoding.sampling import LogitsPipeline
from mmspec.decoding.token_space import TEXT
from mmspec.drafters import TextOnlyDrafter
from mmspec.outcome import Scores
from mmspec.tree import DraftTree
from mmspec.trees import Chain, DynamicTree, StaticTree
from mmspec.verifiers import Greedy, PointMassSampling, RejectionSampling, TreeWalk
from mmspec.verifiers.rules import Additive, Distance, LogitRatio, Match, Mixture, Rejection, Segments, TopRank, Typical

EXACT = 1e-9
BINS = (0, 4)

LIMITS = {
    "typical": Typical(1.0, None),
    "top_rank": TopRank(1),
    "ratio": LogitRatio(1.0),
    "distance": Distance(0),
    "segments": Segments((2, 1), (0, 3), (5, 0)),
    "additive": Additive(0.0),
    "mixture": Mixture(1.0),
}
LOSSY = {
    "typical": Typical(0.2, None),
    "top_rank": TopRank(2),
    "ratio": LogitRatio(0.5),
    "distance": Distance(1, BINS),
    "segments": Segments((2, 1), (1, 1), (1, 1), BINS),
    "additive": Additive(0.3),
    "mixture": Mixture(0.6),
}
CHOICE = [name for name in LOSSY if name not in ("additive", "mixture")]


def forked(verifier, rows: int, vocab: int, temperature: float, seed: int = 0, written: int = 0):
    context = SimpleNamespace(
        logits=torch.zeros(rows, vocab, dtype=torch.float64),
        history=[[0] * (2 + written)] * rows,
        request=SimpleNamespace(lengths=[1] * rows),
        target=SimpleNamespace(space=TEXT),
    )
    return verifier.fork_for(context, LogitsPipeline(temperature), seed)


# The law of rules that flip coins.


def first_token_law(rule, p, q):
    """What a chain of one emits first, written down on its own."""
    if isinstance(rule, Additive):
        chance = (p / q + rule.tolerance).clamp(max=1)
    else:
        chance = (1 - rule.weight + rule.weight * p / q).clamp(max=1)
    left = (p - q).clamp(min=0)
    return q * chance + (q * (1 - chance)).sum() * left / left.sum()


@pytest.mark.parametrize("name", ["additive", "mixture"])
def test_the_law_of_a_chain(name):
    target, draft = random_tables(4, 1, seed=1), random_tables(4, 1, seed=2)
    rule = LOSSY[name]
    law = Enumeration(TreeWalk(rule), target, draft, Chain(1)).law()
    expected = first_token_law(rule, target[0], draft[0])
    torch.testing.assert_close(law.sum(-1), expected, rtol=0, atol=EXACT)
    assert (law.sum(-1) - target[0]).abs().max() > 0.01, "the rule changed nothing"
    torch.testing.assert_close(law, expected[:, None] * target[1], rtol=0, atol=EXACT)


def test_a_mixture_has_the_law_of_a_mixture():
    target, draft = random_tables(4, 1, seed=1), random_tables(4, 1, seed=2)
    for weight in (0.2, 0.9):
        law = Enumeration(TreeWalk(Mixture(weight)), target, draft, Chain(1)).law().sum(-1)
        torch.testing.assert_close(law, weight * target[0] + (1 - weight) * draft[0], rtol=0, atol=EXACT)


def test_an_added_tolerance_bounds_the_change():
    target, draft = random_tables(4, 1, seed=3), random_tables(4, 1, seed=4)
    for tolerance in (0.05, 0.4):
        law = Enumeration(TreeWalk(Additive(tolerance)), target, draft, Chain(1)).law().sum(-1)
        assert 0 < 0.5 * (law - target[0]).abs().sum() <= tolerance


@pytest.mark.parametrize("rule", [Additive(0.0), Mixture(1.0), Rejection()], ids=lambda rule: type(rule).__name__)
@pytest.mark.parametrize("shape", [Chain(2), StaticTree(["0", "1", "00", "01", "10"])], ids=["chain", "static"])
def test_exact_limits_are_lossless_on_drawn_trees(rule, shape):
    target, draft = random_tables(3, 2, seed=1), random_tables(3, 2, seed=2)
    assert Enumeration(TreeWalk(rule), target, draft, shape).error() < EXACT


# What rules let pass that judge the target's choices: every sequence of choices, against the rule in plain Python.


def near(name: str, logits: list[float], choice: int, token: int) -> bool:
    """Whether a token may stand where the target, with these scores, chose another."""
    p = torch.tensor(logits).double().softmax(-1).tolist()
    return {
        "typical": p[token] >= 0.2,
        "top_rank": sum(other > logits[token] for other in logits) < 2,
        "ratio": max(logits) > 0 and logits[token] / max(logits) >= 0.5,
        "distance": abs(token - choice) <= 1 and max(token, choice) <= BINS[1],
    }[name]


def expected(name: str, tree: DraftTree, scores: list[list[float]], choices: list[int]) -> tuple[int, ...]:
    """The emitted tokens of a tree whose root is written: the longest path that passes, then the target's choice."""
    tokens, parents = tree.tokens[0].tolist(), tree.parents[0].tolist()
    paths = {0: [0]}
    for node, parent in enumerate(parents[1:], start=1):
        depth = len(paths.get(parent, [])) - 1
        if parent in paths:
            choice = choices[depth]
            if tokens[node] == choice or near(name, scores[parent], choice, tokens[node]):
                paths[node] = [*paths[parent], node]
    best = max(paths.values(), key=len)
    return (*(tokens[node] for node in best[1:]), choices[len(best) - 1])


@pytest.mark.parametrize("name", ["typical", "top_rank", "ratio", "distance"])
def test_the_law_of_rules_that_go_by_the_targets_choice(name):
    vocab = 6
    target = [table * 1.0 for table in random_tables(vocab, 2, seed=5)]
    draws = {(0,): 2, (1,): 5, (0, 0): 1, (0, 1): 3, (1, 0): 0}
    tree = point_tree(draws, draws, vocab**3)
    sequences = torch.cartesian_prod(*[torch.arange(vocab)] * 3)
    scores = TableModel(target, len(sequences)).score(tree)
    scores.logits = scores.logits + 3.0  # some positive, as the ratio of logits wants
    verifier = forked(TreeWalk(LOSSY[name]), len(sequences), vocab, 1.0)
    verifier.noise = ForcedNoise(sequences, vocab)
    _, emitted = verifier.verify(tree, scores).host(tree)
    table, changed = scores.logits[0].tolist(), 0
    for found, choices in zip(emitted, sequences.tolist(), strict=True):
        assert tuple(found) == expected(name, tree, table, choices)
        changed += found != choices[: len(found)]
    assert changed, "nothing passed but what the target chose"
    law = sequence_law(target).flatten()  # the weight of each sequence of choices, so of each text
    assert law.sum().item() == pytest.approx(1.0)


@pytest.mark.parametrize("written", [0, 1, 2])
def test_segments_stand_or_fall_together(written):
    """Segments of two and of one token: the first tolerates one bin in all, the second nothing less than one."""
    lengths, each, total = (2, 1), (1, 1), (1, 1)
    draft, vocab = [2, 3, 1, 4], 6
    tree = DraftTree.chain(torch.tensor([[0, *draft]]).expand(vocab**2, -1))
    changes = torch.cartesian_prod(torch.arange(vocab), torch.arange(vocab))
    for first, second in ((0, 1), (1, 2), (2, 3)):
        choices = torch.tensor([draft]).repeat(len(changes), 1)
        choices[:, first], choices[:, second] = changes[:, 0], changes[:, 1]
        scores = Scores(torch.nn.functional.one_hot(torch.cat([choices, choices[:, :1]], 1), vocab).double())
        verifier = forked(TreeWalk(Segments(lengths, each, total, BINS)), len(changes), vocab, 0.0, written=written)
        found = verifier.verify(tree, scores).length.tolist()
        for length, row in zip(found, choices.tolist(), strict=True):
            assert length - 1 == segments_by_hand(draft, row, written + 1, lengths, each, total)


def segments_by_hand(draft, choices, start, lengths, each, total) -> int:
    """How many of the drafted tokens, of which the first has the number `start` in the answer, are kept."""
    places = [(group, last) for group, n in enumerate(lengths) for last in [*[False] * (n - 1), True]]
    kept, far = 0, []
    for number, (token, choice) in enumerate(zip(draft, choices, strict=True), start=1):
        group, last = places[(start + number - 1) % len(places)]
        bins = max(token, choice) <= BINS[1]
        far.append(abs(token - choice) if bins or token == choice else 99)
        if last:
            if max(far) > each[group] or sum(far) > total[group]:
                return kept + next((i for i, one in enumerate(far[:-1]) if one), len(far) - 1)
            kept, far = kept + len(far), []
    return kept + next((i for i, one in enumerate(far) if one), len(far))


# The exact limits, and what the walks have in common.


def random_round(rows: int, seed: int, sampled: bool, vocab: int = 6):
    """A static tree with random tokens, and random scores that like them."""
    generator = torch.Generator().manual_seed(seed)
    parents = torch.tensor([[-1, 0, 0, 1, 1, 2, 3]]).expand(rows, -1)
    tokens = torch.rand(rows, vocab, generator=generator).argsort(-1)[:, [0, 1, 2, 0, 1, 3, 2]]  # siblings differ
    logits = 2 * torch.randn(rows, 7, vocab, generator=generator, dtype=torch.float64)
    for node, parent in enumerate(parents[0, 1:].tolist(), start=1):
        logits[torch.arange(rows), parent, tokens[:, node]] += 1.5
    tree = DraftTree(tokens, parents, 3)
    if sampled:
        tree.draft_probs = torch.randn(rows, 4, vocab, generator=generator, dtype=torch.float64).softmax(-1)
        tree.expansion = torch.tensor([[0, 1, 2, 3, -1, -1, -1]]).expand(rows, -1)
    return tree, logits


def decided(verifier, tree, logits, temperature):
    verdict = forked(verifier, len(logits), logits.shape[-1], temperature, seed=3).verify(tree, Scores(logits))
    return verdict.host(tree)


@pytest.mark.parametrize("name", LIMITS)
@pytest.mark.parametrize("temperature", [0.0, 1.0], ids=["greedy", "sampled"])
def test_limits_equal_the_exact_rule_bit_for_bit(name, temperature):
    coins = name not in CHOICE
    tree, logits = random_round(300, seed=7, sampled=coins and temperature > 0)
    exact = (RejectionSampling() if coins else PointMassSampling()) if temperature else Greedy()
    wanted = decided(exact, tree, logits, temperature)
    assert LIMITS[name].lossless and not LOSSY[name].lossless
    assert decided(TreeWalk(LIMITS[name]), tree, logits, temperature) == wanted
    assert decided(TreeWalk(LOSSY[name]), tree, logits, temperature) != wanted
    assert len(set(wanted[0])) == 4, "paths of every length"


def test_the_short_ways_of_the_exact_rule_equal_the_general_walk():
    """`follow` on trees and chains, and coins with point proposals at temperature 0."""

    class Spelt(Match):
        """Not the class that has a way of its own."""

    tree, logits = random_round(300, seed=8, sampled=False)
    chain = DraftTree.chain(tree.tokens)
    for one in (tree, chain):
        wanted = decided(TreeWalk(Spelt()), one, logits, 0.0)
        assert decided(Greedy(), one, logits, 0.0) == wanted
        assert decided(TreeWalk(Rejection()), one, logits, 0.0) == wanted


def test_p_behind_the_pipeline_is_computed_once_and_can_be_read():
    calls, pipeline = [], LogitsPipeline(0.5)
    tree, logits = random_round(3, seed=9, sampled=False)
    verifier = forked(PointMassSampling(), 3, 6, 0.5)
    verifier.pipeline = lambda *given: calls.append(1) or pipeline(*given)
    verifier.pipeline.greedy = False
    scores = Scores(logits)
    verifier.verify(tree, scores)
    torch.testing.assert_close(scores.p, (logits / 0.5).softmax(-1))
    assert scores.p is scores.p and len(calls) == 1
    greedy = Scores(logits)
    forked(Greedy(), 3, 6, 0.0).verify(tree, greedy)
    assert greedy.p.sum(-1).eq(1).all() and greedy.p.argmax(-1).equal(logits.argmax(-1))


def test_coins_leave_p_as_it_was():
    tree, logits = random_round(50, seed=10, sampled=True)
    scores = Scores(logits)
    forked(RejectionSampling(), 50, 6, 1.0).verify(tree, scores)
    torch.testing.assert_close(scores.p, logits.softmax(-1))


# In the loop.


@pytest.fixture(scope="module")
def pair():
    target = Target(llama())
    return target, TextOnlyDrafter(target, llama(seed=7), tree=Chain(3))


@pytest.mark.parametrize(("name", "temperature"), [*product(["top_rank", "mixture", "distance"], [0.0, 1.0])])
def test_lossy_text_says_so_and_accepts_more(pair, name, temperature):
    target, drafter = pair
    rule = Distance(400, (0, target.vocab_size - 1)) if name == "distance" else {"top_rank": TopRank(40)}.get(name)
    verifier = TreeWalk(rule or Mixture(0.1))
    options = {"inputs": inputs_for("llama", [0, 0]), "max_new_tokens": 24, "temperature": temperature}
    exact = mmspec.generate(target, drafter, **options)
    loose = mmspec.generate(target, drafter, verifier=verifier, **options)
    assert exact.stats.lossless and not loose.stats.lossless
    assert loose.stats.mean_acceptance_length > exact.stats.mean_acceptance_length + 0.5
    assert loose.token_ids != exact.token_ids


def test_limits_write_the_exact_text_with_every_tree(pair):
    target, drafter = pair
    options = {"inputs": inputs_for("llama", [0, 0], [9, 4]), "max_new_tokens": 20}
    wanted = mmspec.generate(target, drafter, **options).token_ids
    for rule in LIMITS.values():
        for tree in (Chain(4), DynamicTree(3, 3, 8)):
            out = mmspec.generate(target, drafter, verifier=TreeWalk(rule), tree=tree, **options)
            assert out.token_ids == wanted and out.stats.lossless


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Typical(0.0), "Typical: threshold=0.0 must be a number above 0 and at most 1"),
        (lambda: Typical(0.3, 0), "Typical: scale=0 must be a number above 0"),
        (lambda: TopRank(0), "TopRank: rank=0 must be a positive integer"),
        (lambda: LogitRatio(1.2), "LogitRatio: ratio=1.2 must be a number above 0 and at most 1"),
        (lambda: Additive(-0.1), "Additive: tolerance=-0.1 must be a number from 0 to 1"),
        (lambda: Mixture("x"), "Mixture: weight='x' must be a number above 0 and at most 1"),
        (lambda: Distance(1, (5, 2)), "Distance: bins=(5, 2) must be the first and the last token id"),
        (lambda: Segments((1, 2), (0,), (0,)), "must have an entry for every segment"),
        (lambda: TreeWalk(Typical), "TreeWalk: rule=<class ... > is no Rule ... pass an instance, such as"),
    ],
)
def test_values_out_of_range(make, message):
    refused(lambda: make(), message)


def test_bins_that_a_target_lacks(pair):
    target, drafter = pair
    options = {"inputs": inputs_for("llama", [0]), "max_new_tokens": 4}
    with pytest.raises(MMSpecError, match="Distance needs to know which tokens of.*bins="):
        mmspec.generate(target, drafter, verifier=TreeWalk(Distance(2)), **options)
    with pytest.raises(MMSpecError, match=r"Segments: bins=\(0, 999999\) reach beyond.*tokens"):
        mmspec.generate(target, drafter, verifier=TreeWalk(Segments(bins=(0, 999999))), **options)
