"""Tensors as arrays."""

from __future__ import annotations

import sys
from typing import Any


def as_array(values: Any) -> Any:
    """Return a tensor as an array, and anything else as it is.

    torch is not imported, for reading data files does without it: where nobody has, nobody has a tensor either.
    """
    torch = sys.modules.get("torch")
    if torch is None or not isinstance(values, torch.Tensor):
        return values
    values = values.detach().cpu()
    return (values.float() if values.dtype is torch.bfloat16 else values).numpy()
