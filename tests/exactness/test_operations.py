"""What a round costs on any device, counted on the embedded model: bounds, and what changes none of it."""

from __future__ import annotations

from functools import cache

import pytest
import torch

import mmspec
from mmspec.inputs import prepare
from mmspec.models.cache_layer import TreeCacheLayer
from mmspec.speed.operations import Counts, count_rounds, counting
from mmspec.trees import Chain, DynamicTree

SCORE = "score"


@cache
def embedded() -> tuple[mmspec.Target, mmspec.Drafter]:
    target = mmspec.load_target("tiny")
    return target, mmspec.load_drafter("tiny/eagle3", target)


@cache
def rounds_of(tree: str, questions: tuple[str, ...], most: int = 3) -> list[dict[str, Counts]]:
    """The second and the third round of a request, in which no row has ended, by phase."""
    target, drafter = embedded()
    shape = {"chain": Chain(8), "dynamic": DynamicTree(5, 4, 17)}.get(tree)
    drafter = None if shape is None else drafter
    options = {"inputs": prepare(target, list(questions)), "max_new_tokens": 40, "tree": shape, "eos_token_id": []}
    return count_rounds(mmspec.stream(target, drafter, **options), most=most)[1:]


ONE = ("What colour is the sky?",)
FOUR = (*ONE, "How many?", "Where is the red circle, and what is the number that stands beside it?", "Yes or no?")
LONG = (" ".join(["Where is the red circle, and what is the number that stands beside it?"] * 12),)


def totals(phases: dict[str, Counts]) -> tuple[int, int, Counts]:
    """Operations of drafting, and of all that is neither drafting nor scoring; and everything together."""
    elsewhere = [counts for name, counts in phases.items() if name not in ("draft", SCORE)]
    return phases["draft"].operations, sum(elsewhere, Counts()).operations, sum(phases.values(), Counts())


@pytest.mark.parametrize("questions", [ONE, FOUR, LONG], ids=["one row", "four ragged rows", "a long prompt"])
@pytest.mark.parametrize(("tree", "levels", "a_level", "elsewhere"), [("chain", 8, 33, 23), ("dynamic", 5, 58, 50)])
def test_a_round_launches_few_operations_and_waits_once(tree, levels, a_level, elsewhere, questions):
    for phases in rounds_of(tree, questions):
        drafting, others, everything = totals(phases)
        assert drafting <= levels * a_level and others <= elsewhere
        assert everything.reads == 1 and phases["commit"].reads == 1, "the verdict, and nothing else"
        assert everything.copies <= 1, "the newest tokens, and nothing else"


@pytest.mark.parametrize("tree", ["chain", "dynamic"])
def test_more_rows_and_longer_prompts_cost_nothing_more(tree):
    """But for the slots that are cleared, so that a short row does not see in them what a longer one reads."""
    one, three, four = (rounds_of(tree, ONE * rows) for rows in (1, 3, 4))
    assert three == four
    for alone, together in zip(one, four, strict=True):
        assert alone["draft"] == together["draft"] and alone[SCORE] == together[SCORE]
        assert 0 <= totals(together)[1] - totals(alone)[1] <= 3
    # A round masks the newest tokens if there are several; nothing else depends on what is written.
    for short, long in zip(one, rounds_of(tree, LONG), strict=True):
        assert abs(totals(short)[2].operations - totals(long)[2].operations) <= 16


def least_written(tree: str, questions: tuple[str, ...]) -> dict[str, int]:
    """Bytes that a round writes outside attention, by phase: of the round with the fewest new tokens."""
    rounds = rounds_of.__wrapped__(tree, questions, most=4)
    return {phase: min(counts[phase].written for counts in rounds) for phase in rounds[0]}


@pytest.mark.parametrize("tree", ["chain", "dynamic"])
def test_nothing_but_attention_grows_with_the_prompt(tree, monkeypatch):
    """Not by a byte, from some ten tokens to some thousand."""
    longer = (LONG[0] * 3,)
    assert least_written(tree, ONE) == least_written(tree, longer)
    update = TreeCacheLayer.update

    def copied(self, *states, **options):
        return tuple(part.clone() for part in update(self, *states, **options))

    monkeypatch.setattr(TreeCacheLayer, "update", copied)
    assert least_written(tree, longer)[SCORE] > 1.5 * least_written(tree, ONE)[SCORE], "copies are seen"


def test_plain_decoding_reads_a_token_and_copies_nothing():
    for phases in rounds_of("none", ONE):
        drafting, others, everything = totals(phases)
        assert everything.reads == 1 and not everything.copies and drafting <= 8 and others <= 8


def test_what_is_counted():
    values = torch.arange(6.0)
    with counting() as counts:
        values.view(2, 3).t()[0]  # views, all of them
        torch.empty(3)
        assert counts == Counts()
        values.softmax(-1) + values
        assert counts == Counts(operations=2)
        torch.nn.functional.linear(values[None], torch.ones(2, 6))
        assert counts == Counts(operations=4)  # with the ones
        values.sum().item(), values.tolist(), values[values > 2], bool(values[0])
        assert counts == Counts(operations=7, reads=4)
        torch.tensor([1, 2]), torch.as_tensor([1.0]), torch.tensor([1], device="cpu")  # the last one stays there
        assert counts == Counts(operations=7, reads=4, copies=2)
