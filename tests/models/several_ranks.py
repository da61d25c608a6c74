"""Run by `torchrun` in `test_tensor_parallel.py`: every kind of drafter for a target that is divided among processes.

several_ranks.py FOLDER: the target is in FOLDER/model, and every process writes what it found to FOLDER/RANK.json; one
process alone has the target undivided.
"""

import json
import os
import sys
from pathlib import Path

import torch.distributed
from every_drafter import found_with
from transformers import LlavaForConditionalGeneration
from transformers.distributed import DistributedConfig

import mmspec

folder, world = Path(sys.argv[1]), int(os.environ.get("WORLD_SIZE", "1"))
divided = {} if world == 1 else {"distributed_config": DistributedConfig(tp_plan="auto")}
whole, model = (
    LlavaForConditionalGeneration.from_pretrained(folder / "model", **options).eval() for options in ({}, divided)
)
for each in (whole, model):
    each.generation_config.eos_token_id = None
target = mmspec.Target(model)
found = {"heads": target.cache_shapes[0][0].heads, "drafters": found_with(target, whole, "llava")}
rank = torch.distributed.get_rank() if world > 1 else 0
(folder / f"{rank}.json").write_text(json.dumps(found))
if world > 1:
    torch.distributed.destroy_process_group()
