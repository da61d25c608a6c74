"""Exports to speculators: what the files hold, what is refused, and what the library itself makes of them."""

from __future__ import annotations

import json

import heads
import models
import pytest
import torch
from heads import FEW, compressor
from safetensors.torch import load_file, save_file
from tiny_requests import target_of

import mmspec
from mmspec import MMSpecError
from mmspec.cli import main
from mmspec.compressors.base import compressor_of
from mmspec.drafters import Eagle3Drafter, EagleDrafter

VARIANTS = {
    "eagle3": {},
    "eagle3.1": {"fc_norm": True, "norm_output": True, "draft_vocab_size": 20},
    "norm before": {"norm_before_fc": True, "norm_before_residual": True, "feature_layers": [2, 0, 1]},
    "3.1, mixed layers": {"fc_norm": True, "feature_layers": [1, 2, 0]},
    "biased": {"head": {"attention_bias": True, "num_key_value_heads": 1, "rope_parameters": {"rope_theta": 50.0}}},
    "whole vocabulary by name": {"draft_vocab_size": models.VOCAB},
}
# Of speculators 0.9.0: what its configuration class, or vLLM where it reads one, does without a default of its own.
REQUIRED = {
    "speculators_model_type": str,
    "speculators_config": dict,
    "transformer_layer_config": dict,
    "draft_vocab_size": int,
    "eagle_aux_hidden_state_layer_ids": list,
    "norm_before_residual": bool,
    "norm_before_fc": bool,
    "fc_norm": bool,
    "norm_output": bool,
}
LAYER = {f"layers.0.self_attn.{part}_proj.weight" for part in "qkvo"} | {
    *(f"layers.0.mlp.{part}_proj.weight" for part in ("gate", "up", "down")),
    *(f"layers.0.{part}.weight" for part in ("input_layernorm", "hidden_norm", "post_attention_layernorm")),
}
KEYS = LAYER | {"embed_tokens.weight", "fc.weight", "norm.weight", "lm_head.weight"}
MORE = {
    "eagle3.1": {"d2t", "t2d", *(f"fc_norm.{i}.weight" for i in range(3))},
    "norm before": {"input_norm.weight"},
    "3.1, mixed layers": {f"fc_norm.{i}.weight" for i in range(3)},
    "biased": {f"layers.0.self_attn.{part}_proj.bias" for part in "qkvo"},
}


def drafter_of(name: str, variant: str) -> Eagle3Drafter:
    settings = dict(VARIANTS[variant])
    drafter = Eagle3Drafter(target_of(name, "sdpa"), **settings)
    if drafter.draft_vocab_size == len(FEW):
        drafter.choose_vocabulary(FEW)
    elif drafter.draft_vocab_size:
        drafter.choose_vocabulary(torch.arange(models.VOCAB))
    return models.redraw(drafter, seed=4).eval()


@pytest.mark.parametrize("variant", VARIANTS)
def test_what_is_written(variant, tmp_path):
    drafter = drafter_of("llava", variant)
    assert mmspec.export_speculators(drafter, tmp_path, "owner/target", speculative_tokens=4) == tmp_path
    config, weights = json.loads((tmp_path / "config.json").read_text()), load_file(tmp_path / "model.safetensors")
    assert {name: type(config[name]) for name in REQUIRED} == REQUIRED
    assert config["speculators_model_type"] == config["speculators_config"]["algorithm"] == "eagle3"
    methods = config["speculators_config"]["proposal_methods"]
    assert [(one["proposal_type"], one["speculative_tokens"]) for one in methods] == [("greedy", 4)]
    assert (methods[0]["verifier_accept_k"], methods[0]["accept_tolerance"]) == (1, 0.0), "exact acceptance"
    assert config["speculators_config"]["default_proposal_method"] == "greedy"
    verifier = {"name_or_path": "owner/target", "architectures": ["LlavaForConditionalGeneration"]}
    assert config["speculators_config"]["verifier"] == verifier
    layer = config["transformer_layer_config"]
    assert (layer["model_type"], layer["num_hidden_layers"], layer["vocab_size"]) == ("llama", 1, models.VOCAB)
    assert layer["rope_theta"] == layer["rope_parameters"]["rope_theta"] == (50.0 if variant == "biased" else 10000.0)
    assert config["eagle_aux_hidden_state_layer_ids"] == sorted(drafter.settings.feature_layers)
    assert config["draft_vocab_size"] == (20 if variant == "eagle3.1" else models.VOCAB)

    assert weights.keys() == KEYS | MORE.get(variant, set())
    assert weights["embed_tokens.weight"].equal(drafter.target.model.get_input_embeddings().weight)
    if variant == "eagle3.1":
        assert (torch.arange(20) + weights["d2t"]).equal(FEW) and weights["t2d"].nonzero()[:, 0].equal(FEW)
    if variant == "biased":
        assert not weights["layers.0.self_attn.o_proj.bias"].any()
    if "feature_layers" in VARIANTS[variant]:  # the columns go where their layers went
        columns = dict(zip(drafter.settings.feature_layers, drafter.fc.weight.chunk(3, dim=1), strict=True))
        assert weights["fc.weight"].equal(torch.cat([columns[layer] for layer in range(3)], dim=1))


@pytest.mark.parametrize("name", ["llava", "qwen_vl"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_what_is_read_again_drafts_the_same(name, variant, tmp_path):
    drafter, lesson = drafter_of(name, variant), heads.lesson_of(name)
    mmspec.export_speculators(drafter, tmp_path, "owner/target")
    loaded = mmspec.load_drafter(str(tmp_path), drafter.target)
    assert type(loaded) is Eagle3Drafter and loaded.settings.feature_layers == sorted(drafter.settings.feature_layers)
    ours, theirs = (heads.guesses_of(one, lesson, 3) for one in (drafter, loaded))
    assert ours.keys() == theirs.keys() and len(ours) > 50
    assert all(heads.error(logits, theirs[key]) < heads.TOLERANCE for key, logits in ours.items())
    mmspec.export_speculators(loaded, tmp_path / "again", "owner/target")
    first, second = (load_file(folder / "model.safetensors") for folder in (tmp_path, tmp_path / "again"))
    assert first.keys() == second.keys() and all(tensor.equal(second[key]) for key, tensor in first.items())


def test_a_bias_that_says_something_is_not_dropped(tmp_path):
    mmspec.export_speculators(drafter_of("llava", "biased"), tmp_path, "owner/target")
    weights = load_file(tmp_path / "model.safetensors")
    weights["layers.0.self_attn.o_proj.bias"][0] = 1.0
    save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(MMSpecError, match=r"unexpected keys \['layers.0.self_attn.o_proj.bias'\]"):
        mmspec.load_drafter(str(tmp_path), target_of("llava", "sdpa"))


def test_positions_of_several_axes_and_an_embedding_of_its_own_are_handed_on(tmp_path):
    sections = {"rope_theta": 50.0, "mrope_section": [1, 1, 2]}
    target = target_of("qwen_vl", "sdpa")
    for rope in ("mrope", "1d"):
        drafter = Eagle3Drafter(target, head={"rope_parameters": sections}, rope=rope, own_embedding=models.VOCAB + 3)
        models.redraw(drafter, seed=5)
        mmspec.export_speculators(drafter, tmp_path, "owner/target")
        config, weights = json.loads((tmp_path / "config.json").read_text()), load_file(tmp_path / "model.safetensors")
        found = config["transformer_layer_config"]["rope_parameters"].get("mrope_section")
        assert found == ([1, 1, 2] if rope == "mrope" else None)
        assert weights["embed_tokens.weight"].equal(drafter.embed_tokens.weight[: models.VOCAB])
        assert mmspec.load_drafter(str(tmp_path), target).settings.rope == rope


def test_an_embedding_with_a_factor_is_written_as_it_is_read(tmp_path):
    """Gemma multiplies its embeddings; a plain table has to hold the products."""
    drafter = Eagle3Drafter(target_of("gemma3", "sdpa"), head={"hidden_act": "silu"})
    mmspec.export_speculators(drafter, tmp_path, "owner/target")
    table, tokens = load_file(tmp_path / "model.safetensors")["embed_tokens.weight"], torch.tensor([[3, 5]])
    assert table[tokens].equal(drafter.token_embeds(tokens))
    assert not table.equal(drafter.target.model.get_input_embeddings().weight)


def test_what_cannot_be_expressed_is_refused(tmp_path):
    target = target_of("llava", "sdpa")
    for drafter, reason in (
        (EagleDrafter(target), "EagleDrafter has no counterpart"),
        (Eagle3Drafter(target, visual=True), "reads visual embeddings"),
        (Eagle3Drafter(target, attention_scope="text"), "attends to text alone"),
        (Eagle3Drafter(target, feature_layers=[0, 1, 1]), r"feature_layers=\[0, 1, 1\], one of them twice"),
        (Eagle3Drafter(target, head={"hidden_act": "gelu"}), "hidden_act='gelu'"),
        (
            Eagle3Drafter(target, compressor=compressor_of(compressor("pool.Pool", size=2)["compressor"])),
            "sees pictures through Pool",
        ),
    ):
        with pytest.raises(MMSpecError, match=reason):
            mmspec.export_speculators(drafter, tmp_path / "out", "owner/target")
    with pytest.raises(MMSpecError, match="pass verifier_name"):
        mmspec.export_speculators(Eagle3Drafter(target), tmp_path / "out")
    for wrong in (0, 2.5, True):
        with pytest.raises(MMSpecError, match="speculative_tokens="):
            mmspec.export_speculators(Eagle3Drafter(target), tmp_path / "out", "owner/target", speculative_tokens=wrong)
    assert not (tmp_path / "out").exists(), "nothing is half written"


def test_the_command_exports_the_embedded_drafter(tmp_path, capsys):
    assert main(["export", f"output={tmp_path}", "verifier_name=owner/tiny", "speculative_tokens=3"]) == 0
    assert str(tmp_path) in capsys.readouterr().out
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["speculators_config"]["verifier"]["name_or_path"] == "owner/tiny"
    assert config["speculators_config"]["proposal_methods"][0]["speculative_tokens"] == 3
    assert config["eagle_aux_hidden_state_layer_ids"] == [2, 8, 13]
    assert main(["export", "drafter=eagle", f"output={tmp_path}"]) == 2
    assert "EagleDrafter has no counterpart" in capsys.readouterr().err
    assert main(["export", "drafter=none", f"output={tmp_path}"]) == 2
    assert "drafter=none" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["llava", "qwen_vl", "llama"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_the_library_itself_drafts_the_same(name, variant, tmp_path):
    """Its class, from its `from_pretrained`, on the states of the target: the logits of three steps of every chain."""
    speculators = pytest.importorskip("speculators")
    drafter, lesson, steps = drafter_of(name, variant), heads.lesson_of(name), 3
    verifier = tmp_path / "verifier"
    drafter.target.model.save_pretrained(verifier)
    mmspec.export_speculators(drafter, tmp_path / "export", str(verifier))
    theirs = speculators.SpeculatorModel.from_pretrained(str(tmp_path / "export")).eval()
    theirs.config.transformer_layer_config._attn_implementation = theirs._attn_impl = "eager"
    theirs._create_mask_fn = pytest.importorskip("speculators.models.attention").create_float_mask
    for layer in theirs.layers:
        layer.self_attn.config._attn_implementation = "eager"
    heard = []
    theirs.lm_head.register_forward_hook(lambda _, args, output: heard.append(output[0].detach()))
    ours = heads.guesses_of(drafter, lesson, steps)
    assert len(ours) > 50
    for row, ids in enumerate(lesson.request.token_ids()):
        states = heads.full_pass(name, row)[0]
        joined = torch.cat([states[layer] for layer in sorted(drafter.settings.feature_layers)], dim=-1)
        heard.clear()
        with torch.no_grad():
            theirs(
                hidden_states=joined[None, :-1],
                input_ids=torch.tensor([ids[1:]]),
                document_ids=torch.zeros(1, len(ids) - 1, dtype=torch.long),
                ttt_steps=steps,
            )
        first = lesson.prompt.lengths[row] - 1
        for (at, root, step), logits in ours.items():
            if at == row:
                assert heads.error(logits, heard[step][first + root]) < heads.TOLERANCE, (row, root, step)
