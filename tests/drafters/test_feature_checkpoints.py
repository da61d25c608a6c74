"""EAGLE drafters and draft models cut from their target: made, saved, loaded and refused."""

from __future__ import annotations

import functools
import json
import re

import models
import pytest
import torch
import transformers
from heads import (
    FEW,
    VARIANTS,
    build,
    drafter_of,
    guesses_of,
    inputs_of,
    lesson_of,
)
from safetensors.torch import load_file
from tiny_requests import RAGGED, case, target_of

import mmspec
from mmspec import MMSpecError, Target
from mmspec.drafters import Eagle3Drafter, EagleDrafter, SharedVisionDrafter
from mmspec.inputs import prepare
from mmspec.lesson import Lesson
from mmspec.training.beginnings import cut_shared_vision, cut_text_only
from mmspec.training.teacher import Teacher
from mmspec.trees import Chain

LAYER = {f"self_attn.{name}_proj.weight" for name in "qkvo"} | {
    *(f"mlp.{name}_proj.weight" for name in ("gate", "up", "down")),
    "post_attention_layernorm.weight",
}
KEYS = {
    "eagle": {"fc.weight", "fc.bias"} | {f"layers.0.{name}" for name in LAYER},
    "eagle, other": {"fc.weight", "d2t", "t2d", "layers.0.input_layernorm.weight"}
    | {f"layers.0.self_attn.{name}_proj.bias" for name in "qkv"}
    | {f"layers.0.{name}" for name in LAYER},
    "eagle3": {"fc.weight", "norm.weight", "lm_head.weight"}
    | {f"midlayer.{name}" for name in LAYER | {"hidden_norm.weight", "input_layernorm.weight"}},
}
KEYS["eagle3.1"] = KEYS["eagle3"] | {"d2t", "t2d", *(f"fc_norm.{i}.weight" for i in range(3))}
KEYS["eagle3, other"] = KEYS["eagle3"] | {"input_norm.weight"}
KEYS["eagle, pool"] = KEYS["eagle"]
KEYS["msd"] = KEYS["eagle"] | {"layers.0.input_layernorm.weight"}
KEYS["eagle3, prune"] = KEYS["eagle3"]
CORRECTOR = {f"corrector.{name}.weight" for name in ("state_norm", "seen_norm", "levels", "q_proj", "k_proj", "u_proj")}
CORRECTOR |= {"corrector.state_norm.bias", "corrector.seen_norm.bias"}
CORRECTOR |= {
    f"corrector.{part}.{n}.{name}" for part in ("change", "gate") for n in (0, 2) for name in ("weight", "bias")
}
KEYS["eagle3, fovea"] = KEYS["eagle3"] | CORRECTOR | {"d2t", "t2d"}
KEYS["eagle, pool, fovea"] = KEYS["eagle"] | CORRECTOR
KEYS["eagle, elastic"] = KEYS["msd"] | {
    *(f"compressor.gate.{layer}.{part}" for layer in (0, 2) for part in ("weight", "bias")),
    *(f"compressor.branches.2.conv.{part}" for part in ("weight", "bias")),
    *(f"compressor.branches.3.{part}" for part in ("q", "k_proj.weight", "v_proj.weight", "o_proj.weight")),
}
KEYS["hivis"] = KEYS["eagle"] | {"residual"}
KEYS["hivis, packed"] = KEYS["hivis"] | {"d2t", "t2d"}
KEYS["mtp"] = KEYS["msd"] - {"fc.bias"} | {"pre_fc_norm_embedding.weight", "pre_fc_norm_hidden.weight", "norm.weight"}
KEYS["mtp, pool"] = KEYS["mtp"] | {f"layers.0.self_attn.{name}_norm.weight" for name in "qk"}
KEYS["mtp, other"] = KEYS["mtp, pool"] | {"d2t", "t2d", "layers.0.self_attn.gate_proj.weight"}
KEYS["mtp, other"] |= {f"layers.0.self_attn.{name}_proj.bias" for name in ("q", "k", "v", "gate")}
OUTSIDE = KEYS["mtp"] - {key for key in KEYS["mtp"] if key.startswith("layers.")}
OF_A_LAYER = KEYS["mtp"] - OUTSIDE
KEYS["mtp, in a row"] = KEYS["mtp"] | {f"layers.{n}.{name}" for n in (1, 2) for name in OUTSIDE}
KEYS["mtp, in a row"] |= {key.replace(".0.", f".{n}.", 1) for n in (1, 2) for key in OF_A_LAYER}
KEYS["mtp, in a row, pool"] = {key for key in KEYS["mtp, in a row"] if key.split(".")[-2] != "norm"}
KEYS["mtp, in a row and on"] = KEYS["mtp, pool"] | {"d2t", "t2d", "layers.0.self_attn.gate_proj.weight"}
KEYS["mtp, in a row and on"] |= {
    key.replace(".0.", ".1.", 1) for key in KEYS["mtp, in a row and on"] if key.startswith("layers.")
}
KEYS["vispec"] = KEYS["eagle"] | {"img_fc.weight", "img_fc.bias", "compressor.q"}
KEYS["vispec"] |= {f"compressor.{part}_proj.weight" for part in "kvo"}
KEYS["vispec, text"] = KEYS["vispec"]
KEYS["sparrow"] = KEYS["eagle"]
KEYS["sparrow, whole"] = KEYS["eagle"] | {"layers.0.input_layernorm.weight"}
KEYS["dream"] = {"layers.2.input_layernorm.weight", "norm.weight"}
KEYS["dream"] |= {f"layers.{layer}.{name}" for layer in (0, 2) for name in LAYER}
KEYS["dream, without memory"] = set(KEYS["dream"])
KEYS["dream"] |= {"layers.1.input_layernorm.weight", "layers.1.cross_attn_attn_gate", "layers.1.cross_attn_mlp_gate"}
KEYS["dream"] |= {f"layers.1.{name.replace('self', 'cross')}" for name in LAYER}
KEYS["dream"] |= {f"layers.1.cross_attn.{name}_norm.weight" for name in "qk"}
KEYS["dream, hidden"] = KEYS["dream"]
BIASES = {f"layers.{layer}_attn.{name}_proj.bias" for layer in ("0.self", "1.cross", "2.self") for name in "qkv"}
KEYS["dream, other"] = KEYS["dream"] | BIASES | {"d2t", "t2d"}
SHAPES = {
    "hivis": {"fc.weight": (32, 96), "residual": (3, 32)},
    "vispec": {"fc.weight": (32, 64), "img_fc.weight": (32, 64), "compressor.q": (3, 2, 16)},
    "eagle": {"fc.weight": (32, 64), "layers.0.self_attn.q_proj.weight": (32, 32)},
    "eagle3.1": {
        "fc.weight": (32, 96),
        "midlayer.self_attn.k_proj.weight": (16, 64),
        "lm_head.weight": (20, 32),
        "d2t": (20,),
        "t2d": (61,),
    },
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_what_is_saved_is_what_is_loaded(variant, tmp_path):
    drafter = drafter_of("llava", variant)
    drafter.save_pretrained(tmp_path, steps=10)
    weights = load_file(tmp_path / "model.safetensors")
    assert weights.keys() == KEYS[variant], "the names of the published checkpoints, without the target's embedding"
    for key, shape in SHAPES.get(variant, {}).items():
        assert weights[key].shape == shape
    config = json.loads((tmp_path / "config.json").read_text())
    switches = {name: value for name, value in VARIANTS[variant][1].items() if name not in ("head", "corrector")}
    assert config["metadata"] == {"steps": 10} and {name: config[name] for name in switches} == switches
    for nested in ("head", "corrector"):
        assert (config[nested] or {}).items() >= VARIANTS[variant][1].get(nested, {}).items()

    loaded = mmspec.load_drafter(str(tmp_path), drafter.target)
    assert type(loaded) is type(drafter) and not loaded.training
    ours, theirs = guesses_of(drafter, lesson_of("llava"), 3), guesses_of(loaded, lesson_of("llava"), 3)
    assert all(theirs[key].equal(logits) for key, logits in ours.items())
    if drafter.draft_vocab_size:
        assert loaded.draft_vocabulary.equal(FEW)
    loaded.save_pretrained(tmp_path / "again")
    again = json.loads((tmp_path / "again" / "config.json").read_text())
    assert again == {key: value for key, value in config.items() if key != "metadata"}


@pytest.mark.parametrize("variant", ["eagle, other", "eagle3.1"])
def test_in_half_precision_the_rotary_frequencies_stay_exact(variant, tmp_path):
    drafter_of("llava", variant).save_pretrained(tmp_path)
    half = Target(models.llava().to(torch.bfloat16))
    loaded = mmspec.load_drafter(str(tmp_path), half)
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.bfloat16}
    frequencies = drafter_of("llava", variant).rotary.inv_freq
    assert loaded.rotary.inv_freq.dtype == torch.float32 and loaded.rotary.inv_freq.equal(frequencies)
    assert loaded.d2t.dtype == torch.long
    out = mmspec.generate(half, loaded, inputs=inputs_of("llava"), max_new_tokens=6)
    assert [len(ids) for ids in out.token_ids] == [6] * 4


def wide() -> Target:
    config = transformers.LlamaConfig(**{**models.TEXT, "hidden_size": 48})
    return Target(models.rescale(transformers.LlamaForCausalLM(config), 0))


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_drafter_for_another_width_is_refused(variant, tmp_path):
    drafter_of("llama", variant).save_pretrained(tmp_path)
    name = VARIANTS[variant][0].__name__
    with pytest.raises(MMSpecError, match=f"{name}: the hidden size is 32 but the target's is 48.*train") as caught:
        mmspec.load_drafter(str(tmp_path), wide())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("cls", "settings", "message"),
    [
        (EagleDrafter, {"head": {"hidden": 3, "hidden_size": 32}}, r"head settings \['hidden'\] are unknown"),
        (Eagle3Drafter, {"head": {"rope_theta": 1e4, "layers": 2}}, r"head settings \['layers', 'rope_theta'\]"),
        (EagleDrafter, {"head": {"hidden_size": 16}}, "EagleDrafter: the hidden size is 16 but the target's is 32"),
        (Eagle3Drafter, {"head": {"hidden_size": 64}}, "Eagle3Drafter: the hidden size is 64 but the target's is 32"),
        (EagleDrafter, {"draft_vocab_size": 0}, "draft_vocab_size=0 must lie between 1 and the target's 61"),
        (Eagle3Drafter, {"draft_vocab_size": 62}, "draft_vocab_size=62 must lie between 1 and the target's 61"),
        (Eagle3Drafter, {"feature_layers": [0, 1, 3]}, r"feature_layers=\[0, 1, 3\] must be three layers .* 0 to 2"),
        (Eagle3Drafter, {"feature_layers": [0, 1]}, r"feature_layers=\[0, 1\] must be three layers of the target"),
        (Eagle3Drafter, {"feature_layers": [0, 1, -1]}, r"feature_layers=\[0, 1, -1\] must be three layers"),
        (Eagle3Drafter, {"fc_norm": True, "norm_before_fc": True}, "fc_norm and norm_before_fc are two ways"),
        (EagleDrafter, {"own_embedding": 50}, "EagleDrafter: own_embedding=50 rows are too few for the target's 61"),
        (EagleDrafter, {"head": {"hidden_size": 48}, "own_embedding": 61}, "EagleDrafter: the hidden size is 48"),
        (Eagle3Drafter, {"rope": "mrope"}, r"needs rope_parameters with three mrope_section .* \[\]$"),
        (
            Eagle3Drafter,
            {"head": {"hidden_size": 48}, "visual": True, "own_embedding": 61},
            "visual=True: the target's visual embeddings have 32 numbers, and the hidden size is 48; use visual=False",
        ),
    ],
)
def test_settings_that_do_not_fit_are_refused(cls, settings, message):
    with pytest.raises(MMSpecError, match=message) as caught:
        cls(target_of("llama", "sdpa"), **settings)
    assert "\n" not in str(caught.value)


def test_a_head_takes_the_sizes_of_its_target_and_the_base_of_its_positions():
    rope = {"rope_type": "default", "rope_theta": 777.0}
    config = transformers.LlamaConfig(**models.TEXT, rope_parameters=rope)
    head = EagleDrafter(Target(models.rescale(transformers.LlamaForCausalLM(config), 0))).head
    names = ("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads", "head_dim", "hidden_act")
    assert all(getattr(head, name) == getattr(config, name) for name in names)
    assert head.rope_parameters == rope
    assert drafter_of("gemma3", "eagle").head.hidden_act == "gelu_pytorch_tanh"
    # The positions of a head have one axis, whatever the target's have.
    assert drafter_of("qwen_vl", "eagle").head.rope_parameters == {"rope_type": "default", "rope_theta": 10000.0}


MAKERS = {"cut": lambda target: cut_shared_vision(target, 1)} | {
    variant: functools.partial(build, variant=variant)
    for variant in ("eagle", "eagle3", "eagle, pool", "eagle, elastic", "hivis", "vispec")
}


@pytest.mark.parametrize("make", MAKERS.values(), ids=list(MAKERS))
def test_a_drafter_that_was_cast_drafts_in_its_new_dtype(make):
    """As one is that goes on being trained: weights of a half-precision target in float32, beside it."""
    half = Target(models.llava().to(torch.bfloat16))
    drafter, lesson = make(half), half_lesson(half)
    options = {"inputs": inputs_of("llava"), "max_new_tokens": 6, "tree": Chain(2)}
    for dtype in (torch.bfloat16, torch.float32):
        drafter.to(dtype)
        assert [len(ids) for ids in mmspec.generate(half, drafter, **options).token_ids] == [6] * 4
        assert all(guess.logits.dtype == dtype for guess in drafter.unroll(lesson, 2))


def half_lesson(half: Target) -> Lesson:
    prompt = prepare(half, inputs=inputs_of("llava"))
    return Teacher(half, range(3)).study(prompt, lesson_of("llava").answers)


# Cut from the target.


CUTS = [
    ("llava", cut_shared_vision, 2),
    ("llava", cut_text_only, 1),
    ("llama", cut_text_only, 2),
    ("gemma3", cut_shared_vision, 2),
]


@pytest.mark.parametrize(("name", "cut", "layers"), CUTS)
def test_a_draft_model_cut_from_its_target_begins_as_its_bottom(name, cut, layers):
    target = target_of(name, "sdpa")
    drafter = cut(target, layers, tree=Chain(3))
    ours, theirs = drafter.model.state_dict(), target.family.decoder.state_dict()
    numbers = {key: re.search(r"layers\.(\d+)", key) for key in theirs}
    copied = {key: theirs[key] for key, number in numbers.items() if number is None or int(number[1]) < layers}
    assert all(ours[f"model.{key}"].equal(value) for key, value in copied.items())
    assert drafter.model.lm_head.weight.equal(target.model.get_output_embeddings().weight)
    assert len(ours) == len(copied) + 1
    assert ours["model.norm.weight"].data_ptr() != theirs["norm.weight"].data_ptr(), "to be trained without the target"
    inputs, expected = case(name, "sdpa", *RAGGED, 14)
    assert mmspec.generate(target, drafter, inputs=inputs, max_new_tokens=14).token_ids == expected


def test_cut_to_all_its_layers_it_is_the_target():
    target = target_of("llava", "sdpa")
    inputs, _ = case("llava", "sdpa", *RAGGED, 14)
    out = mmspec.generate(target, cut_shared_vision(target, 3), inputs=inputs, max_new_tokens=13, tree=Chain(3))
    assert out.stats.mean_acceptance_length == 4


@pytest.mark.parametrize("bias", [True, False])
def test_a_cut_draft_model_sees_as_its_target_does(bias):
    """Its projector is a copy of the target's, which may have no biases."""
    target = Target(models.llava())
    projector = target.family.vision_projector
    if not bias:
        projector.linear_1.bias = projector.linear_2.bias = None
    features = torch.randn(5, 16, generator=torch.Generator().manual_seed(0))
    assert (cut_shared_vision(target).projector(features) - projector(features)).abs().max() < 1e-5


def test_a_cut_draft_model_is_saved_like_any_other(tmp_path):
    target = target_of("llava", "sdpa")
    drafter = cut_shared_vision(target)
    drafter.save_pretrained(tmp_path)
    loaded = mmspec.load_drafter(str(tmp_path), target)
    assert isinstance(loaded, SharedVisionDrafter)
    ours, theirs = drafter.state_dict(), loaded.state_dict()
    assert ours.keys() == theirs.keys() and all(ours[key].equal(theirs[key]) for key in ours)


@pytest.mark.parametrize("tied", [True, False])
def test_a_tied_table_is_cut_once(tied):
    config = transformers.LlamaConfig(**models.TEXT, tie_word_embeddings=tied)
    target = Target(models.rescale(transformers.LlamaForCausalLM(config), 0))
    target.model.config.tie_word_embeddings = True  # what is there counts, not what the configuration says
    model = cut_text_only(target, 1).model
    assert (model.lm_head.weight is model.get_input_embeddings().weight) == tied
    assert model.lm_head.weight.equal(target.model.lm_head.weight)
    assert model.get_input_embeddings().weight.equal(target.model.get_input_embeddings().weight)


@pytest.mark.parametrize(
    ("name", "cut", "layers", "message"),
    [
        ("qwen_vl", cut_text_only, 2, "no causal language model for 'qwen2_5_vl_text'.*mmspec.load_drafter the folder"),
        ("llava", cut_text_only, 0, "layers=0 must lie between 1 and the target's 3"),
        ("llava", cut_text_only, 4, "layers=4 must lie between 1 and the target's 3"),
        ("llama", cut_shared_vision, 2, "LlamaForCausalLM takes no pictures.*recipe=text_only"),
    ],
)
def test_what_cannot_be_cut_is_refused(name, cut, layers, message):
    with pytest.raises(MMSpecError, match=message) as caught:
        cut(target_of(name, "sdpa"), layers)
    assert "\n" not in str(caught.value)
