"""A causal model with the cache of one request: the prompt in one pass, then blocks of tree nodes.

Targets and independent draft models run the same way; this is the one place that calls a Hugging Face forward pass.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .cache import TreeCache
from .compat import CACHE
from .errors import MMSpecError
from .hooks import Ear, listening
from .masks import Mask, MaskForm, TreeMask

if TYPE_CHECKING:
    from .families import Family
    from .target import Target

LAST = -1
"""The feature after the final norm, what the head reads. Other features are numbered by the layer they enter."""


class Blocks:
    """The blocks of speculative nodes that a round writes into a cache, one behind the other.

    Args:
        cache: of the request.
        windows: see `TreeMask`.
        form: see `TreeMask`.
        dtype: of additive masks.
    """

    def __init__(self, cache: TreeCache, windows: dict[str, int | None], form: MaskForm, dtype: torch.dtype):
        self.cache = cache
        self.masks = TreeMask(cache, windows, form, dtype)
        self._depth = cache.lengths.new_zeros(cache.rows, 0)

    def open(
        self, visible: Tensor, depth: Tensor, sees_all: bool = False
    ) -> tuple[Mask | dict[str, Mask] | None, Tensor]:
        """Make room for a block. Close it with `cache.end()`.

        Args:
            visible: `[batch, new, speculative + new]`, the speculative nodes that each new one sees, itself included.
            depth: `[batch, new]` distance from the last committed token, minus one.
            sees_all: True for a single node that is known to see all earlier ones.

        Returns:
            The mask of its pass, see `TreeMask.build`, and `[batch, new]` indices of its nodes in their sequences.
        """
        self.cache.begin(visible.shape[1], fixed=self.cache.compiled)
        self._depth = torch.cat([self._depth, depth], dim=1) if self._depth.shape[1] else depth
        return self.masks.build(visible, self._depth, sees_all), self.cache.lengths[:, None] + depth

    def commit(self, counts: list[int], path: Tensor | None = None) -> None:
        """Keep a path of this round's nodes; see `TreeCache.commit`."""
        self.cache.commit(counts, path)
        self._depth = self._depth[:, :0]


class Runner(Blocks):
    """The passes of one request over one model.

    Args:
        target: the model, with its family and what its cache stores.
        batch_size: rows.
        capacity: slots to allocate at once, in tokens per row.
        feature_layers: hidden states to keep from each pass: layer numbers (the state entering that layer) and `LAST`.
    """

    def __init__(self, target: Target, batch_size: int, capacity: int, feature_layers: Iterable[int] = ()):
        compiled = target.compiled is not None
        cache = TreeCache(target.cache_shapes, batch_size, capacity, compiled, target.device)
        super().__init__(cache, target.windows, MaskForm(target.attention), target.dtype)
        self.family, self.compiled = target.family, target.compiled
        self.delta = torch.zeros(batch_size, dtype=torch.long, device=target.device)
        self.ceilings: list[int] | None = None  # see `mmspec.families.frequencies`
        self.device = target.device
        self.feature_layers = tuple(feature_layers)
        self.features: dict[int, Tensor] = {}

    def prefill(
        self, embeds: Tensor, position_ids: Tensor, delta: Tensor, lengths: list[int], extra: dict[str, Any]
    ) -> Tensor:
        """Run and commit a right-padded prompt.

        Args:
            embeds: `[batch, length, hidden]`.
            position_ids: `[batch, length]` or `[axes, batch, length]`.
            delta: `[batch]` or `[axes, batch]`, see `Family.positions`.
            lengths: tokens per row.
            extra: further arguments of the forward pass.

        Returns:
            `[batch, vocab]` logits after each row's last token. `features` then holds `[batch, length, hidden]` states.
        """
        length = embeds.shape[1]
        mask = padding_mask(lengths, length, embeds.device)
        # The head runs on the last tokens only: on the distinct columns in which they stand.
        columns = sorted({n - 1 for n in lengths})
        self.cache.begin(length)
        with self._capture():
            logits = self.family.run(
                inputs_embeds=embeds,
                attention_mask=mask,
                position_ids=position_ids,
                use_cache=True,
                **{CACHE: self.cache},
                logits_to_keep=torch.tensor(columns, device=embeds.device),
                **extra,
            )
        self.cache.end()
        self.cache.commit(lengths)
        self.delta = delta
        index = torch.tensor([columns.index(n - 1) for n in lengths], device=self.device)
        return logits.to(self.device)[torch.arange(len(lengths), device=self.device), index]

    def extend(self, tokens: Tensor, visible: Tensor, depth: Tensor, sees_all: bool = False) -> Tensor:
        """Run a block of speculative nodes behind those of this round's earlier blocks.

        Args:
            tokens: `[batch, new]`.
            visible, depth, sees_all: see `Blocks.open`.

        Returns:
            `[batch, new, vocab]` logits; `features` then holds the block's `[batch, new, hidden]` states.
        """
        mask, index = self.open(visible, depth, sees_all)
        positions = (index if self.ceilings is None else self._below(self.ceilings, index)) + self.delta[..., None]
        if self.compiled is not None:
            logits, self.features = self.compiled(tokens, mask, positions, self.cache, self.feature_layers)
            self.cache.end()
            return logits
        with self._capture():
            logits = self.family.run(
                input_ids=tokens,
                attention_mask=mask,
                position_ids=positions,
                use_cache=True,
                **{CACHE: self.cache},
            )
        self.cache.end()
        return logits.to(self.device)

    def _below(self, ceilings: list[int], index: Tensor) -> Tensor:
        """Indices with those beyond a row's ceiling on it: nodes that no answer can reach must not change the rotary
        frequencies of those that it can.

        Raises:
            MMSpecError: if a root is there already: one that has not just ended its row.
        """
        if any(length > last + 1 for length, last in zip(self.cache.lengths_list, ceilings, strict=True)):
            raise MMSpecError(
                f"a row has {max(self.cache.lengths_list)} tokens, and {type(self.family.model).__name__} has other "
                f"rotary frequencies beyond {min(ceilings) + 1}; begin anew with the whole text as the prompt"
            )
        return index.minimum(torch.tensor(ceilings, device=index.device)[:, None])

    @contextmanager
    def _capture(self) -> Iterator[None]:
        """Keep the requested hidden states of the pass inside, on the target's device, where drafters read them."""
        if not self.feature_layers:
            yield
            return
        with capture(self.family, self.feature_layers) as features:
            yield
        self.features = {layer: states.to(self.device) for layer, states in features.items()}


@contextmanager
def capture(family: Family, layers: Iterable[int]) -> Iterator[dict[int, Tensor]]:
    """Keep hidden states of the forward pass inside: layer (or `LAST`) to `[batch, length, hidden]`.

    Passes of other threads over the same model are not heard.

    Raises:
        MMSpecError: if a state did not come by, as in a model that the caller has compiled.
    """
    layers, features = tuple(layers), {}

    def ear(layer: int) -> Ear:
        if layer == LAST:
            return Ear(family.final_norm, after=lambda args, output: features.__setitem__(LAST, output))
        keep = partial(features.__setitem__, layer)
        return Ear(family.layers[layer], before=lambda args, kwargs: keep(args[0] if args else kwargs["hidden_states"]))

    with listening(map(ear, layers)):
        yield features
    if unheard := [layer for layer in layers if layer not in features]:
        raise MMSpecError(
            f"the hidden states {unheard} of {type(family.model).__name__} could not be read: a model that was "
            "compiled before does not show them; give the model as it is, with Target(model, compile=True) if need be"
        )


def padding_mask(lengths: list[int], width: int, device: torch.device) -> Tensor | None:
    """`[batch, width]` ones on the tokens of right-padded rows; None where nothing is padded."""
    if min(lengths) == width:
        return None
    return (torch.arange(width, device=device) < torch.tensor(lengths, device=device)[:, None]).long()
