"""Negative prompts: the arguments that say what a text is to be led away from."""

from __future__ import annotations

from collections.abc import Mapping
from math import isfinite
from numbers import Real
from typing import Any

from ..errors import MMSpecError, shown
from ..inputs import Request, prepare
from ..models.guidance import Guidance
from ..target import Target


def guidance_of(
    target: Target, request: Request, scale: Any, negative: Any, settings: Any, copies: int = 1
) -> Guidance | None:
    """Return the guidance that the arguments of `generate` ask for, or None.

    Args:
        target: whose family says what the other prompts are where none are given.
        request: the prompts.
        scale: `guidance_scale`; None for the model's own, if its settings apply.
        negative: `negative_prompt`, None, a text for all rows, a list of one per row, or a processor's output.
        settings: the model's generation config, or None.
        copies: how many answers there are to every row.

    Raises:
        MMSpecError: for a scale that is no number, another number of prompts, prompts without a scale.
    """
    if scale is None and settings is not None:
        scale = target.family.own_guidance(settings.guidance_scale)
    if isinstance(scale, bool) or not isinstance(scale, Real | None) or (scale is not None and not isfinite(scale)):
        raise MMSpecError(f"guidance_scale={shown(scale)} must be a number: 1 is no guidance, more is stronger")
    if scale is None or scale == 1:
        if negative is not None:
            raise MMSpecError("negative_prompt= is what guidance leads away from: give guidance_scale=, such as 3.0")
        return None
    if target.family.cross_attends:
        raise MMSpecError(
            f"guidance_scale={scale}: {type(target.model).__name__} attends to more than a prompt, and guidance has "
            "nothing to set against that; leave it out"
        )
    if negative is None:
        inputs = target.family.unguided(request.inputs)
        lengths = inputs["attention_mask"].sum(-1).tolist()
        other = Request(inputs, lengths, appended_type=request.appended_type)
    elif isinstance(negative, Mapping | Request):
        other = prepare(target, inputs=negative)
    else:
        other = prepare(target, [negative] * request.batch_size if isinstance(negative, str | tuple) else negative)
    if other.batch_size != request.batch_size:
        raise MMSpecError(
            f"negative_prompt has {other.batch_size} rows, and the batch has {request.batch_size}: give one for all, "
            "or one per row"
        )
    return Guidance(float(scale), target.repeat(other, copies), target.family.guided_logits)
