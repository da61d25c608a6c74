"""A model that has run can be sent elsewhere: what transformers hangs into it comes off for that time."""

from __future__ import annotations

import pickle

import models
import pytest
import torch
from tiny_requests import one_picture

from mmspec.models.capturing import INSTALLED, without_capturing


def states_of(model) -> list[torch.Tensor]:
    with torch.no_grad():
        out = model.model.get_image_features(
            one_picture("llava")["pixel_values"], output_hidden_states=True, return_dict=True
        )
    return list(out.hidden_states)


def test_a_model_that_has_run_is_pickled_and_records_states_here_and_there():
    model = models.MODELS["llava"]()
    before = states_of(model)
    assert len(before) > 1
    with pytest.raises((AttributeError, pickle.PicklingError), match="local"):
        pickle.dumps(model)
    with without_capturing(model):
        packed = pickle.dumps(model)
        assert not any(getattr(module, INSTALLED, False) for module in model.modules())
    for one in model, pickle.loads(packed):
        found = states_of(one)
        assert len(found) == len(before) and all(map(torch.equal, found, before))


def test_hooks_of_others_stay():
    model, seen = models.MODELS["llama"](), []
    model.lm_head.register_forward_hook(lambda *_: seen.append(1))
    with without_capturing(model):
        model(torch.tensor([[1, 2]]))
    assert seen == [1]
