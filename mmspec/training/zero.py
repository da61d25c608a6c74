"""DeepSpeed's ZeRO: the averages of the optimizer (stage 1), the gradients too (2), and the weights too (3) are divided
among the processes.

DeepSpeed's engine adds up the gradients, clips and steps by itself; everything else is as in other trainings. It keeps
its parts in flat tensors of its own. For the state to resume from they are put together, one weight after the other, so
that the saved folder is that of FSDP2 and can be read by any number of processes, with or without DeepSpeed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import Tensor, distributed, nn
from torch.distributed.checkpoint import FileSystemReader
from torch.distributed.checkpoint.default_planner import _EmptyStateDictLoadPlanner
from torch.distributed.checkpoint.state_dict_loader import _load_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

from ..errors import MMSpecError

NAMES = "param_names"
"""Key of an optimizer's group where torch itself keeps the names of its weights."""


def is_zero(accelerator: Accelerator) -> bool:
    """Return True if DeepSpeed trains."""
    return accelerator.distributed_type == DistributedType.DEEPSPEED


def exchange_over_gloo() -> None:
    """Keep DeepSpeed from compiling an exchange of its own for processes on processors, at every machine's first start.

    Where DeepSpeed is not installed, nothing happens: accelerate says so.
    """
    try:
        from deepspeed.ops import __compatible_ops__ as operations
    except ImportError:
        return
    operations["deepspeed_shm_comm"] = False


def is_engine(trainee: nn.Module) -> bool:
    """Return True for what accelerate makes of the trainee where DeepSpeed trains."""
    return hasattr(trainee, "zero_optimization_stage")


def check_zero(accelerator: Accelerator, target: nn.Module, clip_value: float | None) -> None:
    """Refuse settings of DeepSpeed that are not known to give the training of one process.

    Args:
        accelerator: Hugging Face accelerate's object, with DeepSpeed.
        target: the frozen model.
        clip_value: largest absolute value in the gradient.

    Raises:
        MMSpecError: for such a setting.
    """
    plugin = accelerator.state.deepspeed_plugin
    config = plugin.deepspeed_config["zero_optimization"]
    wanted: dict[str, tuple[Any, tuple[Any, ...]]] = {
        "zero_stage": (config.get("stage"), (1, 2, 3)),
        "offload_optimizer_device": ((config.get("offload_optimizer") or {}).get("device", "none"), ("none",)),
        "offload_param_device": ((config.get("offload_param") or {}).get("device", "none"), ("none",)),
    }
    for name, (found, right) in wanted.items():
        if found not in right:
            raise MMSpecError(
                f"{name}: {str(found).lower()} of DeepSpeed is not supported, set "
                f"{' or '.join(str(value).lower() for value in right)}, or take configs/accelerate/deepspeed.yaml"
            )
    if any(hasattr(parameter, "ds_id") for parameter in target.parameters()):
        raise MMSpecError(
            "DeepSpeed has divided the target, which every process needs whole: make the accelerator with "
            "mmspec.training.sharding.make_accelerator, before the target is loaded"
        )
    for name in ("optimizer", "scheduler"):
        if name in plugin.deepspeed_config:
            raise MMSpecError(f"{name} of DeepSpeed's file is the recipe's here: leave it out of that file")
    if clip_value is not None:
        raise MMSpecError(f"clip_value={clip_value} is not for DeepSpeed, which clips the norm: set clip_value=null")


def set_up(accelerator: Accelerator, trainee: nn.Module, optimizer: torch.optim.Optimizer, norm: float | None) -> None:
    """Let DeepSpeed compute as data parallelism does: in autocast, on weights in fp32, which the head has as a whole.

    Args:
        accelerator: Hugging Face accelerate's object, with DeepSpeed.
        trainee: the module to train, before accelerate prepares it.
        optimizer: its optimizer.
        norm: largest norm of the gradient; None for no limit.
    """
    from deepspeed.utils import set_z3_leaf_modules

    config = accelerator.state.deepspeed_plugin.deepspeed_config
    autocast = bool((config.get("bf16") or {}).get("enabled"))  # from mixed_precision, as accelerate reads it
    config["bf16"] = {"enabled": False}
    # Nothing travels in half precision, as in data parallelism.
    config["torch_autocast"] = {"enabled": autocast, "dtype": "bfloat16", "lower_precision_safe_modules": []}
    config["gradient_clipping"] = norm or 0.0
    config["zero_allow_untested_optimizer"] = True  # any that works on each number by itself, as AdamW does
    # What DeepSpeed would multiply to a batch; the trainer weighs its passes itself.
    config["train_micro_batch_size_per_gpu"], config["train_batch_size"] = 1, "auto"
    # Texts differ in how often they pass a layer, so the weights are put together for the pass as a whole.
    set_z3_leaf_modules(trainee, [type(trainee)])
    names = {id(parameter): name for name, parameter in trainee.named_parameters()}
    for group in optimizer.param_groups:
        group[NAMES] = [names[id(parameter)] for parameter in group["params"]]


def gate(device: torch.device) -> Tensor:
    """Return a zero for the trainee to add to its loss, the first thing that it reads and the last that a gradient
    reaches.

    At stage 3 DeepSpeed takes a pass backwards to be over when its gradient has reached what the module was given. All
    else that a trainee is given has none, and the weights would be put away before their gradients are known.
    """
    return torch.zeros((), device=device, requires_grad=True)


def add_gradient(engine: Any, loss: Tensor, last: bool) -> None:
    """Add the gradient of a loss to those of the step.

    Args:
        engine: DeepSpeed's, which accelerate made of the trainee.
        loss: a number.
        last: whether the step has no further pass.
    """
    engine.set_gradient_accumulation_boundary(last)
    engine.backward(loss)


def clip_and_step(engine: Any) -> float:
    """Clip the gradient and step, and return the norm that the gradient had. If that is not finite, the weights stay as
    they are."""
    engine.step()
    return float(engine.get_global_grad_norm())


def whole_weights(engine: Any) -> dict[str, Tensor]:
    """Return all weights by name, in every process."""
    from deepspeed import zero

    with zero.GatheredParameters(list(engine.module.parameters())):
        return {name: tensor.detach().clone() for name, tensor in engine.module.state_dict().items()}


# The state to resume from, in the form that torch gives FSDP2's.


def divided_state(engine: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return weights and the optimizer's state, of every tensor this process's part."""
    from deepspeed.utils import safe_get_full_optimizer_state

    mesh = init_device_mesh(engine.device.type, (distributed.get_world_size(),))

    def part(tensor: Tensor) -> Tensor:
        return distribute_tensor(tensor, mesh, [Shard(0)], src_data_rank=None) if tensor.dim() else tensor

    learning = {name: parameter for name, parameter in engine.module.named_parameters() if parameter.requires_grad}
    state: dict[str, dict[str, Tensor]] = {name: {} for name in learning}
    for key, value in _template(engine).items():
        for name, parameter in learning.items():
            state[name][key] = part(safe_get_full_optimizer_state(parameter, key)) if value.dim() else value
    groups = [
        {"params": group[NAMES], **{key: value for key, value in group.items() if key not in ("params", NAMES)}}
        for group in _optimizer(engine).param_groups
    ]
    weights = {name: part(tensor) for name, tensor in whole_weights(engine).items()}
    return weights, {"state": state, "param_groups": groups}


def put_state(engine: Any, weights: dict[str, Tensor], saved: dict[str, Any]) -> None:
    """Give every process its part of weights and of an optimizer's state that are whole.

    Args:
        engine: DeepSpeed's, which accelerate made of the trainee.
        weights: its weights by name.
        saved: what `divided_state` gave, whole.
    """
    from deepspeed import zero
    from deepspeed.utils import safe_set_full_fp32_param, safe_set_full_optimizer_state

    with zero.GatheredParameters(list(engine.module.parameters()), modifier_rank=0):
        engine.module.load_state_dict(weights)
    example: dict[str, Any] = next(iter(saved["state"].values()), {})
    _make_room(engine, example)
    for name, parameter in engine.module.named_parameters():
        if parameter.requires_grad:
            safe_set_full_fp32_param(parameter, weights[name].to(engine.device))
            for key, value in saved["state"][name].items():
                if value.dim():
                    safe_set_full_optimizer_state(parameter, value.to(engine.device), key)
    for group, old in zip(_optimizer(engine).param_groups, saved["param_groups"], strict=True):
        group.update({key: value for key, value in old.items() if key not in ("params", NAMES)})


def read_state(folder: Path, engine: Any) -> None:
    """Load what `mmspec.training.sharding.write_shards` wrote; every process reads all of it into its main memory."""
    saved: dict[str, Any] = {}
    # What torch's own conversion of such a folder into one file does: everything that is there, without a template.
    _load_state_dict(saved, FileSystemReader(folder), planner=_EmptyStateDictLoadPlanner(), no_dist=True)
    put_state(engine, saved["weights"], saved["optimizer"])


def _optimizer(engine: Any) -> torch.optim.Optimizer:
    """Return the optimizer that DeepSpeed's own has inside."""
    return engine.optimizer.optimizer


def _flat(engine: Any) -> list[Tensor]:
    """Return the flat tensors that hold this process's parts of the weights in fp32."""
    if engine.zero_optimization_stage() == 3:
        return list(engine.optimizer.fp32_partitioned_groups_flat)
    return list(engine.optimizer.single_partition_of_fp32_groups)


def _template(engine: Any) -> dict[str, Tensor]:
    """Return what the optimizer keeps of one flat tensor; nothing before the first step."""
    return dict(_optimizer(engine).state.get(_flat(engine)[0], {}))


def _make_room(engine: Any, example: dict[str, Tensor]) -> None:
    """Begin the optimizer's state of the flat tensors, which it has from its first step on otherwise.

    Args:
        engine: DeepSpeed's.
        example: the state of one weight: what has axes becomes flat, and a number counts for all.
    """
    optimizer = _optimizer(engine)
    for flat in _flat(engine):
        optimizer.state[flat] = {
            key: torch.zeros_like(flat) if value.dim() else value.clone() for key, value in example.items()
        }
    if engine.zero_optimization_stage() < 3:
        engine.optimizer._lazy_init_hp_params_optimizer_state()
