"""Drafters that guess a whole block of tokens in one pass."""

from .dflash import DFlashDrafter
from .drafter import BlockDrafter
from .dspark import DSparkDrafter, DSparkSettings
from .settings import BlockSettings

__all__ = ["BlockDrafter", "BlockSettings", "DFlashDrafter", "DSparkDrafter", "DSparkSettings"]
