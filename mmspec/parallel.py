"""Drafting ahead by name: a draft model that works while its target does."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from .drafters import DraftModelDrafter, ParallelDrafter
from .loading import load_drafter_as

if TYPE_CHECKING:
    from .target import Target


def parallel_of(
    target: Target,
    name: str,
    window: int | Literal["auto"] = "auto",
    after_rejection: Literal["draft", "check"] = "draft",
    process: bool = False,
    overlap: bool | None = None,
    longest: int = 16,
) -> ParallelDrafter:
    """Return the `ParallelDrafter` of a draft model.

    Args:
        target: the model to draft for.
        name: the draft model, see `mmspec.load_drafter`.
        window, after_rejection, process, overlap, longest: see `ParallelDrafter`.

    Raises:
        MMSpecError: for a drafter that is no draft model, and what `ParallelDrafter` refuses.
    """
    lacking = (
        "is no model of its own and cannot work while the target does: name a draft model, such as tiny/draft_model"
    )
    drafter = load_drafter_as(DraftModelDrafter, name, target, lacking)
    return ParallelDrafter(target, drafter, window, after_rejection, process, overlap, longest)
