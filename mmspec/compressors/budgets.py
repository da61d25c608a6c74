"""Budgets: how many tokens each frame of a video may keep."""

from __future__ import annotations

import torch
from torch import Tensor


def apportioned(worth: Tensor, count: int, size: int, bounds: tuple[float, float]) -> list[int]:
    """Divide a number of tokens among frames in proportion to what the frames are worth, within bounds.

    The shares are `clip(c worth_f, low, high)` with the one c by which they sum up to `count`. They are rounded down,
    and the tokens that are then left go to the largest remainders; among equals to the first.

    Args:
        worth: `[frames]` 0 or more. Where all are 0 every frame is worth the same.
        count: tokens to divide, at most `frames * size`.
        size: tokens of a frame, which no budget exceeds.
        bounds: the smallest share, at most 1, and the largest one, at least 1, as multiples of the average.

    Returns:
        Per frame its budget; they sum up to `count`.
    """
    worth = worth.double().cpu()
    top = worth.max()
    worth = (worth / top).clamp(min=1e-9) if top > 0 else torch.ones_like(worth)  # what is worth nothing is last
    average = count / len(worth)
    low, high = bounds[0] * average, min(bounds[1] * average, float(size))
    factors = torch.cat([low / worth, high / worth]).sort().values  # where the sum of the shares changes its slope
    sums = (factors[:, None] * worth).clamp(low, high).sum(1)
    after = int((sums < count).sum().clamp(1, len(sums) - 1))
    rise = sums[after] - sums[after - 1]
    part = ((count - sums[after - 1]) / rise).clamp(0, 1) if rise > 0 else rise
    shares = (factors[after - 1] + part * (factors[after] - factors[after - 1])) * worth
    shares = shares.clamp(low, high)
    whole = (shares + 1e-9).floor()
    left = count - int(whole.sum())
    remainders = (shares - whole).masked_fill(whole >= size, -torch.inf)
    whole[remainders.sort(descending=True, stable=True).indices[:left]] += 1
    return [int(budget) for budget in whole]


def even(frames: int, count: int) -> list[int]:
    """Divide a number of tokens evenly among frames; what cannot be divided goes to frames at equal distances."""
    return [(frame + 1) * count // frames - frame * count // frames for frame in range(frames)]


def evenly_spaced(count: int, total: int, device: torch.device | str | None = None) -> Tensor:
    """Return `[count]` numbers below `total` at equal distances, in order: the middles of as many equal parts."""
    return (2 * torch.arange(count, device=device) + 1) * total // (2 * max(count, 1))
