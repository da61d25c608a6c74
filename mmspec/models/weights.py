"""Reads weights that are not plain numbers in place: quantised ones, and ones that accelerate stores elsewhere.

With `device_map`, modules compute on devices of their own, and weights that do not fit stay in main memory or on disk
between passes; PyTorch then sees an empty ("meta") parameter.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any, cast
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

_READ: WeakKeyDictionary[nn.Module, tuple[tuple, Tensor, list[nn.Parameter]]] = WeakKeyDictionary()
"""Cache of `linear_weight`, by layer: the state of the layer that was read, the numbers, and the layer's parameters,
which are kept so that no other object can get their identity."""


def device_of(module: nn.Module) -> torch.device:
    """Return the device on which a module with a weight computes."""
    for hook in _hooks(module):
        if getattr(hook, "execution_device", None) is not None:
            device = torch.device(hook.execution_device)
            numbered = device.index is not None or device.type == "cpu"
            return device if numbered else torch.empty(0, device=device).device  # "cuda" is one GPU, as tensors say
    return cast(Tensor, module.weight).device


def count_weights(module: nn.Module) -> int:
    """Return how many numbers a module's parameters have."""
    return sum(parameter.numel() for parameter in module.parameters())


def is_plain(weight: Tensor) -> bool:
    """Return True if a parameter holds the numbers that it stands for."""
    return type(weight) is nn.Parameter and weight.is_floating_point() and not weight.is_meta


def linear_weight(layer: nn.Linear, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return the weight of a linear layer, `[out, in]`, on a device. A copy is kept if it is stored in another form or
    place.

    Args:
        layer: linear layer of any quantisation library.
        dtype: dtype in which a quantised layer computes.
        device: device on which the weight is needed.
    """
    plain = is_plain(layer.weight) and not is_adapted(layer)
    if plain and layer.weight.device == device:
        return layer.weight
    state = _state(layer)
    read = _READ.get(layer)
    if read is not None and read[0] == state and read[1].device == device:
        return read[1]
    with torch.inference_mode(False), torch.no_grad():  # training reads it too
        if plain:
            copied = layer.weight.to(device)
        else:
            # A unit vector is mapped to a column of the weight, in whatever form that is stored.
            units = torch.eye(layer.in_features + 1, layer.in_features, dtype=dtype, device=device_of(layer))
            columns = layer(units)
            copied = (columns[:-1] - columns[-1]).T.contiguous().to(device)  # the last row is the bias alone
    _READ[layer] = state, copied, list(layer.parameters())
    return copied


def is_adapted(module: nn.Module) -> bool:
    """Return True if peft has put an adapter around a layer, whose `weight` is then that of the layer without it."""
    return hasattr(module, "base_layer")


def _state(layer: nn.Module) -> tuple:
    """Return values that change with the numbers that a layer multiplies by: its parameters, how often they were
    written, and its active adapters."""
    parameters = [(id(one), None if one.is_inference() else one._version) for one in layer.parameters()]
    settings = [repr(getattr(layer, name, None)) for name in ("active_adapters", "disable_adapters", "merged_adapters")]
    return tuple(parameters), tuple(settings), repr(getattr(layer, "scaling", None))


def changes_while_running(model: nn.Module) -> bool:
    """Return True if a pass changes modules that another pass at the same time would read: weights that accelerate
    fetches for it, or rotary frequencies that depend on the length of the text."""
    fetched = any(getattr(hook, "offload", False) for module in model.modules() for hook in _hooks(module))
    ropes = [getattr(module, "rope_type", None) for module in model.modules()]
    kinds = [kind for rope in ropes for kind in (rope.values() if isinstance(rope, dict) else [rope])]
    return fetched or any(kind is not None and ("dynamic" in kind or kind == "longrope") for kind in kinds)


def stored_tensors(model: nn.Module) -> Iterator[Tensor]:
    """Yield the weights and buffers that a model would save, as they are stored, on any device, or fetched from where
    accelerate stores them, one at a time. A quantised weight gives the tensors that it consists of."""
    kept = {}
    for path, module in model.named_modules():
        for hook in _hooks(module):
            if getattr(hook, "weights_map", None) is not None:
                kept[f"{path}." if path else ""] = hook.weights_map
    for name, tensor in model.state_dict().items():
        if not isinstance(tensor, Tensor):  # what a module saves besides
            continue
        if tensor.is_meta:
            # The innermost hook has it under its name within the module.
            owner = max((path for path in kept if name.startswith(path) and name[len(path) :] in kept[path]), key=len)
            tensor = kept[owner][name[len(owner) :]]
        yield from _parts(tensor)


def _parts(tensor: Tensor) -> Iterator[Tensor]:
    """Yield the plain tensors of which a tensor consists."""
    if hasattr(tensor, "full_tensor"):  # divided among processes
        tensor = tensor.full_tensor()
    if hasattr(tensor, "__tensor_flatten__"):
        for name in tensor.__tensor_flatten__()[0]:
            yield from _parts(getattr(tensor, name))
    else:
        yield tensor


def fingerprint(model: nn.Module, dtype: torch.dtype | None = None) -> str:
    """Return sixteen characters that change when any weight of a transformers model does, see `Target.fingerprint`.

    Args:
        model: transformers model.
        dtype: precision to which its numbers are rounded first; by default they are taken as they are held.
    """
    # Equal tensors count once, as tied ones may be held twice, and neither names nor order count, which may differ
    # between versions of transformers.
    held = (tensor.to(dtype) if dtype and tensor.is_floating_point() else tensor for tensor in stored_tensors(model))
    whole = hashlib.sha256(b"".join(sorted({digest(tensor) for tensor in held})))
    active = getattr(model, "_hf_peft_config_loaded", False) and cast(Any, model).active_adapters()
    for told in (getattr(model.config, "quantization_config", None), active):
        if told:
            whole.update(repr(told).encode())
    return whole.hexdigest()[:16]


COLUMNS = 1021
"""Prime number of columns, so that rows of a weight that change places begin at other columns."""


@torch.no_grad()
def digest(tensor: Tensor) -> bytes:
    """Return bytes that change when a number of a tensor changes or moves. They are made of its shape and of the sums
    of its bits by column, where the tensor is a table with eight bytes per entry.

    The sums are of integers, so they are the same on every device and for every number of threads.
    """
    flat = tensor.detach().flatten()
    flat = torch.view_as_real(flat).flatten() if flat.is_complex() else flat
    if flat.storage_offset() * flat.element_size() % 8:
        flat = flat.clone()
    raw, row = flat.view(torch.uint8), 8 * COLUMNS
    whole = len(raw) // row * row
    sums = raw[:whole].view(torch.int64).view(-1, COLUMNS).sum(0)
    told = [repr(tuple(tensor.shape)).encode(), sums.cpu().numpy().tobytes(), raw[whole:].cpu().numpy().tobytes()]
    return hashlib.blake2b(b"".join(told), digest_size=16).digest()


def _hooks(module: nn.Module) -> Iterator[Any]:
    """Yield accelerate's hooks on a module."""
    hook = getattr(module, "_hf_hook", None)
    yield from getattr(hook, "hooks", [hook])
