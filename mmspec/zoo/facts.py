"""Facts: questions about a scene whose answer is in one of several documents, and in no picture.

Every document tells the name of a shape. One of these shapes is in the picture and is asked for by its place; the
others are not in it. The names are drawn, so a model that looks at the picture alone cannot know them, and one that
reads the documents alone cannot know which of them is meant.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from mmspec.zoo.data import subject_of
from mmspec.zoo.drawing import ALPHABET, COLOURS, SHAPES
from mmspec.zoo.scenes import SIZES, Scene

SENTENCE = "The {subject} is called {name}."
_SENTENCE = re.compile(r"^The ([a-z ]+) is called (\w+)\.$", re.MULTILINE)
MOST = 40
"""Documents of a question at most: each is about another colour or shape."""


class Fact(NamedTuple):
    """A question about the picture of `sample("scenes", split, index)`.

    Args:
        prompt: the question.
        documents: a sentence each, in any order.
        right: the number of the document that has the answer.
        answer: the answer.
    """

    prompt: str
    documents: tuple[str, ...]
    right: int
    answer: str


def fact(split: str, index: int, documents: int = 6) -> Fact:
    """Return a question about a scene, with its documents.

    Args:
        split: one of `mmspec.zoo.SPLITS`.
        index: the number of the scene.
        documents: how many there are, from 1 to `MOST`.
    """
    if not 1 <= documents <= MOST:
        raise ValueError(f"a question has 1 to {MOST} documents, not {documents}")
    scene = subject_of("scenes", split, index)
    assert isinstance(scene, Scene), "the task says so"
    rng = random.Random(f"mmspec/facts/{split}/{index}/{documents}")
    asked = rng.choice(scene.things)
    shown = {(thing.colour, thing.shape) for thing in scene.things}
    others = [(colour, shape) for colour in COLOURS for shape in SHAPES if (colour, shape) not in shown]
    subjects = [f"{rng.choice(list(SIZES))} {' '.join(pair)}" for pair in rng.sample(others, documents - 1)]
    right = rng.randrange(documents)
    subjects.insert(right, asked.name)
    names: list[str] = []
    while len(names) < documents:
        name = "".join(rng.choice(ALPHABET) for _ in range(3))
        if name not in names:
            names.append(name)
    told = tuple(SENTENCE.format(subject=subject, name=name) for subject, name in zip(subjects, names, strict=True))
    return Fact(f"What is the shape in the {asked.place} called?", told, right, names[right])


class FactReader:
    """A stand-in for a small model that can read: takes the sentence of a document apart. It looks at no picture.

    The embedded models were not taught to read documents. With this one in their place, what can be measured is how
    well the right draft is chosen.
    """

    def __call__(self, conversations: Sequence[Any]) -> list[str]:
        """Return a draft for each question, see `mmspec.selection.VideoSpeculateRAG`.

        Args:
            conversations: questions whose last message has the document in its text.
        """
        return [self._draft("\n".join(conversation[-1].texts)) for conversation in conversations]

    @staticmethod
    def _draft(text: str) -> str:
        found = _SENTENCE.search(text)
        if found is None:
            return ""
        subject, name = found.groups()
        return f"Subject: {subject}\nReasoning: The document says what the {subject} is called.\nAnswer: {name}"
