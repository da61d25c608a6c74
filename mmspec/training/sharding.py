"""Weights, gradients and the optimizer's averages are divided among the processes, by FSDP2 or by DeepSpeed, and the
saved state with them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, InitProcessGroupKwargs
from torch import Tensor, distributed, nn
from torch.distributed import checkpoint
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict, set_state_dict
from torch.distributed.fsdp import CPUOffloadPolicy
from torch.distributed.tensor import DTensor
from transformers.integrations import unset_hf_deepspeed_config

from ..errors import MMSpecError, first_line
from . import zero

READY = "take a file of configs/accelerate"


def is_sharded(accelerator: Accelerator) -> bool:
    """Return True if the weights of the trainee are divided among the processes."""
    return accelerator.distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED)


def make_accelerator(cpu: bool = False, **options: Any) -> Accelerator:
    """Return accelerate's object, made so that DeepSpeed divides nothing but what is trained, and runs on processors.

    Args:
        cpu: whether to train on processors though there are GPUs.
        options: what else `Accelerator` takes.
    """
    handlers = list(options.pop("kwargs_handlers", None) or [])
    deepspeed = options.get("deepspeed_plugin") is not None or _launched_with("DEEPSPEED")
    if deepspeed and not torch.accelerator.is_available():
        zero.exchange_over_gloo()
        handlers.append(InitProcessGroupKwargs(backend="gloo"))
        cpu = False  # with True accelerate would leave DeepSpeed out
    accelerator = Accelerator(cpu=cpu, kwargs_handlers=handlers, **options)
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        unset_hf_deepspeed_config()  # at stage 3 transformers would divide every model that it loads, the target first
    return accelerator


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
    if kind == DistributedType.MEGATRON_LM:
        raise MMSpecError(f"{kind.value} trains no head here: {READY}, such as fsdp2.yaml")
    for name in ("FSDP", "DEEPSPEED"):
        if _launched_with(name) and kind.value != name:  # accelerate says nothing, and divides nothing
            raise MMSpecError(
                f"accelerate was started for {name}, but would train with {kind.value} on {accelerator.device.type}: "
                "leave device out, and for FSDP have GPUs, or take another file of configs/accelerate"
            )
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


def whole_weights(accelerator: Accelerator, trainee: nn.Module) -> dict[str, Tensor]:
    """Return all weights of the trainee by name; complete in the first process."""
    return zero.whole_weights(trainee) if zero.is_zero(accelerator) else accelerator.get_state_dict(trainee)


def write_shards(folder: Path, trainee: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Write weights and optimizer state into a folder, every process its own part.

    Raises:
        MMSpecError: if a part cannot be written.
    """
    weights, averages = zero.divided_state(trainee) if zero.is_engine(trainee) else get_state_dict(trainee, optimizer)
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
    try:
        if zero.is_engine(trainee):
            return zero.read_state(folder, trainee)
        weights, averages = get_state_dict(trainee, optimizer)
        state: dict[str, Any] = {"weights": weights, "optimizer": averages}
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
        own = group.get(zero.NAMES) or [names[id(parameter)] for parameter in group["params"]]
        state |= {name: saved["state"][number] for name, number in zip(own, old["params"], strict=True)}
        groups.append(old | {"params": own})
    named: dict[str, Any] = {f"drafter.{name}": tensor for name, tensor in weights.items()}
    if zero.is_engine(trainee):
        return zero.put_state(trainee, named, {"state": state, "param_groups": groups})
    set_state_dict(
        trainee,
        optimizer,
        model_state_dict=named,
        optim_state_dict={"state": state, "param_groups": groups},
        options=StateDictOptions(full_state_dict=True),
    )


def _launched_with(name: str) -> bool:
    """Return True if `accelerate launch` was told to divide the weights in this way."""
    return os.environ.get(f"ACCELERATE_USE_{name}", "false").lower() == "true"


def _said(error: BaseException) -> str:
    """Return what went wrong in the first process where something did, in one line."""
    if isinstance(error, CheckpointException):
        error = next(iter(error.failures.values()))[0]
    return first_line(error)
