"""Targets whose attention heads are divided among processes by transformers' tensor parallel plans."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..errors import MMSpecError

if TYPE_CHECKING:
    from .model import Model


def is_divided(model: Model) -> bool:
    """Return True if several processes run the loop at once, each with its share of the attention heads.

    All of them have to draft the same trees. So nothing that differs from process to process may decide about a draft,
    above all no time.
    """
    return (getattr(model.model, "tp_size", None) or 1) > 1


def refuse_divided(model: Model) -> None:
    """Refuse to look into heads of attention of which each process has only some: every process would draft another
    tree, and wait for ever for the others to read it too.

    Raises:
        MMSpecError: for a model whose heads are divided among processes.
    """
    if is_divided(model):
        raise MMSpecError(
            "the attention of all heads, or their keys and values, are needed, but under tensor parallelism each "
            "process has only its own: use device_map, or a drafter and a compressor that do not look at them"
        )
