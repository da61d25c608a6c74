"""Model families: what differs between vision-language models, one file each.

To add one: subclass `Family`, set `model_types`, override what differs, import it here, and add a tiny model of the
real class to `tests/models.py`; the exactness tests then run on it.
"""

from __future__ import annotations

from ..errors import MMSpecError, did_you_mean
from .base import Family, Vision, visual_spans
from .gemma3 import Gemma3
from .llava import Llava
from .qwen_vl import Qwen25VL
from .text import CausalLM

FAMILIES: tuple[type[Family], ...] = (Llava, Qwen25VL, Gemma3)


def family_of(model) -> Family:
    """The family of a Hugging Face model, by its config's `model_type`.

    A model without a vision part is a plain causal LM, whatever its type.

    Raises:
        MMSpecError: for a model with a vision part that no family knows.
    """
    model_type = model.config.model_type
    for family in FAMILIES:
        if model_type in family.model_types:
            return family(model)
    if getattr(model.config, "vision_config", None) is None:
        return CausalLM(model)
    known = [name for family in FAMILIES for name in family.model_types]
    raise MMSpecError(
        f"model type {model_type!r} is a vision-language model that no family in mmspec.families handles."
        f"{did_you_mean(model_type, known)} A new family is one small file: see mmspec/families/__init__.py."
    )


__all__ = ["FAMILIES", "CausalLM", "Family", "Gemma3", "Llava", "Qwen25VL", "Vision", "family_of", "visual_spans"]
