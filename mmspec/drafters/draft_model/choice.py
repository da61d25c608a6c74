"""The way in which a model drafts if nobody says."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import nn

from ...families import family_of
from ...trees import TreeBuilder
from .base import DraftModelDrafter
from .own_encoder import OwnEncoderDrafter
from .shared_encoder import SharedEncoderDrafter
from .text_only import TextOnlyDrafter

if TYPE_CHECKING:
    from ...target import Target


def as_drafter(
    target: Target, model: nn.Module, processor: Any = None, tree: TreeBuilder | None = None
) -> DraftModelDrafter:
    """Return a model as a drafter that reads all that it can see and hear, and encodes no sound twice alike.

    Args:
        target: the model to draft for.
        model: a Hugging Face model with the target's tokenizer.
        processor: its processor, if it is another one than the target's.
        tree: the builder of its trees, see `Drafter`; the native one is a chain of five.

    Raises:
        MMSpecError: if it does not fit the target.
    """
    from ...target import unwrapped

    family = family_of(unwrapped(model))
    cls: type[DraftModelDrafter] = OwnEncoderDrafter if family.kinds else TextOnlyDrafter
    if family.cross_attends:
        cls = SharedEncoderDrafter if family.hears_like(target.family) else OwnEncoderDrafter
    return cls(target, model, processor, tree)
