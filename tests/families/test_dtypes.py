"""Pixels are read in the vision tower's dtype, and nothing else is cast: towers and language models may differ."""

from __future__ import annotations

import pytest
import torch
from qwen_prompts import inputs_of, video
from tiny_families import FAMILIES
from tiny_requests import HEARING, NEW, VISUAL

import mmspec
from mmspec.inputs import prepare
from mmspec.target import Target

F32, BF16 = torch.float32, torch.bfloat16


def mixed(name: str, tower: torch.dtype, language: torch.dtype) -> Target:
    """A target whose language model, embeddings and head are in one dtype, and all that makes pictures in another."""
    model = FAMILIES[name].build(FAMILIES[name].attention).to(tower)
    model.get_decoder().to(language)
    for module in (model.get_input_embeddings(), model.get_output_embeddings()):
        module.to(language)
    return Target(model)


# The own forward passes of these fail where the two differ.
@pytest.mark.parametrize("name", sorted({*VISUAL, *HEARING} - {"smolvlm", "audioflamingo3", "glmasr"}))
@pytest.mark.parametrize(("tower", "language"), [(F32, BF16), (BF16, F32)])
def test_a_tower_of_another_precision_sees_what_it_sees_in_generate(name, tower, language):
    target, kinds = mixed(name, tower, language), list(FAMILIES[name].kinds)
    inputs = FAMILIES[name].inputs([kinds])
    read = []
    target.family.layers[0].register_forward_pre_hook(
        lambda _, args, kwargs: read.append(args[0] if args else kwargs["hidden_states"]), with_kwargs=True
    )
    options = {"do_sample": False, "output_logits": True, "return_dict_in_generate": True}
    out = target.model.generate(**inputs, max_new_tokens=NEW, **options)
    theirs, read[:] = read[0], []
    request = prepare(target, inputs=inputs)
    context = target.prefill(request, target.encode(request))
    assert read[0].dtype == language and torch.equal(read[0], theirs), "to the last bit"
    assert (context.logits - out.logits[0]).abs().max() < (1e-4 if language == F32 else 0.1)
    if language == F32:
        text = out.sequences[:, inputs["input_ids"].shape[1] :].tolist()
        assert mmspec.generate(target, inputs=request, max_new_tokens=NEW).token_ids == text


def test_a_clock_is_not_cast():
    """1.999 seconds a step is 2 in bfloat16, and the 39th step would stand elsewhere."""
    target = mixed("qwen2_5_vl", BF16, BF16)
    inputs = inputs_of("qwen2_5_vl", [([video(42)], 3)]) | {"second_per_grid_ts": torch.tensor([1.999])}
    request = prepare(target, inputs=inputs)
    assert request.inputs["second_per_grid_ts"].dtype == F32 and request.inputs["pixel_values_videos"].dtype == BF16
    position_ids, _ = target.family.positions(request.inputs)
    left = {name: value for name, value in inputs.items() if not name.startswith("pixel")}
    given = left.pop("second_per_grid_ts")
    expected, moved = (
        target.model.model.get_rope_index(**left, second_per_grid_ts=clock)[0] for clock in (given, given.to(BF16))
    )
    assert torch.equal(position_ids, expected) and not torch.equal(moved, expected)
    assert prepare(target, inputs=request) is request


def test_a_request_of_another_tower_is_refused():
    one, other = mixed("llava", F32, BF16), mixed("llava", BF16, BF16)
    request = prepare(one, inputs=FAMILIES["llava"].inputs([["image"]]))
    assert prepare(one, inputs=request) is request
    with pytest.raises(
        mmspec.MMSpecError, match="pixel_values is torch.float32 .* but the target reads torch.bfloat16"
    ):
        prepare(other, inputs=request)
