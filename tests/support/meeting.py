"""Passes of several threads over one model that overlap for certain: threads rarely meet by chance.

Every layer of the target lets its thread wait until the others are inside the model too.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress

from mmspec.target import Target


@contextmanager
def meeting(target: Target, threads: int) -> Iterator[Callable[[Callable], Callable]]:
    """Passes of so many threads overlap; within it, what is returned makes a thread's work out of a function."""
    barrier, local = threading.Barrier(threads), threading.local()

    def meet(*_) -> None:
        if getattr(local, "works", False):
            with suppress(threading.BrokenBarrierError):
                barrier.wait(5)

    def work(function: Callable) -> Callable:
        def run(*arguments):
            local.works = True
            try:
                return function(*arguments)
            finally:
                barrier.abort()  # the others go on alone

        return run

    projector = target.family.vision_projector
    places = [*target.family.layers, *([] if projector is None else [projector])]
    # Before a layer, all are inside the model; behind it, each has told whoever listens what entered it.
    hooks = [place.register_forward_pre_hook(meet, prepend=True) for place in places]
    try:
        yield work
    finally:
        for hook in hooks:
            hook.remove()


def together(target: Target, functions: list[Callable]) -> list:
    """What functions return that run at the same time."""
    with meeting(target, len(functions)) as work, ThreadPoolExecutor(len(functions)) as pool:
        return [job.result() for job in [pool.submit(work(function)) for function in functions]]
