"""`Format`: one published kind of checkpoint, how to recognise it and how to make a drafter from it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..drafters import Drafter
    from ..target import Target
    from .checkpoint import Checkpoint

Shapes = Mapping[str, tuple[int, ...]]
"""Keys of a checkpoint with the shapes of their tensors; `in` and iteration go over the keys."""


class Format:
    """A published checkpoint format. A new one is a subclass with two methods, named in `mmspec.formats.FORMATS`.

    Attributes:
        name: value of `load_drafter(format=...)`.
    """

    name: str

    def matches(self, keys: Shapes, config: Mapping[str, Any]) -> bool:
        """Return True if a checkpoint has this format. No two formats may claim the same one.

        Args:
            keys: tensors of the checkpoint, see `Checkpoint.shapes`.
            config: configuration of the checkpoint, see `Checkpoint.config`.
        """
        raise NotImplementedError

    def doubt(self, keys: Shapes) -> str:
        """Return, for the log, a reason to think of another format although this one matches; empty if there is
        none."""
        return ""

    def build(self, checkpoint: Checkpoint, target: Target) -> Drafter:
        """Make the drafter, with the checkpoint's weights, on the target's device and in its dtype.

        Raises:
            MMSpecError: if keys are missing or unexpected, or the checkpoint does not fit the target.
        """
        raise NotImplementedError
