"""Block drafters: DFlash and its kin, as z-lab, DeepSpec, speculators, SpecForge, AngelSpec and transformers save
them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..drafters import (
    BlockDrafter,
    DFlashDrafter,
    DFlyDrafter,
    DominoDrafter,
    DSparkDrafter,
    LiLiCorrDrafter,
)
from ..errors import MMSpecError, shown
from ..models.states import LAST
from ..target import Target
from .assembly import assemble
from .base import Format, Shapes
from .checkpoint import Checkpoint
from .deepstack import SETTING, reads_before
from .eagle3 import HEAD, idle_bias, vocabulary_of
from .embedding import alike
from .head import FUSED_NORMS

MARKOV, SELECTOR, GRU, CORRECTION = "markov_head.", "candidate_selector.", "prefix_gru.", "hidden_correction."
"""Prefixes of the keys of what corrects a block."""

LATTICE = "lilicorr."
"""Prefix of the keys of LiLiCorr's head."""

SAME, SHIFTED = "same", "shifted"

ANCHOR_FIRST = ("sample_from_anchor", "query_zero_predicts_next", "shift_label")
"""Names of the switch that is true where a slot speaks of the token behind it."""

LAYOUTS = {
    "DFlashDraftModel": SAME,
    "DFlash2DraftModel": SAME,
    "LiLiCorrDraftModel": SAME,
    "DFlashSpeculator": SAME,
    "Qwen3DFlyModel": SAME,
    "DSparkSpeculator": SHIFTED,
    "Qwen3DSparkModel": SHIFTED,
    "Gemma4DSparkModel": SHIFTED,
    "MuseGlimmerAssistantModel": SAME,
}
"""Layouts of the architectures that have one without saying so."""


NAMES: dict[str, dict[str, str]] = {
    FUSED_NORMS[0]: {},
    FUSED_NORMS[1]: {"hidden_norm.": "context_norm.", "norm.": "final_norm.", "fc.": "context_proj."},
    FUSED_NORMS[2]: {"hidden_norm.": "encoder.output_norm_enc.", "fc.": "encoder.fc."},
}
"""Prefixes of names with those of the keys, by the norm of the fused states that a checkpoint has."""

FUSIONS = ("fc.weight", "context_proj.weight", "encoder.fc.weight")
"""Keys of the map that fuses the target's states."""

MASK, PICKLED_MASK = "mask_embedding", "mask_embedding.pt"
"""Key of the vector that stands in empty slots, of drafters that have one in place of a token; MiMo's file with it."""

OTHERS = {
    ".qkv_proj.": "queries, keys and values from one projection",
    ".g_proj.": "a gate on the attention",
    "aux_hidden_norms.": "a norm for every state that is read",
}
"""Parts of keys that no drafter here has (Laguna's), and what they are."""

NATIVE = "muse_glimmer_assistant"
"""The `model_type` of transformers' own class, whose windows reach one token further, and in both directions."""


class BlockFormat(Format):
    """DFlash (arXiv 2602.06036), JetSpec, DFlash 2, DSpark, Domino and DFly, in the dialects of their trainers.

    What a tensor tells is read from the tensors; the rest must be said in `config.json`, at the top or in its
    `dflash_config`: the tapped layers, the mask token, the block's size, and the layout, where the architecture does
    not imply it. Nothing of this is guessed: with the wrong one a drafter runs, and drafts almost nothing.
    """

    name = "dflash"

    def matches(self, keys: Shapes, config: Mapping[str, Any]) -> bool:
        """Return True if a checkpoint has this format."""
        return is_block(keys)

    def build(self, checkpoint: Checkpoint, target: Target) -> BlockDrafter:
        """Make the drafter with the checkpoint's weights."""
        refuse_others(checkpoint)
        norm = next((norm for norm in FUSED_NORMS if norm in checkpoint.shapes), FUSED_NORMS[0])
        checkpoint.require(norm)
        said = Said(checkpoint)
        layers = len({key.split(".")[1] for key in checkpoint.shapes if key.startswith("layers.")})
        checkpoint.header.check_count("layers", layers)
        settings = said.block(target, layers)
        made, unread = self._vocabulary(checkpoint, target)
        settings["own_head"] = HEAD in checkpoint.shapes and HEAD not in unread
        settings["draft_vocab_size"] = len(made["d2t"]) if "d2t" in made else None
        cls, more, names = said.kind()
        names |= NAMES[norm]
        if said.take("rope_is_neox_style", bool, said.take("is_neox_style", bool, True)) is False:
            made |= halves(checkpoint, layers, said)
        idle = [key for layer in range(layers) for key in idle_bias(checkpoint, f"layers.{layer}")]
        return assemble(
            cls,
            checkpoint,
            target,
            cls.Settings(**settings | more),
            names=names,
            made=made,
            unread=(*unread, *made, "d2t", "t2d", HEAD, *idle),
        )

    def _vocabulary(self, checkpoint: Checkpoint, target: Target) -> tuple[dict[str, Tensor], tuple[str, ...]]:
        """Return the tensors of a head and vocabulary of the checkpoint's own, and keys of copies of the target's."""
        if HEAD not in checkpoint.shapes:
            return {}, ()
        made = vocabulary_of(checkpoint, target)
        own, rows = made.get(HEAD, checkpoint.read(HEAD)), target.family.head_rows()[0][: target.vocab_size]
        if "d2t" not in made and own.shape == rows.shape and alike(own.to(rows.device), rows):
            return {}, (HEAD,)
        return made | {HEAD: own}, ()


def refuse_others(checkpoint: Checkpoint) -> None:
    """Refuse a checkpoint with parts that no drafter here has, or with a mask that would have to be unpickled.

    Raises:
        MMSpecError: for such a checkpoint.
    """
    found = [what for mark, what in OTHERS.items() if any(mark in key for key in checkpoint.shapes)]
    if found:
        raise MMSpecError(
            f"{checkpoint} has {' and '.join(found)}, for which no BlockDrafter has weights: load one of another kind"
        )
    if MASK not in checkpoint.shapes and (checkpoint.folder / PICKLED_MASK).exists():
        raise MMSpecError(
            f"{checkpoint} keeps the vector of its mask in {PICKLED_MASK}, a pickle, which is not opened: put it into "
            f"model.safetensors as {MASK!r}, see docs/checkpoint_formats.md"
        )


def is_block(keys: Shapes) -> bool:
    """Return True if there is a norm of fused states, and layers that norm their input."""
    return any(norm in keys for norm in FUSED_NORMS) and "layers.0.input_layernorm.weight" in keys


class Said:
    """The settings of a `config.json` in any dialect.

    Args:
        checkpoint: the checkpoint.
    """

    def __init__(self, checkpoint: Checkpoint):
        self.checkpoint = checkpoint
        self.nested = checkpoint.said("dflash_config", dict, {})
        self.native = checkpoint.said("model_type", str) == NATIVE

    def take(self, name: str, kind: Any, default: Any = None) -> Any:
        """Return a setting from the top of `config.json` or from its `dflash_config`.

        Raises:
            MMSpecError: if both say something else, or the value has another type.
        """
        top, inner = self.checkpoint.config.get(name), self.nested.get(name)
        if top is not None and inner is not None and top != inner:
            raise MMSpecError(
                f"{self.checkpoint}: config.json says {name}={shown(top)} and, in dflash_config, {shown(inner)}; leave "
                "the one that is right"
            )
        if inner is not None and top is None:
            self.checkpoint.config[name] = inner
        return self.checkpoint.said(name, kind, default)

    def need(self, name: str, kind: Any, why: str) -> Any:
        """Return a setting that must be there.

        Raises:
            MMSpecError: if it is not; `why` says what cannot be known without it.
        """
        found = self.take(name, kind)
        if found is None:
            raise MMSpecError(f"{self.checkpoint}: config.json does not say {name}, {why}; write it there")
        return found

    def block(self, target: Target, layers: int) -> dict[str, Any]:
        """Return the settings of the block."""
        keys, layout, windows = self.checkpoint.shapes, self.layout(), self.windows(layers)
        causal, scale = self.take("causal", bool, self.take("is_causal", bool)), self.take("output_multiplier", float)
        if self.take("causal_head", bool, False):
            causal = True
        mixed, linear = "layer_fusion_weights" in keys, any(key in keys for key in FUSIONS)
        said_open, taps = self.take("sliding_window_non_causal", bool, self.native), self.taps(target)
        return {
            "layers": layers,
            "block_size": self.need("block_size", int, "without which no block can be laid out"),
            "layout": layout,
            "feature_layers": taps,
            SETTING: reads_before(self.checkpoint, target, taps, self.take(SETTING, bool)),
            "mask_token_id": None
            if MASK in keys
            else self.need("mask_token_id", int, "the token that stands in empty slots"),
            "qk_norm": "layers.0.self_attn.q_norm.weight" in keys,
            "norms_turned": self.take("norms_turned", bool, False),
            "causal": bool(causal),
            "windows": windows,
            "causal_windows": not said_open if causal is None else causal,
            "fusion": "both" if mixed and linear else "mix" if mixed else "linear",
            "context_maps": "layers.0.self_attn.k_proj_target.weight" in keys,
            "conv_kernel": self.take("conv_kernel_size", int, 2) if has(keys, "layers.0.attention_conv.") else 0,
            "conv_group": self.take("conv_group_size", int, 16),
            "embedding_scale": self.take("input_embedding_scale", float),
            "logit_scale": 1.0 if scale is None else scale,
            "logit_cap": self.take("final_logit_softcapping", float, 0.0),
        }

    def layout(self) -> str:
        """Return the layout of the block.

        Raises:
            MMSpecError: if it is not said, or is said in two ways.
        """
        said = {name: value for name in ANCHOR_FIRST if (value := self.take(name, bool)) is not None}
        if len(set(said.values())) > 1:
            raise MMSpecError(f"{self.checkpoint}: config.json says {shown(said)}, which contradict each other")
        if said:
            return SHIFTED if next(iter(said.values())) else SAME
        if self.take("projector_type", str) in ("domino", "dspark"):  # whose default it is
            return SHIFTED
        names = self.checkpoint.said("architectures", list[str], [])
        found = {LAYOUTS[name] for name in names if name in LAYOUTS}
        if has(self.checkpoint.shapes, MARKOV) or has(self.checkpoint.shapes, GRU):
            found -= {SAME}  # these are no checkpoints of the classes that have it
        if len(found) != 1:
            raise MMSpecError(
                f"{self.checkpoint}: config.json does not say sample_from_anchor (true: a slot speaks of the token "
                f"behind it; false: of its own place), and its architectures {shown(names)} do not tell; write it there"
            )
        return found.pop()

    def taps(self, target: Target) -> list[int]:
        """Return the layers whose entering states are fused.

        Raises:
            MMSpecError: if they are not said, or there are not as many as the weights have.
        """
        leaving, entering = self.take("target_layer_ids", list[int]), self.take("aux_hidden_state_layer_ids", list[int])
        if leaving is None and entering is None:
            raise MMSpecError(
                f"{self.checkpoint}: config.json does not say target_layer_ids, the target's layers whose outputs are "
                "read, and no weight tells; write them there"
            )
        found = [layer + 1 for layer in leaving] if leaving is not None else list(entering)
        if leaving is not None and entering is not None and found != list(entering):
            raise MMSpecError(
                f"{self.checkpoint}: target_layer_ids={shown(leaving)} and aux_hidden_state_layer_ids="
                f"{shown(entering)} are not the same states: the second ones must be one more"
            )
        count, shapes = len(target.family.layers), self.checkpoint.shapes
        wide = next((shapes[key][-1] for key in FUSIONS if key in shapes), None)
        if wide is not None and leaving is None and wide == (len(found) - 1) * target.hidden_size:
            found = found[:-1]  # speculators may list the state behind the last layer too, which no drafter reads
        if wide is not None and wide != len(found) * target.hidden_size:
            raise MMSpecError(
                f"{self.checkpoint}: config.json names {len(found)} layers of the target, but its weights read "
                f"{wide / target.hidden_size:g} states of width {target.hidden_size}"
            )
        # Behind the last layer transformers shows the state after the final norm.
        return [LAST if layer == count else layer for layer in found]

    def windows(self, layers: int) -> list[int | None] | None:
        """Return the sliding window of every layer, None for those without; None if there are none.

        Raises:
            MMSpecError: if layers have one and it is not said how long.
        """
        kinds = self.take("layer_types", list[str])
        if kinds is None:
            kinds = ["sliding_attention" if self.take("use_swa", bool, False) else "full_attention"] * layers
        if unknown := [kind for kind in kinds if kind not in ("sliding_attention", "full_attention")]:
            raise MMSpecError(f"{self.checkpoint}: config.json has layers of type {shown(unknown[0])}, unknown here")
        if len(kinds) != layers:
            raise MMSpecError(f"{self.checkpoint}: config.json has {len(kinds)} layer_types for {layers} layers")
        if "sliding_attention" not in kinds:
            return None
        window = self.take("swa_window_size", int)
        if window is None:
            window = self.need("sliding_window", int, "how far back its sliding layers see") + self.native
        return [window if kind == "sliding_attention" else None for kind in kinds]

    def kind(self) -> tuple[type[BlockDrafter], dict[str, Any], dict[str, str]]:
        """Return the class of the drafter, its further settings, and prefixes of names with those of the keys."""
        shapes = self.checkpoint.shapes
        names: dict[str, str] = {}
        if has(shapes, MARKOV):
            rank = self.checkpoint.sizes(f"{MARKOV}markov_w1.weight", "tokens", "rank")[1]
            kind = "rnn" if has(shapes, f"{MARKOV}joint_proj.") else "gated"
            kind = kind if has(shapes, f"{MARKOV}joint_proj.") or has(shapes, f"{MARKOV}gate_proj.") else "vanilla"
            said = self.take("markov_head_type", str, kind)
            if said != kind:
                raise MMSpecError(f"{self.checkpoint}: config.json says markov_head_type={said!r}, its keys {kind!r}")
            sure, markov = has(shapes, "confidence_head."), True
            if sure:
                markov = self.checkpoint.sizes("confidence_head.proj.weight", "one", "in")[1] > shapes["norm.weight"][0]
            more = {"markov": kind, "markov_rank": rank, "confidence": sure, "confidence_markov": markov}
            return DSparkDrafter, more, names
        if has(shapes, GRU):
            sizes = self.checkpoint.sizes(f"{GRU}weight_hh_l0", "gates", "memory")
            rank = self.checkpoint.sizes("embed_proj.0.weight", "rank", "in")[0]
            first = self.take("pure_draft_prefix_len", int, 1)
            names |= {"recurrent.prefix_gru.": GRU, "recurrent.embed_proj.": "embed_proj."}
            return DominoDrafter, {"gru_hidden": sizes[1], "rank": rank, "uncorrected": first}, names
        if has(shapes, LATTICE):
            return LiLiCorrDrafter, self.lattice(), names
        if has(shapes, CORRECTION) or "layer_fusion_weights" in shapes:
            size = (
                self.checkpoint.sizes(f"{CORRECTION}up_proj.weight", "inner", "in")[0] if has(shapes, CORRECTION) else 0
            )
            return DFlyDrafter, {"correction_size": size}, names
        if not has(shapes, SELECTOR):
            return DFlashDrafter, {}, names
        rank = self.checkpoint.sizes(f"{SELECTOR}hidden_projection.weight", "rank", "hidden")[0]
        for book in ("predecessor_codebook", "successor_codebook"):
            if f"{SELECTOR}{book}" in shapes:  # some save the table itself
                names[f"{SELECTOR}{book}.weight"] = f"{SELECTOR}{book}"
        return DFlashDrafter, {"selector_rank": rank, "selector_top_k": self.take("selector_top_k", int, 16)}, names

    def lattice(self) -> dict[str, Any]:
        """Return the settings of LiLiCorr's head. Three of them no weight tells, and none is guessed.

        Raises:
            MMSpecError: if one is not said, or the block is causal, which this head is not.
        """
        keys, why = self.checkpoint.shapes, "without which the weights score something else"
        for name in ("causal", "is_causal", "causal_head"):
            if self.take(name, bool, False):
                raise MMSpecError(
                    f"{self.checkpoint}: config.json says {name}=true, but LiLiCorr's blocks see both ways"
                )
        layers = len({key.split(".")[2] for key in keys if key.startswith(f"{LATTICE}layers.")})
        self.checkpoint.header.check_count("lilicorr_num_layers", layers)
        candidates = self.checkpoint.sizes(f"{LATTICE}rank_embedding", "one", "one", "one", "candidates", "size")[3]
        if (said := self.take("lilicorr_candidate_topk", int, candidates)) != candidates:
            raise MMSpecError(
                f"{self.checkpoint}: config.json says lilicorr_candidate_topk={said}, its weights {candidates}"
            )
        factors, size = self.checkpoint.sizes(f"{LATTICE}out_head.weight", "factors", "size")
        inner = self.checkpoint.sizes(f"{LATTICE}layers.0.mlp.0.weight", "inner", "size")[0]
        return {
            "causal_windows": False,
            "candidates": candidates,
            "lattice_layers": layers,
            "lattice_size": size if f"{LATTICE}token_proj.weight" in keys else None,
            "lattice_heads": self.need("lilicorr_num_heads", int, why),
            "lattice_ratio": inner / size,
            "factor_size": factors,
            "score_scale": self.need("lilicorr_logit_scale", float, why),
            "vector_eps": self.need("lilicorr_vector_eps", float, why),
        }


def has(keys: Shapes, prefix: str) -> bool:
    """Return True if there is a key with a prefix."""
    return any(key.startswith(prefix) for key in keys)


def halves(checkpoint: Checkpoint, layers: int, said: Said) -> dict[str, Tensor]:
    """Return queries, keys and their norms of a checkpoint whose rotary positions turn neighbours, reordered so that
    the two halves of a head turn against each other."""
    width, made = said.need("head_dim", int, "the width of a head"), {}
    order = torch.arange(width).view(-1, 2).T.flatten()  # 0, 2, 4, ..., 1, 3, 5, ...
    for layer in range(layers):
        for part in ("q_proj.weight", "k_proj.weight", "q_proj.bias", "k_proj.bias", "q_norm.weight", "k_norm.weight"):
            key = f"layers.{layer}.self_attn.{part}"
            if key in checkpoint.shapes:
                tensor = checkpoint.read(key)
                made[key] = tensor.view(-1, width, *tensor.shape[1:])[:, order].reshape(tensor.shape)
    return made
