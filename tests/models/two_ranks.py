"""Run by `torchrun` in `test_tensor_parallel.py`: the embedded target, divided among the processes."""

import json
import sys

import torch.distributed
from transformers.distributed import DistributedConfig

import mmspec
from mmspec import zoo

target = mmspec.load_target("tiny", device="cpu", distributed_config=DistributedConfig(tp_plan="auto"))
ask = {"prompt": zoo.DEMO_PROMPT, "images": [zoo.demo_image()], "max_new_tokens": 24}
texts = {"plain": mmspec.generate(target, None, **ask).token_ids}
for name in ("eagle3", "draft_model"):
    drafter = mmspec.load_drafter(f"tiny/{name}", target)
    texts[name] = mmspec.generate(target, drafter, **ask).token_ids
    texts[f"{name}, sampled"] = mmspec.generate(target, drafter, temperature=0.8, seed=3, **ask).token_ids
try:
    mmspec.generate(target, mmspec.load_drafter("tiny/dream", target), **ask)
    refused = ""
except mmspec.MMSpecError as error:
    refused = str(error)
rank = torch.distributed.get_rank()
found = {"heads": target.cache_shapes[0][0].heads, "texts": texts, "refused": refused}
with open(f"{sys.argv[1]}/{rank}.json", "w") as file:
    json.dump(found, file)
torch.distributed.destroy_process_group()
