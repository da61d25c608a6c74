"""FeatureSettings: what all heads on the target's hidden states can be told."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Self

from ..errors import MMSpecError, shown
from .head import HeadSettings
from .head_config import HEAD_SETTINGS, head_config
from .vocabulary import is_padding

if TYPE_CHECKING:
    from ..target import Target


@dataclass(frozen=True, kw_only=True)
class FeatureSettings(HeadSettings):
    """The settings of a `FeatureDrafter`.

    Args:
        head: sizes and switches of the layer that differ from the target's, such as `num_key_value_heads`. All of them
            are in `mmspec.drafters.head_config.HEAD_SETTINGS`.
        visual: whether image tokens have the target's visual embeddings. Otherwise they have that of the placeholder.
        draft_vocab_size: number of tokens that the head can propose, the most frequent ones; null for all.
        own_embedding: rows of a frozen token embedding of the head's own; null to read the target's. Some published
            checkpoints have one. Pictures are read from the target in either case.
    """

    head: dict[str, Any] = field(default_factory=dict)
    visual: bool = True
    draft_vocab_size: int | None = None
    own_embedding: int | None = None

    any_width = False
    """True if the hidden size may differ from the target's, given an embedding of its own."""

    def fit(self, target: Target) -> Self:
        """Take the sizes of the layer from the target, and refuse those and a vocabulary that do not fit it."""
        size, rows, vocab = self.draft_vocab_size, self.own_embedding, target.vocab_size
        if size is not None and not 0 < size <= vocab:
            raise MMSpecError(
                f"draft_vocab_size={size} must lie between 1 and the target's {vocab}, or be None for all tokens"
            )
        if rows is not None and rows < vocab and not is_padding(rows, vocab):
            raise MMSpecError(
                f"own_embedding={shown(rows)} rows are too few for the target's {vocab} tokens: both must share a "
                "tokenizer"
            )
        layer = head_config(target, self.head)
        if layer.hidden_size != target.hidden_size and not (self.any_width and rows):
            raise MMSpecError(
                f"the hidden size is {layer.hidden_size} but the target's is {target.hidden_size}: it works on the "
                "target's own embeddings and states; train one for this target"
            )
        return replace(super().fit(target), head={name: getattr(layer, name) for name in HEAD_SETTINGS})
