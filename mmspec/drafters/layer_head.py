"""LayerDrafter: what heads with transformer layers of their own have in common, whatever these layers read."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor, nn

from ..compressors import VisualCompressor
from ..compressors.base import compressor_of
from ..errors import MMSpecError, shown
from ..outcome import Verdict
from ..trees import TreeBuilder
from .head import HeadDrafter, HeadSettings
from .head_config import HEAD_SETTINGS, head_config
from .reading import OwnEmbedding, layers_for
from .rope import rotary_of
from .vocabulary import is_padding

if TYPE_CHECKING:
    from ..target import Target


@dataclass(frozen=True, kw_only=True)
class LayerSettings(HeadSettings):
    """The settings of a `LayerDrafter`.

    Args:
        head: sizes and switches of the layer that differ from the target's, such as `num_key_value_heads`. All of them
            are in `mmspec.drafters.head_config.HEAD_SETTINGS`.
        draft_vocab_size: number of tokens that the head can propose, the most frequent ones; null for all.
        own_embedding: rows of a frozen token embedding of the head's own; null to read the target's. Some published
            checkpoints have one. Pictures are read from the target in either case.
    """

    head: dict[str, Any] = field(default_factory=dict)
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


class LayerDrafter(HeadDrafter):
    """A head with transformer layers of its own, which reads the target's states, and pictures perhaps through a
    compressor.

    A subclass makes its layers in `build`.

    Args:
        target: the model to draft for.
        tree: the builder of its trees, see `Drafter`.
        compressor: the compressor through which it reads pictures; none by default.
        settings: fields of `Settings`, see `LayerSettings`.

    Raises:
        MMSpecError: for settings that are unknown or do not fit the target, such as another hidden size than its own.
    """

    Settings = LayerSettings
    settings: LayerSettings

    axes: Tensor | None = None
    """The axis of each frequency, for positions that have several, see `mmspec.drafters.rope.axes_of`."""

    _embed: Callable[[Tensor], Tensor] | None = None  # that of the request, or batch of lessons, at hand

    def __init__(
        self,
        target: Target,
        *,
        tree: TreeBuilder | None = None,
        compressor: VisualCompressor | None = None,
        **settings: Any,
    ):
        super().__init__(target, tree=tree, **settings)
        self.head = head_config(target, self.settings.head)
        self.rotary = rotary_of(self.head)
        self.reduce_vocabulary(self.settings.draft_vocab_size)
        rows = self.settings.own_embedding
        self.embed_tokens = None if rows is None else OwnEmbedding(rows, self.head.hidden_size)
        if (chosen := self.choose_compressor(compressor)) is not None:
            self.take_compressor(chosen)
        self.build()

    def build(self) -> None:
        """Make the layers, of the sizes in `self.head` and with the switches in `self.settings`."""
        raise NotImplementedError

    def choose_compressor(self, given: VisualCompressor | None) -> VisualCompressor | None:
        """Return the compressor to read pictures through, from the one that was given or its absence."""
        return given

    def take_compressor(self, compressor: VisualCompressor) -> None:
        """Read the pictures through a compressor, and ask the target for the states that it looks at.

        Raises:
            MMSpecError: if it does not fit the target's hidden size.
        """
        self.refuse_routing(compressor)
        compressor.meet(self.target)
        compressor.attach(self.head.hidden_size, self.target.hidden_size)
        self.compressor = compressor
        self.feature_layers = tuple(dict.fromkeys([*self.feature_layers, *layers_for(compressor, self.target)]))

    def token_embeds(self, tokens: Tensor) -> Tensor:
        """Return `[batch, length, hidden]` embeddings of `[batch, length]` tokens, in this drafter's dtype."""
        return (self._embed or self._embedder())(tokens).to(self._dtype)

    def _embedder(self) -> Callable[[Tensor], Tensor]:
        """Return the function from tokens to embeddings, its table looked up."""
        own = self.embed_tokens
        return self.target.family.embedder() if own is None else own.__call__

    def refuse_tail(self, verdict: Verdict) -> None:
        """Refuse tokens that the target has confirmed, but has no states of.

        Raises:
            MMSpecError: for a verdict with a tail.
        """
        if verdict.tail is not None:
            raise MMSpecError(
                f"{type(self).__name__} has no states for tokens that stand in no draft (the tail of a verdict): "
                "choose a drafter that reads tokens only, such as TextOnlyDrafter"
            )

    @property
    def _dtype(self) -> torch.dtype:
        """The dtype of the weights."""
        raise NotImplementedError

    def trainable_parameters(self) -> Iterator[nn.Parameter]:
        """Return all weights but the embedding's."""
        return (weight for name, weight in self.named_parameters() if not name.startswith("embed_tokens."))

    # In folders.

    def config(self) -> dict[str, Any]:
        """Return the settings and the compressor, see `Drafter.config`."""
        return super().config() | {"compressor": None if self.compressor is None else self.compressor.config()}

    def compute_unstored(self) -> None:
        """Compute the frequencies of the rotary positions."""
        self.rotary = rotary_of(self.head).to(self.target.device)

    @classmethod
    def _keywords(cls, config: dict[str, Any]) -> dict[str, Any]:
        return super()._keywords(config) | {"compressor": compressor_of(config.get("compressor"))}

    def _rows(self) -> tuple[Tensor, Tensor | None] | None:
        """Return the rows of the target's head that the logits need."""
        return self.target.family.head_rows(self.draft_vocabulary)
