"""What `compile=true` buys: the same requests with the target compiled and as it is, in turns.

    python benchmarks/compile.py
    python benchmarks/compile.py --drafter tiny/draft_model --dtype bfloat16

Prints a Markdown table: decoding tokens per second compiled over not compiled, milliseconds of a round's scoring on
both sides, seconds that the first answer took, and whether the texts are the same. Medians of several.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch

import mmspec
from mmspec.inputs import prepare
from mmspec.trees import Chain


def answers(target: mmspec.Target, drafter, requests: list) -> tuple[float, float, list]:
    """Tokens per second of decoding, milliseconds of scoring per round, and the texts."""
    options = {"max_new_tokens": 160} | ({} if drafter is None else {"tree": Chain(5)})
    outputs = [mmspec.generate(target, drafter, inputs=request, **options) for request in requests]
    tokens = sum(sum(out.stats.new_tokens) - 1 for out in outputs)
    rounds = sum(len(out.stats.rounds) for out in outputs)
    scoring = sum(out.stats.seconds["score"] for out in outputs)
    return tokens / sum(out.stats.decode_seconds for out in outputs), 1e3 * scoring / rounds, outputs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--drafter", default="tiny/eagle3")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    dtype = getattr(torch, options.dtype)
    plain, compiled = (mmspec.load_target("tiny", dtype=dtype, compile=on) for on in (False, True))
    drafters = {target: mmspec.load_drafter(options.drafter, target) for target in (plain, compiled)}
    samples = [mmspec.zoo.sample(task, "test", i) for task in mmspec.zoo.TASKS for i in range(2)]
    requests = [prepare(plain, sample.prompt, [sample.image]) for sample in samples]
    print(
        "| method | speed | scoring, ms a round | as it is | first answer, s | same text |\n|---|---|---|---|---|---|"
    )
    for name in ("plain", options.drafter):
        sides = [(target, None if name == "plain" else drafters[target]) for target in (plain, compiled)]
        answers(*sides[0], requests[:1])
        start = time.perf_counter()
        answers(*sides[1], requests[:1])
        first = time.perf_counter() - start
        found = [[answers(*side, requests) for side in sides] for _ in range(options.repeats)]
        ratio = statistics.median(ours[0] / theirs[0] for theirs, ours in found)
        eager, ours = (statistics.median(pair[side][1] for pair in found) for side in (0, 1))
        texts = [[[out.token_ids for out in pair[side][2]] for pair in found] for side in (0, 1)]
        same = "yes" if texts[0] == texts[1] else "NO"
        print(f"| {name} | {ratio:.2f} | {ours:.2f} | {eager:.2f} | {first:.0f} | {same} |", flush=True)


if __name__ == "__main__":
    main()
