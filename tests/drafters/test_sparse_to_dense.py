"""The target drafts on some of its own visual entries, chosen layer by layer and head by head."""

from __future__ import annotations

import models
import pytest
import torch
from refusals import refused
from tiny_requests import LENGTHS, RAGGED, batch_of, case, interleaved, target_of

import mmspec
from mmspec.drafters import SparseToDenseDrafter
from mmspec.inputs import prepare
from mmspec.models.cache import TreeCache
from mmspec.models.entries import ChosenEntries
from mmspec.testing import watched
from mmspec.trees import Chain, StaticTree
from mmspec.verifiers import Gated, Greedy
from mmspec.verifiers.gates import Every

NEW = 12
TREES = {"chain": Chain(3), "static": StaticTree([[0], [1], [0, 0], [0, 0, 0]])}


def written(name: str, keep: float, tree=None, **options):
    inputs, expected = case(name, "sdpa", *RAGGED, NEW)
    drafter = watched(SparseToDenseDrafter(target_of(name, "sdpa"), keep=keep))
    out = mmspec.generate(drafter.target, drafter, inputs=inputs, max_new_tokens=NEW, tree=tree, **options)
    return out, expected


def all_right(out) -> bool:
    """Whether every path of every draft was accepted to its end."""
    return all(one.accepted == [3 if drafted else 0 for drafted in one.drafted] for one in out.stats.rounds[:-1])


@pytest.mark.parametrize("tree", TREES)
@pytest.mark.parametrize("name", ["llava", "qwen_vl", "llama"])
def test_with_all_entries_every_guess_is_right(name, tree):
    out, expected = written(name, 1.0, TREES[tree])
    assert out.token_ids == expected and all_right(out)


def test_with_all_entries_of_a_video_every_guess_is_right():
    target, (inputs, expected) = target_of("qwen2_5_vl"), batch_of("qwen2_5_vl")
    drafter = SparseToDenseDrafter(target, keep=1.0)
    out = mmspec.generate(target, drafter, inputs=inputs, max_new_tokens=12, tree=Chain(3))
    assert out.token_ids == expected and all_right(out) and len(LENGTHS) == len(expected)


def test_with_few_entries_fewer_guesses_are_right():
    whole, few = (written("llava", keep, TREES["static"]) for keep in (1.0, 0.25))
    assert few[0].token_ids == few[1]
    assert 1 < few[0].stats.mean_acceptance_length < whole[0].stats.mean_acceptance_length


@pytest.mark.parametrize("fault", ["another token", "another row"])
def test_entries_that_are_not_the_targets_are_noticed(monkeypatch, fault):
    """Negative controls: copies from the wrong place leave the text as it is, and spoil guesses."""
    take = TreeCache.take_from

    def wrong(self, other, counts):
        before = list(other.lengths_list), list(other._staying.rows)
        if fault == "another token":
            other.lengths_list = [length - 1 for length in before[0]]
        else:
            other._staying.rows = before[1][1:] + before[1][:1]
        take(self, other, counts)
        other.lengths_list, other._staying.rows = before

    monkeypatch.setattr(TreeCache, "take_from", wrong)
    out, expected = written("llava", 1.0, Chain(3))
    assert out.token_ids == expected and not all_right(out)


@pytest.mark.parametrize("name", ["llava", "qwen_vl"])
def test_heads_keep_what_the_text_behind_the_pictures_looks_at(name):
    inputs = models.inputs_for(name, [2], [20])
    target, eager = target_of(name, "sdpa"), models.eager_twin(name, target_of(name, "sdpa").model)
    request = prepare(target, inputs=inputs)
    found = SparseToDenseDrafter(target, keep=0.5)._chosen(target.prefill(request, target.encode(request)))
    visual = target.family.is_visual(inputs["input_ids"])[0]
    last, length = int(visual.nonzero().max()), len(visual)
    kept = round(0.5 * int(visual.sum()))
    assert found.lengths == [length - int(visual.sum()) + kept] and last < length - 2
    weights = eager(**inputs, output_attentions=True).attentions
    groups = target.family.text_config.num_key_value_heads
    differ = set()
    for chosen, attention in zip(found.layers, weights, strict=True):
        scores = attention[0, :, last + 1 :].mean(1).unflatten(0, (groups, -1)).sum(1)
        for head in range(groups):
            best = scores[head].masked_fill(~visual, -1).topk(kept).indices.tolist()
            expected = sorted([*best, *(~visual).nonzero()[:, 0].tolist()])
            assert chosen[0, head].tolist() == expected
            differ.add(tuple(expected))
    assert len(differ) > 1, "heads look at different things"


def test_a_budget_counts_text_too():
    settings = SparseToDenseDrafter(target_of("llava", "sdpa"), budget=30).settings
    assert [settings.count(100, 20), settings.count(100, 50), settings.count(5, 20), settings.count(0, 9)] == [
        10,
        1,
        5,
        0,
    ]


def test_tokens_that_the_target_has_not_read_are_drafted_behind():
    """A draft that is always right stays so where rounds are settled without the target."""
    out, expected = written("llava", 1.0, Chain(3), verifier=Gated(Greedy(), Every(rounds=3)))
    assert out.token_ids == expected and any(one.settled for one in out.stats.rounds)


def test_requests_in_turns_and_under_guidance():
    target = target_of("llava", "sdpa")
    requests = [{"inputs": models.inputs_for("llava", [1, 0], [9, 5], seed), "max_new_tokens": NEW} for seed in (1, 2)]
    requests.append({**requests[0], "guidance_scale": 1.7})
    expected = [mmspec.generate(target, None, **request).token_ids for request in requests]
    found = interleaved(target, SparseToDenseDrafter(target, keep=0.5), requests)
    assert [one.token_ids for one in found] == expected
    whole = mmspec.generate(target, SparseToDenseDrafter(target, keep=1.0), tree=Chain(3), **requests[2])
    assert whole.token_ids == expected[2] and all_right(whole)


def test_rows_below_see_all_of_their_entries():
    chosen = ChosenEntries([torch.tensor([[[0, 3]]])], [2]).with_rows([3, 1])
    assert chosen.lengths == [2, 3, 1]
    assert chosen.layers[0][0, 0, :2].tolist() == [0, 3] and chosen.layers[0][1, 0].tolist() == [0, 1, 2]


def test_what_cannot_be_is_refused():
    llava = target_of("llava", "sdpa")
    refused(lambda: SparseToDenseDrafter(llava, keep=0.0), "SparseToDenseDrafter: keep=0.0 must be")
    refused(lambda: SparseToDenseDrafter(llava, budget=0), "SparseToDenseDrafter: budget=0 must be")
    refused(lambda: SparseToDenseDrafter(target_of("mistral", "sdpa")), "MistralForCausalLM have sliding windows")
