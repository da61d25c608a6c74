"""Pictures of what happened: the answer coloured by origin, the tree of any round, plots, and the part of an image or
of a clip that a drafter saw."""

from __future__ import annotations

import importlib
from typing import Any

from .trace import Node, RoundTrace, Trace

# Loaded on first use: the loop imports this package, and most answers are never plotted.
_LAZY = {
    "Kept": "pictures",
    "Plot": "figures",
    "acceptance_by_position": "plots",
    "acceptance_over_time": "plots",
    "draw_kept": "pictures",
    "draw_kept_frames": "pictures",
    "entropy_and_depth": "plots",
    "figure": "figures",
    "kept_frames": "pictures",
    "kept_tokens": "pictures",
    "phase_times": "plots",
    "show": "saving",
}

__all__ = ["Node", "RoundTrace", "Trace", *_LAZY]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(f".{_LAZY[name]}", __name__), name)
    raise AttributeError(f"module 'mmspec.visualization' has no attribute {name!r}")
