"""A causal model with the cache of one request: the prompt in one pass, then blocks of tree nodes.

Targets and independent draft models run the same way; this is the one place that calls a Hugging Face forward pass.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .cache import TreeCache
from .masks import TreeMask

if TYPE_CHECKING:
    from .target import Target

LAST = -1
"""The feature after the final norm, what the head reads. Other features are numbered by the layer they enter."""


class Runner:
    """The passes of one request over one model.

    Args:
        target: the model, with its family and what its cache stores.
        batch_size: rows.
        capacity: slots to allocate at once, in tokens per row.
        feature_layers: hidden states to keep from each pass: layer numbers (the state entering that layer) and `LAST`.
    """

    def __init__(self, target: Target, batch_size: int, capacity: int, feature_layers: Iterable[int] = ()):
        self.model, self.family = target.model, target.family
        self.cache = TreeCache(target.cache_shapes, batch_size, capacity)
        additive = target.attention == "eager"
        self.masks = TreeMask(self.cache, target.windows, additive, target.dtype)
        self.delta = torch.zeros(batch_size, dtype=torch.long, device=target.device)
        self.feature_layers = tuple(feature_layers)
        self.features: dict[int, Tensor] = {}
        self._depth = torch.zeros(batch_size, 0, dtype=torch.long, device=target.device)

    def prefill(
        self, embeds: Tensor, position_ids: Tensor, delta: Tensor, lengths: list[int], extra: dict[str, Any]
    ) -> Tensor:
        """Run and commit a right-padded prompt.

        Args:
            embeds: `[batch, length, hidden]`.
            position_ids: `[batch, length]` or `[axes, batch, length]`.
            delta: `[batch]`, see `Family.positions`.
            lengths: tokens per row.
            extra: further arguments of the forward pass.

        Returns:
            `[batch, vocab]` logits after each row's last token. `features` then holds `[batch, length, hidden]` states.
        """
        length = embeds.shape[1]
        last = torch.tensor([n - 1 for n in lengths], device=embeds.device)
        ragged = min(lengths) < length
        mask = (torch.arange(length, device=embeds.device) <= last[:, None]).long() if ragged else None
        # The head runs on the last tokens only: on the distinct columns in which they stand.
        columns, index = last.unique(return_inverse=True)
        self.cache.begin(length)
        with self._capture():
            logits = self.model(
                inputs_embeds=embeds,
                attention_mask=mask,
                position_ids=position_ids,
                past_key_values=self.cache,
                use_cache=True,
                logits_to_keep=columns,
                **extra,
            ).logits
        self.cache.end()
        self.cache.commit(lengths)
        self.delta = delta
        return logits[torch.arange(len(lengths), device=logits.device), index]

    def extend(self, tokens: Tensor, visible: Tensor, depth: Tensor) -> Tensor:
        """Run a block of speculative nodes behind those of this round's earlier blocks.

        Args:
            tokens: `[batch, new]`.
            visible: `[batch, new, speculative + new]`, the speculative nodes that each new one sees, itself included.
            depth: `[batch, new]` distance from the last committed token, minus one.

        Returns:
            `[batch, new, vocab]` logits; `features` then holds the block's `[batch, new, hidden]` states.
        """
        new = tokens.shape[1]
        self.cache.begin(new)
        self._depth = torch.cat([self._depth, depth], dim=1) if self._depth.shape[1] else depth
        mask = self.masks.build(visible, self._depth)
        position_ids = (self.cache.lengths + self.delta)[:, None] + depth
        with self._capture():
            logits = self.model(
                input_ids=tokens,
                attention_mask=mask,
                position_ids=position_ids,
                past_key_values=self.cache,
                use_cache=True,
            ).logits
        self.cache.end()
        return logits

    def commit(self, counts: list[int], path: Tensor | None = None) -> None:
        """Keep a path of this round's nodes; see `TreeCache.commit`."""
        self.cache.commit(counts, path)
        self._depth = self._depth[:, :0]

    @contextmanager
    def _capture(self) -> Iterator[None]:
        """Keep the requested hidden states of the pass inside."""
        if not self.feature_layers:
            yield
            return
        self.features = {}
        hooks = []
        try:
            for layer in self.feature_layers:
                if layer == LAST:
                    hooks.append(
                        self.family.final_norm.register_forward_hook(
                            lambda _, args, output: self.features.__setitem__(LAST, output)
                        )
                    )
                else:
                    hooks.append(
                        self.family.layers[layer].register_forward_pre_hook(
                            lambda _, args, kwargs, layer=layer: self.features.__setitem__(
                                layer, args[0] if args else kwargs["hidden_states"]
                            ),
                            with_kwargs=True,
                        )
                    )
            yield
        finally:
            for hook in hooks:
                hook.remove()
