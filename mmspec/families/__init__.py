"""Model families: what differs between models that see and hear, one file each.

To add one: subclass `Family`, set `model_types`, override what differs, import it here, and add a tiny model of the
real class to `tests/support/tiny_families.py`; the exactness tests then run on it. See docs/families.md.
"""

from __future__ import annotations

from typing import Any

from transformers import (
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForSeq2SeqLM,
    AutoModelForSpeechSeq2Seq,
    PreTrainedConfig,
)

from ..errors import MMSpecError, shown
from .audio import Masked, Qwen2Audio, Voxtral
from .base import Family
from .encoders import Encoder
from .gemma3 import Gemma3
from .gemma4 import Gemma4, Gemma4Unified
from .internvl import InternVL
from .janus import Janus, JanusImages
from .llava import Llava
from .llava_next import LlavaNext, LlavaOneVision
from .mistral3 import Mistral3
from .paligemma import PaliGemma
from .qwen3_vl import Qwen3VL
from .qwen_vl import Qwen2VL, Qwen25VL
from .smolvlm import SmolVLM
from .text import CausalLM
from .unlisted import Unlisted, UnlistedMultiAxis
from .vision import Vision, visual_spans
from .whisper import Whisper

FAMILIES: tuple[type[Family], ...] = (
    Llava,
    LlavaNext,
    LlavaOneVision,
    Qwen2VL,
    Qwen25VL,
    Qwen3VL,
    InternVL,
    SmolVLM,
    Gemma3,
    Gemma4,
    Gemma4Unified,
    Mistral3,
    PaliGemma,
    Qwen2Audio,
    Voxtral,
    Masked,
    Whisper,
    Janus,
    JanusImages,
)


def family_of(model, writes: str = "text") -> Family:
    """Return the family of a Hugging Face model, by its config's `model_type`.

    Args:
        model: in memory.
        writes: `"text"`, or `"image"` for the tokens of pictures.

    A model that neither sees nor hears is a plain causal LM, whatever its type. One that does and is not listed is read
    like those that are, and has to check itself (`Family.verified`).

    Raises:
        MMSpecError: for a model that sees or hears and has not got what is read, and for one that does not write that.
    """
    model_type = model.config.model_type
    for family in FAMILIES:
        if model_type in family.model_types and family.writes == writes:
            return family(model)
    if writes != "text":
        able = sorted({one for family in FAMILIES if family.writes == writes for one in family.model_types})
        ways = f"models that write {writes} are of type {', '.join(able)}" if able else "write 'text' or 'image'"
        raise MMSpecError(f"writes={shown(writes)}: model type {model_type!r} does not; {ways}")
    _refuse_unlisted_encoder(model.config)
    if getattr(model.config, "vision_config", None) is None and not hasattr(model, "get_audio_features"):
        return CausalLM(model)
    return (UnlistedMultiAxis if hasattr(model.base_model, "get_rope_index") else Unlisted)(model)


def class_for(config: PreTrainedConfig, sees: bool | None = None) -> Any:
    """Return the auto class of transformers that makes the model of a configuration.

    Args:
        config: what the model is made of.
        sees: whether its encoders of pictures or sounds are wanted; by default if it has some.

    Raises:
        MMSpecError: for an encoder-decoder model of which nothing is known.
    """
    _refuse_unlisted_encoder(config)
    if config.is_encoder_decoder:
        return AutoModelForSpeechSeq2Seq
    visual = getattr(config, "vision_config", None) is not None
    # Where transformers lists models that hear, although they are no sequence-to-sequence models.
    hears = getattr(config, "audio_config", None) is not None and type(config) in MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING
    if sees is False or not (visual or hears or sees):
        return AutoModelForCausalLM
    return AutoModelForSeq2SeqLM if hears and not visual else AutoModelForImageTextToText


def _refuse_unlisted_encoder(config: PreTrainedConfig) -> None:
    """Refuse an encoder-decoder model that no family is for."""
    listed = sorted({one for family in FAMILIES if family.cross_attends for one in family.model_types})
    if getattr(config, "is_encoder_decoder", False) and config.model_type not in listed:
        raise MMSpecError(
            f"model type {config.model_type!r} is an encoder-decoder model, of which mmspec reads those of type "
            f"{' and '.join(listed)} only"
        )


__all__ = ["FAMILIES", "CausalLM", "Encoder", "Family", "Unlisted", "Vision", "class_for", "family_of", "visual_spans"]
