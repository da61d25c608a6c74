"""Which examples a training step learns from: a shuffled order, or text first and pictures later."""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import lru_cache
from itertools import accumulate

from ..data.examples import Source
from ..errors import MMSpecError
from .settings import Settings

LEAST, MOST = 0.05, 0.95
"""The chance of a picture when a curriculum begins to mix, and when it ends to."""


class Order:
    """A fixed order of the examples, so that any step can be found again: one shuffled epoch after the other.

    Args:
        numbers: of the examples to use.
        batch_size: examples per step.
        seed: of the shuffling.
    """

    def __init__(self, numbers: Sequence[int], batch_size: int, seed: int):
        self.numbers, self.batch_size, self.seed = list(numbers), batch_size, seed
        self._epoch = lru_cache(maxsize=2)(self._shuffled)

    @property
    def pools(self) -> list[list[int]]:
        """Examples that may take each other's place, where one cannot be used."""
        return [self.numbers]

    def step(self, number: int) -> list[int]:
        """The examples of a step, `batch_size` of them."""
        places = range(number * self.batch_size, (number + 1) * self.batch_size)
        return [self._epoch(place // len(self.numbers))[place % len(self.numbers)] for place in places]

    def epochs(self, steps: int) -> float:
        """How often every example has been seen after some steps."""
        return steps * self.batch_size / len(self.numbers)

    def _shuffled(self, epoch: int) -> list[int]:
        return random.Random(f"{self.seed}/{epoch}").sample(self.numbers, len(self.numbers))


class Curriculum(Order):
    """Text first, then pictures with a chance that rises in a straight line, then pictures alone (MSD, arXiv
    2505.14260; the numbers are those of its release).

    Both kinds of examples are shuffled orders of their own. Like any order it is fixed: a step's examples follow from
    its number.

    Args:
        text: numbers of the examples without pictures.
        pictures: numbers of those with some.
        batch_size: examples per step.
        seed: of the shuffling, and of what is drawn.
        steps: of the whole training.
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
        return [self._text.numbers, self._pictures.numbers]

    def chance(self, step: int) -> float:
        """Of a picture, in a step."""
        mixing = self.steps - self.text_steps - self.picture_steps
        if step < self.text_steps:
            return 0.0
        if step >= self.text_steps + mixing:
            return 1.0
        return LEAST + (MOST - LEAST) * (step - self.text_steps) / max(1, mixing - 1)

    def step(self, number: int) -> list[int]:
        places = range(number * self.batch_size, (number + 1) * self.batch_size)
        return [
            (self._pictures if self._drawn[place] else self._text).step(
                self._before[place] if self._drawn[place] else place - self._before[place]
            )[0]
            for place in places
        ]


def order_of(examples: Source, numbers: Sequence[int], settings: Settings) -> Order:
    """The order that the settings ask for, over some of the examples."""
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
    """Whether an example has pictures. One that cannot be read is dropped later, wherever it is."""
    try:
        return bool(examples[number].images)
    except MMSpecError:
        return False
