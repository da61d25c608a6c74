"""Knowledge of a target and a drafter on this machine, which every request adds to."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

from ..errors import MMSpecError
from .acceptance import Acceptance
from .choosing import Candidate
from .costs import Costs
from .learning import AcceptanceTracker
from .prediction import predict
from .round_costs import RoundCosts
from .shapes import Shape
from .two_kinds import TwoKinds

RANKS = (0.7, 0.12, 0.05, 0.03, 0.02, 0.01, 0.008, 0.006)
"""Acceptance of the drafter's ranks before anything is known: about that of published trained heads [OUR]."""

GAINS = {"chain": 1.05, "static": 1.0, "dynamic": 1.05, "best_first": 1.05}
"""Factors by which the kinds of trees are faster than predicted, before one was tried [OUR]: chains end where they
are unsure, and dynamic and best-first trees choose their nodes by the drafter's own probabilities; predictions know
neither."""

GAIN_WEIGHT = 64.0
"""Tokens that such a factor weighs as much as."""

ROUND_DECAY = 0.98
"""Factor by which a round counts less with every later one, in the acceptance by rank, the gains and the usual rate."""

USUAL = Shape.chain(4)
"""A round that every drafter has."""


def seconds_of(costs: Costs, shape: Shape, confirmed: float) -> float:
    """Return the seconds of a round.

    Args:
        costs: costs on this machine.
        shape: shape of its tree.
        confirmed: tokens per row that the drafter has to read first.
    """
    return predict(costs, shape, confirmed - 1).seconds


class Rate:
    """Tokens per second, the last rounds first of all.

    Args:
        tokens, seconds: sums of the rounds before anything was seen.
        decay: factor by which a round counts less with every later one.
    """

    def __init__(self, tokens: float, seconds: float, decay: float):
        self.tokens, self.seconds, self.decay = tokens, seconds, decay

    def add(self, tokens: float, seconds: float) -> None:
        """Add a round."""
        self.fade(self.decay)
        self.tokens += tokens
        self.seconds += seconds

    def fade(self, factor: float) -> None:
        """Let all rounds so far count less."""
        self.tokens, self.seconds = factor * self.tokens, factor * self.seconds

    @property
    def value(self) -> float:
        """Tokens per second."""
        return self.tokens / self.seconds


class Knowledge:
    """Costs of the rounds, and what the target accepts of the drafter's guesses.

    Attributes:
        costs: the costs, learnt from rounds; or given ones, which stay as they are.
        kinds: how likely guesses are in the two kinds of text, and what the drafter's probabilities are worth there.
        ranks: acceptance by level and rank, for trees.
        kind: kind of tree that is drafted: `chain`, `static`, `dynamic` or `best_first`.
        rounds: rounds in which something was drafted.
        kept: number of rounds when this was written to disk last.
        usual: mean tokens and seconds of such a round, with which a new answer begins; None before the first one.
        chosen: the tree that was chosen last, behind the bounds that it was chosen within; None before the first one.

    Args:
        costs: costs to believe instead of learning them.
        share, cheap: see `RoundCosts`.
    """

    def __init__(self, costs: Costs | None = None, share: float = 0.1, cheap: bool = False):
        self.learnt = None if costs is not None else RoundCosts(share, cheap)
        self._given = costs
        self.kinds = TwoKinds()
        self.ranks = AcceptanceTracker(RANKS, levels=16, decay=ROUND_DECAY, weight=4.0)
        self.gains = {kind: Rate(GAIN_WEIGHT * gain, GAIN_WEIGHT, ROUND_DECAY) for kind, gain in GAINS.items()}
        self.kind, self.rounds, self.kept = "chain", 0, 0
        self.usual: tuple[float, float] | None = None
        self.chosen: tuple[tuple[int, int, bool], Candidate] | None = None
        self.lock = threading.Lock()

    @property
    def costs(self) -> Costs:
        """The costs as they are known now."""
        if self.learnt is not None:
            return self.learnt.costs
        assert self._given is not None
        return self._given

    def learn(self) -> float:
        """Fit the costs to the rounds that were added; return the factor by which a usual round takes longer now."""
        assert self.learnt is not None, "given costs stay as they are"
        with self.lock:
            before = seconds_of(self.learnt.costs, USUAL, 4)
            self.learnt.learn()
            factor = seconds_of(self.learnt.costs, USUAL, 4) / before
            if self.usual is not None:
                self.usual = self.usual[0], self.usual[1] * factor
        return factor

    def add(self, tokens: float, seconds: float) -> None:
        """Add a round in which something was drafted to the usual one."""
        self.rounds += 1
        before = self.usual or (tokens, seconds)
        self.usual = (
            ROUND_DECAY * before[0] + (1 - ROUND_DECAY) * tokens,
            ROUND_DECAY * before[1] + (1 - ROUND_DECAY) * seconds,
        )

    @property
    def acceptance(self) -> Acceptance:
        """The acceptance by level and rank."""
        return self.ranks.acceptance()

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        assert self.learnt is not None, "given costs are the caller's to keep"
        return {
            "costs": self.learnt.to_dict(),
            "confidences": [[one.tries, one.hits] for one in self.kinds.confidences],
            "kinds": [self.kinds.tries, self.kinds.hits, self.kinds.answers],
            "ranks": [self.ranks.tries, self.ranks.hits],
            "gains": {kind: [gain.tokens, gain.seconds] for kind, gain in self.gains.items()},
            "kind": self.kind,
            "rounds": self.rounds,
            "usual": self.usual,
        }

    def load(self, values: Mapping[str, Any]) -> None:
        """Take up what `to_dict` gave.

        Raises:
            MMSpecError: if the values are something else.
        """
        assert self.learnt is not None
        try:
            self.learnt.load(values["costs"])
            self.kept = self.learnt.rounds
            tables = zip((*self.kinds.confidences, self.ranks), (*values["confidences"], values["ranks"]), strict=True)
            for mine, kept in tables:
                for name, table in zip(("tries", "hits"), kept, strict=True):
                    setattr(mine, name, _like(getattr(mine, name), table))
            for name, numbers in zip(("tries", "hits", "answers"), values["kinds"], strict=True):
                setattr(self.kinds, name, _like(getattr(self.kinds, name), numbers))
            for kind, gain in self.gains.items():
                gain.tokens, gain.seconds = map(_positive, values["gains"][kind])
            if values["kind"] not in self.gains:
                raise ValueError(f"kind {values['kind']!r}")
            self.kind, self.rounds = values["kind"], int(values["rounds"])
            if values["usual"] is not None:
                tokens, seconds = map(_positive, values["usual"])
                self.usual = tokens, seconds
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise MMSpecError(f"this is no knowledge that Knowledge.to_dict() wrote: {error!r}") from error


def _like(mine: list, kept: Any) -> list:
    """Return nested lists of numbers of 0 or more, if they have the sizes of mine."""
    if not isinstance(kept, list) or len(kept) != len(mine):
        raise ValueError(f"a table of {len(mine)} is not there")
    if isinstance(mine[0], list):
        return [_like(part, other) for part, other in zip(mine, kept, strict=True)]
    return [_positive(number, least=0.0) for number in kept]


def _positive(number: Any, least: float = 1e-12) -> float:
    """Return a finite number that is not below the least."""
    if not least <= float(number) < 1e12:
        raise ValueError(f"{number!r} is out of range")
    return float(number)
