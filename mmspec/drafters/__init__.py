"""Drafters propose tokens. One method a file; a new one extends `Drafter`, `StepDrafter`, `FeatureDrafter` or
`BlockDrafter`."""

from .aasd import AasdDrafter, AasdSettings
from .base import Drafter
from .block import (
    BlockDrafter,
    BlockSettings,
    DFlashDrafter,
    DFlashSettings,
    DFlyDrafter,
    DFlySettings,
    DominoDrafter,
    DominoSettings,
    DSparkDrafter,
    DSparkSettings,
    LiLiCorrDrafter,
    LiLiCorrSettings,
)
from .draft_model import (
    CaptionedDrafter,
    DraftModelDrafter,
    OwnEncoderDrafter,
    SharedEncoderDrafter,
    SharedVisionDrafter,
    TextOnlyDrafter,
    VisualProjector,
    as_drafter,
)
from .dream import DreamDrafter, DreamSettings
from .eagle import EagleDrafter, EagleSettings
from .eagle3 import Eagle3Drafter, Eagle3Settings
from .early_exit import EarlyExitDrafter, EarlyExitSettings
from .feature import FeatureDrafter
from .feature_settings import FeatureSettings
from .gemma4_assistant import Gemma4AssistantDrafter
from .head import HeadDrafter, HeadSettings
from .hivis import HiVisDrafter, HiVisSettings
from .jacobi import JacobiDrafter
from .layer_head import LayerDrafter, LayerSettings
from .lookahead import LookaheadDrafter
from .medusa import MedusaDrafter, MedusaSettings
from .mixture import FixedWeights, GridWeights, InverseWeights, MixtureDrafter, MixtureWeights
from .msd import MsdDrafter
from .mtp import MtpDrafter, MtpSettings
from .ngram import NGramDrafter
from .nothing import NoDrafter
from .parallel import ParallelDrafter
from .peagle import PEagleDrafter, PEagleSettings
from .reference import ReferenceDrafter
from .session_step import SessionDrafter
from .skipping import SkippingDrafter, SkippingSettings
from .sparrow import SparrowDrafter, SparrowSettings
from .sparse_to_dense import SparseSettings, SparseToDenseDrafter
from .specflash import SpecFlashDrafter, SpecFlashSettings
from .step import StepDrafter
from .suffix import SuffixDrafter
from .suffix_store import SuffixStore
from .v5e0 import V5e0Drafter, V5e0Settings
from .vispec import ViSpecDrafter, ViSpecSettings

__all__ = [
    "AasdDrafter",
    "AasdSettings",
    "BlockDrafter",
    "BlockSettings",
    "CaptionedDrafter",
    "DFlashDrafter",
    "DFlashSettings",
    "DFlyDrafter",
    "DFlySettings",
    "DSparkDrafter",
    "DSparkSettings",
    "DominoDrafter",
    "DominoSettings",
    "DraftModelDrafter",
    "Drafter",
    "DreamDrafter",
    "DreamSettings",
    "Eagle3Drafter",
    "Eagle3Settings",
    "EagleDrafter",
    "EagleSettings",
    "EarlyExitDrafter",
    "EarlyExitSettings",
    "FeatureDrafter",
    "FeatureSettings",
    "FixedWeights",
    "Gemma4AssistantDrafter",
    "GridWeights",
    "HeadDrafter",
    "HeadSettings",
    "HiVisDrafter",
    "HiVisSettings",
    "InverseWeights",
    "JacobiDrafter",
    "LayerDrafter",
    "LayerSettings",
    "LiLiCorrDrafter",
    "LiLiCorrSettings",
    "LookaheadDrafter",
    "MedusaDrafter",
    "MedusaSettings",
    "MixtureDrafter",
    "MixtureWeights",
    "MsdDrafter",
    "MtpDrafter",
    "MtpSettings",
    "NGramDrafter",
    "NoDrafter",
    "OwnEncoderDrafter",
    "PEagleDrafter",
    "PEagleSettings",
    "ParallelDrafter",
    "ReferenceDrafter",
    "SessionDrafter",
    "SharedEncoderDrafter",
    "SharedVisionDrafter",
    "SkippingDrafter",
    "SkippingSettings",
    "SparrowDrafter",
    "SparrowSettings",
    "SparseSettings",
    "SparseToDenseDrafter",
    "SpecFlashDrafter",
    "SpecFlashSettings",
    "StepDrafter",
    "SuffixDrafter",
    "SuffixStore",
    "TextOnlyDrafter",
    "V5e0Drafter",
    "V5e0Settings",
    "ViSpecDrafter",
    "ViSpecSettings",
    "VisualProjector",
    "as_drafter",
]
