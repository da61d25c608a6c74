"""The embedded drafters side by side: acceptance by task and position, and speed against plain decoding. Prints JSON.

    python benchmarks/drafters.py --dtypes float32
    python benchmarks/drafters.py --drafters eagle3 --trees dynamic --examples 8 --dtypes float32 bfloat16

All drafters answer the same pictures of the test split, greedily. Acceptance is counted over `--examples` pictures per
task; speed is measured over the first `--timed` of them, end to end (vision and prefill included), as the ratio to
plain decoding through the same loop in the same run: the sides alternate and medians are compared.
"""

from __future__ import annotations

import argparse
import json
import os
import sys

import torch
from loop import alternate, picture_inputs, timed

import mmspec
from mmspec.drafters import NGramDrafter
from mmspec.stats import Stats
from mmspec.trees import Chain, DynamicTree, StaticTree

TREES = {"chain": Chain(5), "static": StaticTree(), "dynamic": DynamicTree(5, 4, 16)}
DRAFTERS = ("ngram", "text_only", "draft_model", "eagle", "eagle3")


def sides_of(target: mmspec.Target, drafters: list[str], trees: list[str]) -> dict[str, tuple]:
    """Name to drafter and tree; drafters that propose whole blocks have no tree."""
    sides = {}
    for name in drafters:
        if name == "ngram":
            sides["ngram"] = (NGramDrafter(target), None)
            continue
        drafter = mmspec.load_drafter(f"tiny/{name}", target)
        sides |= {f"{name} {tree}": (drafter, TREES[tree]) for tree in trees}
    return sides


def compare(target: mmspec.Target, options: argparse.Namespace) -> dict:
    """Per task and side: speed-up, acceptance, and the share of answers that are the plain ones."""
    sides = sides_of(target, options.drafters, options.trees)
    report: dict = {}
    for task in mmspec.zoo.TASKS:
        print(f"{task} ...", file=sys.stderr, flush=True)
        requests = [picture_inputs(target, task, 100 + index) for index in range(options.examples)]

        def decode(drafter=None, tree=None, requests=requests) -> list[mmspec.Output]:
            return [mmspec.generate(target, drafter, inputs=i, tree=tree, max_new_tokens=256) for i in requests]

        plain = [out.token_ids for out in decode()]
        report[task] = {}
        for name, (drafter, tree) in sides.items():
            outputs = decode(drafter, tree)
            pooled = Stats(rounds=[record for out in outputs for record in out.stats.rounds])
            report[task][name] = {
                "mean_acceptance_length": round(pooled.mean_acceptance_length, 3),
                "acceptance_rate_per_position": [round(rate, 3) for rate in pooled.acceptance_rate_per_position],
                "same_tokens": sum(out.token_ids == ids for out, ids in zip(outputs, plain, strict=True)) / len(plain),
            }
        if options.timed:
            few = requests[: options.timed]
            runs = {"plain": timed(lambda few=few: decode(requests=few))}
            runs |= {n: timed(lambda d=d, t=t, few=few: decode(d, t, few)) for n, (d, t) in sides.items()}
            seconds = alternate(runs, options.repeats)
            for name in sides:
                ratio = seconds["plain"]["median_s"] / seconds[name]["median_s"]
                report[task][name]["speedup_end_to_end"] = round(ratio, 3)
    return report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--drafters", nargs="+", choices=DRAFTERS, default=list(DRAFTERS))
    parser.add_argument("--trees", nargs="+", choices=list(TREES), default=["chain", "dynamic"])
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--examples", type=int, default=24, help="pictures per task whose acceptance is counted")
    parser.add_argument("--timed", type=int, default=4, help="pictures per task that are timed; 0 for none")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    report = {"torch": torch.__version__, "threads": options.threads}
    for dtype in options.dtypes:
        report[dtype] = compare(mmspec.load_target("tiny", dtype), options)
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
