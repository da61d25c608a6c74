"""Training batches: conversations as token ids, with the loss only on the answers.

The layout of a row is that of the chat template, spelled out token by token:

    <s> <|user|> <image> x 144  prompt <|assistant|> answer </s>  <|user|> prompt <|assistant|> answer </s> ...

Rows are padded on the right, so a causal model needs no padding mask: what stands behind a row never reaches it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy
import torch
from einops import rearrange
from PIL import Image
from transformers import PreTrainedTokenizerFast

from mmspec.zoo.architecture import VISUAL_TOKENS
from mmspec.zoo.data import TASKS, Conversation, conversation
from mmspec.zoo.vocabulary import ASSISTANT, USER, token_id

IGNORE = -100
IMAGE_START = 2  # the image stands behind <s> and <|user|>

# The curriculum: few shapes, bars and letters at first, full pictures from this one on.
EASY_PICTURES = 20_000
# How many of every 32 pictures belong to each task. Reading text has to be learnt from nothing and comes first; once a
# model can do it, it hardly ever unlearns it, and the other tasks get its place.
EARLY_MIXTURE = {"scenes": 9, "charts": 6, "documents": 12, "questions": 5}
LATE_MIXTURE = {"scenes": 5, "charts": 4, "documents": 3, "questions": 20}


class Batch(NamedTuple):
    """Rows of one forward pass.

    Shapes: ids and labels `[rows, length]`, pixels `[rows, 3, 96, 96]`, labels of the patches `[rows, 144, 1]`, tasks
    `[rows]`.
    """

    input_ids: torch.Tensor
    labels: torch.Tensor
    pixel_values: torch.Tensor
    patch_labels: torch.Tensor
    tasks: torch.Tensor


def pixels(image: Image.Image) -> torch.Tensor:
    """Convert a 96 x 96 picture as the processor does: channels first, values from -1 to 1."""
    array = numpy.asarray(image, dtype=numpy.float32) / 127.5 - 1.0
    return rearrange(torch.from_numpy(array), "row column channel -> channel row column")


def encode(example: Conversation, tokenizer: PreTrainedTokenizerFast) -> tuple[list[int], list[int]]:
    """Return token ids and labels of a conversation; the labels are the ids in the answers and `IGNORE` elsewhere."""
    return encode_turns(example.turns, [token_id(tokenizer, "<image>")] * VISUAL_TOKENS, tokenizer)


def encode_turns(
    turns: Sequence[tuple[str, str]], seen: Sequence[int], tokenizer: PreTrainedTokenizerFast
) -> tuple[list[int], list[int]]:
    """Return token ids and labels of questions with their answers, as `encode` does.

    Args:
        turns: the questions and answers.
        seen: tokens of what the first question is about, which stand before it.
        tokenizer: the model's.
    """
    eos, (user, assistant) = tokenizer.eos_token_id, (token_id(tokenizer, token) for token in (USER, ASSISTANT))
    ids = [tokenizer.bos_token_id, user, *seen]
    labels = [IGNORE] * len(ids)
    for turn, (prompt, answer) in enumerate(turns):
        asked = [user] * (turn > 0) + tokenizer.encode(prompt, add_special_tokens=False) + [assistant]
        answered = [*tokenizer.encode(answer, add_special_tokens=False), eos]
        ids += asked + answered
        labels += [IGNORE] * len(asked) + answered
    return ids, labels


def schedule(mixture: dict[str, int]) -> list[str]:
    """Return the tasks of consecutive pictures, interleaved."""
    places = [((i + 0.5) / n, task) for task, n in mixture.items() for i in range(n)]
    return [task for _, task in sorted(places)]


def task_of(index: int) -> str:
    """Return the task of training picture number `index`."""
    tasks = schedule(EARLY_MIXTURE if index < EASY_PICTURES else LATE_MIXTURE)
    return tasks[index % len(tasks)]


class Conversations:
    """An endless stream of steps; each step is a list of micro-batches of similar length.

    Drawing a picture takes a fraction of a millisecond, so the batches are made when they are needed.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast, pictures: int, rows: int):
        self.tokenizer, self.pictures, self.rows = tokenizer, pictures, rows

    def step(self, number: int) -> list[Batch]:
        """Return the micro-batches of step `number`: `pictures` pictures in all, at most `rows` in each."""
        examples = []
        for index in range(number * self.pictures, (number + 1) * self.pictures):
            task = task_of(index)
            example = conversation(task, index, difficulty=index / EASY_PICTURES)
            examples.append((TASKS.index(task), example, *encode(example, self.tokenizer)))
        examples.sort(key=lambda e: len(e[2]))  # rows of similar length share a forward pass: little padding
        return [self._collate(examples[i : i + self.rows]) for i in range(0, len(examples), self.rows)]

    def _collate(self, examples: list) -> Batch:
        # Few different lengths: the CPU kernels are compiled per shape, and every new one costs a moment.
        length = -(-max(len(ids) for _, _, ids, _ in examples) // 16) * 16
        input_ids = torch.full((len(examples), length), self.tokenizer.pad_token_id)
        labels = torch.full((len(examples), length), IGNORE)
        for row, (_, _, ids, label) in enumerate(examples):
            input_ids[row, : len(ids)] = torch.tensor(ids)
            labels[row, : len(ids)] = torch.tensor(label)
        pictures = torch.stack([pixels(example.image) for _, example, _, _ in examples])
        patches = torch.full((len(examples), VISUAL_TOKENS, 1), IGNORE)
        for row, (_, example, _, _) in enumerate(examples):
            for patch, word in example.patch_words.items():
                patches[row, patch] = self.tokenizer.encode(word, add_special_tokens=False)[0]
        return Batch(input_ids, labels, pictures, patches, torch.tensor([task for task, *_ in examples]))
