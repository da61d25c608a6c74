"""Small models as drafters: one class, and one file, for each way to read the prompt."""

from .base import DraftModelDrafter
from .captioned import CaptionedDrafter
from .choice import as_drafter
from .own_encoder import OwnEncoderDrafter
from .projector import VisualProjector
from .shared_encoder import SharedEncoderDrafter
from .shared_vision import SharedVisionDrafter
from .text_only import TextOnlyDrafter

__all__ = [
    "CaptionedDrafter",
    "DraftModelDrafter",
    "OwnEncoderDrafter",
    "SharedEncoderDrafter",
    "SharedVisionDrafter",
    "TextOnlyDrafter",
    "VisualProjector",
    "as_drafter",
]
