"""Trees scored twice: the text is plain decoding's own, and a fault is told from rounding in any precision."""

from __future__ import annotations

import copy
from dataclasses import replace

import mistakes
import models
import pytest
import torch
from tiny_requests import target_of

import mmspec
from mmspec.drafters import EagleDrafter, as_drafter
from mmspec.errors import MMSpecError
from mmspec.exactness import ROUNDS_AS_MUCH, attribute
from mmspec.inputs import prepare
from mmspec.target import Target
from mmspec.trees import Chain, DynamicTree, StaticTree
from mmspec.verifiers import Gated, Greedy
from mmspec.verifiers.gates import Every

NEW = 14


def case(name: str, dtype: torch.dtype, seed: int = 0):
    target = Target(copy.deepcopy(target_of(name, "sdpa").model).to(dtype))
    request = prepare(target, inputs=models.inputs_for(name, [1], [9], seed))
    return target, as_drafter(target, models.blurred(target.model)), request


@pytest.mark.parametrize(
    ("name", "dtype", "tree"),
    [
        ("llava", torch.float32, DynamicTree(4, 3, 10)),
        ("llava", torch.bfloat16, DynamicTree(4, 3, 10)),
        ("llava", torch.float16, Chain(4)),
        ("qwen_vl", torch.bfloat16, StaticTree("eagle1")),
    ],
    ids=str,
)
def test_the_text_is_plain_decodings_and_tree_passes_differ_by_rounding(name, dtype, tree):
    target, drafter, request = case(name, dtype)
    plain = mmspec.generate(target, inputs=request, max_new_tokens=NEW)
    options = {"max_new_tokens": NEW, "tree": tree}
    out = mmspec.generate(target, drafter, inputs=request, node_by_node=True, trace=True, **options)
    assert out.token_ids == plain.token_ids and out.stats.num_accepted_draft_tokens
    found = attribute(target, drafter, request, **options)
    assert found.cause == "rounding" and found.ratio < ROUNDS_AS_MUCH, str(found)
    assert "round as any pass does" in str(found)


@pytest.mark.parametrize(
    ("mistake", "dtype"),
    [
        ("no_tree_mask", torch.bfloat16),
        ("sequential_positions", torch.bfloat16),
        ("path_not_compacted", torch.bfloat16),
        ("path_not_compacted", torch.float32),
    ],
    ids=str,
)
def test_faults_are_told_from_rounding(mistake, dtype, monkeypatch):
    target, drafter, request = case("llava", dtype)
    getattr(mistakes, mistake)(monkeypatch, target)
    found = attribute(target, drafter, request, max_new_tokens=NEW, tree=StaticTree("eagle1"))
    assert found.cause == "fault" and found.ratio > 2 * ROUNDS_AS_MUCH, str(found)
    assert "WRONG" in str(found) and f"round {found.worst.round}" in str(found)


def test_a_large_preference_is_not_excused_by_passes_that_are_right():
    target, drafter, request = case("llava", torch.bfloat16)
    found = attribute(target, drafter, request, max_new_tokens=NEW, tree=Chain(3))
    near, far = ({"tie": False, "margin": margin} for margin in (0.5 * found.rounding, 1.0))
    assert found.excuses(target, near) and not found.excuses(target, far)
    assert not found.excuses(target, {"tie": False, "margin": None})
    assert not replace(found, cause="fault").excuses(target, near)
    assert not found.excuses(case("llava", torch.float32)[0], near), "in float32 there is no excuse"


def test_heads_and_gates_run_with_it():
    target, _, request = case("llava", torch.float32)
    drafter = models.redraw(EagleDrafter(target), 3).eval()
    plain = mmspec.generate(target, inputs=request, max_new_tokens=NEW)
    out = mmspec.generate(target, drafter, inputs=request, max_new_tokens=NEW, node_by_node=True)
    assert out.token_ids == plain.token_ids
    gated = {"verifier": Gated(Greedy(), Every(2, 2)), "tree": Chain(3), "max_new_tokens": NEW}
    once, twice = (mmspec.generate(target, drafter, inputs=request, node_by_node=two, **gated) for two in (False, True))
    assert once.token_ids == twice.token_ids and twice.stats.num_unverified_tokens
    assert max(one.difference for one in twice.scored_twice.deviations) < 1e-4


def test_what_cannot_be_scored_twice_is_refused():
    target, drafter, _ = case("llava", torch.float32)
    batch = models.inputs_for("llava", [1, 0], [9, 5])
    with pytest.raises(MMSpecError, match="this batch has 2: ask for each row alone"):
        mmspec.generate(target, drafter, inputs=batch, max_new_tokens=4, node_by_node=True)
    with pytest.raises(MMSpecError, match="node_by_node=True"):
        _ = mmspec.generate(target, drafter, inputs=models.inputs_for("llava", [1], [9]), max_new_tokens=4).scored_twice
