"""FeatureSettings: what all heads that extrapolate the target's hidden states can be told."""

from __future__ import annotations

from dataclasses import dataclass

from .layer_head import LayerSettings


@dataclass(frozen=True, kw_only=True)
class FeatureSettings(LayerSettings):
    """The settings of a `FeatureDrafter`, beside those of `LayerSettings`.

    Args:
        visual: whether image tokens have the target's visual embeddings. Otherwise they have that of the placeholder.
    """

    visual: bool = True
