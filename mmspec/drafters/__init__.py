"""Drafters propose tokens. One method a file; `Drafter` and `StepDrafter` are what a new one extends."""

from .base import Drafter
from .draft_model import DraftModelDrafter
from .ngram import NGramDrafter
from .step import StepDrafter

__all__ = ["DraftModelDrafter", "Drafter", "NGramDrafter", "StepDrafter"]
