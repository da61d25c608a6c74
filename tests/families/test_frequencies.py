"""Rotary frequencies that change with the length: exact on either side of the switch, and refused across it in time."""

from __future__ import annotations

import re
from functools import cache

import models
import pytest
import torch
import transformers
from models import TEXT
from refusals import refused

import mmspec
from mmspec.check import check_target
from mmspec.drafters import EagleDrafter, TextOnlyDrafter
from mmspec.errors import MMSpecError
from mmspec.families import Family
from mmspec.families.frequencies import Switch
from mmspec.target import Target
from mmspec.trees import DynamicTree

SWITCH, NEW = 40, 8
LONG = {
    "rope_type": "longrope",
    "short_factor": [1.0, 1.1, 1.2, 1.3],
    "long_factor": [3.0, 5.0, 7.0, 9.0],
    "original_max_position_embeddings": SWITCH,
    "rope_theta": 10000.0,
}
DYNAMIC = {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10000.0}
STATIC = {
    "default": {"rope_type": "default", "rope_theta": 10000.0},
    "linear": {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0},
    "llama3": {
        "rope_type": "llama3",
        "factor": 4.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": SWITCH,
        "rope_theta": 10000.0,
    },
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": SWITCH, "rope_theta": 10000.0},
}


@cache
def target_of(kind: str) -> Target:
    """Phi-3 computes all keys anew at the switch, Llama keeps those of before."""
    if kind == "phi3":
        rope = LONG | {"partial_rotary_factor": 1.0}
        config = transformers.Phi3Config(**TEXT, rope_parameters=rope, original_max_position_embeddings=SWITCH)
        model = transformers.Phi3ForCausalLM._from_config(config, attn_implementation="sdpa")
    elif kind == "ministral3":
        rope = STATIC["yarn"] | {"llama_4_scaling_beta": 0.5}
        config = transformers.Ministral3Config(**TEXT, sliding_window=None, rope_parameters=rope)
        model = transformers.Ministral3ForCausalLM._from_config(config, attn_implementation="sdpa")
    else:
        rope, most = {"longrope": (LONG, 512), "dynamic": (DYNAMIC, SWITCH)}.get(kind) or (STATIC[kind], 512)
        config = transformers.LlamaConfig(**TEXT | {"max_position_embeddings": most}, rope_parameters=rope)
        model = transformers.LlamaForCausalLM._from_config(config, attn_implementation="sdpa")
    return Target(models.rescale(model, 0), check=False)


def prompts(*lengths: int) -> dict:
    width = max(lengths)
    ids = torch.randint(1, 50, (len(lengths), width), generator=torch.Generator().manual_seed(1))
    mask = torch.tensor([[0] * (width - n) + [1] * n for n in lengths])
    return {"input_ids": ids.masked_fill(mask == 0, 0), "attention_mask": mask}


def text(kind: str, drafter, inputs: dict, new: int = NEW) -> list[list[int]]:
    tree = None if drafter is None else DynamicTree(8, 3, 12)
    return mmspec.generate(target_of(kind), drafter, inputs=inputs, max_new_tokens=new, tree=tree).token_ids


@pytest.mark.parametrize("kind", ["phi3", "longrope", "dynamic"])
def test_text_is_that_of_generate_on_one_side(kind):
    """The last token before the switch is written, while the trees reach over it; and far beyond it all are."""
    target = target_of(kind)
    drafters = [None, TextOnlyDrafter(target, models.blurred(target.model))]
    for lengths in [(SWITCH + 1 - NEW, 9), *[(SWITCH + 1, SWITCH + 9)] * (kind != "dynamic")]:
        inputs = prompts(*lengths)
        expected = models.reference(target.model, inputs, NEW)
        for drafter in drafters:
            assert text(kind, drafter, inputs) == expected, lengths


@pytest.mark.parametrize("kind", ["ministral3", "llama3", "yarn", pytest.param("linear", marks=pytest.mark.slow)])
def test_what_does_not_switch_goes_across(kind):
    """Also where queries are scaled by their position."""
    target, inputs = target_of(kind), prompts(SWITCH - 4, 9)
    assert not target.family.switches
    expected = models.reference(target.model, inputs, NEW)
    assert text(kind, TextOnlyDrafter(target, models.blurred(target.model)), inputs) == expected


@pytest.mark.parametrize("kind", ["phi3", "longrope", "dynamic"])
def test_what_goes_across_is_refused_before_anything_is_written(kind):
    target = target_of(kind)
    assert target.family.switches == (Switch("dynamic" if kind == "dynamic" else "longrope", SWITCH),)
    said = f"other rotary frequencies beyond {SWITCH} positions .* the answer may reach them; ask for max_new_tokens="
    for lengths in ((SWITCH + 2 - NEW,), (5, SWITCH - 1)):
        with pytest.raises(MMSpecError, match=said) as error:
            text(kind, EagleDrafter(target), prompts(*lengths))
        most = int(re.search(r"max_new_tokens=(\d+)", str(error.value))[1])
        inputs = prompts(*lengths)
        assert text(kind, None, inputs, most) == models.reference(target.model, inputs, most)
        with pytest.raises(MMSpecError, match=f"max_new_tokens={most} at most"):
            text(kind, None, inputs, most + 1)


@pytest.mark.parametrize("kind", ["phi3", "longrope"])
def test_rows_on_either_side_are_refused_together(kind):
    refused(lambda: text(kind, None, prompts(9, SWITCH + 3)), "only a part of the rows begins beyond ... give long")


def test_a_text_of_another_length_before_changes_nothing():
    """Transformers keeps the frequencies of the last pass in the model."""
    target = target_of("phi3")
    short, long = prompts(9), prompts(SWITCH + 3)
    alone = [models.reference(target.model, inputs, NEW) for inputs in (short, long)]
    streams = [mmspec.stream(target, inputs=inputs, max_new_tokens=NEW) for inputs in (short, long)]
    pieces = [list(both) for both in zip(*streams, strict=True)]
    assert [[[piece.token_ids[0] for piece in column]] for column in zip(*pieces, strict=True)] == alone


@pytest.mark.parametrize("kind", ["phi3", "dynamic"])
def test_a_draft_model_may_go_across(kind):
    """What it guesses there may be worse; the text is the target's."""
    target, inputs = target_of("default"), prompts(SWITCH - 4, 9)
    drafter = TextOnlyDrafter(target, target_of(kind).model)
    assert text("default", drafter, inputs) == models.reference(target.model, inputs, NEW)


def test_the_stepwise_interface_does_not_go_across_either():
    from full_recompute import accept, random_tree, start

    target, generator = target_of("phi3"), torch.Generator().manual_seed(0)
    context = start(target, prompts(SWITCH - 3))
    for _ in range(2):
        tree = random_tree(context, 3, generator)
        context.score(tree)
        accept(context, tree, [2 if tree.parents[0, 2] == 1 else 1], [3])
    with pytest.raises(MMSpecError, match="begin anew with the whole text as the prompt"):
        for _ in range(3):
            tree = random_tree(context, 2, generator)
            context.score(tree)
            accept(context, tree, [1], [3])


def test_the_self_check_looks_behind_the_switch(monkeypatch):
    """And sees a mistake that is made nowhere else."""
    target, behind = target_of("phi3"), f"text behind {SWITCH} positions"
    report = check_target(target)
    assert report.ok and sum(finding.what.startswith(behind) for finding in report.findings) == 4, f"\n{report}"
    positions = Family.positions
    monkeypatch.setattr(
        Family,
        "positions",
        lambda self, inputs: (positions(self, inputs)[0].clamp(max=SWITCH), positions(self, inputs)[1]),
    )
    report = check_target(target)
    assert [f.ok for f in report.findings if f.what.startswith("text: ")] == [True] * 4
    assert not any(f.ok for f in report.findings if f.what.startswith(behind) and "prompts as a batch" in f.what)


def test_a_switch_that_is_too_far_for_the_self_check_is_a_note():
    config = transformers.Phi3Config(**TEXT, rope_parameters=LONG | {"original_max_position_embeddings": 4096})
    target = Target(models.rescale(transformers.Phi3ForCausalLM(config), 0))
    assert target.family.switches == (Switch("longrope", 4096),)
    assert any("not checked: text behind 4096 positions" in note for note in check_target(target).notes)
