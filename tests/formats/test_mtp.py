"""Where a native multi-token layer may lie, and what is refused."""

from __future__ import annotations

import models
import pytest
import torch
from heads import guesses_of, lesson_of
from published_drafters import load_written, refused, written
from tiny_requests import target_of

import mmspec
from mmspec.drafters import MtpDrafter
from mmspec.formats import Checkpoint, recognise


def test_it_is_read_from_a_file_of_its_own(tmp_path):
    drafter = load_written(tmp_path, *written("mtp"))
    (tmp_path / "model.safetensors").rename(tmp_path / "mtp.safetensors")
    again = mmspec.load_drafter(str(tmp_path), drafter.target)
    ours, theirs = (guesses_of(one, lesson_of("llava"), 2) for one in (drafter, again))
    assert type(again) is MtpDrafter and all(theirs[key].equal(logits) for key, logits in ours.items())


def test_in_the_repository_of_a_model_it_is_asked_for_by_name(tmp_path):
    tensors, config = written("mtp")
    drafter = load_written(tmp_path / "alone", tensors, config)
    model = models.llama(seed=2)
    model.save_pretrained(tmp_path / "whole")
    kept = {name: tensor for name, tensor in model.state_dict().items() if name != "lm_head.weight"}
    whole = load_written(tmp_path / "whole", tensors | kept, config, format="mtp")
    assert whole.settings.own_embedding == models.VOCAB, "that of the model it was trained with"
    own = whole.state_dict()
    assert all(own[name].equal(weight) for name, weight in drafter.state_dict().items())
    assert recognise(Checkpoint(tmp_path / "whole")) is None, "without the name, the model is the drafter"


BROKEN = {
    "no key of one": ({}, ["mtp."], "holds no multi-token layer, whose keys are such as 'mtp.fc.weight'"),
    "half a second layer": (
        {"mtp.layers.1.mlp.up_proj.weight": (2, 2)},
        [],
        r"missing keys \['mtp.layers.1.input_layernorm.weight', .*",
    ),
    "latent attention": ({"mtp.layers.0.self_attn.kv_a_proj_with_mqa.weight": (2, 2)}, [], "is of latent attention"),
    "experts": ({"mtp.layers.0.mlp.experts.0.up_proj.weight": (2, 2)}, [], "is of a layer with experts"),
    "a fusion of one": ({"mtp.fc.weight": (32, 32)}, [], r"mtp.fc.weight has shape \[32, 32\]"),
    "no norm of states": ({}, ["mtp.pre_fc_norm_hidden"], r"missing keys \['mtp.pre_fc_norm_hidden.weight'\]"),
    "more than is read": ({"mtp.layers.0.extra.weight": (2,)}, [], r"unexpected keys \['mtp.layers.0.extra.weight'\]"),
    "a norm of whole numbers": ({"mtp.norm.weight": None}, [], "mtp.norm.weight"),
}


@pytest.mark.parametrize(("put", "left", "message"), BROKEN.values(), ids=list(BROKEN))
def test_what_it_cannot_be_is_refused(tmp_path, put, left, message):
    tensors, config = written("mtp")
    tensors = {name: tensor for name, tensor in tensors.items() if not any(name.startswith(start) for start in left)}
    tensors |= {
        name: torch.zeros(32, dtype=torch.int64) if size is None else torch.zeros(size) for name, size in put.items()
    }
    if not tensors:
        tensors = {"other.weight": torch.zeros(2)}
    refused(tmp_path, tensors, config, message, format="mtp")


@pytest.mark.parametrize("factor", [0, 2, "half"])
def test_a_part_that_is_none_is_refused(tmp_path, factor):
    tensors, config = written("mtp")
    config["text_config"]["rope_parameters"]["partial_rotary_factor"] = factor
    refused(tmp_path, tensors, config, f"partial_rotary_factor={factor!r}, which is no part of 1")


def test_settings_that_no_head_can_have_are_refused():
    for turned in (0, 3, 10):
        with pytest.raises(mmspec.MMSpecError, match=f"MtpDrafter: turned={turned} must be an even number up to"):
            MtpDrafter(target_of("llama", "sdpa"), turned=turned)
