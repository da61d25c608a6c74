"""Reading weights that are not plain numbers in place: quantised ones, and ones that accelerate keeps elsewhere.

With `device_map`, modules compute on devices of their own, and what does not fit stays on the processor or on disk
between passes; PyTorch then sees an empty ("meta") parameter.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

_READ: WeakKeyDictionary[nn.Module, tuple[nn.Parameter, Tensor]] = WeakKeyDictionary()
"""What `linear_weight` has read: the parameter that it stands for, and the numbers."""


def device_of(module: nn.Module) -> torch.device:
    """Where a module with a weight computes."""
    for hook in _hooks(module):
        if getattr(hook, "execution_device", None) is not None:
            device = torch.device(hook.execution_device)
            numbered = device.index is not None or device.type == "cpu"
            return device if numbered else torch.empty(0, device=device).device  # "cuda" is one GPU, as tensors say
    return module.weight.device


def is_plain(weight: Tensor) -> bool:
    """Whether a parameter holds the numbers that it stands for."""
    return type(weight) is nn.Parameter and weight.is_floating_point() and not weight.is_meta


def linear_weight(layer: nn.Linear, dtype: torch.dtype, device: torch.device) -> Tensor:
    """`[out, in]` weight of a linear layer, on a device. A copy of what is stored in another way or place is kept.

    Args:
        layer: of any library for quantisation.
        dtype: in which a quantised layer computes.
        device: where the weight is needed.
    """
    if is_plain(layer.weight) and layer.weight.device == device:
        return layer.weight
    parameter, copied = _READ.get(layer, (None, None))
    if parameter is not layer.weight or copied.device != device:
        with torch.inference_mode(False), torch.no_grad():  # training reads it too
            if is_plain(layer.weight):
                copied = layer.weight.to(device)
            else:
                # A unit vector is mapped to a column of the weight, in whatever form that is stored.
                units = torch.eye(layer.in_features + 1, layer.in_features, dtype=dtype, device=device_of(layer))
                columns = layer(units)
                copied = (columns[:-1] - columns[-1]).T.contiguous().to(device)  # the last row is the bias alone
        _READ[layer] = layer.weight, copied
    return copied


def changes_while_running(model: nn.Module) -> bool:
    """Whether a pass changes modules that another pass at the same time would read: weights that accelerate fetches for
    it, rotary frequencies that follow the length of the text."""
    fetched = any(getattr(hook, "offload", False) for module in model.modules() for hook in _hooks(module))
    ropes = [getattr(module, "rope_type", None) for module in model.modules()]
    kinds = [kind for rope in ropes for kind in (rope.values() if isinstance(rope, dict) else [rope])]
    return fetched or any(kind is not None and ("dynamic" in kind or kind == "longrope") for kind in kinds)


def stored_rows(embedding: nn.Module, count: int) -> Tensor:
    """The first `[count, hidden]` rows of a weight as they are stored, on any device; for telling weights apart."""
    if is_plain(embedding.weight):
        return embedding.weight[:count]
    for hook in _hooks(embedding):
        if getattr(hook, "weights_map", None) is not None:
            return hook.weights_map["weight"][:count]
    return embedding(torch.arange(count, device=device_of(embedding)))


def _hooks(module: nn.Module) -> Iterator[Any]:
    """Accelerate's hooks on a module."""
    hook = getattr(module, "_hf_hook", None)
    yield from getattr(hook, "hooks", [hook])
