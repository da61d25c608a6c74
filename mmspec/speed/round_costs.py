"""Costs learnt from the rounds of real requests: nothing is measured beforehand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..errors import MMSpecError
from .costs import Costs, Curve, Line
from .shapes import Shape

DECAY = 0.995
"""Factor by which a round counts less with every later one: half as much after 140 rounds."""

OUTLIER = 2.0
"""A phase that takes this many times what is expected counts as that long: something else ran on the machine."""

TRUSTED = 8
"""Rounds from which on an expectation is good enough to call a round an outlier."""


class FittedPhase:
    """Seconds of one phase of a round as a weighted sum of counts, by recursive least squares.

    A guess stands for what the rounds do not tell: it weighs as much as one round in which every count had its
    `typical` value. All factors are 0 or more.

    Args:
        guess: factors before anything is known, relative to the seconds of the target's pass over one token.
        typical: usual sizes of the counts.
    """

    def __init__(self, guess: Sequence[float], typical: Sequence[float]):
        self.guess = np.array(guess)
        self.weights = np.diag(np.array(typical) ** 2)
        self.matrix = np.zeros_like(self.weights)
        self.vector = np.zeros(len(guess))

    def add(self, counts: np.ndarray, seconds: np.ndarray) -> None:
        """Add rounds, `[rounds, counts]` and `[rounds]`, and let the older ones count less."""
        faded = DECAY ** np.arange(len(seconds) - 1, -1, -1)
        self.matrix = DECAY ** len(seconds) * self.matrix + counts.T @ (counts * faded[:, None])
        self.vector = DECAY ** len(seconds) * self.vector + counts.T @ (seconds * faded)

    def factors(self, unit: float) -> np.ndarray:
        """Return the factors that fit best, in seconds.

        A factor below 0 is noise around 0: the most negative one is left out, and the rest is fitted again.

        Args:
            unit: seconds that the guess is relative to.
        """
        matrix, vector = self.matrix + self.weights, self.vector + self.weights @ self.guess * unit
        free = list(range(len(vector)))
        found = np.zeros(len(vector))
        while free:
            solution = np.linalg.solve(matrix[np.ix_(free, free)], vector[free])
            worst = int(solution.argmin())
            if solution[worst] >= 0:
                found[free] = solution
                break
            del free[worst]
        return found


PARTS = {"draft": ("draft",), "score": ("score",), "rest": ("verify", "commit", "observe", "other")}
"""The phases of `mmspec.decoding.clock` that a phase here consists of."""


def counts_of(shape: Shape, confirmed: float) -> dict[str, list[float]]:
    """Return, for every phase, the counts that its seconds are a weighted sum of.

    Args:
        shape: shape of the round's tree.
        confirmed: tokens per row that the drafter had to read first.
    """
    plain = shape.nodes == 0
    further = max(shape.passes - 1, 0)
    drafting = [1.0, confirmed, further, sum(shape.levels[1:])]
    best = float(shape.kind == "best_first")
    choosing = [further * (shape.kind == kind) for kind in ("static", "dynamic")] + [best, best * shape.nodes]
    return {
        "draft": [0.0] * 8 if plain else [*drafting, *choosing],
        "score": [1.0, shape.nodes, float(not plain)],
        "rest": [1.0, shape.nodes, float(not plain), float(shape.kind not in ("chain", "plain"))],
    }


class RoundCosts:
    """The costs of a target and a drafter on this machine, as the rounds tell them.

    Before the first round the costs are a guess, relative to the target's pass over one token, whose seconds the first
    round tells. Every round then moves what it speaks of: chains of varying length tell what a level costs, and what a
    further node costs in scoring.

    Attributes:
        costs: the costs as `learn` has fitted them last; a pass of the target counts as one second before.
        rounds: number of rounds that were added.
        plain_rounds: those that drafted nothing.

    Args:
        share: the weights that a level of the drafter reads, as a share of those of the target's pass: the guess of
            what a level costs. Launching takes time too, so a level is not thought cheaper than a twentieth.
        cheap: True if only the first level costs that, see `Drafter.cheap_levels`.
    """

    def __init__(self, share: float = 0.1, cheap: bool = False):
        first = min(max(share, 0.05), 2.0)
        level = 0.01 if cheap else first
        self.phases = {
            "draft": FittedPhase([first, 0.01, level, 0.01, 0.03, 0.06, 0.04, 0.0], [1, 4, 6, 12, 4, 4, 1, 16]),
            "score": FittedPhase([1.0, 0.02, 0.02], [1, 8, 1]),
            "rest": FittedPhase([0.08, 0.001, 0.04, 0.05], [1, 8, 1, 1]),
        }
        self.rounds = self.plain_rounds = 0
        self._unit = 0.0
        self._waiting: list[tuple[Shape, float, Mapping[str, float]]] = []
        self.costs = self._fitted(1.0)

    def add(self, shape: Shape, confirmed: float, seconds: Mapping[str, float]) -> None:
        """Note a round; `learn` makes use of it.

        Args:
            shape: shape of its tree; `Shape.plain()` if nothing was drafted.
            confirmed: tokens per row that the drafter had to read first.
            seconds: seconds by phase, see `mmspec.decoding.clock`.
        """
        self.rounds += 1
        self.plain_rounds += shape.nodes == 0
        self._waiting.append((shape, confirmed, seconds))

    @property
    def waiting(self) -> int:
        """The number of rounds that `learn` has not made use of yet."""
        return len(self._waiting)

    def learn(self) -> None:
        """Fit the costs to the rounds that were added since."""
        if not self._waiting:
            return
        waiting, self._waiting = self._waiting, []
        counts = [counts_of(shape, confirmed) for shape, confirmed, _ in waiting]
        if not self._unit:
            shape, _, seconds = waiting[0]
            self._unit = seconds["score"] / (1 + 0.02 * shape.nodes)
        trusted = self.rounds - len(waiting) >= TRUSTED
        for name, phase in self.phases.items():
            table = np.array([one[name] for one in counts])
            spent = np.array([sum(seconds[part] for part in PARTS[name]) for *_, seconds in waiting])
            if trusted:
                spent = np.minimum(spent, OUTLIER * (table @ phase.factors(self._unit)) + 1e-6)
            told = table.any(axis=1)
            phase.add(table[told], spent[told])
        self.costs = self._fitted(self._unit)

    def _fitted(self, unit: float) -> Costs:
        draft, score, rest = (phase.factors(unit).tolist() for phase in self.phases.values())
        several = lambda nodes: score[0] + score[2] + score[1] * nodes  # noqa: E731
        return Costs(
            score=Curve.through([(1, score[0]), (2, several(1)), (66, several(65))]),
            plain_overhead=rest[0],
            overhead=Line(rest[0] + rest[2], rest[1]),
            branching=rest[3],
            first=Line(draft[0], draft[1]),
            level=Line(draft[2], draft[3]),
            static=Line(0.0, draft[4]),
            dynamic=Line(0.0, draft[5]),
            best_first=Line(draft[6], draft[7]),
        )

    def to_dict(self) -> dict[str, Any]:
        """Return what is known as plain JSON values."""
        phases = {name: [phase.matrix.tolist(), phase.vector.tolist()] for name, phase in self.phases.items()}
        return {"rounds": self.rounds, "plain_rounds": self.plain_rounds, "unit": self._unit, "phases": phases}

    def load(self, values: Mapping[str, Any]) -> None:
        """Take up what `to_dict` gave.

        Raises:
            MMSpecError: if the values are something else.
        """
        try:
            for name, phase in self.phases.items():
                matrix, vector = (np.array(part, dtype=float) for part in values["phases"][name])
                if matrix.shape != phase.matrix.shape or vector.shape != phase.vector.shape:
                    raise ValueError(f"{name} has the shapes {matrix.shape} and {vector.shape}")
                if not (np.isfinite(matrix).all() and np.isfinite(vector).all()):
                    raise ValueError(f"{name} holds numbers that are not finite")
                phase.matrix, phase.vector = matrix, vector
            self.rounds, self.plain_rounds = int(values["rounds"]), int(values["plain_rounds"])
            self._unit = float(values["unit"])
            if not 0 <= self._unit < float("inf") or min(self.rounds, self.plain_rounds) < 0:
                raise ValueError(f"the unit {self._unit} and the rounds {self.rounds} cannot be")
            self.costs = self._fitted(self._unit)
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise MMSpecError(f"these are not costs that RoundCosts.to_dict() wrote: {error!r}") from error
