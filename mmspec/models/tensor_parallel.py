"""Targets whose attention heads are divided among processes by transformers' tensor parallel plans."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..errors import MMSpecError

if TYPE_CHECKING:
    from .model import Model


def refuse_divided(model: Model) -> None:
    """Refuse to look into heads of attention of which each process has only some: every process would draft another
    tree, and wait for ever for the others to read it too.

    Raises:
        MMSpecError: for a model whose heads are divided among processes.
    """
    if (getattr(model.model, "tp_size", None) or 1) > 1:
        raise MMSpecError(
            "the attention of all heads, or their keys and values, are needed, but under tensor parallelism each "
            "process has only its own: use device_map, or a drafter and a compressor that do not look at them"
        )
