"""Drafters propose tokens. One method a file; a new one extends `Drafter`, `StepDrafter` or `FeatureDrafter`."""

from .base import Drafter
from .cut import cut_from_target
from .draft_model import DraftModelDrafter
from .dream import DreamDrafter
from .eagle import EagleDrafter
from .eagle3 import Eagle3Drafter
from .feature import FeatureDrafter
from .hivis import HiVisDrafter
from .medusa import MedusaDrafter
from .msd import MsdDrafter
from .ngram import NGramDrafter
from .step import StepDrafter
from .vispec import ViSpecDrafter

__all__ = [
    "DraftModelDrafter",
    "Drafter",
    "DreamDrafter",
    "Eagle3Drafter",
    "EagleDrafter",
    "FeatureDrafter",
    "HiVisDrafter",
    "MedusaDrafter",
    "MsdDrafter",
    "NGramDrafter",
    "StepDrafter",
    "ViSpecDrafter",
    "cut_from_target",
]
