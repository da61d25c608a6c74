"""The benchmark: measuring methods side by side, and reading what was measured.

report = mmspec.evaluation.report(["runs/bench"])
report.rows[1].mean.speedup
report.table()
report.save("report")
"""

from __future__ import annotations

import importlib
from typing import Any

_LAZY = {
    "Bundle": "bundle",
    "Report": "reporting",
    "benchmark": "bench",
    "report": "reporting",
}

__all__ = list(_LAZY)


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(f".{_LAZY[name]}", __name__), name)
    raise AttributeError(f"module 'mmspec.evaluation' has no attribute {name!r}")
