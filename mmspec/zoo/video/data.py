"""The tasks of the video target: `watch(task, split, index)`, and `clip_conversation(...)` for training.

As with pictures, everything follows from (task, split, index), and a hash of the content decides to which split a clip
belongs, so the splits share none.
"""

from __future__ import annotations

import random
from typing import NamedTuple

import numpy

from mmspec.zoo.data import SPLITS, belongs
from mmspec.zoo.video import accounts
from mmspec.zoo.video.clips import Clip, Event, draw_clip
from mmspec.zoo.video.frames import FRAMES_PER_STEP, patch_words, render

CLIP_TASKS = ("accounts", "moments", "pictures")


class Length(NamedTuple):
    """The fewest and most steps, the smallest and largest edge of a tile, and how often every step is shown."""

    steps: tuple[int, int]
    edges: tuple[int, int]
    repeat: int = 1


LENGTHS = {
    "short": Length((4, 8), (1, 1)),
    "long": Length((8, 16), (2, 4)),
    "500": Length((12, 12), (2, 2)),
    "2k": Length((13, 13), (4, 4)),
    "8k": Length((13, 13), (4, 4), repeat=4),
    "25k": Length((13, 13), (4, 4), repeat=12),
}
"""Lengths by name. The last four are for measurements of cost: 504, 2,028, 8,112 and 24,336 visual tokens. The last two
show every step several times, which the model was not trained on."""
FEWEST_TOKENS = 500  # of a long clip


class ClipSample(NamedTuple):
    """One example: frames `[frames, height, width, 3]` of uint8, a question about them, and the right answer."""

    frames: numpy.ndarray
    prompt: str
    reference: str


class ClipConversation(NamedTuple):
    """One training example: a clip, several turns of (prompt, reference), and the words that single tokens show. A
    picture is a clip of one step in which nothing happens."""

    clip: Clip
    frames: numpy.ndarray
    turns: tuple[tuple[str, str], ...]
    patch_words: dict[int, list[str]]
    picture: bool = False


def _check(task: str, split: str, index: int, length: str) -> None:
    for what, value, known in (("task", task, CLIP_TASKS), ("split", split, SPLITS), ("length", length, LENGTHS)):
        if value not in known:
            raise ValueError(f"unknown {what} {value!r}: choose one of {', '.join(known)}")
    if index < 0:
        raise ValueError(f"the index of a sample must be 0 or more, not {index}")


def clip_in(split: str, rng: random.Random, steps: int, edge: int, most: int = 3) -> Clip:
    """Draw clips until one belongs to the split."""
    while True:
        clip = draw_clip(rng, steps, edge, most, allow_held_out=split == "test")
        if belongs(clip, split):
            return clip


def repeated(frames: numpy.ndarray, times: int) -> numpy.ndarray:
    """Show every step of a clip so many times, one after the other."""
    pairs = frames.reshape(-1, FRAMES_PER_STEP, *frames.shape[1:])
    return pairs.repeat(times, axis=0).reshape(-1, *frames.shape[1:])


def still(clip: Clip) -> Clip:
    """Return the clip in which nothing happens to what is there at first: the content of a picture."""
    return clip._replace(events=(Event("nothing"),))


def _drawn(split: str, length: str, rng: random.Random) -> Clip:
    steps, edges, _ = LENGTHS[length]
    while True:
        clip = clip_in(split, rng, rng.randint(*steps), rng.randint(*edges))
        if length == "short" or clip.visual_tokens >= FEWEST_TOKENS:
            return clip


def clip_of(task: str, split: str, index: int, length: str = "long") -> Clip:
    """Return the exact content of the clip of `watch(task, split, index, length)`, for metrics and tests."""
    _check(task, split, index, length)
    return _drawn(split, length, random.Random(f"mmspec/{task}/{length}/{split}/{index}"))


def watch(task: str, split: str, index: int, length: str = "long") -> ClipSample:
    """Return example number `index` of a task: `frames, prompt, reference = watch("moments", "test", 7)`.

    Args:
        task: `accounts`, `moments`, or `pictures`, which show one frame alone.
        split: `train`, `validation` or `test`.
        index: number of the example, 0 or more.
        length: `long` for 500 to 2,496 visual tokens, `short` for 48 to 96; see `LENGTHS` for the others.

    Raises:
        ValueError: for a task, split or length that there is not, or a negative index.
    """
    _check(task, split, index, length)
    rng = random.Random(f"mmspec/{task}/{length}/{split}/{index}")
    clip = _drawn(split, length, rng)
    if task == "pictures":
        return ClipSample(render(still(clip))[:1], rng.choice(accounts.PICTURE_PROMPTS), accounts.caption(clip))
    turn = (rng.choice(accounts.PROMPTS), accounts.account(clip)) if task == "accounts" else accounts.ask(clip, rng)
    return ClipSample(repeated(render(clip), LENGTHS[length].repeat), *turn)


def clip_conversation(
    index: int, steps: int, edge: int, most: int = 3, questions: int = 3, picture: bool = False
) -> ClipConversation:
    """Return a training example: one clip, or its first frame, with its account and several questions.

    In half of the conversations the questions come first, so that they have to be answered from the clip and not from
    the account that is already there.
    """
    rng = random.Random(f"mmspec/watching/{steps}/{edge}/{index}")
    clip = clip_in("train", rng, steps, edge, most)
    if picture:
        clip, whole = still(clip), (rng.choice(accounts.PICTURE_PROMPTS), accounts.caption(clip))
    else:
        whole = (rng.choice(accounts.PROMPTS), accounts.account(clip))
    turns = list(dict(accounts.ask(clip, rng) for _ in range(questions)).items())
    turns.insert(rng.choice((0, len(turns))), whole)
    return ClipConversation(clip, render(clip), tuple(turns), patch_words(clip), picture)
