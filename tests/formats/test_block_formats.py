"""Published block drafters: one drafter, written in every dialect, guesses what a straight-line formulation does."""

from __future__ import annotations

import json

import models
import pytest
import torch
from blocks import drafter_like, reference_at, taps_of
from heads import FEW, TOLERANCE, error, guesses_of, lesson_of
from safetensors.torch import load_file, save_file
from tiny_requests import RAGGED, case, target_of

import mmspec
from mmspec import MMSpecError
from mmspec.drafters import DFlashDrafter, DFlyDrafter, DominoDrafter, DSparkDrafter, LiLiCorrDrafter

RAW = {"logit_scale": 1.0, "logit_cap": 0.0, "mask_token_id": 3, "feature_layers": [1, 2]}
THETA = {"rope_type": "default", "rope_theta": 500.0}
LAYER = {"rope_theta": 500.0, "head_dim": 8, "rms_norm_eps": 1e-6, "hidden_act": "silu", "vocab_size": models.VOCAB}
TAPS = {"target_layer_ids": [0, 1], "mask_token_id": 3}


def renamed(weights: dict, names: dict) -> dict:
    """Keys with other beginnings."""
    return {
        next((new + k[len(old) :] for old, new in names.items() if k.startswith(old)), k): t for k, t in weights.items()
    }


def neighbours(weights: dict) -> dict:
    """Queries and keys in the order in which neighbours turn against each other."""
    order = torch.tensor([0, 4, 1, 5, 2, 6, 3, 7])
    turned = [k for k in weights if any(part in k for part in ("q_proj", "k_proj", "q_norm", "k_norm"))]
    return weights | {
        k: weights[k].view(-1, 8, *weights[k].shape[1:])[:, order].reshape(weights[k].shape) for k in turned
    }


def copies(weights: dict, model) -> dict:
    """With the frozen tables of the target beside them."""
    tables = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    return weights | {
        f"{k}.weight": t.detach().clone() for k, t in zip(("embed_tokens", "lm_head"), tables, strict=True)
    }


# The class and settings of a drafter; its configuration in a dialect, and what becomes of its weights there.
DIALECTS = {
    "z-lab": (
        DFlashDrafter,
        {"block_size": 5},
        {"architectures": ["DFlashDraftModel"], "block_size": 5, "dflash_config": TAPS},
        lambda weights, model: weights,
    ),
    "z-lab, newer": (
        DFlashDrafter,
        {"block_size": 6, "windows": [6, None], "logit_scale": 0.5, "logit_cap": 4.0, "embedding_scale": 2.0},
        {"architectures": ["DFlashDraftModel"], "layer_types": ["sliding_attention", "full_attention"]}
        | {"sliding_window": 6}
        | {
            "dflash_config": TAPS
            | {"block_size": 6, "output_multiplier": 0.5, "final_logit_softcapping": 4.0, "input_embedding_scale": 2.0}
        },
        lambda weights, model: {f"model.{k}": t for k, t in weights.items()},
    ),
    "HunyuanOCR": (
        DFlashDrafter,
        {"block_size": 5, "norms_turned": True},
        {"architectures": ["DFlashDraftModel"], "block_size": 5, "dflash_config": TAPS, "norms_turned": True},
        lambda weights, model: weights,
    ),
    "jetspec": (
        DFlashDrafter,
        {"block_size": 4, "causal": True, "feature_layers": [0, -1]},
        {"architectures": ["DFlashDraftModel"], "block_size": 4}
        | {"dflash_config": TAPS | {"causal_head": True, "target_layer_ids": [-1, 2]}},
        lambda weights, model: weights,
    ),
    "z-lab, DFlash 2": (
        DFlashDrafter,
        {"block_size": 4, "conv_kernel": 2, "conv_group": 8, "selector_rank": 5, "selector_top_k": 6},
        {"architectures": ["DFlash2DraftModel"]}
        | {
            "dflash_config": TAPS
            | {"block_size": 4, "conv_kernel_size": 2, "conv_group_size": 8, "selector_rank": 5, "selector_top_k": 6}
        },
        lambda weights, model: renamed(
            weights,
            {
                f"candidate_selector.{book}.weight": f"candidate_selector.{book}"
                for book in ("predecessor_codebook", "successor_codebook")
            },
        ),
    ),
    "DeepSpec": (
        DSparkDrafter,
        {"block_size": 4, "markov": "gated", "markov_rank": 5},
        {"architectures": ["Qwen3DSparkModel"], "block_size": 4, "markov_rank": 5, "markov_head_type": "gated"}
        | {"enable_confidence_head": True, "confidence_head_with_markov": True}
        | TAPS,
        copies,
    ),
    "DeepSpec, DFlash": (
        DFlashDrafter,
        {"block_size": 4, "layout": "shifted"},
        {"architectures": ["Qwen3DSparkModel"], "block_size": 4, "markov_rank": 0} | TAPS,
        copies,
    ),
    "speculators": (
        DSparkDrafter,
        {"block_size": 4, "markov": "rnn", "markov_rank": 3, "confidence": False, "own_head": True}
        | {"draft_vocab_size": len(FEW), "layout": "same"},
        {"architectures": ["DSparkSpeculator"], "speculators_model_type": "dspark", "block_size": 4}
        | {"sample_from_anchor": False, "aux_hidden_state_layer_ids": [1, 2, 3], "mask_token_id": 3}
        | {"draft_vocab_size": len(FEW), "transformer_layer_config": LAYER},
        lambda weights, model: weights | {"embed_tokens.weight": model.get_input_embeddings().weight.detach().clone()},
    ),
    "SpecForge, DSpark": (
        DSparkDrafter,
        {"block_size": 5, "markov_rank": 4, "confidence_markov": False},
        {"architectures": ["DFlashDraftModel"]}
        | {
            "dflash_config": TAPS
            | {"block_size": 5, "projector_type": "dspark", "markov_rank": 4, "confidence_head_with_markov": False}
        },
        lambda weights, model: weights,
    ),
    "SpecForge, Domino": (
        DominoDrafter,
        {"block_size": 5, "gru_hidden": 6, "rank": 4, "uncorrected": 1},
        {"architectures": ["DFlashDraftModel"]}
        | {
            "dflash_config": TAPS
            | {"block_size": 5, "projector_type": "domino", "emb_dim": 4, "gru_hidden_dim": 6, "shift_label": True}
        },
        lambda weights, model: renamed(weights, {"recurrent.": ""}),
    ),
    "AngelSpec": (
        DFlyDrafter,
        {"block_size": 5, "correction_size": 7},
        {"architectures": ["Qwen3DFlyModel"], "block_size": 5} | TAPS,
        lambda weights, model: renamed(
            weights, {"fc.": "context_proj.", "hidden_norm.": "context_norm.", "norm.": "final_norm."}
        ),
    ),
    "ModelOpt, LiLiCorr": (
        LiLiCorrDrafter,
        {"block_size": 5, "candidates": 6, "lattice_layers": 2, "lattice_size": 12, "lattice_heads": 3}
        | {"lattice_ratio": 1.5, "factor_size": 5, "score_scale": 3.0, "vector_eps": 1e-3, "windows": [4, None]},
        {"architectures": ["LiLiCorrDraftModel"], "layer_types": ["sliding_attention", "full_attention"]}
        | {"sliding_window": 4, "block_size": 5}
        | {
            "dflash_config": TAPS
            | {"lilicorr_candidate_topk": 6, "lilicorr_num_heads": 3, "lilicorr_logit_scale": 3.0}
            | {"lilicorr_vector_eps": 1e-3, "lilicorr_hidden_size": 12, "lilicorr_mlp_ratio": 1.5}
        },
        lambda weights, model: weights,
    ),
    "neighbours turn": (
        DSparkDrafter,
        {"block_size": 4, "markov_rank": 4},
        {"architectures": ["Qwen3DSparkModel"], "block_size": 4, "rope_is_neox_style": False} | TAPS,
        lambda weights, model: neighbours(weights),
    ),
}


def written(folder, dialect: str, name: str = "llava", without: tuple = (), **changes):
    """A drafter and its folder in a dialect."""
    cls, settings, config, write = DIALECTS[dialect]
    target = target_of(name, "sdpa")
    drafter = drafter_like(cls, target, RAW | {"head": {"rope_parameters": THETA}} | settings)
    folder.mkdir(exist_ok=True)
    config = json.loads(json.dumps((LAYER if "transformer_layer_config" not in config else {}) | config)) | changes
    for part in (config, config.get("dflash_config", {})):
        for key in without:
            part.pop(key, None)
    (folder / "config.json").write_text(json.dumps(config))
    weights = write({k: t.detach().clone() for k, t in drafter.state_dict().items()}, target.model)
    save_file({k: t.contiguous() for k, t in weights.items()}, folder / "model.safetensors")
    return drafter, str(folder), target


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("name", ["llava", "qwen_vl"])
def test_every_dialect_is_what_its_authors_compute(dialect, name, tmp_path):
    source, folder, target = written(tmp_path, dialect, name)
    loaded, lesson = mmspec.load_drafter(folder, target), lesson_of(name)
    assert type(loaded) is type(source) and not loaded.training
    ours = guesses_of(loaded, lesson, 3)
    for row, root in ((0, 0), (0, 4), (2, 6), (3, 3)):
        chain = lesson.answers[row][root + 1 :][:2]
        for step, logits in enumerate(reference_at(name, source, row, root, chain)):
            assert error(ours[row, root, step], logits) < TOLERANCE
    if name == "llava":
        inputs, expected = case(name, "sdpa", *RAGGED, 12)
        assert mmspec.generate(target, loaded, inputs=inputs, max_new_tokens=12).token_ids == expected


REFUSED = [
    ("z-lab", {"without": ("target_layer_ids",)}, "does not say target_layer_ids"),
    ("z-lab", {"without": ("mask_token_id",)}, "does not say mask_token_id"),
    ("z-lab", {"without": ("block_size",)}, "does not say block_size"),
    ("z-lab", {"architectures": ["OtherModel"]}, "does not say sample_from_anchor .* architectures .'OtherModel'. do"),
    ("z-lab", {"shift_label": True, "sample_from_anchor": False}, "contradict each other"),
    ("z-lab", {"mask_token_id": 4}, "says mask_token_id=4 and, in dflash_config, 3"),
    ("z-lab", {"aux_hidden_state_layer_ids": [0, 1]}, "are not the same states: the second ones must be one more"),
    ("speculators", {"aux_hidden_state_layer_ids": [1]}, "names 1 layers of the target, but its weights read 2 states"),
    ("z-lab, newer", {"without": ("sliding_window",)}, "does not say sliding_window"),
    ("z-lab, newer", {"layer_types": ["linear_attention", "full_attention"]}, "layers of type 'linear_attention'"),
    ("z-lab, newer", {"layer_types": ["full_attention"]}, "has 1 layer_types for 2 layers"),
    ("DeepSpec", {"markov_head_type": "vanilla"}, "says markov_head_type='vanilla', its keys 'gated'"),
    ("SpecForge, DSpark", {"without": ("projector_type",)}, "does not say sample_from_anchor"),
    ("neighbours turn", {"without": ("head_dim",)}, "does not say head_dim"),
    ("ModelOpt, LiLiCorr", {"without": ("lilicorr_logit_scale",)}, "does not say lilicorr_logit_scale"),
    ("ModelOpt, LiLiCorr", {"without": ("lilicorr_vector_eps",)}, "does not say lilicorr_vector_eps"),
    ("ModelOpt, LiLiCorr", {"is_causal": True}, "says is_causal=true, but LiLiCorr's blocks see both ways"),
    ("ModelOpt, LiLiCorr", {"lilicorr_candidate_topk": 4}, "says lilicorr_candidate_topk=4 and, in dflash_config, 6"),
]


@pytest.mark.parametrize(("dialect", "changes", "message"), REFUSED)
def test_what_is_not_said_is_not_guessed(dialect, changes, message, tmp_path):
    _, folder, target = written(tmp_path, dialect, **changes)
    with pytest.raises(MMSpecError, match=message) as caught:
        mmspec.load_drafter(folder, target)
    assert "\n" not in str(caught.value)


def test_a_drafter_may_lie_in_a_folder_of_its_targets_repository(tmp_path):
    """As HunyuanOCR's does, of which it is not said whether it norms queries and keys before they are turned."""
    source, _, target = written(tmp_path / "dflash", "HunyuanOCR")
    loaded = mmspec.load_drafter(str(tmp_path), target, subfolder="dflash")
    assert isinstance(loaded, DFlashDrafter) and loaded.settings.norms_turned and source.settings.norms_turned


def test_a_layout_may_be_said_against_the_architecture(tmp_path):
    _, folder, target = written(tmp_path, "z-lab", sample_from_anchor=True)
    assert mmspec.load_drafter(folder, target).settings.layout == "shifted"


# Formats with traits of their own.


def test_the_assistant_of_muse_glimmer_is_what_transformers_computes(tmp_path):
    """transformers' own class, saved by itself, on the target's states; windows by its own rule, at the true places."""
    found = pytest.importorskip(
        "transformers.models.muse_glimmer_assistant", reason="this transformers has no Muse-Glimmer"
    )
    target, lesson, window = target_of("llava", "sdpa"), lesson_of("llava"), 5
    sizes = {"hidden_size": 32, "intermediate_size": 24, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = found.MuseGlimmerAssistantConfig(
        **sizes, head_dim=8, num_hidden_layers=2, block_size=5, mask_token_id=3, target_layer_ids=[0, 1],
        sliding_window=window, layer_types=["sliding_attention", "full_attention"],
        rope_parameters={"rope_type": "default", "rope_theta": 500.0},
    )  # fmt: skip
    torch.manual_seed(0)
    theirs = models.redraw(found.MuseGlimmerAssistantModel(config), seed=4).eval()
    theirs.set_attn_implementation("eager")
    theirs.save_pretrained(tmp_path)
    loaded = mmspec.load_drafter(str(tmp_path), target)
    settings = loaded.settings
    assert type(loaded) is DFlashDrafter and (settings.windows, settings.causal_windows) == ([window + 1, None], False)
    assert (settings.layout, settings.block_size, settings.feature_layers) == ("same", 5, [1, 2])
    ours, embed = guesses_of(loaded, lesson, 4), target.model.get_input_embeddings()
    for row, root in ((0, 0), (0, 4), (2, 6), (3, 3)):
        taps, _, anchor, place = taps_of("llava", loaded, row, root)
        inputs = embed(torch.tensor([[anchor, 3, 3, 3, 3]])).detach()
        places = torch.arange(place + 5)
        near = (places[place:, None] - places).abs() <= window
        masks = {"full_attention": None, "sliding_attention": torch.zeros(near.shape).masked_fill(~near, -torch.inf)}
        with torch.no_grad():
            states = theirs(noise_embeds=inputs, context_hidden_states=taps[None], attention_mask=masks)
            logits = target.model.get_output_embeddings()(states.last_hidden_state)[0]
        logits[:, 3] = -torch.inf
        for step in range(4):
            assert error(ours[row, root, step], logits[1 + step]) < TOLERANCE
    inputs, expected = case("llava", "sdpa", *RAGGED, 12)
    assert mmspec.generate(target, loaded, inputs=inputs, max_new_tokens=12).token_ids == expected


@pytest.mark.parametrize(
    ("key", "said"),
    [
        ("layers.0.self_attn.qkv_proj.weight", "has queries, keys and values from one projection, for which"),
        ("layers.1.self_attn.g_proj.weight", "has a gate on the attention, for which"),
        ("aux_hidden_norms.0.weight", "has a norm for every state that is read, for which"),
    ],
)
def test_parts_that_no_drafter_has_are_refused(key, said, tmp_path):
    _, folder, target = written(tmp_path, "z-lab")
    weights = load_file(tmp_path / "model.safetensors")
    save_file(weights | {key: torch.ones(4)}, tmp_path / "model.safetensors")
    with pytest.raises(MMSpecError, match=said) as caught:
        mmspec.load_drafter(folder, target)
    assert "\n" not in str(caught.value)


def test_a_mask_is_read_from_the_weights_and_not_unpickled(tmp_path):
    _, folder, target = written(tmp_path, "z-lab")
    (tmp_path / "mask_embedding.pt").write_bytes(b"never opened")
    with pytest.raises(MMSpecError, match="mask_embedding.pt, a pickle, which is not opened: put it into") as caught:
        mmspec.load_drafter(folder, target)
    assert "\n" not in str(caught.value)
    weights, vector = load_file(tmp_path / "model.safetensors"), torch.randn(32)
    save_file(weights | {"mask_embedding": vector}, tmp_path / "model.safetensors")
    loaded, lesson = mmspec.load_drafter(folder, target), lesson_of("llava")
    assert loaded.settings.mask_token_id is None and loaded.mask_embedding.equal(vector)
    ours = guesses_of(loaded, lesson, 3)
    chain = lesson.answers[0][5:][:2]
    for step, logits in enumerate(reference_at("llava", loaded, 0, 4, chain)):
        assert error(ours[0, 4, step], logits) < TOLERANCE
