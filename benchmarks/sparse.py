"""What a draft on few visual entries costs (STD), behind more and more pictures: rounds in turns with plain steps.

    python benchmarks/sparse.py
    python benchmarks/sparse.py --pictures 1 16 --keep 0.2

The embedded target with noise for pictures, 144 visual tokens each. Every request stays open, and one round of each is
timed, again and again. Prints a Markdown table of medians: a plain step, a round of a chain of `--length`, and how many
tokens such a round has to bring to be as fast as plain steps. How many it brings is another matter, of what is seen.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch
from PIL import Image

import mmspec
from mmspec.drafters import SparseToDenseDrafter
from mmspec.trees import Chain

SETTLING = 2
"""Rounds of each request before anything counts."""


def main() -> None:
    """Measure and print."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--pictures", nargs="+", type=int, default=[1, 8, 26])
    arguments.add_argument("--keep", type=float, default=0.1, help="share of the visual entries")
    arguments.add_argument("--length", type=int, default=9, help="guesses per round")
    arguments.add_argument("--rounds", type=int, default=20)
    given = arguments.parse_args()
    target = mmspec.load_target("tiny")
    drafter = SparseToDenseDrafter(target, keep=given.keep, tree=Chain(given.length))
    torch.manual_seed(0)
    needed = (given.length + 1) * (given.rounds + SETTLING + 1)
    runs, seconds = {}, {}
    for count in given.pictures:
        noise = torch.randint(256, (count, 96, 96, 3), dtype=torch.uint8).numpy()
        asked = {"prompt": "Describe the picture.", "images": [Image.fromarray(one) for one in noise]}
        for name, method in (("plain", None), ("std", drafter)):
            runs[name, count] = mmspec.stream(target, method, **asked, max_new_tokens=needed, eos_token_id=[])
            seconds[name, count] = []
    for number in range(given.rounds + SETTLING):
        for key, pieces in runs.items():
            started = time.perf_counter()
            next(pieces)
            if number >= SETTLING:
                seconds[key].append(time.perf_counter() - started)
    print("| pictures | visual tokens | plain step, ms | round, ms | tokens to be as fast |\n|--:|--:|--:|--:|--:|")
    for count in given.pictures:
        plain, rounds = (1e3 * statistics.median(seconds[name, count]) for name in ("plain", "std"))
        ratios = zip(seconds["std", count], seconds["plain", count], strict=True)
        needed_tokens = statistics.median(ours / theirs for ours, theirs in ratios)
        print(f"| {count} | {144 * count} | {plain:.1f} | {rounds:.1f} | {needed_tokens:.1f} |", flush=True)


if __name__ == "__main__":
    main()
