"""Choose the examples that a training step learns from: a shuffled order, or text first and pictures later."""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import lru_cache
from itertools import accumulate

from ..data.examples import MEDIA, Source
from ..errors import MMSpecError
from .settings import TrainingSettings

LEAST, MOST = 0.05, 0.95
"""The chance of a picture when a curriculum begins to mix, and when it ends to."""


class Order:
    """A fixed order of the examples, one shuffled epoch after the other, so that the examples of any step can be found
    again.

    Args:
        numbers: the examples to use, by their number in the data set.
        batch_size: examples per step.
        seed: seed for shuffling.
    """

    def __init__(self, numbers: Sequence[int], batch_size: int, seed: int):
        self.numbers, self.batch_size, self.seed = list(numbers), batch_size, seed
        self._epoch = lru_cache(maxsize=2)(self._shuffled)

    @property
    def pools(self) -> list[list[int]]:
        """Groups of examples that may take each other's place if one cannot be used."""
        return [self.numbers]

    def step(self, number: int) -> list[int]:
        """Return the examples of a step, `batch_size` of them."""
        places = range(number * self.batch_size, (number + 1) * self.batch_size)
        return [self._epoch(place // len(self.numbers))[place % len(self.numbers)] for place in places]

    def epochs(self, steps: int) -> float:
        """Return how often every example has been seen after some steps."""
        return steps * self.batch_size / len(self.numbers)

    def _shuffled(self, epoch: int) -> list[int]:
        return random.Random(f"{self.seed}/{epoch}").sample(self.numbers, len(self.numbers))


class Curriculum(Order):
    """An order that begins with text, then mixes in pictures with a chance that rises linearly, and ends with pictures
    alone (MSD, arXiv 2505.14260; the numbers are those of its release).

    Both kinds of examples are shuffled orders of their own. Like any order it is fixed: a step's examples follow from
    its number.

    Args:
        text: numbers of the examples without pictures.
        pictures: numbers of the examples with pictures.
        batch_size: examples per step.
        seed: seed for shuffling and for drawing the kind of each example.
        steps: number of steps of the whole training.
        text_steps: steps on text alone, at the beginning.
        picture_steps: steps on pictures alone, at the end.

    Raises:
        MMSpecError: if there are no examples of one kind, or no steps in between.
    """

    def __init__(
        self,
        text: Sequence[int],
        pictures: Sequence[int],
        batch_size: int,
        seed: int,
        steps: int,
        text_steps: int,
        picture_steps: int = 0,
    ):
        super().__init__([*text, *pictures], batch_size, seed)
        for kind, numbers in (("without pictures", text), ("with pictures", pictures)):
            if not numbers:
                raise MMSpecError(
                    f"text_steps={text_steps}: a curriculum goes from text to pictures, and none of the examples is "
                    f"{kind}; leave text_steps and picture_steps at 0, or give answers of both kinds"
                )
        if text_steps + picture_steps > steps:
            raise MMSpecError(
                f"text_steps={text_steps} and picture_steps={picture_steps} are more than steps={steps} together"
            )
        self.steps, self.text_steps, self.picture_steps = steps, text_steps, picture_steps
        self._text, self._pictures = Order(text, 1, seed), Order(pictures, 1, seed)
        rng = random.Random(f"{seed}/curriculum")
        drawn = [rng.random() < self.chance(step) for step in range(steps) for _ in range(batch_size)]
        self._drawn, self._before = drawn, [0, *accumulate(drawn)]

    @property
    def pools(self) -> list[list[int]]:
        """Two groups: the examples without pictures, and those with pictures."""
        return [self._text.numbers, self._pictures.numbers]

    def chance(self, step: int) -> float:
        """Return the chance that an example of this step has a picture."""
        mixing = self.steps - self.text_steps - self.picture_steps
        if step < self.text_steps:
            return 0.0
        if step >= self.text_steps + mixing:
            return 1.0
        return LEAST + (MOST - LEAST) * (step - self.text_steps) / max(1, mixing - 1)

    def step(self, number: int) -> list[int]:
        """Return the examples of a step, `batch_size` of them, in the drawn mix of text and pictures."""
        places = range(number * self.batch_size, (number + 1) * self.batch_size)
        return [
            (self._pictures if self._drawn[place] else self._text).step(
                self._before[place] if self._drawn[place] else place - self._before[place]
            )[0]
            for place in places
        ]


def order_of(examples: Source, numbers: Sequence[int], settings: TrainingSettings) -> Order:
    """Make the order that the settings ask for, over the given examples."""
    if not settings.text_steps and not settings.picture_steps:
        return Order(numbers, settings.batch_size, settings.seed)
    seeing = [_sees(examples, number) for number in numbers]
    text, pictures = ([n for n, sees in zip(numbers, seeing, strict=True) if sees == kind] for kind in (False, True))
    return Curriculum(
        text,
        pictures,
        settings.batch_size,
        settings.seed,
        settings.steps,
        settings.text_steps,
        settings.picture_steps,
    )


def _sees(examples: Source, number: int) -> bool:
    """Return True if an example has pictures. One that cannot be read is dropped later, whichever kind it counts as."""
    try:
        return any(getattr(examples[number], name) for name in MEDIA)
    except MMSpecError:
        return False
