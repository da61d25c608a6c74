"""The weights of a mixture: given once and for all, or fitted to what the target has said so far."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ...errors import MMSpecError, shown
from ...models.slots import pick
from ...per_request import PerRequest
from ...settings.arguments import is_number, number, whole_number
from ...settings.calls import Named

DIVERGENCES = ("kl", "tv")
MEASURES = ("matches", *DIVERGENCES)

LARGEST_GRID = 10_000
"""Candidates among which weights are chosen at most: each is compared with the target at every token."""

AT_ONCE = 2**24
"""Numbers of a table of mixtures that are held at once."""


class MixtureWeights(Named, PerRequest):
    """The weights of a mixture, for each row of a batch its own.

    A subclass implements `now`, and one that adapts also `learn`. What it assigns to `self` belongs to a request.
    """

    learns = False
    """True if `learn` wants to hear what the target said."""

    def start(self, members: int, batch: int, device: torch.device) -> None:
        """Take up a request; refuse weights that are not those of so many members."""
        self.members = members
        self.uniform = torch.full((batch, members), 1 / members, device=device)

    def now(self) -> Tensor:
        """Return `[batch, members]` weights for the next block; those of a row sum to 1."""
        raise NotImplementedError

    def learn(self, p: Tensor, q: Tensor, known: Tensor) -> None:
        """Hear what was said at the newest places.

        Args:
            p: `[batch, places, vocab]` the target's distributions.
            q: `[batch, places, members, vocab]` what each member had guessed there.
            known: `[batch, places]` False for places that do not count.
        """


class FixedWeights(MixtureWeights):
    """Weights that stay the same at all times (IBED, ICLR 2025 workshop SCOPE, whose weights are uniform).

    Args:
        values: one weight per member, 0 or more, which sum to 1; None for the same weight for all.

    Raises:
        MMSpecError: for anything else.
    """

    def __init__(self, values: Sequence[float] | None = None):
        self.values = None if values is None else [*values]
        if self.values is None:
            return
        fit = all(is_number(value) and value >= 0 for value in self.values)
        if not fit or abs(sum(self.values) - 1) > 1e-6:
            raise MMSpecError(
                f"FixedWeights: values={shown(self.values)} must be numbers of 0 or more that sum to 1, one per member"
            )

    def start(self, members: int, batch: int, device: torch.device) -> None:
        """Take up a request; refuse another number of weights than of members."""
        super().start(members, batch, device)
        if self.values is not None and len(self.values) != members:
            raise MMSpecError(
                f"FixedWeights: values={self.values} are {len(self.values)} weights for {members} members: one each"
            )

    def now(self) -> Tensor:
        """Return the weights."""
        if self.values is None:
            return self.uniform
        return torch.tensor(self.values, device=self.uniform.device).expand_as(self.uniform)


class FittedWeights(MixtureWeights):
    """Weights that follow from sums over the last places at which the target has spoken.

    A subclass says what is summed (`judge`) and what weights follow from the sums (`choose`). Until anything was heard,
    and in a row for which nothing was, weights are uniform.

    Args:
        window: places that count, the last ones of a row; None for all places of the answer so far.

    Raises:
        MMSpecError: for a window that is no positive number.
    """

    learns = True

    def __init__(self, window: int | None = None):
        self.window = None if window is None else whole_number(self, lowest=1, window=window)

    def judge(self, p: Tensor, q: Tensor) -> Tensor:
        """Return `[batch, places, scores]` what is summed; see `learn`."""
        raise NotImplementedError

    def choose(self, sums: Tensor) -> Tensor:
        """Return `[batch, members]` weights from `[batch, scores]` sums."""
        raise NotImplementedError

    def start(self, members: int, batch: int, device: torch.device) -> None:
        """Take up a request, of which nothing was heard."""
        super().start(members, batch, device)
        self._sums: Tensor | None = None
        self._kept: tuple[Tensor, Tensor] | None = None  # scores of the places in the window, and which count
        self._heard = torch.zeros(batch, 1, dtype=torch.bool, device=device)

    def now(self) -> Tensor:
        """Return the weights that fit best what was heard."""
        return self.uniform if self._sums is None else torch.where(self._heard, self.choose(self._sums), self.uniform)

    def learn(self, p: Tensor, q: Tensor, known: Tensor) -> None:
        """Add the newest places to the sums, and forget those that the window has left behind."""
        # At a place where somebody's logits were no distribution, nothing can be said of anybody.
        known = known & p.isfinite().all(-1) & q.isfinite().all(-1).all(-1)
        scores = self.judge(p, q).masked_fill(~known[..., None], 0.0)
        self._heard = self._heard | known.any(-1, keepdim=True)
        if self.window is None:
            total = scores.sum(1)
            self._sums = total if self._sums is None else self._sums + total
            return
        if self._kept is not None:
            scores, known = (torch.cat(parts, dim=1) for parts in zip(self._kept, (scores, known), strict=True))
        # The last places that count, in their order, behind those that do not.
        last = known.int().argsort(dim=1, stable=True)[:, -self.window :]
        self._kept = pick(scores, last), known.gather(1, last)
        self._sums = self._kept[0].sum(1)


class GridWeights(FittedWeights):
    """The best point of a grid over all weights (TABED, arXiv 2601.20357).

    Candidates are all weights that are multiples of `step`: 11 for two members, 66 for three and 286 for four at 0.1.
    By `"matches"` the best is the one whose mixture had the target's likeliest token as its own likeliest at most
    places, and among equals the one of the smallest summed KL(p || q_bar), as in the release; by `"kl"` or `"tv"` it is
    the one of the smallest summed divergence, as the poster has it.

    Args:
        measure: what the best weights are best at, `"matches"`, `"kl"` or `"tv"`.
        step: distance of the grid, of which 1 is a multiple.
        window: see `FittedWeights`.

    Raises:
        MMSpecError: for another measure, a step of which 1 is no multiple, or a grid of more than 10,000 points.
    """

    def __init__(self, measure: str = "matches", step: float = 0.1, window: int | None = None):
        super().__init__(window)
        if measure not in MEASURES:
            raise MMSpecError(f"GridWeights: measure={shown(measure)} must be one of {', '.join(MEASURES)}")
        step = number(self, above=0, highest=1, step=step)
        self.measure, self.parts = measure, round(1 / step)
        if abs(self.parts * step - 1) > 1e-6:
            raise MMSpecError(f"GridWeights: step={step} must go into 1 a whole number of times, such as 0.1 or 0.25")

    def start(self, members: int, batch: int, device: torch.device) -> None:
        """Take up a request, and make the grid."""
        super().start(members, batch, device)
        points = math.comb(self.parts + members - 1, members - 1)
        if points > LARGEST_GRID:
            raise MMSpecError(
                f"GridWeights: step={1 / self.parts:g} gives {points} points for {members} members, and at most "
                f"{LARGEST_GRID} are tried: take a larger step"
            )
        self.grid = grid(members, self.parts).to(device)

    def judge(self, p: Tensor, q: Tensor) -> Tensor:
        """Return `[batch, places, 2 * points]`: where each point's mixture names the target's token, and how far it is
        from the target."""
        best, found, apart = p.argmax(-1, keepdim=True), [], []
        for points in self.grid.to(q.dtype).split(max(1, AT_ONCE // p.numel())):
            mixed = torch.einsum("gm,bpmv->bpgv", points, q)
            found.append((mixed.argmax(-1) == best).to(p.dtype))
            apart.append(divergence("tv" if self.measure == "tv" else "kl", p[:, :, None], mixed))
        return torch.cat([*found, *apart], dim=-1)

    def choose(self, sums: Tensor) -> Tensor:
        """Return the best point of every row."""
        found, apart = sums.chunk(2, dim=-1)
        if self.measure == "matches":
            apart = apart.masked_fill(found < found.amax(-1, keepdim=True), math.inf)
        return self.grid[apart.argmin(-1)]


class InverseWeights(FittedWeights):
    """Weights in proportion to 1 over the summed divergence of each member from the target, as a rule in TABED's
    release has it (arXiv 2601.20357).

    Args:
        measure: the divergence, `"kl"` or `"tv"`.
        window: see `FittedWeights`.

    Raises:
        MMSpecError: for another measure.
    """

    def __init__(self, measure: str = "kl", window: int | None = None):
        super().__init__(window)
        if measure not in DIVERGENCES:
            raise MMSpecError(f"InverseWeights: measure={shown(measure)} must be one of {', '.join(DIVERGENCES)}")
        self.measure = measure

    def judge(self, p: Tensor, q: Tensor) -> Tensor:
        """Return `[batch, places, members]` divergences."""
        return divergence(self.measure, p[:, :, None], q)

    def choose(self, sums: Tensor) -> Tensor:
        """Return weights in proportion to the inverse sums; one member that was never wrong has nearly all."""
        inverse = 1 / sums.clamp(min=1e-9)
        return inverse / inverse.sum(-1, keepdim=True)


def grid(members: int, parts: int) -> Tensor:
    """Return `[points, members]` all weights that are multiples of one part in `parts` and sum to 1."""
    # Bars between stars: members - 1 bars among all places part the stars into as many groups.
    points = []
    for bars in itertools.combinations(range(parts + members - 1), members - 1):
        ends = [-1, *bars, parts + members - 1]
        points.append([after - before - 1 for before, after in itertools.pairwise(ends)])
    return torch.tensor(points) / parts


def divergence(measure: str, p: Tensor, q: Tensor) -> Tensor:
    """Return the divergence `[...]` of distributions q from p, `[..., vocab]`: KL(p || q), or the total variation."""
    if measure == "tv":
        return (p - q).abs().sum(-1) / 2
    # What q holds to be impossible is taken for as unlikely as numbers can say, so that sums stay finite.
    return torch.special.xlogy(p, p).sum(-1) - (p * q.clamp(min=torch.finfo(q.dtype).tiny).log()).sum(-1)


NAMED: dict[str, Any] = {
    "uniform": FixedWeights,
    **{measure: lambda measure=measure: GridWeights(measure) for measure in MEASURES},
    **{f"inverse_{measure}": lambda measure=measure: InverseWeights(measure) for measure in DIVERGENCES},
}
"""The rules that a name stands for."""


def weights_of(given: str | Sequence[float] | MixtureWeights, members: int) -> MixtureWeights:
    """Return the rule for the weights of so many members that a name, a list of fixed weights or a rule itself means.

    Raises:
        MMSpecError: for anything else, and for a list of another length.
    """
    if isinstance(given, MixtureWeights):
        return given
    if isinstance(given, str) and given in NAMED:
        return NAMED[given]()
    if isinstance(given, Sequence) and not isinstance(given, str):
        if len(given) != members:
            raise MMSpecError(
                f"MixtureDrafter: weights={shown(list(given))} must be one for each of the {members} members, and are "
                f"{len(given)}"
            )
        try:
            return FixedWeights(given)
        except MMSpecError as error:  # in the words of what was called
            raise MMSpecError(str(error).replace("FixedWeights: values=", "MixtureDrafter: weights=")) from None
    names = ", ".join(NAMED)
    raise MMSpecError(f"MixtureDrafter: weights={shown(given)} must be one of {names}, a list of numbers, or a rule")
