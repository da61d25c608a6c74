"""MTP: a native multi-token layer, in the repository of its model, alone, or as speculators writes it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

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

NATIVE = {"embed_tokens.": "embed_tokens.", "": "mtp."}
"""Prefixes of the drafter's names in Qwen3.5's repositories."""

OTHER = {
    "pre_fc_norm_embedding.": "mtp_layers.0.token_layernorm.",
    "pre_fc_norm_hidden.": "mtp_layers.0.hidden_layernorm.",
    "fc.": "mtp_layers.0.input_proj.",
    "norm.": "mtp_layers.0.final_layernorm.",
    "layers.0.": "mtp_layers.0.",
}
"""Prefixes of the drafter's names in files of speculators."""

CENTRED = ("qwen3_5", "qwen3_next")
"""Beginnings of `model_type` whose norms multiply by one more than their weight. Of others nothing is added."""

NORM = re.compile(r"(norm|norm_embedding|norm_hidden)\.weight$")


class Mtp(Format):
    """One native layer (arXiv 2412.19437) with the names of Qwen3.5 (`mtp.fc`, `mtp.layers.0`, ..) or of speculators
    (`mtp_layers.0`).

    A folder with nothing but such keys is recognised. In the repository of a whole model they are read with
    `format="mtp"`: without it, the model itself is the drafter.
    """

    name = "mtp"

    def matches(self, keys: Shapes, config: Mapping[str, Any]) -> bool:
        """Return True if a checkpoint has this format."""
        if config.get(SPECULATORS) == self.name:
            return True
        return "mtp.fc.weight" in keys and all(key.startswith("mtp.") for key in keys)

    def build(self, checkpoint: Checkpoint, target: Target) -> FeatureDrafter:
        """Make the drafter with the checkpoint's weights."""
        prefix, names = ("mtp", NATIVE) if "mtp.fc.weight" in checkpoint.shapes else ("mtp_layers.0", OTHER)
        layer = "mtp.layers.0" if prefix == "mtp" else prefix
        own = [key for key in checkpoint.shapes if key.startswith(prefix)]
        if not own:
            raise MMSpecError(f"{checkpoint} holds no multi-token layer, whose keys are such as 'mtp.fc.weight'")
        refuse_others(checkpoint, own)
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
            made |= parted(checkpoint, attention, size)
        settings = MtpSettings(
            head_norms=normed,
            gate=gate,
            states_first=checkpoint.said("mtp_hidden_states_first", bool, False),
            turned=turned(checkpoint, ropes, size),
            rope="mrope" if axes else "1d",
        )
        unread = [key for key in checkpoint.shapes if not key.startswith(prefix)]
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


def refuse_others(checkpoint: Checkpoint, keys: list[str]) -> None:
    """Refuse what `MtpDrafter` is not.

    Raises:
        MMSpecError: for several layers in a row, or experts.
    """
    layers = {match[1] for key in keys if (match := re.match(r"(?:mtp\.layers|mtp_layers)\.(\d{1,9})\.", key))}
    if len(layers) > 1:
        raise MMSpecError(f"{checkpoint} has {len(layers)} multi-token layers in a row; MtpDrafter reads one")
    if experts := next((key for key in keys if ".experts." in key or ".mlp.gate." in key), None):
        raise MMSpecError(f"{checkpoint}: {experts} is of a layer with experts, and MtpDrafter has a plain MLP")


def is_centred(checkpoint: Checkpoint) -> bool:
    """Return True if the norms of the model that the layer belongs to multiply by one more than their weight."""
    parts = [part for name in NESTED if isinstance(part := checkpoint.config.get(name), Mapping)]
    kinds = [str(part.get("model_type", "")) for part in (*parts, checkpoint.config)]
    return any(kind.startswith(CENTRED) for kind in kinds)


def centred(checkpoint: Checkpoint, keys: list[str], names: Mapping[str, str]) -> dict[str, Tensor]:
    """Return the weights of all norms with one added, by the drafter's names."""
    found = {}
    for key in keys:
        if NORM.search(key):
            checkpoint.header.check_kind(key, floating=True)
            name = next((ours + key[len(start) :] for ours, start in names.items() if key.startswith(start)), key)
            found[name] = checkpoint.read(key).float() + 1
    return found


def parted(checkpoint: Checkpoint, attention: str, size: int) -> dict[str, Tensor]:
    """Return the projections to queries and gates, which stand by turns in one, head by head."""
    found = {}
    for part in ("weight", "bias"):
        if (key := f"{attention}.q_proj.{part}") in checkpoint.shapes:
            checkpoint.header.check_kind(key, floating=True)
            both = checkpoint.read(key).unflatten(0, (-1, 2, size))
            found[f"layers.0.self_attn.q_proj.{part}"] = both[:, 0].flatten(0, 1)
            found[f"layers.0.self_attn.gate_proj.{part}"] = both[:, 1].flatten(0, 1)
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
