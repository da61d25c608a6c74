"""MTP: native multi-token layers, in the repository of their model, alone, or as speculators writes them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import Tensor

from ..drafters import FeatureDrafter, MtpDrafter, MtpSettings
from ..drafters.head_config import MROPE_SETTINGS
from ..errors import MMSpecError, shown
from ..settings.arguments import is_number
from ..target import Target
from .assembly import assemble
from .base import Format, Shapes
from .checkpoint import NESTED, Checkpoint

SPECULATORS = "speculators_model_type"
"""Key of a configuration of speculators, with the kind of drafter as its value."""

LAYER_OF = {
    "native": re.compile(r"mtp\.layers\.(\d{1,9})\."),
    "speculators": re.compile(r"mtp_layers\.(\d{1,9})\."),
    "appended": re.compile(r"(?:.*\.)?layers\.(\d{1,9})\.(?=(?:enorm|hnorm|eh_proj)\.weight$)"),
}
"""The beginning of a layer's keys in each dialect: Qwen3.5's, that of speculators and MiMo, that of DeepSeek and GLM.
In the last one they stand among those of the model, with a number behind its layers."""

PARTS = {
    "speculators": ("token_layernorm", "hidden_layernorm", "input_proj", "final_layernorm"),
    "appended": ("enorm", "hnorm", "eh_proj", "shared_head.norm"),
}
"""Names of the norms and the fusion before a layer, and of the norm behind it, by dialect, in the order of `OWN`."""

OWN = ("pre_fc_norm_embedding", "pre_fc_norm_hidden", "fc", "norm")

COPIES = ("embed_tokens.weight", "shared_head.head.weight")
"""Ends of the keys under which DeepSeek's layers bring the model's embedding and head once more."""

LATENT = re.compile(r"self_attn\.(?:kv|q)_[ab]_proj")
"""A part of the keys of latent attention."""

STATES_FIRST = ("mimo",)
"""`model_type` of models whose fusion reads states before embeddings, which no configuration says."""

CENTRED = ("qwen3_5", "qwen3_next")
"""Beginnings of `model_type` whose norms multiply by one more than their weight. Of others nothing is added."""

NORM = re.compile(r"(norm|norm_embedding|norm_hidden)\.weight$")


class Mtp(Format):
    """Native layers (arXiv 2412.19437) with the names of Qwen3.5 (`mtp.fc`, `mtp.layers.0`, ..), of speculators and
    MiMo (`mtp_layers.0`), or of DeepSeek and GLM (`layers.61.eh_proj`, behind the model's own layers).

    A folder with nothing but such keys is recognised. In the repository of a whole model they are read with
    `format="mtp"`: without it, the model itself is the drafter.
    """

    name = "mtp"

    def matches(self, keys: Shapes, config: Mapping[str, Any]) -> bool:
        """Return True if a checkpoint has this format."""
        if config.get(SPECULATORS) == self.name:
            return True
        found = dialect_of(keys)
        return found is not None and all(key.startswith(found.starts) for key in keys)

    def build(self, checkpoint: Checkpoint, target: Target) -> FeatureDrafter:
        """Make the drafter with the checkpoint's weights."""
        dialect = dialect_of(checkpoint.shapes)
        if dialect is None:
            raise MMSpecError(
                f"{checkpoint} holds no multi-token layer, whose keys are such as 'mtp.fc.weight': name a repository "
                "that keeps them, or train one, mmspec train recipe=mtp"
            )
        own = [key for key in checkpoint.shapes if key.startswith(dialect.starts)]
        refuse_others(checkpoint, own)
        layer, names = dialect.layers[0], dialect.names
        attention = f"{layer}.self_attn"
        inner = checkpoint.sizes(f"{attention}.o_proj.weight", "hidden", "queries")[1]
        asked = checkpoint.sizes(f"{attention}.q_proj.weight", "queries", "hidden")[0]
        gate, normed = asked == 2 * inner, f"{attention}.q_norm.weight" in checkpoint.shapes
        ropes = [checkpoint.said(name, dict, {}) for name in ("rope_parameters", "rope_scaling")]
        axes = any(MROPE_SETTINGS[0] in rope for rope in ropes)
        size = checkpoint.sizes(f"{attention}.q_norm.weight", "head")[0] if normed else checkpoint.said("head_dim", int)
        made = centred(checkpoint, own, names) if is_centred(checkpoint) else {}
        if gate:
            if not size or inner % size:
                raise MMSpecError(
                    f"{checkpoint}: its queries bring a gate, and head_dim={shown(size)} cannot part them"
                )
            for number, prefix in enumerate(dialect.layers):
                made |= parted(checkpoint, f"{prefix}.self_attn", f"layers.{number}.self_attn", size)
        native = dialect.kind == "native"
        settings = MtpSettings(
            layers=len(dialect.layers),
            shared_fusion=native and len(dialect.layers) > 1,
            output_norm="shared" if native and len(dialect.layers) > 1 else "own",
            head_norms=normed,
            gate=gate,
            states_first=checkpoint.said("mtp_hidden_states_first", bool, is_states_first(checkpoint)),
            turned=turned(checkpoint, ropes, size),
            rope="mrope" if axes else "1d",
        )
        unread = [key for key in checkpoint.shapes if not key.startswith(dialect.starts) or key.endswith(COPIES)]
        unread += [theirs(name, names) for name in made]
        return assemble(
            MtpDrafter,
            checkpoint,
            target,
            settings,
            layer=layer,
            head_dim=size,
            queries=inner,
            axes=axes,
            names=names,
            made=made,
            unread=unread,
        )


class Dialect(NamedTuple):
    """Names of the layers in a checkpoint.

    Args:
        kind: one of `LAYER_OF`.
        layers: the prefix of each layer, in order.
        starts: beginnings of all keys that belong to them.
        names: prefixes of the drafter's names, mapped to those of the checkpoint's keys; the more special ones first.
    """

    kind: str
    layers: list[str]
    starts: tuple[str, ...]
    names: dict[str, str]


def dialect_of(keys: Shapes) -> Dialect | None:
    """Return how the layers of a checkpoint are named; None if it has none."""
    for kind, pattern in LAYER_OF.items():
        found = {int(match[1]): match[0].rstrip(".") for key in keys if (match := pattern.match(key))}
        if kind == "native" and not (found and "mtp.fc.weight" in keys):
            continue
        if not found:
            continue
        layers = [found[number] for number in sorted(found)]
        if kind == "native":
            return Dialect(kind, layers, ("mtp.",), {"embed_tokens.": "embed_tokens.", "": "mtp."})
        names: dict[str, str] = {}
        for number, layer in enumerate(layers):
            outside = "" if not number else f"layers.{number}."  # what belongs to the first one stands outside
            names |= {f"{outside}{own}.": f"{layer}.{part}." for own, part in zip(OWN, PARTS[kind], strict=True)}
        names |= {f"layers.{number}.": f"{layer}." for number, layer in enumerate(layers)}
        return Dialect(kind, layers, tuple(f"{layer}." for layer in layers), names)
    return None


def refuse_others(checkpoint: Checkpoint, keys: list[str]) -> None:
    """Refuse what `MtpDrafter` is not.

    Raises:
        MMSpecError: for experts, or latent attention.
    """
    if experts := next((key for key in keys if ".experts." in key or ".mlp.gate." in key), None):
        raise MMSpecError(f"{checkpoint}: {experts} is of a layer with experts, and MtpDrafter has a plain MLP")
    if latent := next((key for key in keys if LATENT.search(key)), None):
        raise MMSpecError(
            f"{checkpoint}: {latent} is of latent attention (MLA), and MtpDrafter has plain keys and values"
        )


def is_states_first(checkpoint: Checkpoint) -> bool:
    """Return True if the model that the layers belong to is known to fuse states before embeddings."""
    return any(str(part.get("model_type", "")) in STATES_FIRST for part in parts_of(checkpoint))


def parts_of(checkpoint: Checkpoint) -> list[Mapping[str, Any]]:
    """Return a checkpoint's configuration, and those nested in it."""
    nested = [part for name in NESTED if isinstance(part := checkpoint.config.get(name), Mapping)]
    return [*nested, checkpoint.config]


def is_centred(checkpoint: Checkpoint) -> bool:
    """Return True if the norms of the model that the layer belongs to multiply by one more than their weight."""
    return any(str(part.get("model_type", "")).startswith(CENTRED) for part in parts_of(checkpoint))


def centred(checkpoint: Checkpoint, keys: list[str], names: Mapping[str, str]) -> dict[str, Tensor]:
    """Return the weights of all norms with one added, by the drafter's names."""
    found = {}
    for key in keys:
        if NORM.search(key):
            checkpoint.header.check_kind(key, floating=True)
            name = next((ours + key[len(start) :] for ours, start in names.items() if key.startswith(start)), key)
            found[name] = checkpoint.read(key).float() + 1
    return found


def parted(checkpoint: Checkpoint, attention: str, ours: str, size: int) -> dict[str, Tensor]:
    """Return the projections to queries and gates, which stand by turns in one, head by head, by the drafter's
    names."""
    found = {}
    for part in ("weight", "bias"):
        if (key := f"{attention}.q_proj.{part}") in checkpoint.shapes:
            checkpoint.header.check_kind(key, floating=True)
            both = checkpoint.read(key).unflatten(0, (-1, 2, size))
            found[f"{ours}.q_proj.{part}"] = both[:, 0].flatten(0, 1)
            found[f"{ours}.gate_proj.{part}"] = both[:, 1].flatten(0, 1)
    return found


def turned(checkpoint: Checkpoint, ropes: list[dict[str, Any]], size: int | None) -> int | None:
    """Return how many numbers of a head positions turn; None for all.

    Raises:
        MMSpecError: if the part that the configuration says is none.
    """
    said = [config.get("partial_rotary_factor") for config in (checkpoint.config, *ropes)]
    factor = next((value for value in said if value is not None), 1.0)
    if factor == 1.0 or size is None:
        return None
    if not is_number(factor) or not 0 < factor <= 1:
        raise MMSpecError(
            f"{checkpoint}: config.json says partial_rotary_factor={shown(factor)}, which is no part of 1"
        )
    return int(size * factor)


def theirs(name: str, names: Mapping[str, str]) -> str:
    """Return the checkpoint's key for a name of the drafter."""
    start = next(start for start in names if name.startswith(start))
    return names[start] + name[len(start) :]
