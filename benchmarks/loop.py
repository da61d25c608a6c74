"""Speed of the loop, as ratios within one run. Prints one JSON object.

    python benchmarks/loop.py                      # everything, both dtypes
    python benchmarks/loop.py --sections prefix --dtypes float32

The two sides of each comparison alternate, and medians are compared; run it on a quiet machine.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable

import torch
from transformers import LlamaConfig, LlamaForCausalLM

import mmspec
from mmspec.decoding.draining import drain
from mmspec.drafters import TextOnlyDrafter
from mmspec.inputs import prepare
from mmspec.trees import DynamicTree
from mmspec.verifiers import Synthetic

PREFIXES = (512, 2048, 8192, 16384)
FORWARD = ("draft", "score")


def alternate(sides: dict[str, Callable[[], float]], repeats: int) -> dict[str, dict[str, float]]:
    """Run each side in turn, `repeats` times after one warm-up; each returns its seconds."""
    for run in sides.values():
        run()
    seconds = {name: [] for name in sides}
    for _ in range(repeats):
        for name, run in sides.items():
            seconds[name].append(run())
    return {
        name: {"median_s": statistics.median(values), "min_s": min(values), "max_s": max(values)}
        for name, values in seconds.items()
    }


def timed(run: Callable[[], object]) -> Callable[[], float]:
    """A function that runs another and returns its seconds."""

    def measure() -> float:
        start = time.perf_counter()
        run()
        return time.perf_counter() - start

    return measure


def picture_inputs(target: mmspec.Target, task: str, index: int) -> dict:
    """A test picture and its question as the processor returns them."""
    image, prompt, _ = mmspec.zoo.sample(task, "test", index)
    return prepare(target, prompt, [image]).inputs


def plain(target: mmspec.Target, repeats: int, tokens: int) -> dict:
    """Our loop without a drafter against `model.generate`, on a picture, a fixed number of tokens."""
    inputs = picture_inputs(target, "scenes", 7)
    target.model.generation_config.eos_token_id = None
    options = {"max_new_tokens": tokens, "eos_token_id": None, "do_sample": False}
    ours = mmspec.generate(target, None, inputs=inputs, max_new_tokens=tokens, eos_token_id=[])
    theirs = target.model.generate(**inputs, **options)[0, inputs["input_ids"].shape[1] :].tolist()
    result = alternate(
        {
            "generate": timed(lambda: target.model.generate(**inputs, **options)),
            "ours": timed(lambda: mmspec.generate(target, None, inputs=inputs, max_new_tokens=tokens, eos_token_id=[])),
        },
        repeats,
    )
    result["same_tokens"] = ours.token_ids[0] == theirs
    result["ratio"] = result["generate"]["median_s"] / result["ours"]["median_s"]
    return result


def prefix(dtype: torch.dtype, lengths: list[int], rounds: int = 40) -> dict:
    """Round time by prefix length, with the embedded target's text shape, random weights and forced acceptance.

    What is not a forward pass (drafting and scoring are) should not depend on the prefix, and no round should allocate
    anything of the size of the cache.
    """
    torch.manual_seed(0)
    shape = {
        "vocab_size": 768,
        "hidden_size": 192,
        "intermediate_size": 512,
        "num_attention_heads": 6,
        "num_key_value_heads": 6,
        "max_position_embeddings": 32768,
        "eos_token_id": None,
        "bos_token_id": None,
    }
    model = LlamaForCausalLM(LlamaConfig(num_hidden_layers=16, **shape)).to(dtype)
    draft = LlamaForCausalLM(LlamaConfig(num_hidden_layers=1, **shape)).to(dtype)
    target = mmspec.Target(model)
    drafter = TextOnlyDrafter(target, draft, tree=DynamicTree(5, 4, 24))
    result = {}
    for length in lengths:
        ids = torch.randint(0, shape["vocab_size"], (1, length))
        pieces = mmspec.stream(
            target, drafter, inputs={"input_ids": ids}, max_new_tokens=5 * rounds, verifier=Synthetic(0.8)
        )
        next(pieces)
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
            next(pieces)
        largest = max(event.self_cpu_memory_usage for event in profile.events())
        stats = drain(pieces).stats
        outside = [sum(s for name, s in r.seconds.items() if name not in FORWARD) for r in stats.rounds[1:]]
        entry = {
            "outside_forward_ms": 1e3 * statistics.median(outside),
            "score_ms": 1e3 * statistics.median(r.seconds["score"] for r in stats.rounds[1:]),
            "draft_ms": 1e3 * statistics.median(r.seconds["draft"] for r in stats.rounds[1:]),
            "cache_mb": 2 * 16 * length * 192 * dtype.itemsize / 2**20,
            "largest_allocation_in_a_round_mb": largest / 2**20,
        }
        result[str(length)] = entry
    first, last = (result[str(n)]["outside_forward_ms"] for n in (lengths[0], lengths[-1]))
    result["outside_forward_growth"] = last / first
    return result


def run_section(section: str, dtype: str, options: argparse.Namespace) -> dict:
    """One of the comparisons, in one dtype."""
    if section == "prefix":
        return prefix(getattr(torch, dtype), options.prefixes)
    return plain(mmspec.load_target("tiny", dtype), options.repeats, options.tokens)


def main() -> None:
    sections = ("plain", "prefix")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sections", nargs="+", choices=sections, default=list(sections))
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--tokens", type=int, default=128, help="tokens per answer in plain")
    parser.add_argument("--prefixes", type=int, nargs="+", default=PREFIXES, help="tokens of prompts in prefix")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    report: dict = {"torch": torch.__version__, "threads": options.threads}
    for name in options.dtypes:
        report[name] = {}
        for section in options.sections:
            print(f"{section} in {name} ...", file=sys.stderr, flush=True)
            report[name][section] = run_section(section, name, options)
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
