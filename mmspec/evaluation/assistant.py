"""A draft model of ours as the stock model that transformers' assisted generation wants."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import LlavaConfig, LlavaForConditionalGeneration, PreTrainedModel

from ..compat import CACHE
from ..drafters import DraftModelDrafter, OwnEncoderDrafter, TextOnlyDrafter
from ..errors import MMSpecError
from ..inputs import Request
from ..models.hooks import Ear, listening


def stock_assistant(drafter: DraftModelDrafter) -> PreTrainedModel:
    """Return the draft model with the same inputs as its target, as assisted generation hands the target's to both.

    A draft model that shares the target's vision tower becomes a LLaVA of the target's tower and its own projector and
    language model; no weights are copied. (Where our loop encodes a picture once for both, transformers does it twice.)

    Raises:
        MMSpecError: for a blind draft model of a target that sees, or a shared tower that is not LLaVA's.
    """
    target = drafter.target
    if isinstance(drafter, OwnEncoderDrafter) or "image" not in target.family.encoders:
        model = copy.copy(drafter.model)
    elif isinstance(drafter, TextOnlyDrafter):
        raise MMSpecError(
            "engine=transformers gives the pictures to the assistant too, and a text-only draft model cannot take "
            "them: compare with engine=mmspec, or choose a draft model that sees"
        )
    elif not isinstance(target.model, LlavaForConditionalGeneration):
        raise MMSpecError(
            f"engine=transformers needs a whole model as assistant, and a draft model that shares the vision tower of "
            f"{type(target.model).__name__} is none: choose one with a tower of its own"
        )
    else:
        config = LlavaConfig.from_dict(target.model.config.to_dict())
        config.text_config = copy.deepcopy(drafter.model.config)
        config.tie_word_embeddings = drafter.model.config.tie_word_embeddings
        with torch.device("meta"):
            model = LlavaForConditionalGeneration(config).eval()
        model.model.vision_tower = target.model.model.vision_tower
        model.model.language_model = drafter.model.model
        model.lm_head = drafter.model.lm_head
        projector: Any = model.model.multi_modal_projector
        ours: Any = drafter.projector
        projector.linear_1, projector.linear_2 = ours.inner, ours.outer
    model.generation_config = copy.deepcopy(target.model.generation_config)
    return model


@contextmanager
def quiet() -> Iterator[None]:
    """Within it, transformers does not warn of how its own assisted generation calls `generate`: nobody can heed it."""
    logger = logging.getLogger("transformers.generation.utils")

    def others(record: logging.LogRecord) -> bool:
        return not record.getMessage().startswith("Passing `generation_config` together with")

    logger.addFilter(others)
    try:
        yield
    finally:
        logger.removeFilter(others)


@contextmanager
def sighted(assistant: PreTrainedModel, drafter: DraftModelDrafter, request: Request) -> Iterator[None]:
    """Within it, the assistant's pass over the prompt sees the request's pictures.

    Since transformers 5.23 the target's `generate` encodes the pictures once, and what it hands to the assistant (the
    target's embeddings, which another model could not read anyway) does not reach the assistant's passes: it drafts
    blind. A model that assists itself then gets 1.9 tokens per pass where all guesses should be right.
    """
    pictures = {name: request.inputs[name] for name in drafter.target.family.media_inputs if name in request.inputs}

    def show(arguments: tuple, keywords: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        cache = keywords.get(CACHE)
        if cache is None or cache.get_seq_length() == 0:
            keywords = {name: value for name, value in keywords.items() if name != "mm_encoder_outputs"} | pictures
        return arguments, keywords

    with listening([Ear(assistant, before=show)]):
        yield
