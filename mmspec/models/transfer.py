"""Values on their way from the host to a device."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor


def to_device(values: Sequence, device: torch.device) -> Tensor:
    """Return a tensor of numbers on a device, made in one copy for which the host does not wait.

    Args:
        values: numbers, or lists of equally many, as for `torch.tensor`.
        device: the device where they are wanted. A GPU fetches them from pinned memory when it gets there; a plain
            copy would first wait until it has done all that was asked of it.
    """
    if device.type == "cuda":
        return torch.tensor(values, pin_memory=True).to(device, non_blocking=True)
    return torch.tensor(values, device=device)


@lru_cache(maxsize=64)
def fixed(values: tuple[int, ...], device: torch.device) -> Tensor:
    """Return a few whole numbers on a device, to be read only. They are copied there when first asked for."""
    return to_device(values, device)
