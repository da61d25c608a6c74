"""OwnText: the first answers of another engine, held against what the target itself prefers."""

from __future__ import annotations

from collections.abc import Sequence

from ..errors import MMSpecError
from ..exactness import departures, described
from ..inputs import Request
from ..target import Target


class OwnText:
    """Finds out that an engine has another model, whatever a probe had said, before its answers become a data set.

    Args:
        target: the model that is to have answered.
        count: number of answers that are held against it.

    Attributes:
        compared: number of answers that were.
        near_ties: places in them where two tokens were as good as equal to the target, and the engine took the other.
    """

    def __init__(self, target: Target, count: int):
        self.target, self.count = target, count
        self.compared = self.near_ties = 0

    @property
    def wanted(self) -> bool:
        """True if another answer is to be held against the target."""
        return self.compared < self.count

    def check(self, name: str, request: Request, written: Sequence[int], who: str) -> None:
        """Hold an answer against the target.

        Args:
            name: the example's name, for the error.
            request: its prompt, of one row.
            written: token ids of its greedy answer.
            who: names the engine in the error.

        Raises:
            MMSpecError: if a token is not what the target prefers after those before it, nor nearly.
        """
        for difference in departures(self.target, request, list(written)):
            if not difference["tie"]:
                raise MMSpecError(
                    f"{who} does not write what this target does: answering {name!r}, "
                    f"{described(self.target, difference)}. It has another model, or another number format: correct "
                    "url=, target= or dtype=, or take its answers as they are with compared=0"
                )
            self.near_ties += 1
        self.compared += 1
