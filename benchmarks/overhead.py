"""What share of decoding is not a model: the loop, masks, trees, verification, records.

    python benchmarks/overhead.py
    python benchmarks/overhead.py --drafter tiny/eagle --trees chain5 dynamic --dtypes bfloat16
    python benchmarks/overhead.py --processor-time

A stopwatch runs all the time and books to the target while its `forward` runs; to the drafter while it mixes, runs its
layer and its vocabulary head (or its model's `forward`); and to overhead otherwise, making room in caches and masks
included. The prompt's part is left out. Prints a Markdown table. Processor time is that of one thread, on which torch
then runs too: on a busy machine it says more than the time that passes.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from unittest.mock import patch

import torch

import mmspec
from mmspec.drafters import DraftModelDrafter, FeatureDrafter
from mmspec.inputs import prepare
from mmspec.models.session import Session
from mmspec.trees import Chain, DynamicTree, SageTree

TREES = {
    "chain5": lambda: Chain(5),
    "chain8": lambda: Chain(8),
    "dynamic": lambda: DynamicTree(5, 4, 17),
    "sage": lambda: SageTree(max_nodes=16),
}
OVERHEAD = "overhead"


class Stopwatch:
    """Seconds by what is running.

    Args:
        time: of a clock.
    """

    def __init__(self, time: Callable[[], float]):
        self.seconds = {"target": 0.0, "drafter": 0.0, OVERHEAD: 0.0}
        self._time, self._now, self._last = time, OVERHEAD, time()

    def switch(self, name: str) -> str:
        """Book the time since the last switch; return what was running."""
        now, before = self._time(), self._now
        self.seconds[before] += now - self._last
        self._now, self._last = name, now
        return before

    def books(self, function: Callable, name: str) -> Callable:
        """The same function, whose time goes to `name`."""

        def timed(*args, **kwargs):
            before = self.switch(name)
            try:
                return function(*args, **kwargs)
            finally:
                self.switch(before)

        return timed


def parts(target: mmspec.Target, drafter: mmspec.Drafter) -> Iterator[tuple[object, str, str]]:
    """Who has which function, and what runs in it."""
    yield type(target.model), "forward", "target"
    if isinstance(drafter, FeatureDrafter):
        for name in ("_run", "fuse_features", "next_state", "head_input", "logits"):
            yield type(drafter), name, "drafter"
        yield Session, "block", OVERHEAD
    elif isinstance(drafter, DraftModelDrafter):
        yield type(drafter.model), "forward", "drafter"


def shares(target: mmspec.Target, drafter: mmspec.Drafter, tree, requests: list, clock: Callable) -> dict[str, float]:
    """Shares of decoding by what is running."""
    total = dict.fromkeys(("target", "drafter", OVERHEAD), 0.0)
    for request in requests:
        with ExitStack() as patches:
            watch = Stopwatch(clock)
            for owner, name, books in parts(target, drafter):
                patches.enter_context(patch.object(owner, name, watch.books(getattr(owner, name), books)))
            pieces = mmspec.stream(target, drafter, inputs=request, max_new_tokens=256, tree=tree)
            next(pieces)  # the prompt's pass
            watch.switch(OVERHEAD)
            watch.seconds = dict.fromkeys(watch.seconds, 0.0)
            for _ in pieces:
                pass
            watch.switch(OVERHEAD)
        total = {name: seconds + watch.seconds[name] for name, seconds in total.items()}
    return {name: seconds / sum(total.values()) for name, seconds in total.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--drafter", default="tiny/eagle3")
    parser.add_argument("--trees", nargs="+", choices=TREES, default=list(TREES))
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--pictures", type=int, default=4, help="of each task")
    parser.add_argument("--processor-time", action="store_true", help="of one thread, for busy machines")
    options = parser.parse_args()
    clock = time.thread_time if options.processor_time else time.perf_counter
    if options.processor_time:
        torch.set_num_threads(1)
    print("| dtype | method | target | drafter | overhead |\n|---|---|---|---|---|")
    for dtype in options.dtypes:
        target = mmspec.load_target("tiny", dtype=getattr(torch, dtype))
        drafter = mmspec.load_drafter(options.drafter, target)
        samples = [mmspec.zoo.sample(task, "test", i) for task in mmspec.zoo.TASKS for i in range(options.pictures)]
        requests = [prepare(target, sample.prompt, [sample.image]) for sample in samples]
        for name in options.trees:
            shares(target, drafter, TREES[name](), requests[:2], clock)  # warms up
            found = shares(target, drafter, TREES[name](), requests, clock)
            cells = " | ".join(f"{100 * share:.1f} %" for share in found.values())
            print(f"| {dtype} | {options.drafter} {name} | {cells} |", flush=True)


if __name__ == "__main__":
    main()
