"""Judgement of whether a drafter suits the text of an answer, and its rests where it does not."""

from __future__ import annotations

from collections.abc import Sequence

from .costs import Costs
from .knowledge import Rate, seconds_of
from .round_costs import RoundCosts
from .shapes import Shape
from .two_kinds import TwoKinds, chance_of, odds_of

RATE_DECAY, RATE_ROUNDS = 0.95, 4
"""Factor by which a round of an answer counts less with every later one, and the number of rounds that its beginning
weighs as much as."""

CLEARLY = 0.96
"""A rate below so much of plain decoding's is no accident: a few rounds tell it only roughly."""

FORGOTTEN = 0.2
"""Weight of what was seen before a rest: the text has moved on."""

PROVEN = 32
"""Rounds after which a drafter that was tried again is trusted as at the beginning."""

TRIED = 3
"""Rounds of an answer after which their mean rate says something."""

TOLD = 4
"""Rounds of an answer after which it is known of which kind it is."""

PROBING = 2
"""Rounds at the beginning of an answer that are chains whatever pays: a chain that ends where it is unsure costs little
if the drafter does not suit the text."""

LEAVE = 0.3
"""Log-odds above the least ones with which drafting is tried again."""

LENGTHS = (1, 2, 3, 4, 6, 8, 12, 16)
"""Lengths of which the best one is looked for."""

PAUSES = (32, 128)
"""Rounds without drafts before it is tried again: the first time, doubled every time, and at most."""

NEAR = 1.3
"""Where drafting is less than so many times as fast as plain decoding is thought to be, that is measured."""


class Suitability:
    """Judges, round by round, of which kind the text of every row is (`TwoKinds`), and lets the drafter rest where
    plain decoding would be faster: for 32 rounds, then 64, then 128 [OUR].

    Args:
        kinds: what is known of the two kinds; it learns from this answer.
        rows: number of rows.
        tokens, seconds: a usual round, with which the answer begins.

    Attributes:
        rate: tokens per second of this answer, so far as something was drafted.
        resting: rounds that the drafter rests yet.
        probing: rounds yet that are chains whatever pays.
    """

    def __init__(self, kinds: TwoKinds, rows: int, tokens: float, seconds: float):
        self.rate = Rate(RATE_ROUNDS * tokens, RATE_ROUNDS * seconds, RATE_DECAY)
        self.resting, self.probing = 0, PROBING
        self._kinds, self._odds = kinds, [kinds.odds] * rows
        self._pause, self._drafts = PAUSES[0], 0

    @property
    def chances(self) -> list[float]:
        """The chance of every row that its text is of the kind which the drafter suits."""
        return [chance_of(odds) for odds in self._odds]

    def compare(self, costs: Costs) -> None:
        """Work out how fast the best chain is in both kinds of text, and the odds from which on it pays."""
        self._speeds = [fastest_chain(costs, chance) for chance in self._kinds.chances]
        gain = self._speeds[0] - self._speeds[1]
        worth = 1.0 if gain <= 0 else (CLEARLY / costs.plain - self._speeds[1]) / gain
        self._least = odds_of(worth)

    def go_on_resting(self) -> None:
        """Count a round of a rest. Behind the last one, one refused guess is enough for another rest."""
        self.resting -= 1
        if not self.resting:
            self._odds = [max(odds, self._least + LEAVE) for odds in self._odds]
            self.probing = 1

    def judge(self, rows: Sequence[int], accepted: Sequence[int], chains: list[list[float]] | None) -> None:
        """Learn from a round of which kind the text is.

        Args:
            rows: the rows that go on.
            accepted: for each of them, how many guesses were right.
            chains: for each of them, the drafter's probabilities of its chain; None for a tree.
        """
        self._drafts += 1
        # Of a tree's level many children are tried: that none was right is all that it tells for certain.
        drafted = [right + 1 for right in accepted] if chains is None else [len(chain) for chain in chains]
        for row, length, right in zip(rows, drafted, accepted, strict=True):
            self._odds[row] = self._kinds.after(self._odds[row], length, right)
        if chains is not None:
            self._kinds.add([self._odds[row] for row in rows], chains, accepted)
        if self._drafts == TOLD:
            self._kinds.count(self._paying)

    def weigh(self, rows: int, plain: float, learnt: RoundCosts | None) -> None:
        """Begin a rest where drafting does not make the answer faster.

        Args:
            rows: the number of rows that go on.
            plain: seconds of a round without drafts.
            learnt: the costs, if they are learnt; a round without drafts is then timed before the first rest.
        """
        if self._drafts == PROVEN:
            self._pause = PAUSES[0]
        chance, speed = self._paying, rows / plain
        expected = rows * (chance * self._speeds[0] + (1 - chance) * self._speeds[1])
        if self._drafts >= TRIED:
            expected = min(expected, self.rate.value)
        if expected > NEAR * speed:
            return
        if learnt is not None and learnt.plain_rounds < 2:
            self.resting = 1
        elif expected < CLEARLY * speed:
            if self._drafts < TOLD:
                self._kinds.count(chance)
            self.resting, self._pause = self._pause, min(2 * self._pause, PAUSES[1])
            self._drafts = TOLD
            self.rate.fade(FORGOTTEN)

    @property
    def _paying(self) -> float:
        """The mean of the rows' chances."""
        return sum(self.chances) / len(self._odds)


def fastest_chain(costs: Costs, chance: float) -> float:
    """Return the tokens per second of the best chain, where every guess is accepted with the same chance."""
    tokens = {length: (1 - chance ** (length + 1)) / (1 - chance) for length in LENGTHS}
    return max(count / seconds_of(costs, Shape.chain(length), count) for length, count in tokens.items())
