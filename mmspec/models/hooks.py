"""Observes the modules of a model during a pass, also while other threads run the same model.

A hook of PyTorch belongs to its module, so it is called in the passes of all threads, and to add or remove one while
another thread is inside the module breaks that thread's pass. Here each module gets one pair of hooks at first use,
which stays. The hooks call only the observers of the thread, or task, that runs the pass.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn


@dataclass(frozen=True)
class Ear:
    """An observer of one module.

    Args:
        module: module whose passes are observed.
        before: called with the arguments of a pass, `(args, kwargs)`; a result other than None replaces them.
        after: called with `(args, output)`.
    """

    module: nn.Module
    before: Callable[[tuple, dict[str, Any]], tuple[tuple, dict[str, Any]] | None] | None = None
    after: Callable[[tuple, Any], None] | None = None


LISTENING: ContextVar[tuple[Ear, ...]] = ContextVar("mmspec_listening", default=())
"""Observers that are active at present, in this thread."""
_ADDING = threading.Lock()


@contextmanager
def listening(ears: Iterable[Ear]) -> Iterator[None]:
    """Observe the passes that this thread runs inside the block. Modules compiled by torch.compile are not observed."""
    ears = tuple(ears)
    with _ADDING:
        for ear in ears:
            _add_hooks(ear.module)
    token = LISTENING.set(LISTENING.get() + ears)
    try:
        yield
    finally:
        LISTENING.reset(token)


def _add_hooks(module: nn.Module) -> None:
    """Add the permanent hooks to a module that has none; a copy of a module has them already."""
    if _before not in module._forward_pre_hooks.values():
        module.register_forward_pre_hook(_before, with_kwargs=True)
    if _after not in module._forward_hooks.values():
        module.register_forward_hook(_after)


def _before(
    module: nn.Module, args: tuple, kwargs: dict[str, Any] | None = None
) -> tuple[tuple, dict[str, Any]] | None:
    """Call the observers before a pass; their results replace the arguments."""
    # PyTorch may call without `kwargs` in a thread that runs the module while another one adds the hook.
    if torch.compiler.is_compiling() or kwargs is None:
        return None
    given = None
    for ear in LISTENING.get():
        if ear.module is module and ear.before is not None:
            changed = ear.before(args, kwargs)
            if changed is not None:
                given = args, kwargs = changed
    return given


def _after(module: nn.Module, args: tuple, output: Any) -> None:
    """Call the observers after a pass."""
    if torch.compiler.is_compiling():
        return
    for ear in LISTENING.get():
        if ear.module is module and ear.after is not None:
            ear.after(args, output)


QUIET = (_before, _after)
"""The permanent hooks of modules."""
