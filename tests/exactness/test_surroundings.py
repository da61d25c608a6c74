"""What a caller has set around a call: autocast, inference mode, and torch's default dtype and device."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import models
import pytest
import torch
from tiny_drafters import TINY_DRAFTERS, blurred_drafter
from tiny_requests import RAGGED, case, ragged_inputs, target_of

import mmspec
from mmspec.check import check_target
from mmspec.decoding.sampling import NoiseTape
from mmspec.drafters import EagleDrafter, OwnEncoderDrafter, as_drafter
from mmspec.exactness import described, divergences, excused
from mmspec.inputs import prepare
from mmspec.target import Target
from mmspec.trees import DynamicTree

NEW = 8
TREE = DynamicTree(4, 3, 10)


@contextmanager
def default(dtype: torch.dtype | None = None, device: str | None = None) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype or before)
    torch.set_default_device(device)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
        torch.set_default_device(None)


@pytest.mark.parametrize(
    ("name", "attention", "weights", "cast"),
    [
        ("llava", "sdpa", torch.float32, torch.bfloat16),
        ("llama", "eager", torch.bfloat16, torch.bfloat16),
        pytest.param("gemma3", "eager", torch.float32, torch.bfloat16, marks=pytest.mark.slow),
        pytest.param("qwen_vl", "sdpa", torch.float32, torch.float16, marks=pytest.mark.slow),
    ],
)
def test_autocast(name, attention, weights, cast):
    """A ragged batch differs from what `generate` writes under the same autocast by near-ties alone, and so does what
    is drafted, with a target that was made outside; one that was made inside is exact outside."""
    model, inputs = models.MODELS[name](attention).to(weights), ragged_inputs(name)
    target = Target(model)
    drafters = [as_drafter(target, models.blurred(model))]
    drafters.append(models.redraw(EagleDrafter(target), 8).to(weights))
    with torch.autocast("cpu", dtype=cast):
        assert target.arithmetic == cast
        expected, request = models.reference(model, inputs, NEW), prepare(target, inputs=inputs)
        pairs = [(expected, mmspec.generate(target, inputs=request, max_new_tokens=NEW).token_ids)]
        for drafter in drafters:
            found = mmspec.generate(target, drafter, inputs=request, max_new_tokens=NEW, tree=TREE).token_ids
            pairs.append((pairs[0][1], found))
        for one in [one for pair in pairs for one in divergences(target, request, *pair)]:
            assert excused(target, one), described(target, one)
        inside = Target(model)
    assert target.arithmetic == weights
    if weights == torch.float32:
        assert mmspec.generate(inside, inputs=inputs, max_new_tokens=NEW).token_ids == models.reference(
            model, inputs, NEW
        )


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad, torch.enable_grad])
def test_modes_of_gradients(mode):
    inputs, expected = case("llava", "sdpa", *RAGGED, NEW)
    with mode():
        target = Target(target_of("llava", "sdpa").model)
        drafter = OwnEncoderDrafter(target, blurred_drafter("llava", "sdpa").model)
        assert mmspec.generate(target, drafter, inputs=inputs, max_new_tokens=NEW).token_ids == expected


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_another_default_dtype_changes_no_text_and_no_draw(dtype):
    inputs, expected = case("llava", "sdpa", *RAGGED, NEW)
    target, drafter = target_of("llava", "sdpa"), TINY_DRAFTERS["specvlm"]("llava", "sdpa")
    options = {"inputs": inputs, "max_new_tokens": NEW, "temperature": 1.0, "seed": 3}
    drawn = mmspec.generate(target, **options).token_ids
    noise = NoiseTape(1, 61, 0, target.device).peek(2)
    with default(dtype):
        assert torch.equal(NoiseTape(1, 61, 0, target.device).peek(2), noise)
        assert mmspec.generate(target, drafter, inputs=inputs, max_new_tokens=NEW, tree=TREE).token_ids == expected
        assert mmspec.generate(target, **options).token_ids == drawn
        assert mmspec.generate(target, drafter, **options).token_ids == drawn


def test_nothing_is_made_on_the_default_device_by_chance():
    """Whatever is not told where to be would be on one that holds no numbers."""
    inputs, expected = case("llava", "sdpa", *RAGGED, NEW)
    target, drafter = target_of("llava", "sdpa"), TINY_DRAFTERS["specvlm"]("llava", "sdpa")
    seen = []
    options = {"inputs": inputs, "max_new_tokens": NEW, "stopping_criteria": lambda ids, _: seen.append(ids) or False}
    drawn = mmspec.generate(target, temperature=1.0, **options).token_ids
    with default(device="meta"):
        assert mmspec.generate(target, drafter, tree=TREE, **options).token_ids == expected
        assert mmspec.generate(target, drafter, temperature=1.0, **options).token_ids == drawn
        assert check_target(target).ok
    assert {ids.device.type for ids in seen} == {"cpu"}
