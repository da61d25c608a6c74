"""The course of the video target."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerFast

from mmspec.zoo.courses import Course
from mmspec.zoo.video.architecture import build_clip_config, build_clip_model
from mmspec.zoo.video.batches import WatchingConversations
from mmspec.zoo.video.evaluation import evaluate_clips
from mmspec.zoo.video.reading import read_clips
from mmspec.zoo.video.vocabulary import build_clip_tokenizer


def _build(tokenizer: PreTrainedTokenizerFast, seed: int) -> PreTrainedModel:
    return build_clip_model(build_clip_config(tokenizer), seed)


def _evaluate(model: Any, tokenizer: PreTrainedTokenizerFast, examples: int) -> dict:
    return evaluate_clips(model, tokenizer, "validation", examples, length="short")


CLIPS = Course(("clips",), build_clip_tokenizer, _build, WatchingConversations, read_clips, _evaluate)
"""The embedded video target."""
