"""FeatureSettings: what all heads that extrapolate the target's hidden states can be told."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, Self

from ..errors import MMSpecError
from ..settings.fields import settings_from
from .corrector import CorrectorSettings
from .layer_head import LayerSettings

if TYPE_CHECKING:
    from ..target import Target


@dataclass(frozen=True, kw_only=True)
class FeatureSettings(LayerSettings):
    """The settings of a `FeatureDrafter`, beside those of `LayerSettings`.

    Args:
        visual: whether image tokens have the target's visual embeddings. Otherwise they have that of the placeholder.
        corrector: settings of a corrector that looks at the picture at every node, see
            `mmspec.drafters.corrector.CorrectorSettings`; null for none.
        attention_scope: what its attention sees of a prompt when it drafts: `all` of it, or `text` alone, at the cost
            of the text (Sparrow, arXiv 2602.15318), see `mmspec.compressors.text_alone`.
        training_scope: what it sees in training; null for the same.
    """

    visual: bool = True
    corrector: dict[str, Any] | None = None
    attention_scope: Literal["all", "text"] = "all"
    training_scope: Literal["all", "text"] | None = None

    def fit(self, target: Target) -> Self:
        """Complete the settings of the corrector, besides what all layers leave to the target."""
        fitted = super().fit(target)
        if self.corrector is None:
            return fitted
        try:
            corrector = settings_from(CorrectorSettings, self.corrector)
        except MMSpecError as error:
            raise MMSpecError(f"corrector: {str(error).removeprefix('CorrectorSettings: ')}") from error.__cause__
        return replace(fitted, corrector=asdict(corrector))
