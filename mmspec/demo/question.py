"""What somebody asks, and what is refused before any work is done for it.

A page's values come over the network: whoever reaches it may send anything in place of a text or a number.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from ..errors import MMSpecError, cut, shown
from .limits import Limits

LARGEST_SEED = 2**63
WORDS = 60
"""Characters of a wrong value that its refusal repeats."""


@dataclass(frozen=True)
class Question:
    """What somebody asks.

    Args:
        prompt: the question in words.
        image: the path of a picture, or None.
        chosen: a group to its option.
        temperature, max_new_tokens, seed: see `mmspec.stream`.
        image_name: what the picture is called where it came from.
    """

    prompt: str
    image: str | None
    chosen: Mapping[str, str]
    temperature: float = 0.0
    max_new_tokens: int = 128
    seed: int = 0
    image_name: str | None = None

    def check(self, limits: Limits) -> None:
        """Refuse what is of a wrong type or beyond the limits. What is chosen is looked at by `Choices.check`.

        Raises:
            MMSpecError: naming the field, its value and what may stand there.
        """
        if not isinstance(self.prompt, str):
            raise MMSpecError(f"the question must be text, not {shown(self.prompt, WORDS)}")
        if len(self.prompt) > limits.characters:
            raise MMSpecError(
                f"the question has {len(self.prompt)} characters, but this page takes {limits.characters} at most: "
                f"shorten it, or start the page with a larger characters= than {limits.characters}"
            )
        for name, value in (("image", self.image), ("image name", self.image_name)):
            if value is not None and not isinstance(value, str):
                raise MMSpecError(f"the {name} must be text, not {shown(value, WORDS)}: drop the picture again")
        for name in ("temperature", "max_new_tokens", "seed"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(_small(value)):
                raise MMSpecError(f"{name}={shown(value, WORDS)} is no number")
        if abs(self.seed) >= LARGEST_SEED:
            raise MMSpecError(f"seed={cut(f'{self.seed}', WORDS)} is out of range: it must be below {LARGEST_SEED}")
        if self.max_new_tokens > limits.longest:
            raise MMSpecError(
                f"max_new_tokens={shown(self.max_new_tokens, WORDS)} is more than this page answers: ask for "
                f"{limits.longest} at most, or start the page with a larger longest="
            )


def _small(value: float) -> float:
    """A number as a float; one that is too large for a float as infinity."""
    try:
        return float(value)
    except OverflowError:
        return math.inf
