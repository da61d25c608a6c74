"""A training of 20 steps, run by `test_parallel` in one process and in several.

    several_processes.py FOLDER HEAD [--fsdp | --zero STAGE] [--bf16] [--norm] [--die STEP]

accelerate takes no processors for FSDP: with `--fsdp` it is told that they are graphics cards, and everything behind
that (the division of the weights, the exchange of gradients, the saved state) is what runs there too, over gloo.
DeepSpeed takes processors. It limits the gradient's norm alone, and so does one process with `--norm`.
"""

import argparse
import os
import signal

import tiny_training
from accelerate import Accelerator, DeepSpeedPlugin, FullyShardedDataParallelPlugin, PartialState
from accelerate.utils import DistributedType
from tiny_training import Answered, adam

from mmspec.training.sharding import make_accelerator
from mmspec.training.trainer import Trainer

parser = argparse.ArgumentParser()
parser.add_argument("folder")
parser.add_argument("head")
parser.add_argument("--fsdp", action="store_true")
parser.add_argument("--zero", type=int)
parser.add_argument("--bf16", action="store_true")
parser.add_argument("--norm", action="store_true")
parser.add_argument("--die", type=int)
arguments = parser.parse_args()

precision, plugin = "bf16" if arguments.bf16 else "no", None
if arguments.fsdp:
    PartialState(cpu=True)
    PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
    plugin = FullyShardedDataParallelPlugin(fsdp_version=2, cpu_ram_efficient_loading=False)
if arguments.zero is None:
    accelerator = Accelerator(cpu=True, fsdp_plugin=plugin, mixed_precision=precision)
else:
    accelerator = make_accelerator(
        deepspeed_plugin=DeepSpeedPlugin(zero_stage=arguments.zero), mixed_precision=precision
    )
assert (accelerator.distributed_type == DistributedType.FSDP) == arguments.fsdp
assert (accelerator.distributed_type == DistributedType.DEEPSPEED) == (arguments.zero is not None)


def die(step: int, _: dict) -> None:
    """End the last process as a machine that loses its power would."""
    if step == arguments.die and accelerator.process_index == accelerator.num_processes - 1:
        os.kill(os.getpid(), signal.SIGKILL)


drafter, objective = getattr(tiny_training, arguments.head)()
limit = {"clip_norm": 0.3} if arguments.norm or arguments.zero is not None else {"clip_value": 0.01}
settings = tiny_training.settings(steps=20, batch_size=5, validate_every=20, save_every=6, **limit)
trainer = Trainer(drafter, objective, Answered(), arguments.folder, settings, adam, accelerator=accelerator)
trainer.run(die)
trainer.end()
