"""Reflection: a drafted state becomes a state of the target's law, the same one as often as can be."""

from __future__ import annotations

import torch
from torch import Tensor

from ..outcome import Verdict
from ..per_request import PerRequest
from .context import ChainContext
from .draft import StateDraft, StateScores


def acceptance(z: Tensor, d: Tensor) -> Tensor:
    """Return the chance that a drafted state is kept, `[...]`: min(1, exp(-z.d - |d|^2 / 2)).

    That is min(1, p/q) for the two normal densities.

    Args:
        z: `[..., dim]` the noise that the state was drafted with.
        d: `[..., dim]` the drafter's mean minus the target's, in standard deviations.
    """
    return (-(z * d).sum(-1) - (d * d).sum(-1) / 2).exp().clamp(max=1)


def reflected(z: Tensor, d: Tensor) -> Tensor:
    """Return noise mirrored along the line between the two means, `[..., dim]`; `z` itself where they are equal."""
    norm = d.norm(dim=-1, keepdim=True)
    e = d / norm.clamp(min=torch.finfo(d.dtype).tiny)
    return z - 2 * (z * e).sum(-1, keepdim=True) * e


class Reflection(PerRequest):
    """Reflection maximal coupling of two normal distributions with one covariance (De Bortoli et al., arXiv
    2501.05370).

    A drafted state is kept with the chance min(1, p/q). One that is refused is mirrored, and mirrored states have what
    is left of the target's law. So every state has exactly the target's law, and drafted ones are kept as often as in
    any coupling: with probability 2 Phi(-|d| / 2). Where the target is certain (a standard deviation of 0), the state
    is its mean.

    Lossless: a chain ends in the law of the target's own sampler. Only samplers with noise can be drafted for. In many
    dimensions |d| is large, and little is kept.
    """

    lossless = True

    def start(self, context: ChainContext) -> None:
        """Take up a batch of chains."""
        self.context = context
        self.coins, self.noise = context.streams("coins of chain"), context.streams("noise of chain")

    def skim(self, draft: StateDraft) -> None:
        """Settle nothing without the target."""

    def verify(self, draft: StateDraft, scores: StateScores) -> Verdict:
        """Decide which drafted states are kept, one behind the other, and which state comes behind them."""
        count, chain = draft.max_depth, self.context.chain
        drafted, ours, theirs = (part.flatten(2) for part in (draft.states[:, 1:], draft.means, scores.mean[:, :count]))
        std = scores.std[:, :count, None]
        certain = std == 0
        scale = torch.where(certain, 1, std)
        z, d = (drafted - ours) / scale, (ours - theirs) / scale
        chance = torch.where(certain[..., 0], (drafted == theirs).all(-1), acceptance(z, d))
        usable = torch.tensor(draft.usable, device=std.device)[:, None]
        kept = self.context.draws(self.coins, draft.usable, torch.rand) < chance
        kept &= torch.arange(count, device=std.device) < usable
        length = 1 + kept.cumprod(-1).sum(-1)
        # Behind the last state that is kept: the mirrored one where the next was refused, else a fresh one.
        rows, last = torch.arange(len(length), device=length.device), length - 1
        noise = self.context.draws(self.noise, [1] * len(length), torch.randn, *chain.shape)[:, 0].flatten(1)
        if count:
            at = last.clamp(max=count - 1)
            noise = torch.where(last[:, None] < usable, self.replacement(z[rows, at], d[rows, at], noise), noise)
        bonus = scores.mean[rows, last].flatten(1) + scores.std[rows, last, None] * noise
        path = torch.arange(count + 1, device=length.device).expand(len(length), -1)
        path = torch.where(path < length[:, None], path, -1)
        return Verdict(path, length, bonus.view(-1, *chain.shape))

    def replacement(self, z: Tensor, d: Tensor, fresh: Tensor) -> Tensor:
        """Return the noise of the states that stand for refused ones, `[batch, dim]`.

        Args:
            z: `[batch, dim]` the noise that the refused one was drafted with.
            d: `[batch, dim]` see `acceptance`.
            fresh: `[batch, dim]` new noise.
        """
        return reflected(z, d)
