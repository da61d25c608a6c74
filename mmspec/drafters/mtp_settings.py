"""MtpSettings: what native multi-token heads can be told."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, Self

from ..errors import MMSpecError, shown
from ..settings.arguments import positive
from .feature_settings import FeatureSettings

if TYPE_CHECKING:
    from ..target import Target


@dataclass(frozen=True, kw_only=True)
class MtpSettings(FeatureSettings):
    """The settings of an `MtpDrafter`, beside those of `FeatureSettings`.

    Args:
        layers: number of layers in a row, one for every drafted token.
        shared_fusion: whether all layers share the fusion and its norms, as in Qwen3.5.
        output_norm: `own` for a norm behind every layer, `shared` for one and the same, `none` for states as they are.
        recursive: whether the last layer goes on alone behind its token, feeding itself; null for a single layer only.
        states_first: whether the fusion reads states before embeddings, as in Inkling and MiMo.
        head_norms: whether queries and keys are normed head by head, as in Qwen3.
        gate: whether what was attended to is gated, as in Qwen3-Next and Qwen3.5.
        turned: how many of a head's numbers positions turn, as in Qwen3.5 a quarter; null for all.
        rope: `1d`, or `mrope` for the target's positions of time, height and width in the prompt; `head` then has a
            `mrope_section` among its `rope_parameters`.
    """

    layers: int = 1
    shared_fusion: bool = False
    output_norm: Literal["own", "shared", "none"] = "own"
    recursive: bool | None = None
    states_first: bool = False
    head_norms: bool = False
    gate: bool = False
    turned: int | None = None
    rope: Literal["1d", "mrope"] = "1d"

    def __post_init__(self) -> None:
        super().__post_init__()
        positive(self, layers=self.layers)

    def fit(self, target: Target) -> Self:
        """Refuse a number of turned ones that is no even part of a head, and decide what a single layer does."""
        fitted = super().fit(target)
        turned, size = self.turned, fitted.head["head_dim"]
        if turned is not None and not (0 < turned <= size and turned % 2 == 0):
            raise MMSpecError(f"turned={shown(turned)} must be an even number up to the head's {size}")
        return replace(fitted, recursive=self.layers == 1 if self.recursive is None else self.recursive)
