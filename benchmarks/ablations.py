"""Do the methods behave as their papers say? SpecVLM's gate, SAGE's depth, and drafters trained without a part.

    python benchmarks/ablations.py gate sage
    python benchmarks/ablations.py trained runs/vispec runs/vispec_without_summary ...

`gate`: which branch the elastic compressor of `tiny/specvlm` chooses, by task. `sage`: the depth of SAGE's trees, and
what was accepted of the deeper half. `trained`: the simulated acceptance that finished trainings have reached on the
same held-out answers, side by side. Prints Markdown.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from pathlib import Path

import torch

import mmspec
from mmspec.compressors import Elastic
from mmspec.inputs import prepare

EXAMPLES = 24


def table(headings: list[str], rows: list[list[str]]) -> None:
    for row in (headings, ["---"] * len(headings), *rows):
        print("| " + " | ".join(row) + " |")
    print()


def requests_of(target: mmspec.Target, task: str):
    for index in range(EXAMPLES):
        image, prompt, _ = mmspec.zoo.sample(task, "test", 100 + index)
        yield prepare(target, prompt, [image])


@torch.inference_mode()
def gate(target: mmspec.Target) -> None:
    """Branches by task."""
    drafter = mmspec.load_drafter("tiny/specvlm", target)
    elastic = drafter.compressor
    assert isinstance(elastic, Elastic)
    names = [type(branch).__name__ for branch in elastic.branches]
    chosen: list[int] = []
    elastic.register_forward_pre_hook(lambda module, args: chosen.append(module.choice(args[0])))
    rows = []
    for task in mmspec.zoo.TASKS:
        chosen.clear()
        for request in requests_of(target, task):
            mmspec.generate(target, drafter, inputs=request, max_new_tokens=2)
        counts = Counter(chosen)
        rows.append([task, *(str(counts[number]) for number in range(len(names)))])
    table([f"branch chosen, of {EXAMPLES}", *names], rows)


@torch.inference_mode()
def sage(target: mmspec.Target) -> None:
    """Depth of the trees by the entropy that decided it."""
    drafter = mmspec.load_drafter("tiny/eagle3", target)
    rows = []
    for task in mmspec.zoo.TASKS:
        depths: list[int] = []
        accepted: list[int] = []
        for request in requests_of(target, task):
            out = mmspec.generate(target, drafter, inputs=request, tree=mmspec.trees.SageTree(), max_new_tokens=128)
            depths += [record.depth for record in out.stats.rounds]
            accepted += [record.accepted[0] for record in out.stats.rounds]
        deep = [a for a, depth in zip(accepted, depths, strict=True) if depth >= sorted(depths)[len(depths) // 2]]
        rows.append(
            [
                task,
                f"{sum(depths) / len(depths):.2f}",
                f"{min(depths)} to {max(depths)}",
                f"{sum(accepted) / len(accepted):.2f}",
                f"{sum(deep) / len(deep):.2f}",
            ]
        )
    table(["SageTree", "mean depth", "depths", "accepted a round", "in the deeper half"], rows)


def trained(folders: list[str]) -> None:
    """What finished trainings have reached."""
    rows = []
    for folder in folders:
        found = json.loads((Path(folder) / "best" / "config.json").read_text())["metadata"]
        report, tasks = found["validation"], found["validation"]["tasks"]
        rows.append(
            [Path(folder).name, str(found["steps"]), f"{report['simulated']['mean_acceptance_length']:.2f}"]
            + [f"{tasks[task]['mean_acceptance_length']:.2f}" for task in mmspec.zoo.TASKS]
            + [" ".join(f"{100 * rate:.0f}" for rate in report["simulated"]["acceptance_by_position"])]
        )
    table(["trained", "steps", "all", *mmspec.zoo.TASKS, "by position, %"], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="+", help="gate, sage, or trained and folders")
    options = parser.parse_args()
    if options.what[0] == "trained":
        trained(options.what[1:])
        return
    target = mmspec.load_target("tiny")
    for name in options.what:
        {"gate": gate, "sage": sage}[name](target)


if __name__ == "__main__":
    main()
