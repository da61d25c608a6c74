"""Costs of the parts of a round on one machine: the numbers that every prediction is made of."""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from typing import Any

from ..errors import MMSpecError
from ..settings.arguments import number

LINES = ("overhead", "first", "level", "static", "dynamic", "best_first")
"""The parts of `Costs` that grow linearly with a count."""


@dataclass(frozen=True)
class Line:
    """Seconds that grow linearly with a count: `base + slope * count`."""

    base: float = 0.0
    slope: float = 0.0

    def __call__(self, count: float) -> float:
        """Return the seconds for a count."""
        return self.base + self.slope * count


@dataclass(frozen=True)
class Curve:
    """Seconds as a function of a count, piecewise linear and never falling.

    Before the first point it is flat; after the last one it continues with the last slope.

    Args:
        counts: counts of the points, rising.
        seconds: seconds at each point, never falling.

    Raises:
        MMSpecError: if there are no points, or they are out of order or falling.
    """

    counts: tuple[float, ...]
    seconds: tuple[float, ...]

    def __post_init__(self) -> None:
        counts, seconds = self.counts, self.seconds
        if not counts or len(counts) != len(seconds):
            raise MMSpecError(f"a Curve needs as many seconds as counts, not {len(seconds)} and {len(counts)}")
        if any(a >= b for a, b in pairwise(counts)):
            raise MMSpecError(f"a Curve's counts must rise: {list(counts)}; Curve.through(points) sorts them")
        if any(a > b for a, b in pairwise(seconds)):
            raise MMSpecError(f"a Curve's seconds must not fall: {list(seconds)}; Curve.through(points) corrects that")

    @classmethod
    def through(cls, points: Iterable[tuple[float, float]]) -> Curve:
        """Fit the never-falling curve nearest to `(count, seconds)` points.

        Points with the same count are averaged, and neighbours that fall are pooled into their mean: isotonic
        regression by pool adjacent violators, which is the least-squares fit. Timings of neighbouring sizes cross by
        noise alone.
        """
        by_count: dict[float, list[float]] = {}
        for count, seconds in points:
            by_count.setdefault(count, []).append(seconds)
        pools: list[list[float]] = []  # mean, weight, number of counts
        for count in sorted(by_count):
            values = by_count[count]
            pools.append([sum(values) / len(values), len(values), 1])
            while len(pools) > 1 and pools[-2][0] > pools[-1][0]:
                mean, weight, size = pools.pop()
                last = pools[-1]
                last[0] = (last[0] * last[1] + mean * weight) / (last[1] + weight)
                last[1] += weight
                last[2] += size
        return cls(tuple(sorted(by_count)), tuple(mean for mean, _, size in pools for _ in range(int(size))))

    def __call__(self, count: float) -> float:
        """Return the seconds for a count."""
        counts, seconds = self.counts, self.seconds
        if count <= counts[0] or len(counts) == 1:
            return seconds[0]
        right = min(bisect.bisect_left(counts, count), len(counts) - 1)
        left = right - 1
        share = (count - counts[left]) / (counts[right] - counts[left])
        return seconds[left] + share * (seconds[right] - seconds[left])


@dataclass(frozen=True)
class Costs:
    """Seconds of every part of a round, for one target and one drafter on one machine.

    Args:
        score: seconds of a pass of the target, by the number of nodes scored, the root included.
        plain_overhead: seconds per token of plain decoding, besides its pass: choosing, committing, recording.
        overhead: seconds per round besides drafting and scoring, by the number of drafted nodes.
        branching: additional overhead of every tree that is not a chain, by the number of drafted nodes.
        first: seconds of the drafter's first level, by the number of tokens that the target has confirmed since the
            last round (the newest is the root), which the drafter has to read first.
        level: seconds of each further level, by the number of nodes expanded in it.
        static: additional seconds of a `StaticTree`, by the number of further levels, for choosing among nodes.
        dynamic: additional seconds of a `DynamicTree`, by the number of further levels, for choosing among nodes.
        best_first: additional seconds of a `BestFirstTree`, by the number of drafted nodes: the making of the tree, and
            whatever its levels below the first cost where levels are cheap (`Drafter.cheap_levels`).
        block: seconds of a drafter that proposes whole trees at once; None for one that grows them.
        conditions: conditions under which these hold: prefix length, batch size, dtype, threads, device, target and
            drafter.

    Raises:
        MMSpecError: for seconds that are no numbers of 0 or more, or plain decoding that takes no time.
    """

    score: Curve
    plain_overhead: float = 0.0
    overhead: Line = Line()
    branching: float = 0.0
    first: Line = Line()
    level: Line = Line()
    static: Line = Line()
    dynamic: Line = Line()
    best_first: Line = Line()
    block: float | None = None
    conditions: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        parts = {name: [getattr(self, name) or 0.0] for name in ("plain_overhead", "branching", "block")}
        for name in LINES:
            parts[name] = [getattr(self, name).base, getattr(self, name).slope]
        for name, all_of_them in {"score": self.score.seconds, **parts}.items():
            for seconds in all_of_them:
                number(self, lowest=0, **{name: seconds})
        if not self.plain:
            raise MMSpecError("Costs: score=0.0 and plain_overhead=0.0 leave no time for plain decoding: measure again")

    @property
    def step(self) -> float:
        """Seconds of the target's pass over one token."""
        return self.score(1)

    @property
    def plain(self) -> float:
        """Seconds per token of plain decoding."""
        return self.step + self.plain_overhead

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Costs:
        """Make costs from the result of `to_dict`.

        Raises:
            MMSpecError: if the values are something else.
        """
        try:
            values = {"best_first": {"base": 0.0, "slope": 0.0}, **values}
            values["score"] = Curve(*(tuple(map(float, values["score"][name])) for name in ("counts", "seconds")))
            for name in LINES:
                values[name] = Line(float(values[name]["base"]), float(values[name]["slope"]))
            for name in ("plain_overhead", "branching"):
                values[name] = float(values[name])
            if values["block"] is not None:
                values["block"] = float(values["block"])
            return cls(**values)
        except (LookupError, TypeError, ValueError) as error:
            raise MMSpecError(f"these are not costs that Costs.to_dict() wrote: {error!r}; measure again") from error
