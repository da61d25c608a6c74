"""Take the hooks away by which transformers records states, for a model that is to be sent to another process."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

INSTALLED = "_output_capturing_hooks_installed"
"""The attribute by which transformers remembers that it has hung its hooks into a model, at the first call that asks
for states."""
MODULE = "transformers.utils.output_capturing"


@contextmanager
def without_capturing(model: nn.Module) -> Iterator[None]:
    """Make a model that has run as one that has not, meanwhile: the hooks are functions within functions, which cannot
    be pickled, and transformers hangs them into a copy when it needs them there."""
    hooks = [
        (module._forward_hooks, key, hook)
        for module in model.modules()
        for key, hook in module._forward_hooks.items()
        if getattr(hook, "__module__", None) == MODULE
    ]
    marked = [module for module in model.modules() if getattr(module, INSTALLED, False)]
    for held, key, _ in hooks:
        del held[key]
    for module in marked:
        delattr(module, INSTALLED)
    try:
        yield
    finally:
        for held, key, hook in hooks:
            held[key] = hook
        for module in marked:
            setattr(module, INSTALLED, True)
