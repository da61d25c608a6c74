"""The chain of a drafter whose levels do not depend on each other: all levels at once give what one by one would."""

from __future__ import annotations

import pytest
import torch
from toy_drafters import KNOWN, ROOT, VOCAB, Marginal, Toy, grown

from mmspec.decoding.sampling import LogitsPipeline
from mmspec.speed.operations import counting
from mmspec.trees import Chain, ConfidenceChain, Growth, Proposals

BUILDERS = [Chain(4), Chain(9), ConfidenceChain(0.05, 5), ConfidenceChain(0.5), ConfidenceChain(1.0, 3)]


def one_by_one(toy: Marginal, cheap: bool) -> Toy:
    """A drafter with the same distributions, which has to be asked for every level, cheap or not."""
    other = Toy(toy.vocab, toy.seed, toy.kind)
    other.logits, other.max_depth, other.independent, other.confidence = toy.logits, toy.max_depth, False, lambda: None
    other.cheap_levels = cheap
    return other


@pytest.mark.parametrize("kind", ["random", "ties", "certain"])
@pytest.mark.parametrize("cheap", [False, True])
@pytest.mark.parametrize("builder", BUILDERS, ids=str)
def test_it_is_the_chain_of_the_levels_one_by_one(builder, cheap, kind):
    """Cheap levels are looked at several at a time, which is no other chain."""
    for seed in range(6):
        toy = Marginal(len(KNOWN), seed, kind)
        rules = Proposals(barred=torch.tensor([3])), KNOWN, VOCAB
        other = one_by_one(toy, cheap)
        tree, expected = grown(builder, toy, *rules, drafter=toy), grown(builder, other, *rules, drafter=other)
        assert tree.is_chain and tree.tokens.equal(expected.tokens) and tree.max_depth == expected.max_depth <= 5
        assert tree.log_probs.allclose(expected.log_probs) and not tree.unusable().any()
        if kind == "random" and builder is BUILDERS[3]:
            assert 2 <= tree.num_nodes < 6


def test_a_level_without_a_distribution_spoils_all_below():
    toy = Marginal(6, 1)
    logits = toy.marginals(5)
    logits[1, 2] = float("nan")
    toy.marginals = lambda depth: logits[:, :depth]
    tree = grown(Chain(5), toy, drafter=toy)
    assert tree.unusable().tolist() == [[False] * 5, [False, False, True, True, True], [False] * 5]
    assert grown(ConfidenceChain(0.0, 5), toy, drafter=toy).num_nodes == 6


@pytest.mark.parametrize("options", [{}, {"top_k": 2}, {"repetition_penalty": 1.5}])
def test_drawn_guesses_come_from_the_distributions_that_the_tree_names(options):
    """With a penalty the levels depend on the guesses above, and are drafted one by one."""
    rows = 4000
    logits = torch.randn(3, 5, generator=torch.Generator().manual_seed(2))
    toy = Marginal(5, 0, rows=rows, levels=3)
    toy.logits = lambda row, path: logits[len(path)]
    toy.marginals = lambda depth: logits[:depth].expand(rows, -1, -1)
    toy.confidence, toy.cheap_levels = lambda: None, True
    pipeline = LogitsPipeline(0.8, **options)
    drawn = Proposals(True, pipeline, [[ROOT % 5]] * rows, torch.Generator().manual_seed(5))
    growth = Growth(torch.full((rows,), ROOT % 5), toy.expand_root, toy.expand, drawn, drafter=toy)
    tree = Chain(3).build(growth)
    assert tree.draft_probs is not None and tree.draft_probs.shape == (rows, 3, 5)
    for level in range(3):
        guesses = torch.nn.functional.one_hot(tree.tokens[:, level + 1], 5).double()
        # The mean of (drawn - probability) over the rows, in standard errors.
        q = tree.draft_probs[:, level].double()
        errors = (guesses - q).mean(0) / (q * (1 - q)).mean(0).div(rows).sqrt().clamp(min=1e-9)
        assert errors.abs().max() < 4.5
        if not options:
            assert q[0].allclose((logits[level] / 0.8).softmax(-1).double(), atol=1e-6)
    pairs = torch.stack([tree.tokens[:, 1], tree.tokens[:, 2]])
    assert pipeline.prefix_free is ("repetition_penalty" not in options)
    if pipeline.prefix_free:  # and the levels are drawn independently of each other
        table = torch.zeros(5, 5).index_put_(tuple(pairs), torch.ones(rows), accumulate=True) / rows
        assert (table - table.sum(1, keepdim=True) * table.sum(0)).abs().max() < 0.03
    else:
        assert not tree.draft_probs[:, 1].allclose(tree.draft_probs[:1, 1])


def test_it_costs_as_many_operations_whatever_its_length():
    """And the host waits once for probabilities, where a builder asks for them."""
    logits = torch.randn(2, 12, 50)
    toy = Marginal(50, 0, rows=2, levels=12)
    toy.marginals, toy.expand_root = lambda depth: logits[:, :depth], lambda: logits[:, 0]
    found = {}
    for builder in (Chain(3), Chain(12), ConfidenceChain(0.0, 3), ConfidenceChain(0.0, 12)):
        growth = Growth(torch.zeros(2, dtype=torch.long), toy.expand_root, toy.expand, Proposals(), drafter=toy)
        with counting() as counts:
            tree = builder.build(growth)
        assert counts.reads == isinstance(builder, ConfidenceChain) and tree.num_nodes in (4, 13)
        found.setdefault(type(builder), set()).add(counts.operations)
    assert all(len(operations) == 1 for operations in found.values()) and max(found[Chain]) <= 6
