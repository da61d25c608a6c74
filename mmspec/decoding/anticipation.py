"""Drafting while the target scores: `Drafter.anticipate` runs beside the pass that scores the draft before."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from typing import Any

import torch


def score_while(context: Any, drafter: Any, draft: Any) -> tuple[Any, float]:
    """Return the target's scores of a draft; meanwhile let the drafter work on what it expects to come after it.

    The drafter works in a thread of its own, beside the target's pass, if it `anticipates`. What it raises is
    raised here, once the pass is over.

    Returns:
        The scores, and the seconds for which the drafter worked beside the target; 0 if it does not anticipate.
    """
    if not drafter.anticipates:
        return context.score(draft), 0.0

    @torch.inference_mode()  # a mode is a thread's own
    def anticipate() -> float:
        started = time.perf_counter()
        drafter.anticipate(draft)
        return time.perf_counter() - started

    with ThreadPoolExecutor(1, "anticipate") as executor:
        working = executor.submit(copy_context().run, anticipate)
        scores = context.score(draft)
        return scores, working.result()
