"""Routing: what the drafter sees follows the newest state, row by row, and the text stays the target's."""

from __future__ import annotations

import models
import pytest
import torch
from full_recompute import recompute
from tiny_drafters import TINY_DRAFTERS
from tiny_requests import RAGGED, case, target_of

import mmspec
from mmspec import MMSpecError
from mmspec.compressors import Routing
from mmspec.drafters.feature import FeatureDrafter
from mmspec.inputs import prepare
from mmspec.trees import Chain, DynamicTree

NEW = 14


class Noting(Routing):
    """Notes what it was asked and what it showed."""

    shared = ("seen",)

    def __init__(self, k: int = 2, anew: bool = True):
        super().__init__(k, anew)
        self.seen: list = []

    def route(self, attention, visual):
        shown = super().route(attention, visual)
        self.seen.append((attention.clone(), shown))
        return shown


def routed(compressor, name: str = "llava", make: str = "eagle", tree=None, rows=RAGGED):
    inputs, expected = case(name, "sdpa", *rows, NEW)
    drafter = TINY_DRAFTERS[make](name, "sdpa").with_compressor(compressor)
    out = mmspec.generate(drafter.target, drafter, inputs=inputs, max_new_tokens=NEW, tree=tree or Chain(2))
    assert out.token_ids == expected and out.stats.lossless
    return out, inputs


@pytest.mark.parametrize("name", ["llava", "qwen_vl", "gemma3"])
def test_the_tokens_that_the_newest_state_attends_to_most_are_shown_and_they_change(name):
    compressor = Noting()
    out, inputs = routed(compressor, name)
    eager, target = models.eager_twin(name, target_of(name, "sdpa").model), target_of(name, "sdpa")
    visual = target.family.is_visual(prepare(target, inputs=inputs).inputs["input_ids"])
    first, *later = compressor.seen
    for row, answer in enumerate(out.token_ids):
        single = models.one_row(inputs, row)
        weights = recompute(eager, single, [answer], output_attentions=True).attentions[-1][0].mean(0)
        length = single["input_ids"].shape[1]
        own = visual[row, :length]
        assert (first[0][row, :length] - weights[length - 1, :length] * own).abs().max() < 1e-5
        shown = first[1][row, :length]
        best = (weights[length - 1, :length] * own).topk(min(2, int(own.sum()))).values.sum()
        assert shown.sum() == min(2, int(own.sum())) and (~first[1][row] | visual[row]).all()
        assert weights[length - 1, :length][shown].sum().item() == pytest.approx(best.item(), abs=1e-5)
    assert any(not shown.equal(first[1]) for _, shown in later), "the choice never changed"


def test_what_is_hidden_is_not_attended_to_and_all_of_it_is_no_routing(monkeypatch):
    """With k for all tokens the drafter drafts what it drafts without; with fewer it attends to exactly so many."""
    masks = []
    run = FeatureDrafter._layers

    def listen(self, mixed, residual, mask, rope):
        masks.append((mask, self.session.cache.lengths.clone()))
        return run(self, mixed, residual, mask, rope)

    monkeypatch.setattr(FeatureDrafter, "_layers", listen)
    monkeypatch.setattr(FeatureDrafter, "asks_anew", property(lambda self: True))
    one = ((1,), (9,))
    whole, inputs = routed(Noting(10**6), rows=one, tree=DynamicTree(2, 3, 8))
    drafter = TINY_DRAFTERS["eagle"]("llava", "sdpa")
    plain = mmspec.generate(
        drafter.target, drafter, inputs=inputs, max_new_tokens=NEW, tree=DynamicTree(2, 3, 8), trace=True
    )
    assert [one.accepted for one in whole.stats.rounds] == [one.accepted for one in plain.stats.rounds]
    masks.clear()
    routed(Noting(2), rows=one)
    visual = int(drafter.target.family.is_visual(inputs["input_ids"]).sum())
    for mask, lengths in masks:
        committed = mask[0, 0, 0, : int(lengths)]
        assert mask.dtype == torch.bool and int((~committed).sum()) == visual - 2


def test_a_first_choice_is_kept_if_it_is_not_asked_anew():
    compressor = Noting(2, anew=False)
    routed(compressor)
    assert len(compressor.seen) == 1


@pytest.mark.parametrize("make", ["eagle", "eagle3, fewer tokens", "msd"])
def test_heads_stay_lossless_with_one_and_two_pictures_and_none(make):
    for name in ("llava", "qwen_vl"):
        routed(Routing(3), name, make, DynamicTree(2, 3, 8))


def test_sampled_text_is_that_of_plain_decoding():
    inputs, _ = case("llava", "sdpa", *RAGGED, NEW)
    drafter = TINY_DRAFTERS["eagle"]("llava", "sdpa").with_compressor(Routing(3))
    sampled = {"inputs": inputs, "max_new_tokens": NEW, "temperature": 0.8, "seed": 4}
    plain = mmspec.generate(drafter.target, **sampled)
    assert mmspec.generate(drafter.target, drafter, tree=Chain(3), **sampled).token_ids == plain.token_ids


def test_refusals():
    with pytest.raises(MMSpecError, match="Routing: k=0"):
        Routing(0)
    with pytest.raises(MMSpecError, match="Routing: anew=3 must be true or false"):
        Routing(anew=3)
    for make in ("dflash", "mtp", "aasd"):
        drafter = TINY_DRAFTERS[make]("llava", "sdpa")
        with pytest.raises(MMSpecError, match="Routing chooses anew before every round"):
            drafter.with_compressor(Routing())
