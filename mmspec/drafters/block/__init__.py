"""Drafters that guess a whole block of tokens in one pass."""

from .dflash import DFlashDrafter, DFlashSettings
from .dfly import DFlyDrafter, DFlySettings
from .domino import DominoDrafter, DominoSettings
from .drafter import BlockDrafter
from .dspark import DSparkDrafter, DSparkSettings
from .lilicorr import LiLiCorrDrafter, LiLiCorrSettings
from .settings import BlockSettings

__all__ = [
    "BlockDrafter",
    "BlockSettings",
    "DFlashDrafter",
    "DFlashSettings",
    "DFlyDrafter",
    "DFlySettings",
    "DSparkDrafter",
    "DSparkSettings",
    "DominoDrafter",
    "DominoSettings",
    "LiLiCorrDrafter",
    "LiLiCorrSettings",
]
