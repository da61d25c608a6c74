"""Format: what one published kind of checkpoint looks like, and how it becomes a drafter."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..drafters import Drafter
    from ..target import Target
    from .checkpoint import Checkpoint

Shapes = Mapping[str, tuple[int, ...]]
"""The keys of a checkpoint with the shapes of their tensors; `in` and iteration go over the keys."""


class Format:
    """A published checkpoint format. A new one is a subclass with two methods, named in `mmspec.formats.FORMATS`.

    Attributes:
        name: what `load_drafter(format=...)` takes.
    """

    name: str

    def matches(self, keys: Shapes, config: Mapping[str, Any]) -> bool:
        """Whether a checkpoint is of this format. No two formats may say so of the same one.

        Args:
            keys: its tensors, see `Checkpoint.shapes`.
            config: its configuration, see `Checkpoint.config`.
        """
        raise NotImplementedError

    def doubt(self, keys: Shapes) -> str:
        """What speaks for another format although this one matches, for the log; empty if nothing does."""
        return ""

    def build(self, checkpoint: Checkpoint, target: Target) -> Drafter:
        """The drafter, with the checkpoint's weights, on the target's device and in its dtype.

        Raises:
            MMSpecError: if keys are missing or unexpected, or it does not fit the target.
        """
        raise NotImplementedError
