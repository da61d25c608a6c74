"""What a round costs on any device: operations launched, values read back, copies to the device, and what is written
outside attention.

    python benchmarks/operations.py
    python benchmarks/operations.py --drafter tiny/eagle --trees chain8 dynamic --rows 1 4

Views are no operations, for they launch nothing. The numbers are those of a steady round, in which no row has ended;
rows have prompts and answers of different lengths. Drafting is also given per level. Prints a Markdown table.
"""

from __future__ import annotations

import argparse
import statistics
from dataclasses import fields

import mmspec
from mmspec.decoding.clock import PHASES, PROMPT_PHASES
from mmspec.inputs import prepare
from mmspec.speed.operations import Counts, count_rounds
from mmspec.trees import Chain, DynamicTree, SageTree, StaticTree

TREES = {
    "chain8": (8, lambda: Chain(8)),
    "static": (5, lambda: StaticTree("eagle1")),
    "dynamic": (5, lambda: DynamicTree(5, 4, 17)),
    "sage": (0, lambda: SageTree(max_nodes=16)),
}
DECODING = [phase for phase in PHASES if phase not in PROMPT_PHASES]


def steady(rounds: list[dict[str, Counts]]) -> dict[str, Counts]:
    """The median of every count, by phase, over the rounds of the first half but the first two: no row has ended then,
    and rows are ragged."""
    rounds = rounds[2 : max(3, len(rounds) // 2)]

    def median(phase: str, kind: str) -> int:
        return round(statistics.median(getattr(counts[phase], kind) for counts in rounds))

    return {phase: Counts(*(median(phase, field.name) for field in fields(Counts))) for phase in DECODING}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--drafter", default="tiny/eagle3", help="`none` decodes without one")
    parser.add_argument("--trees", nargs="+", choices=TREES, default=list(TREES))
    parser.add_argument("--rows", nargs="+", type=int, default=[1, 4])
    options = parser.parse_args()
    target = mmspec.load_target("tiny")
    drafter = None if options.drafter == "none" else mmspec.load_drafter(options.drafter, target)
    columns = ["drafting a level", *DECODING, "elsewhere", "read-backs", "copies", "kB written"]
    print("| method | rows | " + " | ".join(columns) + " |\n" + "|---" * (len(columns) + 2) + "|")
    for name in options.trees if drafter is not None and drafter.tree is not None else ["whole"]:
        levels, tree = TREES.get(name, (0, lambda: None))
        for rows in options.rows:
            samples = [mmspec.zoo.sample(mmspec.zoo.TASKS[i % len(mmspec.zoo.TASKS)], "test", i) for i in range(rows)]
            request = prepare(target, [one.prompt for one in samples], [[one.image] for one in samples])
            stream = mmspec.stream(target, drafter, inputs=request, max_new_tokens=64, tree=tree(), eos_token_id=[])
            counts = steady(count_rounds(stream))
            launched = {phase: counts[phase].operations for phase in DECODING}
            elsewhere = sum(launched.values()) - launched["draft"] - launched["score"]
            a_level = f"{launched['draft'] / levels:.1f}" if levels else ""
            totals = [sum(getattr(one, kind) for one in counts.values()) for kind in ("reads", "copies")]
            written = sum(one.written for one in counts.values()) // 1000
            cells = [a_level, *launched.values(), elsewhere, *totals, written]
            print(f"| {options.drafter} {name} | {rows} | " + " | ".join(map(str, cells)) + " |", flush=True)


if __name__ == "__main__":
    main()
