"""Training batches of clips: rows of one shape, so that the frames of a batch are one tensor.

The layout of a row is that of the chat template, spelled out token by token:

    <s> <|user|> <|vision_start|> <video> x N <|vision_end|> prompt <|assistant|> answer </s> <|user|> prompt ...

A picture is a clip of one step whose frames are the same, with `<image>` in the place of `<video>`.

Rows are padded on the right, so a causal model needs no padding mask.
"""

from __future__ import annotations

import random
from typing import NamedTuple

import numpy
import torch
from einops import rearrange
from transformers import PreTrainedTokenizerFast

from mmspec.zoo.batches import IGNORE, encode_turns
from mmspec.zoo.video.architecture import MERGE, PATCH
from mmspec.zoo.video.data import ClipConversation, clip_conversation
from mmspec.zoo.video.frames import CELL, FRAMES_PER_STEP
from mmspec.zoo.video.vocabulary import IMAGE, VIDEO, VISION_END, VISION_START
from mmspec.zoo.vocabulary import token_id

CLIP_START = 3  # the clip stands behind <s>, <|user|> and <|vision_start|>
MOST_WORDS = 5  # for one visual token: colour, shape, place in two words, verb
ROW_TOKENS = 320  # a micro-batch of longer rows has fewer of them

# The curriculum: clips of few steps at first, the full choice of steps and floors from this one on.
EASY_CLIPS = 12_000


class Shape(NamedTuple):
    """Shape of all clips of a micro-batch.

    Args:
        steps: steps of a clip.
        edge: cells along the edge of a tile.
        most: most figures at a time.
        picture: whether only the first frame is shown.
    """

    steps: int
    edge: int = 1
    most: int = 3
    picture: bool = False


class ClipBatch(NamedTuple):
    """Rows of one forward pass, all of clips of one shape.

    Shapes: ids and labels `[rows, length]`, pixels `[rows, steps, patches, 384]`, labels of the visual tokens
    `[rows, tokens, words]`, tasks `[rows]` (always 0). `grid` is steps, rows and columns of patches.
    """

    input_ids: torch.Tensor
    labels: torch.Tensor
    pixel_values: torch.Tensor
    patch_labels: torch.Tensor
    tasks: torch.Tensor
    grid: tuple[int, int, int]


def patches(frames: numpy.ndarray) -> torch.Tensor:
    """Cut frames `[frames, height, width, 3]` into patches as Qwen2.5-VL's processor does, values from -1 to 1.

    Returns:
        `[steps, patches, 384]`: square by square of 2 x 2 patches, each of them colour by colour, frame by frame.
    """
    pixels = torch.from_numpy(numpy.ascontiguousarray(frames)).float() / 127.5 - 1.0
    return rearrange(
        pixels,
        "(step frame) (row mrow y) (column mcolumn x) colour -> step (row column mrow mcolumn) (colour frame y x)",
        frame=FRAMES_PER_STEP,
        mrow=MERGE,
        mcolumn=MERGE,
        y=PATCH,
        x=PATCH,
    )


def encode_clip(example: ClipConversation, tokenizer: PreTrainedTokenizerFast) -> tuple[list[int], list[int]]:
    """Return token ids and labels of a conversation; the labels are the ids in the answers and `IGNORE` elsewhere."""
    shown = IMAGE if example.picture else VIDEO
    visual, start, end = (token_id(tokenizer, token) for token in (shown, VISION_START, VISION_END))
    return encode_turns(example.turns, [start, *[visual] * example.clip.visual_tokens, end], tokenizer)


def shape_of(clip: int, rng: random.Random) -> Shape:
    """Choose the shape of the micro-batch that begins with training clip number `clip`.

    One in eight is of pictures on floors of any size. Once clips are no longer easy, one in eight has more steps, one
    in eight a larger floor, and one in thirty-two is as long as clips of the length `long` are.
    """
    ease = max(0.0, 1.0 - clip / EASY_CLIPS)
    most = 2 if rng.random() < ease else 3
    kind = rng.random()
    if kind < 4 / 32:
        return Shape(1, rng.randint(1, 4), most, picture=True)
    if ease == 0.0 and kind < 5 / 32:
        return Shape(rng.randint(8, 16), rng.randint(2, 4), most)
    if ease == 0.0 and kind < 9 / 32:
        return Shape(rng.randint(2, 6), rng.randint(2, 4), most)
    if ease == 0.0 and kind < 13 / 32:
        return Shape(rng.randint(8, 16), 1, most)
    return Shape(rng.randint(2, 4 + round(4 * (1.0 - ease))), 1, most)


class WatchingConversations:
    """An endless stream of steps; each step is a list of micro-batches."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, clips: int, rows: int):
        self.tokenizer, self.clips, self.rows = tokenizer, clips, rows

    def step(self, number: int) -> list[ClipBatch]:
        """Return the micro-batches of step `number`: `clips` clips in all, at most `rows` in each."""
        batches, index, last = [], number * self.clips, (number + 1) * self.clips
        while index < last:
            shape = shape_of(index, random.Random(f"mmspec/watching/{index}"))
            floor = 3 * shape.edge * (3 * shape.edge + 1)
            tokens = shape.steps * (floor + 24)  # some 24 of text for every step
            rows = min(last - index, max(1, min(self.rows, self.rows * ROW_TOKENS // tokens)))
            examples = [clip_conversation(index + row, **shape._asdict()) for row in range(rows)]
            batches.append(self._collate(examples))
            index += rows
        return batches

    def _collate(self, examples: list[ClipConversation]) -> ClipBatch:
        encoded = [encode_clip(example, self.tokenizer) for example in examples]
        # Few different lengths: the CPU kernels are compiled per shape, and every new one costs a moment.
        length = -(-max(len(ids) for ids, _ in encoded) // 32) * 32
        input_ids = torch.full((len(examples), length), self.tokenizer.pad_token_id)
        labels = torch.full((len(examples), length), IGNORE)
        shown = torch.full((len(examples), examples[0].clip.visual_tokens, MOST_WORDS), IGNORE)
        for row, (ids, label) in enumerate(encoded):
            input_ids[row, : len(ids)] = torch.tensor(ids)
            labels[row, : len(ids)] = torch.tensor(label)
            for place, words in examples[row].patch_words.items():
                found = [self.tokenizer.encode(word, add_special_tokens=False)[0] for word in words]
                shown[row, place, : len(found)] = torch.tensor(found)
        pixels = torch.stack([patches(example.frames) for example in examples])
        side = CELL // PATCH
        grid = (pixels.shape[1], side * (3 * examples[0].clip.edge + 1), side * 3 * examples[0].clip.edge)
        return ClipBatch(input_ids, labels, pixels, shown, torch.zeros(len(examples), dtype=torch.long), grid)
