"""Drafters propose tokens. One method a file; a new one extends `Drafter`, `StepDrafter` or `FeatureDrafter`."""

from .base import Drafter
from .cut import cut_from_target
from .draft_model import DraftModelDrafter
from .eagle import EagleDrafter
from .eagle3 import Eagle3Drafter
from .feature import FeatureDrafter
from .ngram import NGramDrafter
from .step import StepDrafter

__all__ = [
    "DraftModelDrafter",
    "Drafter",
    "Eagle3Drafter",
    "EagleDrafter",
    "FeatureDrafter",
    "NGramDrafter",
    "StepDrafter",
    "cut_from_target",
]
