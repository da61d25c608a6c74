"""Exports of block drafters to speculators: what is written, read again, and refused."""

from __future__ import annotations

import json

import heads
import models
import pytest
import torch
from blocks import drafter_like
from heads import FEW, compressor
from safetensors.torch import load_file, save_file
from tiny_requests import RAGGED, case, target_of

import mmspec
from mmspec import MMSpecError
from mmspec.cli import main
from mmspec.compressors.base import compressor_of
from mmspec.drafters import BlockDrafter, DFlashDrafter, DFlyDrafter, DSparkDrafter

VARIANTS: dict[str, tuple[type[BlockDrafter], dict]] = {
    "dflash": (DFlashDrafter, {"mask_token_id": 3, "block_size": 5}),
    "dflash, vector": (DFlashDrafter, {"block_size": 4, "feature_layers": [2, 0, 1]}),
    "dflash, shifted": (DFlashDrafter, {"layout": "shifted", "mask_token_id": 3, "block_size": 4}),
    "dflash, windows": (
        DFlashDrafter,
        {"windows": [6, None], "mask_token_id": 3, "block_size": 5, "draft_vocab_size": len(FEW), "logit_scale": 0.5}
        | {"embedding_scale": 2.0, "head": {"attention_bias": True, "num_key_value_heads": 1}},
    ),
    "dflash, open windows": (
        DFlashDrafter,
        {"windows": [5, 5], "causal_windows": False, "mask_token_id": 3, "block_size": 4, "own_head": True},
    ),
    "dspark": (DSparkDrafter, {"mask_token_id": 3, "block_size": 4, "markov_rank": 6}),
    "dspark, vector": (
        DSparkDrafter,
        {"markov_rank": 4, "markov": "gated", "layout": "same", "block_size": 5, "draft_vocab_size": len(FEW)}
        | {"confidence_markov": False},
    ),
    "dspark, rnn": (
        DSparkDrafter,
        {"markov_rank": 4, "markov": "rnn", "block_size": 4, "mask_token_id": 7, "confidence": False},
    ),
}
LAYER = {f"self_attn.{part}.weight" for part in ("q_proj", "k_proj", "v_proj", "o_proj", "q_norm", "k_norm")} | {
    *(f"mlp.{part}_proj.weight" for part in ("gate", "up", "down")),
    *(f"{part}.weight" for part in ("input_layernorm", "post_attention_layernorm")),
}
KEYS = {f"layers.{i}.{name}" for i in range(2) for name in LAYER} | {"fc.weight", "hidden_norm.weight", "norm.weight"}
TABLES, MARKOV = {"d2t", "t2d", "lm_head.weight"}, {f"markov_head.markov_w{i}.weight" for i in (1, 2)}
SURE = {f"confidence_head.proj.{part}" for part in ("weight", "bias")}
MORE = {
    "dflash": set(),
    "dflash, vector": {"embed_tokens.weight"},
    "dflash, shifted": MARKOV,
    "dflash, windows": TABLES
    | {"embed_tokens.weight"}
    | {f"layers.{i}.self_attn.{part}_proj.bias" for i in range(2) for part in "qkvo"},
    "dflash, open windows": {"lm_head.weight"},
    "dspark": MARKOV | SURE,
    "dspark, vector": MARKOV
    | SURE
    | TABLES
    | {"embed_tokens.weight", *(f"markov_head.gate_proj.{part}" for part in ("weight", "bias"))},
    "dspark, rnn": MARKOV | {f"markov_head.joint_proj.{part}" for part in ("weight", "bias")},
}


def drafter_of(name: str, variant: str, **changes) -> BlockDrafter:
    cls, settings = VARIANTS[variant]
    return drafter_like(cls, target_of(name, "sdpa"), settings | changes).eval()


@pytest.mark.parametrize("variant", VARIANTS)
def test_what_is_written(variant, tmp_path):
    drafter = drafter_of("llava", variant)
    settings = drafter.settings
    mmspec.export_speculators(drafter, tmp_path, "owner/target")
    config, weights = json.loads((tmp_path / "config.json").read_text()), load_file(tmp_path / "model.safetensors")
    kind = "dspark" if "dspark" in variant or settings.layout == "shifted" else "dflash"
    assert config["speculators_model_type"] == config["speculators_config"]["algorithm"] == kind
    assert config["architectures"] == [{"dspark": "DSparkSpeculator", "dflash": "DFlashSpeculator"}[kind]]
    assert config["speculators_config"]["proposal_methods"][0]["speculative_tokens"] == settings.drafts
    assert (config["block_size"], config["sample_from_anchor"]) == (settings.block_size, settings.layout == "shifted")
    assert config["aux_hidden_state_layer_ids"] == sorted(drafter.taps)
    assert config["mask_token_id"] == (settings.mask_token_id or models.IMAGE)
    layer = config["transformer_layer_config"]
    assert (layer["model_type"], layer["num_hidden_layers"], layer["vocab_size"]) == ("qwen3", 2, models.VOCAB)
    windows = settings.windows or [None, None]
    assert layer["layer_types"] == ["full_attention" if w is None else "sliding_attention" for w in windows]
    assert layer.get("sliding_window") == next(filter(None, windows), None)
    assert config["sliding_window_non_causal"] is (variant != "dflash, windows")
    assert weights.keys() == KEYS | MORE[variant]
    if kind == "dspark":
        said = [config[name] for name in ("markov_head_type", "markov_rank", "enable_confidence_head")]
        if "dspark" in variant:
            assert said == [settings.markov, settings.markov_rank, settings.confidence]
        else:
            assert said == ["vanilla", 1, False] and not any(weights[name].any() for name in MARKOV)
    if drafter.mask_embedding is not None:
        rows, table = weights["embed_tokens.weight"], drafter.target.model.get_input_embeddings().weight
        assert rows[models.IMAGE].equal(drafter.mask_embedding)
        others = torch.arange(models.VOCAB) != models.IMAGE
        assert rows[others].equal(table[others]) and not rows.equal(table)


@pytest.mark.parametrize("name", ["llava", "qwen_vl"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_what_is_read_again_drafts_the_same(name, variant, tmp_path):
    drafter, lesson = drafter_of(name, variant), heads.lesson_of(name)
    mmspec.export_speculators(drafter, tmp_path, "owner/target")
    loaded = mmspec.load_drafter(str(tmp_path), drafter.target)
    steps = drafter.settings.drafts
    ours, theirs = (heads.guesses_of(one, lesson, steps) for one in (drafter, loaded))
    assert ours.keys() == theirs.keys() and len(ours) > 50
    mask = loaded.settings.mask_token_id
    barred = torch.ones(models.VOCAB, dtype=torch.bool).index_fill(0, torch.tensor(mask), False)
    if drafter.draft_vocab_size:
        barred = barred[FEW]
    for key, logits in ours.items():
        assert heads.error(logits[barred], theirs[key][barred]) < heads.TOLERANCE
    if drafter.mask_embedding is not None and name == "llava":  # its row was a token's, which is never proposed
        assert all(theirs[key][~barred].isneginf().all() for key in theirs)
    mmspec.export_speculators(loaded, tmp_path / "again", "owner/target")
    first, second = (load_file(folder / "model.safetensors") for folder in (tmp_path, tmp_path / "again"))
    assert first.keys() == second.keys() and all(tensor.equal(second[key]) for key, tensor in first.items())


@pytest.mark.parametrize("variant", ["dflash, shifted", "dspark", "dflash, vector"])
def test_ids_are_the_targets_own_and_both_draft_alike(variant, tmp_path):
    """Where the mask was a vector, its token is no longer proposed, which of random weights it may have been."""
    drafter = drafter_of("llava", variant)
    mmspec.export_speculators(drafter, tmp_path, "owner/target")
    loaded, (inputs, expected) = mmspec.load_drafter(str(tmp_path), drafter.target), case("llava", "sdpa", *RAGGED, 12)
    options = {"inputs": inputs, "max_new_tokens": 12, "trace": True}
    for temperature in (0, 1) if drafter.mask_embedding is None else (0,):
        ours, theirs = (
            mmspec.generate(drafter.target, one, temperature=temperature, seed=3, **options)
            for one in (drafter, loaded)
        )
        assert ours.token_ids == theirs.token_ids and (temperature or ours.token_ids == expected)
        drafts = [[[node.token for node in row.nodes] for row in out.trace] for out in (ours, theirs)]
        assert drafts[0] == drafts[1] or drafter.mask_embedding is not None


def test_the_token_of_a_vector_can_be_chosen(tmp_path):
    drafter, text = drafter_of("llava", "dflash, vector"), drafter_of("llama", "dflash, vector")
    mmspec.export_speculators(drafter, tmp_path, "owner/target", mask_token_id=5)
    assert json.loads((tmp_path / "config.json").read_text())["mask_token_id"] == 5
    assert load_file(tmp_path / "model.safetensors")["embed_tokens.weight"][5].equal(drafter.mask_embedding)
    with pytest.raises(MMSpecError, match="all tokens of the target are text: pass mask_token_id"):
        mmspec.export_speculators(text, tmp_path / "out", "owner/target")
    for wrong in (models.VOCAB, -1, 2.5):
        with pytest.raises(MMSpecError, match=f"mask_token_id={wrong} is none of the target's"):
            mmspec.export_speculators(drafter, tmp_path / "out", "owner/target", mask_token_id=wrong)
    with pytest.raises(MMSpecError, match="mask_token_id=5 is not the token that stands in .* empty slots, 3"):
        mmspec.export_speculators(drafter_of("llava", "dflash"), tmp_path / "out", "owner/target", mask_token_id=5)


REFUSED = [
    (DFlashDrafter, {"causal": True}, "is causal"),
    (DFlashDrafter, {"qk_norm": False}, "has no norms of queries and keys"),
    (DFlashDrafter, {"norms_turned": True}, "norms queries and keys once they are turned"),
    (DFlashDrafter, {"conv_kernel": 2, "conv_group": 8}, "has convolutions .conv_kernel=2."),
    (DFlashDrafter, {"selector_rank": 4}, "chooses among candidates .selector_rank=4, DFlash 2."),
    (DFlashDrafter, {"fusion": "mix"}, "with fusion='mix'"),
    (DFlashDrafter, {"context_maps": True}, "context_maps=True"),
    (DFlashDrafter, {"logit_cap": 3.0}, "caps its logits at 3.0"),
    (DFlashDrafter, {"windows": [4, 5]}, r"windows of several lengths, \[4, 5\]"),
    (DFlashDrafter, {"feature_layers": [1, -1]}, "the state after the final norm"),
    (DFlashDrafter, {"feature_layers": [1, 1]}, r"feature_layers=\[1, 1\], one of them twice"),
    (DFlashDrafter, {"head": {"hidden_act": "gelu"}}, "hidden_act='gelu'"),
    (DSparkDrafter, compressor("pool.Pool", size=2), "sees pictures through Pool"),
    (DFlyDrafter, {}, "DFlyDrafter has no counterpart .* Eagle3Drafter, DFlashDrafter and DSparkDrafter can be"),
]


@pytest.mark.parametrize(("cls", "settings", "reason"), REFUSED)
def test_what_cannot_be_expressed_is_refused(cls, settings, reason, tmp_path):
    settings = {**settings, "compressor": compressor_of(settings.get("compressor"))}
    drafter = cls(target_of("llava", "sdpa"), mask_token_id=3, **settings)
    with pytest.raises(MMSpecError, match=reason) as caught:
        mmspec.export_speculators(drafter, tmp_path / "out", "owner/target")
    assert "\n" not in str(caught.value) and not (tmp_path / "out").exists()


def test_positions_of_several_axes_and_another_length_are_refused(tmp_path):
    head = {"rope_parameters": {"rope_theta": 50.0, "mrope_section": [1, 1, 2]}}
    drafter = DFlashDrafter(target_of("qwen_vl", "sdpa"), mask_token_id=3, rope="mrope", head=head)
    with pytest.raises(MMSpecError, match="rope='mrope'"):
        mmspec.export_speculators(drafter, tmp_path / "out", "owner/target")
    with pytest.raises(MMSpecError, match="speculative_tokens=3 is not what a block of this DFlashDrafter guesses, 4"):
        mmspec.export_speculators(drafter_of("llava", "dflash"), tmp_path / "out", "owner/target", 3)


def test_a_bias_that_says_something_is_not_dropped(tmp_path):
    mmspec.export_speculators(drafter_of("llava", "dflash, windows"), tmp_path, "owner/target")
    weights = load_file(tmp_path / "model.safetensors")
    weights["layers.1.self_attn.o_proj.bias"][0] = 1.0
    save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(MMSpecError, match=r"unexpected keys \['layers.1.self_attn.o_proj.bias'\]"):
        mmspec.load_drafter(str(tmp_path), target_of("llava", "sdpa"))


@pytest.mark.parametrize("name", ["dflash", "dspark"])
def test_the_command_exports_the_embedded_ones(name, tmp_path, capsys):
    """Both guess a token in the anchor's slot too, which of plain DFlash a DSpark without correction does."""
    assert main(["export", f"drafter={name}", f"output={tmp_path}", "verifier_name=owner/tiny"]) == 0
    config, weights = json.loads((tmp_path / "config.json").read_text()), load_file(tmp_path / "model.safetensors")
    assert (config["speculators_model_type"], config["sample_from_anchor"]) == ("dspark", True)
    assert str(tmp_path) in capsys.readouterr().out
    assert "embed_tokens.weight" in weights and weights["markov_head.markov_w2.weight"].any() == (name == "dspark")


@pytest.mark.parametrize("name", ["llava", "qwen_vl", "llama"])
@pytest.mark.parametrize("variant", [variant for variant in VARIANTS if "windows" not in variant])
def test_the_library_itself_drafts_the_same(name, variant, tmp_path):
    """Its class on the states of the target: the logits of all slots of every block. With windows its mask for training
    is another than that of servers. Where the table is the drafter's own, the verifier is hidden from it."""
    speculators = pytest.importorskip("speculators")
    drafter, lesson = drafter_of(name, variant), heads.lesson_of(name)
    drafter.target.model.save_pretrained(tmp_path / "verifier")
    mmspec.export_speculators(
        drafter, tmp_path, str(tmp_path / "verifier"), mask_token_id=drafter.settings.mask_token_id or 0
    )
    config = speculators.SpeculatorModelConfig.from_pretrained(str(tmp_path))
    config.transformer_layer_config._attn_implementation = "eager"
    if drafter.mask_embedding is not None:
        config.speculators_config.verifier.name_or_path = None
    theirs = speculators.SpeculatorModel.from_pretrained(str(tmp_path), config=config).eval()
    if drafter.mask_embedding is not None and not drafter.draft_vocab_size:
        theirs.lm_head.load_state_dict({"weight": drafter.target.family.head_rows()[0].detach()})
    ours, size = heads.guesses_of(drafter, lesson, drafter.settings.drafts), drafter.settings.block_size
    assert len(ours) > 50
    for row, ids in enumerate(lesson.request.token_ids()):
        anchors = torch.arange(lesson.prompt.lengths[row], len(ids))
        states = heads.full_pass(name, row)[0]
        joined = torch.cat([states[layer] for layer in sorted(drafter.taps)], dim=-1)[None]
        padded = torch.tensor([ids + [1] * (size + 1)])  # it draws no anchors near the end
        joined = torch.nn.functional.pad(joined, (0, 0, 0, padded.shape[1] - joined.shape[1]))
        wanted = torch.zeros_like(padded).index_fill(1, anchors, 1)
        last = torch.zeros(1, padded.shape[1], theirs.hidden_size)
        with torch.no_grad():
            hidden, logits, _, _, places = theirs._backbone_forward(
                joined, padded, wanted, last, torch.zeros_like(padded), max_anchors=len(anchors)
            )
            hidden, logits = (part.view(len(anchors), size, -1) for part in (hidden, logits))
            if getattr(theirs, "markov_head", None) is not None:
                tokens = padded[0, places].view(len(anchors), size)
                above = tokens if config.sample_from_anchor else torch.cat([tokens[:, :1], tokens[:, :-1]], dim=1)
                logits = logits + theirs.markov_head.block_bias(prev_token_ids=above, hidden_states=hidden)
        for (at, root, step), guess in ours.items():
            if at == row:
                real, found = guess.isfinite(), logits[root, drafter.settings.first_slot + step]
                assert heads.error(guess[real], found[real]) < heads.TOLERANCE, (row, root, step)
