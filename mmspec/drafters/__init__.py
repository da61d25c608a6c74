"""Drafters propose tokens. One method a file; a new one extends `Drafter`, `StepDrafter` or `FeatureDrafter`."""

from .base import Drafter
from .draft_model import DraftModelDrafter
from .dream import DreamDrafter
from .eagle import EagleDrafter
from .eagle3 import Eagle3Drafter
from .early_exit import EarlyExitDrafter
from .feature import FeatureDrafter
from .hivis import HiVisDrafter
from .jacobi import JacobiDrafter
from .medusa import MedusaDrafter
from .msd import MsdDrafter
from .ngram import NGramDrafter
from .nothing import NoDrafter
from .session_step import SessionDrafter
from .step import StepDrafter
from .vispec import ViSpecDrafter

__all__ = [
    "DraftModelDrafter",
    "Drafter",
    "DreamDrafter",
    "Eagle3Drafter",
    "EagleDrafter",
    "EarlyExitDrafter",
    "FeatureDrafter",
    "HiVisDrafter",
    "JacobiDrafter",
    "MedusaDrafter",
    "MsdDrafter",
    "NGramDrafter",
    "NoDrafter",
    "SessionDrafter",
    "StepDrafter",
    "ViSpecDrafter",
]
