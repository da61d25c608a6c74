"""EAGLE-1 and EAGLE-2: one layer that extrapolates the target's last feature."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from ..models.states import LAST
from .feature import FeatureDrafter
from .feature_settings import FeatureSettings
from .head_config import initialise
from .layer import DraftLayer


@dataclass(frozen=True, kw_only=True)
class EagleSettings(FeatureSettings):
    """The settings of an `EagleDrafter`, beside those of `FeatureSettings`.

    Args:
        bias: whether the fusion has a bias.
        input_norm: whether what the layer's attention reads is normed (EagleVLM; MSD for Qwen).
    """

    bias: bool = True
    input_norm: bool = False


class EagleDrafter(FeatureDrafter):
    """The head of EAGLE (arXiv 2401.15077) and EAGLE-2 (arXiv 2406.16858); the two differ in their trees only.

    `z = W [E(x_{t+1}); h_t] + b`, then one decoder layer without a norm at its input, whose output stands for
    h_{t+1} and goes into the target's own vocabulary head. h is the state after the target's final norm.

    Faithful: fusion, layer, shared embedding and head, positions, true features after every verification, and the names
    of the weights. Our own: EAGLE knows no pictures; here the slots before an image token hold the target's visual
    embedding of that token (`visual`), as in EagleVLM (arXiv 2509.11815) and in the baselines of ViSpec. The reduced
    vocabulary is that of FR-Spec (arXiv 2502.14856).

    Lossless with every lossless verifier. Trained: everything but the embedding and the vocabulary head. The arguments
    are those of `FeatureDrafter`, and its settings those of `EagleSettings`.
    """

    Settings = EagleSettings
    settings: EagleSettings
    feature_layers: tuple[int, ...] = (LAST,)

    fused = 2
    """Vectors that the fusion puts side by side."""

    def build(self) -> None:
        """Make the fusion and the layer."""
        hidden = self.head.hidden_size
        self.fc = nn.Linear(self.fused * hidden, hidden, bias=self.settings.bias)
        self.layers = nn.ModuleList([DraftLayer(self.head, hidden)])
        if self.settings.input_norm:
            self.layer.input_layernorm = nn.RMSNorm(hidden, eps=self.head.rms_norm_eps)
        initialise(self)

    @property
    def layer(self) -> DraftLayer:
        """The only layer."""
        return cast(DraftLayer, self.layers[0])

    def fuse_features(self, features: dict[int, Tensor]) -> Tensor:
        """Return the target's last states."""
        return features[LAST].to(self._dtype)

    def layer_input(self, embeds: Tensor, states: Tensor, step: int | Tensor = 0) -> tuple[Tensor, Tensor]:
        """Return the fusion of embeddings and states by a linear map."""
        return self.enter(self.fc(torch.cat([embeds, states], dim=-1)))

    def enter(self, fused: Tensor) -> tuple[Tensor, Tensor]:
        """Return what the layer's attention reads of its input, and the input as residual stream."""
        return self.layer.input_layernorm(fused) if self.settings.input_norm else fused, fused
