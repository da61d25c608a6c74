"""What a batch gains: tokens per second of eight prompts answered together, over the same prompts one after the other.

    python benchmarks/batch.py
    python benchmarks/batch.py --rows 4 --drafter tiny/eagle --tree dynamic

The two sides take turns; medians of several. A batch holds prompts of one task, or of all of them (`mixed`), where
short answers leave their rows empty while the others go on. Prints a Markdown table: ratios of decoding only, by batch
and their mean over the tasks; the mean end to end; and whether the texts are the same.
"""

from __future__ import annotations

import argparse
import statistics

import torch

import mmspec
from mmspec.generation import Output
from mmspec.inputs import prepare
from mmspec.trees import Chain, DynamicTree

TREES = {"chain": lambda: Chain(5), "dynamic": lambda: DynamicTree(5, 4, 17)}
NEW_TOKENS = 256


def together(target: mmspec.Target, drafter, options: dict, prompts: list[str], images: list) -> list[Output]:
    return [mmspec.generate(target, drafter, inputs=prepare(target, prompts, images), **options)]


def apart(target: mmspec.Target, drafter, options: dict, prompts: list[str], images: list) -> list[Output]:
    pairs = zip(prompts, images, strict=True)
    return [mmspec.generate(target, drafter, inputs=prepare(target, *pair), **options) for pair in pairs]


def speeds(outputs: list[Output]) -> tuple[float, float]:
    """Tokens per second of decoding, and end to end."""
    tokens, prompts = (
        sum(sum(one) for one in column)
        for column in ([out.stats.new_tokens for out in outputs], [[1] * len(out.stats.new_tokens) for out in outputs])
    )
    decoding = sum(out.stats.decode_seconds for out in outputs)
    return (tokens - prompts) / decoding, tokens / sum(out.stats.total_seconds for out in outputs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--drafter", default="tiny/eagle3")
    parser.add_argument("--tree", choices=TREES, default="chain")
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    options = parser.parse_args()
    tasks = mmspec.zoo.TASKS
    batches = {task: [task] * options.rows for task in tasks}
    batches["mixed"] = [tasks[row % len(tasks)] for row in range(options.rows)]
    print("| dtype | method | " + " | ".join(batches) + " | mean of tasks | end to end | same text |")
    print("|---" * (len(batches) + 5) + "|")
    for dtype in options.dtypes:
        target = mmspec.load_target("tiny", dtype=getattr(torch, dtype))
        drafter = mmspec.load_drafter(options.drafter, target)
        sides = {"plain": (None, {}), options.drafter: (drafter, {"tree": TREES[options.tree]()})}
        for name, (who, settings) in sides.items():
            settings = {"max_new_tokens": NEW_TOKENS, **settings}
            found = [measure(target, who, settings, kinds, options.repeats) for kinds in batches.values()]
            decoding, whole, same = (list(column) for column in zip(*found, strict=True))
            means = [statistics.mean(column[: len(tasks)]) for column in (decoding, whole)]
            cells = " | ".join(f"{ratio:.2f}" for ratio in [*decoding, *means])
            print(f"| {dtype} | {name} | {cells} | {'yes' if all(same) else 'NO'} |", flush=True)


def measure(target: mmspec.Target, drafter, options: dict, kinds: list[str], repeats: int) -> tuple[float, float, bool]:
    """Ratios of decoding and end to end, and whether the texts are the same."""
    samples = [mmspec.zoo.sample(kind, "test", row) for row, kind in enumerate(kinds)]
    prompts, images = [sample.prompt for sample in samples], [[sample.image] for sample in samples]
    ratios, same = [], True
    for repeat in range(repeats + 1):
        batch = together(target, drafter, options, prompts, images)
        single = apart(target, drafter, options, prompts, images)
        same &= batch[0].token_ids == [out.token_ids[0] for out in single]
        if repeat:  # the first one warms up
            ratios.append([a / b for a, b in zip(speeds(batch), speeds(single), strict=True)])
    decoding, whole = (statistics.median(column) for column in zip(*ratios, strict=True))
    return decoding, whole, same


if __name__ == "__main__":
    main()
