"""mmspec: pluggable multimodal speculative decoding over stock Hugging Face models.

import mmspec
target = mmspec.load_target("tiny")
drafter = mmspec.load_drafter("tiny/eagle3", target)
out = mmspec.generate(target, drafter, prompt="Describe the picture.", images=[image])
out.text, out.stats.mean_acceptance_length
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from .version import __version__

if TYPE_CHECKING:  # the same names as below, for type checkers and editors
    from . import (
        chains,
        check,
        compressors,
        data,
        drafters,
        evaluation,
        families,
        formats,
        hf,
        speed,
        testing,
        trees,
        verifiers,
        visualization,
        zoo,
    )
    from .drafters import Drafter
    from .errors import MMSpecError
    from .formats.export import export_speculators
    from .generation import Output, Piece, generate, stream
    from .loading import load_drafter, load_target
    from .target import Target

# Loaded on first use, so that `import mmspec` and the command line's --help need not wait for torch.
_LAZY = {
    "Drafter": "drafters",
    "MMSpecError": "errors",
    "Output": "generation",
    "Piece": "generation",
    "Target": "target",
    "export_speculators": "formats.export",
    "generate": "generation",
    "load_drafter": "loading",
    "load_target": "loading",
    "stream": "generation",
}
_MODULES = (
    "chains",
    "check",
    "compressors",
    "data",
    "drafters",
    "evaluation",
    "families",
    "formats",
    "hf",
    "visualization",
    "speed",
    "testing",
    "trees",
    "verifiers",
    "zoo",
)

__all__ = ["__version__", *_LAZY, *_MODULES]


def __getattr__(name: str):
    if name in _LAZY:
        return getattr(importlib.import_module(f".{_LAZY[name]}", __name__), name)
    if name in _MODULES:
        return importlib.import_module(f".{name}", __name__)
    raise AttributeError(f"module 'mmspec' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
