"""What a published checkpoint may lack, have too much of or say wrongly, and what is said of it."""

from __future__ import annotations

import logging

import models
import published
import pytest
import torch
import transformers
from heads import TOLERANCE, error, guesses_of, lesson_of
from published_drafters import load_written, original, refused, text_of, written
from tiny_requests import target_of

import mmspec
from mmspec import MMSpecError, Target

# Keys.


FORMATS = {"eagle": "llava", "msd": "llava", "vispec": "llava", "hivis": "llava", "dream": "llava", "eagle3": "llava"}
FORMATS |= {"eagle3, speculators": "qwen_vl", "msd, qwen": "qwen_vl"}
PARTS = ("self_attn.v_proj.weight", "mlp.down_proj.weight", "post_attention_layernorm.weight")
NEEDED = [(format, part) for format in FORMATS for part in PARTS] + [
    ("vispec", "imadpt.k_proj.weight"),
    ("vispec", "img_fc.bias"),
    ("dream", "layers.1.cross_attn_mlp_gate"),
    ("dream", "layers.1.cross_attn.q_norm.weight"),
    ("dream", "norm.weight"),
    ("hivis", "fc.weight"),
    ("eagle3", "midlayer.hidden_norm.weight"),
    ("eagle3", "lm_head.weight"),
    ("eagle3", "d2t"),
    ("msd, qwen", "layers.0.self_attn.v_proj.bias"),
]
IDLE = [(format, "layers.7.extra.weight") for format in FORMATS] + [
    ("eagle", "lm_head.weight"),
    ("eagle", "layers.0.self_attn.o_proj.bias"),
    ("eagle", "layers.1.mlp.up_proj.weight"),
    ("dream", "layers.3.mlp.up_proj.weight"),
    ("eagle3", "midlayer.self_attn.q_norm.weight"),
]


@pytest.mark.parametrize(("format", "part"), NEEDED)
def test_a_missing_key_is_listed_by_its_published_name(tmp_path, format, part):
    tensors, config = written(format, FORMATS[format])
    key = next(key for key in tensors if key.endswith(part))
    del tensors[key]
    refused(tmp_path, tensors, config, rf"missing keys \['{key}'\]", FORMATS[format])


@pytest.mark.parametrize(("format", "key"), IDLE)
def test_a_key_that_nothing_could_use_is_unexpected(tmp_path, format, key):
    tensors, config = written(format, FORMATS[format])
    wanted = rf"missing keys none, unexpected keys \['{key}'\]"
    refused(tmp_path, tensors | {key: torch.ones(8)}, config, wanted, FORMATS[format])


def test_a_bias_of_keys_without_one_of_queries_is_unexpected(tmp_path):
    tensors, config = written("eagle, qwen", "qwen_vl")
    del tensors["layers.0.self_attn.q_proj.bias"]
    refused(tmp_path, tensors, config, "unexpected keys .*k_proj.bias', .*v_proj.bias'", "qwen_vl")


def test_a_shape_that_does_not_fit_is_named(tmp_path):
    tensors, config = written("eagle")
    tensors["fc.weight"] = torch.zeros(32, 60)
    refused(tmp_path, tensors, config, r"fc\.weight has shape \[32, 60\], but .* ask for \[32, 64\] for EagleDrafter")


def test_two_tensors_of_one_name_are_refused(tmp_path):
    tensors, config = written("eagle")
    tensors["model.fc.weight"] = tensors["fc.weight"].clone()
    refused(tmp_path, tensors, config, "has two tensors for 'fc.weight', with 'model.' before it and without")


# Configurations that mislead.


MISLEADING = {
    "wrong number of heads": {"num_attention_heads": 8},
    "wrong number of key-value heads": {"num_key_value_heads": 4},
    "head_dim that divides nothing": {"head_dim": 12},
    "wrong sizes": {"intermediate_size": 11008, "hidden_size": 4096, "num_hidden_layers": 32},
    "biases that are not there": {"bias": False, "qkv_bias": True, "attention_bias": True},
}


@pytest.mark.parametrize("changes", MISLEADING.values(), ids=list(MISLEADING))
def test_what_tensors_tell_is_not_taken_from_the_configuration(tmp_path, changes):
    tensors, config = written("eagle")
    drafter = load_written(tmp_path, tensors, config | changes)
    guesses = guesses_of(drafter, lesson_of("llava"), 1)
    with torch.no_grad():
        expected = original("eagle", "llava").draft(text_of("llava", 0, 3), [])[0]
    assert error(guesses[0, 3, 0], expected) < TOLERANCE


def test_a_head_dim_that_agrees_with_the_tensors_is_the_configurations(tmp_path):
    tensors, config = written("eagle")
    head = load_written(tmp_path, tensors, config | {"head_dim": 16}).head
    assert (head.head_dim, head.num_attention_heads, head.num_key_value_heads) == (16, 2, 1)
    config = config | {"num_attention_heads": 2, "num_key_value_heads": 1}
    assert load_written(tmp_path / "implied", tensors, config).head.head_dim == 16


def test_heads_that_cannot_be_counted_are_refused(tmp_path):
    tensors, config = written("eagle")
    tensors["layers.0.self_attn.k_proj.weight"] = torch.zeros(12, 32)
    refused(
        tmp_path,
        tensors,
        config,
        "queries of width 32 and keys of width 12 cannot be divided by head_dim=8; set head_dim",
    )


def test_what_no_tensor_tells_is_the_targets_where_the_configuration_is_silent(tmp_path):
    tensors, config = written("eagle")
    for name in ("rms_norm_eps", "hidden_act", "max_position_embeddings", "rope_theta"):
        del config[name]
    head = load_written(tmp_path, tensors, config).head
    text = target_of("llava", "sdpa").family.text_config
    assert head.rms_norm_eps == text.rms_norm_eps and head.hidden_act == text.hidden_act
    assert head.rope_parameters == {"rope_type": "default", "rope_theta": 10000.0}


def with_base(theta: float) -> Target:
    rope = {"rope_type": "default", "rope_theta": theta}
    config = transformers.LlamaConfig(**models.TEXT, rope_parameters=rope)
    return Target(models.rescale(transformers.LlamaForCausalLM(config), 0))


@pytest.mark.parametrize("place", ["rope_theta", "rope_parameters", "rope_scaling"])
def test_the_base_of_positions_is_read_wherever_it_is(tmp_path, place):
    target = with_base(777.0)
    tensors, config = published.eagle(target.model)
    config.pop("rope_theta")
    config |= {place: 55.0} if place == "rope_theta" else {place: {"type": "linear", "factor": 2.0, "rope_theta": 55.0}}
    rope = mmspec.load_drafter(published.write(tmp_path, tensors, config), target).head.rope_parameters
    assert rope["rope_theta"] == 55.0
    assert rope["rope_type"] == ("default" if place == "rope_theta" else "linear")


def test_a_base_that_nobody_says_is_that_of_the_original_code_and_said_aloud(tmp_path, caplog):
    target = with_base(777.0)
    tensors, config = published.eagle(target.model)
    del config["rope_theta"]
    with caplog.at_level(logging.WARNING):
        drafter = mmspec.load_drafter(published.write(tmp_path, tensors, config), target)
    assert drafter.head.rope_parameters["rope_theta"] == 10000.0
    assert "says no rope_theta, so it is 10000 as in the original code, though the target's is 777" in caplog.text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rope_parameters": {"rope_theta": 1.0}}, r"says rope_theta \[1\.0, 500\.0\] in several places"),
        ({"rope_scaling": {"type": "dynamic", "factor": 2}}, "positions of type 'dynamic' are not supported"),
        ({"vocab_size": 152064}, None),  # the embedding says better
    ],
)
def test_positions_that_cannot_be_followed_are_refused(tmp_path, changes, message):
    tensors, config = written("eagle")
    if message:
        refused(tmp_path, tensors, config | changes, message)
    else:
        load_written(tmp_path, tensors, config | changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fc_norm": True}, "says fc_norm=True, but fc_norm.0.weight is missing"),
        ({"norm_before_fc": True}, "says norm_before_fc=True, but input_norm.weight is missing"),
        ({"eagle_aux_hidden_state_layer_ids": [0, 0, 1]}, "are not the same states: the second ones must be one less"),
        ({"aux_hidden_states_layer_ids": [0, 1]}, r"feature_layers=\[1, 2\] must be three layers"),
        ({"aux_hidden_states_layer_ids": [0, 1, 2]}, r"feature_layers=\[1, 2, 3\] must be three layers"),
        (
            {"speculators_model_type": "eagle"},
            "speculators_model_type is 'eagle', and .*keys only 'eagle3' is supported",
        ),
        ({"speculators_model_type": "eagle3"}, "a speculators config.json must say norm_before_residual"),
        (
            {"rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]}},
            r"three mrope_section numbers whose sum is 4, half of head_dim=8; they are \[16, 24, 24\]",
        ),
    ],
)
def test_switches_of_eagle3_that_contradict_its_weights_are_refused(tmp_path, changes, message):
    tensors, config = written("eagle3")
    refused(tmp_path, tensors, config | changes, message)


@pytest.mark.parametrize(
    ("gone", "changes", "message"),
    [
        (["mask_token_id"], {}, "config.json must say mask_token_id"),
        ([], {"pard_token": 4}, "names different mask tokens, mask_token_id=9, pard_token=4; correct"),
        ([], {"mask_token_id": "9"}, "says mask_token_id='9', which should be"),
        ([], {"mask_token_id": 61}, "mask_token_id=61 is none of the 61 tokens that have an embedding"),
        (["norm_before_residual"], {}, "a speculators config.json must say norm_before_residual"),
        ([], {"speculators_model_type": "eagle3"}, "is 'eagle3', but mask_hidden is of 'peagle'; correct"),
        ([], {"speculators_config": {"proposal_methods": [{"speculative_tokens": 0}]}}, "speculative_tokens=0, which"),
        (
            [],
            {"speculators_config": {"proposal_methods": [{"speculative_tokens": 10**9}]}},
            "depths=1000000000 are more",
        ),
    ],
)
def test_what_no_weight_of_peagle_tells_must_be_said(tmp_path, gone, changes, message):
    tensors, config = written("peagle")
    refused(tmp_path, tensors, {k: v for k, v in config.items() if k not in gone} | changes, message)


def test_tensors_that_are_not_all_of_peagle_are_refused(tmp_path):
    tensors, config = written("peagle")
    lacking = {key: tensor for key, tensor in tensors.items() if not key.startswith(("mask_hidden", "layers.1.mlp"))}
    refused(tmp_path / "state", lacking, config, r"is incomplete: missing keys \['mask_hidden'\]")
    lacking |= {"mask_hidden": tensors["mask_hidden"]}
    refused(tmp_path / "layer", lacking, config, r"does not fit PEagleDrafter: missing keys \['layers.1.mlp")
    short = tensors | {"mask_hidden": torch.ones(1, 1, 64)}
    refused(tmp_path / "short", short, config, r"mask_hidden has shape \[1, 1, 64\], but three states of the target")
    more = tensors | {"layers.3.up": torch.ones(2)}
    refused(tmp_path / "more", more, config, "missing keys .*layers.3")


def test_norms_that_the_configuration_denies_are_refused(tmp_path):
    tensors, config = written("eagle3, speculators")
    refused(tmp_path, tensors, config | {"fc_norm": False}, "says fc_norm=False, but fc_norm.0.weight is there")


def test_both_ways_to_count_layers_name_one_state(tmp_path):
    tensors, config = written("eagle3")
    both = load_written(tmp_path / "both", tensors, config | {"eagle_aux_hidden_state_layer_ids": [1, 1, 2]})
    del config["aux_hidden_states_layer_ids"]
    one = load_written(tmp_path / "one", tensors, config | {"eagle_aux_hidden_state_layer_ids": [1, 1, 2]})
    assert both.config()["feature_layers"] == one.config()["feature_layers"] == [1, 1, 2]
    assert load_written(tmp_path / "none", tensors, config).config()["feature_layers"] == [0, 1, 2], (
        "EAGLE-3's own of 3 layers"
    )
    nested = {"eagle_config": {"eagle_aux_hidden_state_layer_ids": [1, 1, 2]}}
    refused(tmp_path / "nested", tensors, config | nested, "SGLang reads as layers that the states leave and vLLM as")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda d2t, t2d: (d2t + torch.arange(len(d2t)), t2d),
            "of 18 draft tokens leads to 18 tokens from 3 to 73",
        ),
        (lambda d2t, t2d: (d2t - 4, t2d), "leads to 18 tokens from -1 to 52; 18 different ones of the target's 61"),
        (lambda d2t, t2d: (-torch.arange(len(d2t)), t2d), "leads to 1 tokens from 0 to 0"),
        (lambda d2t, t2d: (d2t + 1, t2d), "t2d marks 18 tokens, other ones than the 18 of d2t"),
        (lambda d2t, t2d: (d2t, t2d & (torch.arange(61) > 5)), "t2d marks 16 tokens, other ones than the 18 of d2t"),
    ],
)
def test_a_draft_vocabulary_that_leads_astray_is_refused(tmp_path, change, message):
    tensors, config = written("eagle3")
    tensors["d2t"], tensors["t2d"] = change(tensors["d2t"], tensors["t2d"])
    refused(tmp_path, tensors, config, message)


def test_a_membership_mask_may_be_padded(tmp_path):
    tensors, config = written("eagle3")
    tensors["t2d"] = torch.cat([tensors["t2d"], torch.zeros(3, dtype=torch.bool)])
    drafter = load_written(tmp_path, tensors, config)
    assert len(drafter.t2d) == models.VOCAB and drafter.t2d.nonzero().flatten().tolist() == published.DRAFTED


# What a prompt may lack.


def test_a_prompt_of_a_picture_and_little_else_leaves_nothing_to_hivis(tmp_path):
    drafter = load_written(tmp_path, *written("hivis", "qwen_vl"), "qwen_vl")
    inputs = models.inputs_for("qwen_vl", [1], [2])
    start = inputs["input_ids"][0].tolist().index(models.VISION_START)
    per_token = {name: value for name, value in inputs.items() if value.shape == inputs["input_ids"].shape}
    inputs |= {name: value[:, start:-2] for name, value in per_token.items()}  # the delimiters and the picture
    with pytest.raises(MMSpecError, match="with its pictures hidden nothing is left of a prompt"):
        mmspec.generate(drafter.target, drafter, inputs=inputs, max_new_tokens=4)
