"""Courses of embedded targets: everything in which the training of one differs from that of another."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from transformers import PreTrainedModel, PreTrainedTokenizerFast

from mmspec.zoo.architecture import build_config, build_model
from mmspec.zoo.batches import Conversations
from mmspec.zoo.data import TASKS
from mmspec.zoo.evaluation import evaluate
from mmspec.zoo.losses import Reader, TrainingBatch, read_pictures
from mmspec.zoo.vocabulary import build_processor, build_tokenizer


class Stream(Protocol):
    """An endless stream of training steps."""

    def step(self, number: int) -> Sequence[TrainingBatch]:
        """Return the micro-batches of a step."""


@dataclass(frozen=True)
class Course:
    """A model, its data and its losses; functions of modules, so that new processes can be told of them.

    Args:
        tasks: names of the tasks that the batches number.
        tokenizer: builds the tokenizer.
        model: builds the model of a tokenizer and a seed.
        stream: makes the batches, from the tokenizer, the examples of a step and the most rows of a batch.
        read: runs the vision tower; see `mmspec.zoo.losses`.
        evaluate: lets a model answer so many examples per task of the validation split.
    """

    tasks: tuple[str, ...]
    tokenizer: Callable[[], PreTrainedTokenizerFast]
    model: Callable[[PreTrainedTokenizerFast, int], PreTrainedModel]
    stream: Callable[[PreTrainedTokenizerFast, int, int], Stream]
    read: Reader
    evaluate: Callable[[Any, PreTrainedTokenizerFast, int], dict]


def _build(tokenizer: PreTrainedTokenizerFast, seed: int) -> PreTrainedModel:
    return build_model(build_config(tokenizer), seed)


def _evaluate(model: Any, tokenizer: PreTrainedTokenizerFast, examples: int) -> dict:
    return evaluate(model, build_processor(tokenizer), "validation", examples)


PICTURES = Course(TASKS, build_tokenizer, _build, Conversations, read_pictures, _evaluate)
"""The embedded picture model."""
