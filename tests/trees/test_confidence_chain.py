"""ConfidenceChain: where it ends, in batches too; that the text is the target's and drawn children keep its law, by
probabilities and by a drafter's own estimates."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from laws import Enumeration, TableModel, random_tables, sequence_law
from tiny_drafters import eagle3_drafter
from tiny_requests import RAGGED, case, target_of

import mmspec
from mmspec.drafters import Eagle3Drafter
from mmspec.errors import MMSpecError
from mmspec.trees import Chain, ConfidenceChain, Growth, Proposals
from mmspec.verifiers import PointMassSampling, RejectionSampling


def length_of(threshold: float, *sure: list[float]) -> int:
    """The length of the chain of a drafter whose guess at level n has the probability `sure[row][n]`."""

    def logits(level: int) -> torch.Tensor:
        chances = torch.tensor([row[min(level, len(row) - 1)] for row in sure])
        return torch.stack([chances, *[(1 - chances) / 4] * 4], dim=1).log()

    growth = Growth(
        torch.zeros(len(sure), dtype=torch.long),
        lambda: logits(0),
        lambda block: logits(block.level + 1)[:, None],
        Proposals(),
    )
    tree = ConfidenceChain(threshold, max_length=6).build(growth)
    assert tree.is_chain and growth.logits.shape[0] == len(sure)
    return tree.num_nodes - 1


def test_it_ends_behind_the_first_guess_that_is_not_sure_enough():
    assert length_of(0.5, [0.9, 0.9, 0.4, 0.9]) == 3, "0.81 is above, 0.32 is not: the third is the last"
    assert length_of(0.5, [0.45, 0.9]) == 1, "one guess is always drafted"
    assert length_of(0.5, [0.99]) == 6 and length_of(0.0, [0.3]) == 6 and length_of(1.0, [0.99]) == 1
    assert length_of(0.5, [float("nan"), 0.9]) == 1, "what is no distribution is not sure of anything"


def test_rows_of_a_batch_go_on_together():
    assert length_of(0.5, [0.9, 0.9, 0.9, 0.3], [0.3, 0.3]) == 1 + (0.9 + 0.3 >= 1) + (0.81 + 0.09 >= 1)
    assert length_of(0.4, [0.9, 0.9, 0.9, 0.3], [0.3, 0.3]) == 3


@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.9])
def test_the_text_is_the_targets(threshold):
    inputs, expected = case("llava", "sdpa", *RAGGED, 24)
    drafter = eagle3_drafter("llava", "sdpa")
    out = mmspec.generate(drafter.target, drafter, inputs=inputs, max_new_tokens=24, tree=ConfidenceChain(threshold, 5))
    assert out.token_ids == expected


@pytest.mark.parametrize("kind", range(2))
def test_a_chain_may_end_by_the_tokens_drawn_so_far_but_not_by_the_one_it_would_drop(kind):
    """Drawn children: the law of the round, where the first token decides whether there is a second one."""
    target, draft = (random_tables(3, 2, seed) for seed in (1 + kind, 8 + kind))
    short, long = (Enumeration(RejectionSampling(), target, draft, Chain(length)) for length in (1, 2))
    for sure in ([0], [1], [2], [0, 1], [1, 2]):
        on, off = (torch.isin(one.tree.tokens[:, 1], torch.tensor(sure)) for one in (long, short))
        law = long.law(on) + short.law(~off)
        assert (law - sequence_law(target)).abs().max() < 1e-9
    cut = long.law(long.tree.tokens[:, 2] == 0)
    for first in range(3):  # where the second token is not 0, the round goes on as if it had not been drawn
        cut = cut + short.law(short.tree.tokens[:, 1] == first) * draft[1][first, 1:].sum()
    assert (cut - sequence_law(target)).abs().max() > 1e-3, "a token that is dropped for what it is biases the law"


# A drafter that estimates its own confidence.


class Estimating(TableModel):
    """A drafter whose estimate for a node is a function of the tokens down to it."""

    max_depth, independent, cheap_levels = None, False, True

    def __init__(self, tables, rows: int, estimate):
        super().__init__(tables, rows)
        self.estimate = estimate

    def confidence(self) -> torch.Tensor:
        newest = self.paths[-1]
        return torch.tensor([[self.estimate(tuple(path))] for path in newest.tolist()])


def chain_of(builder: ConfidenceChain, *rows: list[float]):
    """The chain of a drafter whose estimate for the guess number n is `rows[row][n]`."""
    uniform = [torch.full([2] * n + [2], 0.5) for n in range(1 + len(rows[0]))]
    model = Estimating(uniform, len(rows), None)
    model.confidence = lambda: torch.tensor([[row[model.paths[-1].shape[1]]] for row in rows])
    growth = Growth(
        torch.zeros(len(rows), dtype=torch.long), model.expand_root, model.expand, Proposals(), drafter=model
    )
    return builder.build(growth).validate()


def test_it_ends_before_the_first_guess_that_would_not_survive():
    def lengths(threshold, *rows, **options):
        return chain_of(ConfidenceChain(threshold, 4, **options), *rows).drafted.tolist()

    assert lengths(0.5, [0.9, 0.9, 0.4, 0.9]) == [2], "0.81 is above, 0.32 is not: the third is not drafted"
    assert lengths(0.5, [0.1, 0.9, 0.9, 0.9]) == [1], "one guess is always drafted"
    assert lengths(0.0, [0.1, 0.1, 0.1, 0.1]) == [4]
    assert lengths(0.5, [0.9, 0.9, 0.4, 0.9], [0.9, 0.9, 0.9, 0.9], [0.2] * 4) == [2, 4, 1], "each row by itself"
    tree = chain_of(ConfidenceChain(0.5, 4), [0.9, 0.9, 0.4, 0.9], [0.9] * 4)
    assert tree.is_chain and tree.num_nodes == 5 and tree.valid.tolist() == [[True] * 3 + [False] * 2, [True] * 5]
    assert chain_of(ConfidenceChain(0.5, 4), [0.9] * 4, [0.9] * 4).valid is None


def test_a_drafter_whose_levels_are_independent_is_asked_for_its_estimates_too():
    """Likeliest guesses could be made all at once; the estimates are level by level."""
    rows = [[0.9, 0.9, 0.4, 0.9], [0.9] * 4]

    def lengths(independent: bool):
        uniform = [torch.full([2] * n + [2], 0.5) for n in range(5)]
        model = Estimating(uniform, 2, None)
        model.independent, model.marginals = independent, lambda depth: torch.zeros(2, depth, 2)
        model.confidence = lambda: torch.tensor([[row[model.paths[-1].shape[1]]] for row in rows])
        growth = Growth(torch.zeros(2, dtype=torch.long), model.expand_root, model.expand, Proposals(), drafter=model)
        return ConfidenceChain(0.5, 4).build(growth).validate().drafted.tolist()

    assert lengths(True) == lengths(False) == [2, 4]


def test_tokens_are_shared_out_by_survival():
    """Algorithm 1 of DSpark, with lists: always the slot of largest survival, whichever row it is in."""

    def greedy(rows, total):
        counts = [0] * len(rows)
        for _ in range(total):
            survival = [torch.tensor(row[: n + 1]).prod().item() if n < len(row) else 0 for row, n in zip(rows, counts)]  # noqa: B905
            counts[max(range(len(rows)), key=lambda row: (survival[row], -counts[row], -row))] += 1
        return counts

    generator = torch.Generator().manual_seed(2)
    for total in (1, 3, 5, 9):
        rows = torch.rand(3, 4, generator=generator).tolist()
        tree = chain_of(ConfidenceChain(0.0, 4, total=total), *rows)
        assert tree.drafted.tolist() == greedy(rows, total)
    assert chain_of(ConfidenceChain(0.5, 4, total=9), [0.9] * 4, [0.6] * 4).drafted.tolist() == [4, 1], (
        "no more than pays"
    )


class CutRounds(Enumeration):
    """All outcomes of a round, each of which is cut as it would be alone."""

    def __init__(self, target, draft, builder, estimate):
        self.estimate, self.whole = estimate, Chain(builder.max_length)
        super().__init__(RejectionSampling(), target, draft, builder)

    def _tree(self, draft, builder, proposals, rows):
        model = Estimating(draft, rows, self.estimate)
        root = torch.zeros(rows, dtype=torch.long)
        growth = Growth(root, model.expand_root, model.expand, proposals, drafter=model)
        return (self.whole if rows == 1 else builder).build(growth)  # the single row is the dry run, which counts


class Peeking(ConfidenceChain):
    """Drops a guess for what it is: the mistake."""

    def build(self, growth):
        tree = growth.chain(self.max_length)
        sure = tree.tokens[:, 1:] != 0
        return replace(tree, valid=torch.cat([torch.ones_like(sure[:, :1]), sure.cumprod(-1).bool()], dim=1))


@pytest.mark.parametrize("seed", range(3))
def test_a_chain_cut_by_estimates_keeps_the_law(seed):
    target, draft = random_tables(3, 2, seed + 1), random_tables(3, 2, seed + 8)
    estimates = {(): 0.9, (0,): 0.2, (1,): 0.9, (2,): 0.6, **{(a, b): 0.5 for a in range(3) for b in range(3)}}
    cut = CutRounds(target, draft, ConfidenceChain(0.5, 2), estimates.__getitem__)
    assert set(cut.tree.drafted.tolist()) == {1, 2} and cut.error() < 1e-9
    assert CutRounds(target, draft, Peeking(0.5, 2), estimates.__getitem__).error() > 1e-3, "the test is blind"


def test_drafters_without_estimates_have_no_tokens_to_share_out():
    inputs, _ = case("llava", "sdpa", *RAGGED, 4)
    drafter = eagle3_drafter("llava", "sdpa")
    with pytest.raises(MMSpecError, match="ConfidenceChain: total=4 shares out.* Eagle3Drafter makes none"):
        mmspec.generate(drafter.target, drafter, inputs=inputs, max_new_tokens=4, tree=ConfidenceChain(total=4))


@pytest.mark.parametrize("name", ["llava", "qwen_vl"])
def test_rows_of_chains_that_are_cut_by_estimates_write_the_targets_text(name, monkeypatch):
    """Greedy and drawn, with a drafter that has a cache."""
    generator = torch.Generator().manual_seed(0)
    rows = len(RAGGED[0])
    monkeypatch.setattr(Eagle3Drafter, "confidence", lambda self: torch.rand(rows, 1, generator=generator))
    inputs, expected = case(name, "sdpa", *RAGGED, 14)
    drafter, settings = eagle3_drafter(name, "sdpa"), {"inputs": inputs, "max_new_tokens": 14}
    out = mmspec.generate(drafter.target, drafter, tree=ConfidenceChain(0.3, 4), **settings)
    assert out.token_ids == expected and out.stats.lossless
    assert len({drafted for record in out.stats.rounds for drafted in record.drafted}) > 2
    sampled = {**settings, "temperature": 0.9, "seed": 4, "verifier": PointMassSampling()}
    plain = mmspec.generate(target_of(name, "sdpa"), **sampled)
    for tree in (ConfidenceChain(0.3, 4), ConfidenceChain(0.1, 4, total=5)):
        assert mmspec.generate(drafter.target, drafter, tree=tree, **sampled).token_ids == plain.token_ids


@pytest.mark.parametrize("wrong", [{"threshold": -0.1}, {"threshold": 1.5}, {"max_length": 0}, {"total": 0}])
def test_settings_out_of_range(wrong):
    (name,) = wrong
    with pytest.raises(MMSpecError, match=f"ConfidenceChain: {name}="):
        ConfidenceChain(**wrong)
