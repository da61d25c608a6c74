"""Number formats that a device is made for."""

from __future__ import annotations

import torch


def computes_in_bfloat16(device: torch.device | str = "cpu") -> bool:
    """Return whether a device has instructions for bfloat16: of processors, those with AVX-512-BF16, AMX or the like.

    Others compute in it all the same, and take thirty times as long as in float32.
    """
    kind = torch.device(device).type
    if kind == "cpu":
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return torch.cuda.is_bf16_supported() if kind == "cuda" else True
