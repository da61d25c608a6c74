"""A target's fingerprint: it changes with any weight, and with nothing else."""

from __future__ import annotations

import copy

import models
import pytest
import torch
from accelerate import cpu_offload
from tiny_requests import target_of

from mmspec.models.weights import digest
from mmspec.target import Target


def other(change) -> str:
    model = copy.deepcopy(target_of("llava", "sdpa").model)
    with torch.no_grad():
        change(model)
    return Target(model).fingerprint


def nudge(parameter: torch.Tensor) -> None:
    parameter.view(-1)[3] *= 1.01


@pytest.mark.parametrize(
    "change",
    [
        lambda model: nudge(model.model.language_model.layers[1].mlp.up_proj.weight),
        lambda model: nudge(model.model.language_model.layers[2].input_layernorm.weight),
        lambda model: nudge(model.model.multi_modal_projector.linear_2.bias),
        lambda model: nudge(next(model.model.vision_tower.parameters())),
        lambda model: nudge(model.lm_head.weight),
        lambda model: model.to(torch.float64),
    ],
    ids=["layer", "norm", "projector", "tower", "head", "dtype"],
)
def test_any_number_counts(change):
    assert other(change) != target_of("llava", "sdpa").fingerprint


def test_the_same_weights_have_the_same_one():
    target = target_of("llava", "sdpa")
    before = target.fingerprint
    assert len(before) == 16 and other(lambda model: None) == before
    assert other(lambda model: cpu_offload(model)) == before
    assert Target(models.llava(seed=1)).fingerprint != before


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8, torch.bool, torch.complex64])
def test_a_digest_is_of_every_number_of_any_type(dtype):
    values = (torch.arange(1, 4 * 251 + 1) % 7).view(4, 251).to(dtype)
    found = {digest(values), digest(values.T), digest(values[:, :-1])}
    places = range(0, values.numel(), 83)
    for place in places:
        one = values.clone()
        one.view(-1)[place] = 1 - one.view(-1)[place] if dtype != torch.bool else ~one.view(-1)[place]
        found.add(digest(one))
    assert len(found) == 3 + len(places)
    wide = torch.zeros(4, 300, dtype=dtype)
    wide[:, 7:258] = values  # as it lies elsewhere in memory
    assert digest(wide[:, 7:258]) == digest(values)
