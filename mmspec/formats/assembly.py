"""Make a drafter from a checkpoint: without weights first, then compared key by key, then filled one tensor at a
time."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import asdict, replace
from functools import partial
from typing import Any, TypeVar

from torch import Tensor

from ..compressors import VisualCompressor
from ..drafters import LayerDrafter, LayerSettings
from ..drafters.head_config import MROPE_SETTINGS
from ..errors import MMSpecError, listed
from ..files.checkpoints import fill
from ..target import Target
from .base import Shapes
from .checkpoint import Checkpoint
from .embedding import EMBEDDING, embedding_rows
from .head import head_settings

Made = TypeVar("Made", bound=LayerDrafter)

ROTARY = "rotary_emb.inv_freq"
"""Suffix of frequencies that old code saved as buffers; they follow from rope_theta."""

INPUT_NORM = "layers.0.input_layernorm.weight"
"""Key of the norm at the input of EAGLE's layer."""


def fusion_of(keys: Shapes) -> dict[str, Any]:
    """Return the settings that all drafters with EAGLE's fusion and one layer share."""
    return {"bias": "fc.bias" in keys, "input_norm": INPUT_NORM in keys}


def assemble(
    cls: type[Made],
    checkpoint: Checkpoint,
    target: Target,
    settings: LayerSettings,
    *,
    compressor: VisualCompressor | None = None,
    layer: str = "layers.0",
    head_dim: int | None = None,
    queries: int | None = None,
    axes: bool = False,
    names: Mapping[str, str] | None = None,
    made: Mapping[str, Tensor] | None = None,
    unread: Collection[str] = (),
) -> Made:
    """Make a drafter of a class with the weights of a checkpoint, on the target's device and in its dtype.

    Args:
        cls: class of the drafter.
        checkpoint: the checkpoint to read.
        target: the model to draft for.
        settings: settings of the drafter; the head and the embedding are found here.
        compressor: the compressor that the drafter reads pictures through.
        layer: prefix of the keys from which the head's sizes are derived.
        head_dim: width of a head, if another tensor tells it; see `head_settings`.
        queries: width of all queries, if their projection makes more than them.
        axes: True if positions have several axes, as the configuration says.
        names: prefixes of the class's names, mapped to those of the checkpoint's keys.
        made: tensors that were derived from the checkpoint's, by the class's names.
        unread: keys that the class does not need, or that `made` was derived from.

    Raises:
        MMSpecError: if keys are missing or unexpected, or a shape is not what the settings say.
    """
    names, made = names or {}, made or {}
    head = head_settings(checkpoint, target, layer, head_dim, queries)
    head["rope_parameters"].pop("partial_rotary_factor", None)  # a matter of the drafter's own settings
    if not axes:  # the original turns by one position, whatever the configuration has left over
        rope = head["rope_parameters"]
        head["rope_parameters"] = {name: value for name, value in rope.items() if name not in MROPE_SETTINGS}
    rows = embedding_rows(checkpoint, target, head["hidden_size"])
    config = asdict(replace(settings, head=head, own_embedding=rows))
    drafter = cls.empty(config | {"compressor": None if compressor is None else compressor.config()}, target)

    def theirs(name: str) -> str:
        start = next((start for start in names if name.startswith(start)), "")
        return names.get(start, "") + name[len(start) :]

    expected = {name: tuple(tensor.shape) for name, tensor in drafter.state_dict().items()}
    keys = {name: theirs(name) for name in expected if name not in made}
    missing = [key for key in keys.values() if key not in checkpoint.shapes]
    known = {*keys.values(), *unread, EMBEDDING}
    unexpected = [key for key in checkpoint.shapes if key not in known and not key.endswith(ROTARY)]
    if missing or unexpected:
        raise MMSpecError(
            f"{checkpoint} does not fit {cls.__name__}: missing keys {listed(missing)}, unexpected keys "
            f"{listed(unexpected)}"
        )
    for name, key in keys.items():
        if checkpoint.shapes[key] != expected[name]:
            raise MMSpecError(
                f"{checkpoint}: {key} has shape {list(checkpoint.shapes[key])}, but the other tensors and the target "
                f"ask for {list(expected[name])} for {cls.__name__}"
            )
        checkpoint.header.check_kind(key, floating=True)
    read = {name: partial(checkpoint.read, key) for name, key in keys.items()}
    fill(drafter, read | {name: tensor.clone for name, tensor in made.items()}, str(checkpoint))
    return drafter.eval()
