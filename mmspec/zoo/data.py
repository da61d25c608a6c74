"""The four tasks in one place: `sample(task, split, index)` and, for training, `conversation(...)`.

Everything follows from (task, split, index): no state, no files, the same picture on every machine. The splits share
no picture: a hash of the content decides to which split a scene, chart or document belongs, so a training picture
cannot turn up in the test split by accident.
"""

from __future__ import annotations

import random
import zlib
from typing import NamedTuple

from PIL import Image

from mmspec.zoo import charts, documents, questions, scenes
from mmspec.zoo.drawing import ALPHABET

TASKS = ("scenes", "charts", "documents", "questions")
SPLITS = ("train", "validation", "test")
_BUCKETS = {"train": range(0, 14), "validation": range(14, 15), "test": range(15, 16)}

Subject = scenes.Scene | charts.Chart | documents.Document


class DrawnSample(NamedTuple):
    """One example: a picture, a question about it, and the right answer."""

    image: Image.Image
    prompt: str
    reference: str


class Conversation(NamedTuple):
    """One training example: a picture, several turns of (prompt, reference), and the words that single patches show."""

    image: Image.Image
    turns: tuple[tuple[str, str], ...]
    patch_words: dict[int, str]


def _check(task: str, split: str, index: int) -> None:
    if task not in TASKS:
        raise ValueError(f"unknown task {task!r}: choose one of {', '.join(TASKS)}")
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}: choose one of {', '.join(SPLITS)}")
    if index < 0:
        raise ValueError(f"the index of a sample must be 0 or more, not {index}")


def belongs(content: object, split: str) -> bool:
    """Return whether the hash of a content puts it into a split."""
    return zlib.crc32(repr(content).encode()) % 16 in _BUCKETS[split]


def draw_subject(task: str, split: str, rng: random.Random, difficulty: float = 1.0) -> Subject:
    """Choose the content of a picture. `difficulty` below 1 means fewer shapes, bars, characters and lines.

    Documents become very short at low difficulty: reading the first letter of a short line is learnt soon, while a page
    full of text, in which it is one of sixty letters, would take far longer to teach it.
    """
    ease = 1.0 - min(max(difficulty, 0.0), 1.0)

    def most(easy: int, full: int, ease: float = ease) -> int:
        return round(full + (easy - full) * ease)

    if task == "questions":
        task = rng.choice(("scenes", "charts"))
    subject: Subject
    while True:
        if task == "scenes":
            subject = scenes.draw_scene(rng, most=most(2, 5), allow_held_out=split == "test")
        elif task == "charts":
            subject = charts.draw_chart(rng, fewest=most(2, 4), most=most(2, 5))
        else:
            slow = 1.0 - (1.0 - ease) ** 2  # first longer lines, then more of them
            subject = documents.draw_document(
                rng, most(1, 5, slow), most(1, documents.ROWS, slow), most(3, documents.COLUMNS)
            )
        if belongs(subject, split):
            return subject


def _render(subject: Subject, rng: random.Random) -> Image.Image:
    if isinstance(subject, scenes.Scene):
        return scenes.render(subject, rng)
    if isinstance(subject, charts.Chart):
        return charts.render(subject, rng)
    return documents.render(subject)


def _long_turn(subject: Subject, rng: random.Random) -> tuple[str, str]:
    """Return the prompt and answer that cover the whole picture."""
    if isinstance(subject, scenes.Scene):
        return rng.choice(scenes.PROMPTS), scenes.describe(subject, rng)
    if isinstance(subject, charts.Chart):
        return rng.choice(charts.PROMPTS), charts.tabulate(subject)
    return rng.choice(documents.PROMPTS), documents.transcribe(subject)


def subject_of(task: str, split: str, index: int) -> Subject:
    """Return the exact content of the picture of `sample(task, split, index)`, for metrics and tests."""
    _check(task, split, index)
    return draw_subject(task, split, random.Random(f"mmspec/{task}/{split}/{index}"))


def sample(task: str, split: str, index: int) -> DrawnSample:
    """Return example number `index` of a task: `image, prompt, reference = sample("charts", "test", 7)`."""
    _check(task, split, index)
    rng = random.Random(f"mmspec/{task}/{split}/{index}")
    subject = draw_subject(task, split, rng)
    image = _render(subject, rng)
    if task == "questions" and not isinstance(subject, documents.Document):
        return DrawnSample(image, *questions.ask(subject, rng))
    return DrawnSample(image, *_long_turn(subject, rng))


def page_regions(split: str, index: int) -> list[tuple[str, tuple[int, int, int, int]]]:
    """Return the blocks of `sample("documents", split, index)`: the true text of each and its box in pixels."""
    subject = subject_of("documents", split, index)
    assert isinstance(subject, documents.Document), "the task says so"
    return documents.regions(subject)


def misread(text: str, share: float, seed: object = 0) -> str:
    """Return a text as a bad reader has it: each letter or digit is, with a chance of `share`, another one."""
    rng = random.Random(f"mmspec/misread/{seed}")
    return "".join(
        rng.choice(ALPHABET.replace(character, "")) if character.isalnum() and rng.random() < share else character
        for character in text
    )


def conversation(task: str, index: int, difficulty: float = 1.0) -> Conversation:
    """Return a training example: one picture with several turns, so that the model learns more from each picture.

    In half of the conversations the questions come first, so that they have to be answered from the picture and not
    from the description that is already there; in the other half the long answer does.
    """
    rng = random.Random(f"mmspec/conversation/{task}/{index}")
    subject = draw_subject(task, "train", rng, difficulty)
    image = _render(subject, rng)
    if isinstance(subject, documents.Document):
        return Conversation(image, (_long_turn(subject, rng),), documents.patch_words(subject))
    asked = dict(questions.ask(subject, rng) for _ in range(4 if task == "questions" else 2))
    turns = list(asked.items())
    if task != "questions":
        turns.insert(rng.choice((0, len(turns))), _long_turn(subject, rng))
    module = scenes if isinstance(subject, scenes.Scene) else charts
    return Conversation(image, tuple(turns), module.patch_words(subject))
