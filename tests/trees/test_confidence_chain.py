"""ConfidenceChain: where it ends, in batches too; that the text is the target's and drawn children keep its law."""

from __future__ import annotations

import pytest
import torch
from laws import Enumeration, random_tables, sequence_law
from tiny_drafters import eagle3_drafter
from tiny_requests import RAGGED, case

import mmspec
from mmspec.errors import MMSpecError
from mmspec.trees import Chain, ConfidenceChain, Growth, Proposals
from mmspec.verifiers import RejectionSampling


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


@pytest.mark.parametrize("wrong", [{"threshold": -0.1}, {"threshold": 1.5}, {"max_length": 0}])
def test_settings_out_of_range(wrong):
    (name,) = wrong
    with pytest.raises(MMSpecError, match=f"ConfidenceChain: {name}="):
        ConfidenceChain(**wrong)
