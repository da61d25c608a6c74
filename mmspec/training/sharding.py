"""FSDP2: weights, gradients and the optimizer's averages are divided among the processes, and the saved state with
them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import Tensor, distributed, nn
from torch.distributed import checkpoint
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict, set_state_dict
from torch.distributed.fsdp import CPUOffloadPolicy
from torch.distributed.tensor import DTensor

from ..errors import MMSpecError, first_line

READY = "take a file of configs/accelerate"


def is_sharded(accelerator: Accelerator) -> bool:
    """Return True if the weights of the trainee are divided among the processes."""
    return accelerator.distributed_type == DistributedType.FSDP


def check_parallelism(accelerator: Accelerator) -> None:
    """Refuse what a training would not do as one process does it, and let FSDP compute as data parallelism does: in
    autocast, on weights in fp32.

    Raises:
        MMSpecError: for a way to train in parallel, or a setting of it, that is not known to give the same training.
    """
    if (steps := accelerator.gradient_accumulation_steps) != 1:
        raise MMSpecError(
            f"gradient_accumulation_steps={steps} of accelerate does nothing here: leave it at 1, and choose "
            "batch_size (examples per step, over all processes) and rows (examples per pass)"
        )
    kind = accelerator.distributed_type
    if kind in (DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM):
        raise MMSpecError(f"{kind.value} trains no head here: {READY}, such as fsdp2.yaml")
    if kind != DistributedType.FSDP:
        return
    plugin = accelerator.state.fsdp_plugin
    wanted: dict[str, tuple[Any, Any]] = {
        "fsdp_version": (getattr(plugin, "fsdp_version", 1), 2),
        "fsdp_cpu_ram_efficient_loading": (bool(plugin.cpu_ram_efficient_loading), False),
        "fsdp_activation_checkpointing": (bool(plugin.activation_checkpointing), False),
        "fsdp_offload_params": (isinstance(plugin.cpu_offload, CPUOffloadPolicy), False),
    }
    for name, (found, right) in wanted.items():
        if found != right:
            raise MMSpecError(f"{name}: {str(found).lower()} is not supported, set {str(right).lower()}, or {READY}")
    if plugin.auto_wrap_policy is not None:
        raise MMSpecError(
            f"a head is divided as a whole, because texts differ in how often they pass its layers: set "
            f"fsdp_auto_wrap_policy: NO_WRAP, or {READY}"
        )
    plugin.mixed_precision_policy = None


def whole(value: Any) -> Any:
    """Return a tensor as all processes together hold it; anything else as it is."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def write_shards(folder: Path, trainee: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Write weights and optimizer state into a folder, every process its own part.

    Raises:
        MMSpecError: if a part cannot be written.
    """
    weights, averages = get_state_dict(trainee, optimizer)
    try:
        checkpoint.save({"weights": weights, "optimizer": averages}, checkpoint_id=folder)
    except (OSError, CheckpointException) as error:
        raise MMSpecError(
            f"the checkpoint {str(folder)!r} cannot be written ({_said(error)}): the last one is kept; free some space"
        ) from error


def read_shards(folder: Path, trainee: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Load what `write_shards` wrote, by any number of processes, with or without FSDP.

    Raises:
        MMSpecError: if it is damaged or holds another drafter.
    """
    weights, averages = get_state_dict(trainee, optimizer)
    state: dict[str, Any] = {"weights": weights, "optimizer": averages}
    try:
        checkpoint.load(state, checkpoint_id=folder, no_dist=not distributed.is_initialized())
    except (OSError, CheckpointException) as error:
        raise MMSpecError(
            f"the checkpoint {str(folder)!r} cannot be read, or is of another drafter ({_said(error)}): delete it to "
            "begin again, or choose another output folder"
        ) from None
    set_state_dict(trainee, optimizer, model_state_dict=state["weights"], optim_state_dict=state["optimizer"])


def divide_state(
    trainee: nn.Module, optimizer: torch.optim.Optimizer, weights: dict[str, Tensor], saved: dict[str, Any]
) -> None:
    """Give every process its part of weights and of an optimizer's state that are whole.

    Args:
        trainee: the module that accelerate prepared.
        optimizer: the optimizer of the divided weights.
        weights: the drafter's weights by name.
        saved: what `optimizer.state_dict` gave where nothing was divided.
    """
    names = {id(parameter): name for name, parameter in trainee.named_parameters()}
    state: dict[str, Any] = {}
    groups: list[dict[str, Any]] = []
    for group, old in zip(optimizer.param_groups, saved["param_groups"], strict=True):
        own = [names[id(parameter)] for parameter in group["params"]]
        state |= {name: saved["state"][number] for name, number in zip(own, old["params"], strict=True)}
        groups.append(old | {"params": own})
    set_state_dict(
        trainee,
        optimizer,
        model_state_dict={f"drafter.{name}": tensor for name, tensor in weights.items()},
        optim_state_dict={"state": state, "param_groups": groups},
        options=StateDictOptions(full_state_dict=True),
    )


def _said(error: BaseException) -> str:
    """Return what went wrong in the first process where something did, in one line."""
    if isinstance(error, CheckpointException):
        error = next(iter(error.failures.values()))[0]
    return first_line(error)
