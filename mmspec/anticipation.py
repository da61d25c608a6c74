"""Drafting while the target scores: `Drafter.anticipate` runs beside the pass that scores the draft before."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context

import torch

from .drafters import Drafter
from .outcome import Scores
from .target import Context
from .tree import DraftTree


def score_while(context: Context, drafter: Drafter, tree: DraftTree) -> tuple[Scores, float]:
    """The target's scores of a tree; meanwhile the drafter works on what it expects to come after it.

    The drafter works in a thread of its own, beside the target's pass, if it has an `anticipate`. What it raises is
    raised here, once the pass is over.

    Returns:
        The scores, and the seconds for which the drafter worked beside the target; 0 if it does not anticipate.
    """
    if type(drafter).anticipate is Drafter.anticipate:
        return context.score(tree), 0.0

    @torch.inference_mode()  # a mode is a thread's own
    def anticipate() -> float:
        started = time.perf_counter()
        drafter.anticipate(tree)
        return time.perf_counter() - started

    with ThreadPoolExecutor(1, "anticipate") as executor:
        working = executor.submit(copy_context().run, anticipate)
        scores = context.score(tree)
        return scores, working.result()
