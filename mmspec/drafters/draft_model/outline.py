"""A draft model made from the configuration of a folder that may be anybody's."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import nn

from ...errors import MMSpecError
from ...families import class_for
from ...files.folders import stored

if TYPE_CHECKING:
    from ...files.folders import Header
    from ...target import Target

LARGEST_COMPUTED = 2**28
"""Bytes of what a model that is loaded computes for itself, such as masks and frequencies of rotary positions."""


def model_of(settings: dict[str, Any], target: Target, encodes: bool) -> nn.Module:
    """Return the model that settings describe, its weights not yet loaded.

    Args:
        settings: settings of the model, as its configuration gives them.
        target: the model to draft for, whose dtype and attention it has.
        encodes: whether its encoders of pictures or sounds are wanted.
    """
    from transformers import AutoConfig

    settings = without_code(settings)
    config = AutoConfig.for_model(settings.pop("model_type"), **settings)
    options = {"dtype": target.dtype, "attn_implementation": target.attention, "trust_remote_code": False}
    return class_for(config, sees=encodes).from_config(config, **options)


def without_code(values: Any) -> Any:
    """Return settings of a model without those that name code: the place of its classes, and kernels to be fetched."""
    if isinstance(values, dict):
        named = {name: value for name, value in values.items() if not name.startswith("_") and name != "auto_map"}
        return {name: without_code(value) for name, value in named.items()}
    return values


def check_outline(parts: dict[str, Any], target: Target, there: Header, owner: str) -> None:
    """Refuse a configuration that asks for more memory than its weights take.

    Args:
        parts: modules by name, on the meta device.
        target: the model to draft for.
        there: the weights that will be loaded.
        owner: name of the drafter's class, for the error.
    """
    outline: Any = nn.Module()
    for name, part in parts.items():
        outline.add_module(name, part)
    if outline.compressor is not None:
        outline.compressor.attach(outline.model.config.get_text_config().hidden_size, target.hidden_size)
    there.check_fits(stored(outline), owner)
    kept = {id(tensor) for tensor in outline.state_dict(keep_vars=True).values()}
    computed = sum(buffer.nbytes for buffer in outline.buffers() if id(buffer) not in kept)
    if computed > LARGEST_COMPUTED:
        raise MMSpecError(
            f"{there.source}: the {type(outline.model).__name__} of its config.json computes tables of "
            f"{computed} bytes, and at most {LARGEST_COMPUTED} are made; correct its sizes"
        )
