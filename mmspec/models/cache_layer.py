"""The layers of a `TreeCache`, as transformers' attention layers expect them, and the shape of what one stores."""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers.cache_utils import CacheLayerMixin


@dataclass(frozen=True)
class SlotShape:
    """The shape of what one layer stores per token, of keys or of values: `[heads, dim]` on a device, in a dtype."""

    heads: int
    dim: int
    dtype: torch.dtype
    device: torch.device


def shape_of(states: Tensor) -> SlotShape:
    """Return the shape of what keys or values, `[batch, heads, length, dim]`, take per token."""
    return SlotShape(states.shape[1], states.shape[3], states.dtype, states.device)


class Slots(Protocol):
    """The part of a `TreeCache` that its layers use."""

    fixed: bool
    window: Tensor
    longest: int
    speculative: int

    @property
    def slots_in_use(self) -> int:
        """Slots of the longest row that hold entries, those of the open pass included."""
        ...

    def write(self, storage: Tensor, states: Tensor) -> None:
        """Put `[batch, heads, new, dim]` states into a layer's storage, behind each row's entries."""


class TreeCacheLayer(CacheLayerMixin):
    """One layer's view of a `TreeCache`, in the form that transformers' attention layers expect."""

    is_sliding = False
    is_croppable = False
    keys: Tensor
    values: Tensor

    def __init__(self, cache: Slots):
        super().__init__()
        # A cache holds its layers. Were it held by them too, its keys and values would stay in memory until Python
        # looks for circles, which it does by the number of objects, and these are few and large.
        self._cache = weakref.ref(cache)
        self.is_initialized = True

    @property
    def cache(self) -> Slots:
        """The cache that has this layer."""
        cache = self._cache()
        assert cache is not None, "a layer is used as long as its cache is there"
        return cache

    def __getstate__(self) -> dict[str, Any]:
        """Return what there is to copy or to store, with the cache itself, so that the layers of a copy are
        the copy's."""
        return vars(self) | {"_cache": self.cache}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _cache=weakref.ref(state["_cache"]))

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Do nothing: the storage was allocated with the cache."""

    def update(self, key_states: Tensor, value_states: Tensor, *args, **kwargs) -> tuple[Tensor, Tensor]:
        """Write `[batch, heads, new, dim]` states behind each row's entries; return views of all slots in use."""
        self.cache.write(self.keys, key_states)
        self.cache.write(self.values, value_states)
        if self.cache.fixed:
            end = self.cache.window.shape[0]
            return self.keys[:, :, :end], self.values[:, :, :end]
        end = self.cache.slots_in_use  # the same for all rows: a short row's surplus is masked
        return self.keys[:, :, :end], self.values[:, :, :end]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Return how many slots a mask of the model's own covers, and the first of them."""
        return self.cache.longest + self.cache.speculative + query_length, 0

    def get_seq_length(self) -> int:
        """Return the number of entries of the longest row, speculative ones included."""
        return self.cache.longest + self.cache.speculative

    def get_max_length(self) -> int:
        """Return -1: the number of entries has no limit."""
        return -1


def stored(layer: object) -> tuple[Tensor, Tensor]:
    """Return the keys and values of an attention layer in a cache of transformers, after its first pass."""
    assert isinstance(layer, CacheLayerMixin) and layer.keys is not None and layer.values is not None
    return layer.keys, layer.values
