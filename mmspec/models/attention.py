"""The target's attention weights, computed again for one layer from the state that enters it.

Fast attention back ends do not return attention weights. Here a layer's own norm and projections run once more on the
eager back end, so nothing about a family's attention has to be known. The model and its configuration do not change: a
shallow copy of the attention module shares its weights and has a configuration of its own.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, DynamicCache

from ..compat import CACHE
from ..inputs import Request
from .masks import padding_mask
from .slots import pick
from .tensor_parallel import refuse_divided
from .whole_texts import read_states

if TYPE_CHECKING:
    from ..target import Target
    from .model import Model
    from .session import ModelSession

KEYS_ALONE = "mmspec_keys_alone"
"""The back end of a layer that is run for its keys and values."""

PORTION = 64
"""Words whose attention is computed at a time."""


@torch.no_grad()
def attention_weights(
    target: Model, layer: int, features: Mapping[int, Tensor], inputs: dict[str, Any], queries: Tensor | None = None
) -> Tensor:
    """Return the attention weights of right-padded prompts in one layer.

    Args:
        target: the model.
        layer: number of the layer.
        features: layer to `[batch, length, hidden]` states that enter it (see `mmspec.models.states.capture`): those of
            the layer, and of the one whose keys it reads, see `layers_of_attention`.
        inputs: inputs of the request.
        queries: `[batch, count]` indices of the tokens whose attention is wanted; by default all, which takes memory
            for `heads * length ** 2` numbers.

    Returns:
        `[batch, heads, count, length]` weights; every row sums to one. Rows of padding have no meaning.

    Raises:
        MMSpecError: if the heads are divided among processes.
    """
    states = features[layer]
    if queries is None:
        queries = torch.arange(states.shape[1], device=states.device).expand(states.shape[:2])
    return LayerLook(target, layer, features, inputs).weights(queries)


@torch.no_grad()
def newest_attention(target: Model, layer: int, states: Tensor, session: ModelSession) -> Tensor:
    """Return the attention that the newest committed token of every row pays in one layer, to all committed tokens.

    The keys are those in the cache, so this costs one row of the attention of one layer and no pass.

    Args:
        target: the model.
        layer: number of the layer.
        states: `[batch, 1, hidden]` states of these tokens that enter the layer.
        session: the request, between two rounds. Of guided requests the rows that read the prompts are meant.

    Returns:
        `[batch, heads, longest]` weights; every row sums to one, and rows that have ended mean nothing.

    Raises:
        MMSpecError: if the heads are divided among processes.
    """
    newest = session.cache.lengths[: len(states), None] - 1
    return cached_attention(target, layer, states, newest, session)[:, :, 0]


@torch.no_grad()
def cached_attention(target: Model, layer: int, states: Tensor, entries: Tensor, session: ModelSession) -> Tensor:
    """Return the attention that some committed tokens pay in one layer, to all committed tokens.

    The keys are those in the cache, so this costs the attention of these tokens alone. Their positions follow one
    another up to the newest token's, as those of text do.

    Args:
        target: the model.
        layer: number of the layer.
        states: `[batch, count, hidden]` states of these tokens that enter the layer.
        entries: `[batch, count]` the entries of these tokens in the cache.
        session: the request, between two rounds. Of guided requests the rows that read the prompts are meant.

    Returns:
        `[batch, heads, count, longest]` weights; every row sums to one, and rows that have ended mean nothing.

    Raises:
        MMSpecError: if the heads are divided among processes.
    """
    refuse_divided(target)
    block: Any = target.family.layers[layer]
    batch, lengths = len(states), session.cache.lengths[: len(states)]
    source = target.family.keys_layer(layer)
    keys, values = (part[:batch] for part in session.keys_values(source))
    positions = entries + session.position_offset[..., :batch, None]
    columns = torch.arange(keys.shape[2], device=lengths.device)
    _, window = _window(target, layer)
    visible = (columns <= entries[..., None]) & (columns < lengths[:, None, None])
    if window is not None:
        visible &= entries[..., None] - columns < window
    mask = torch.zeros(visible.shape, dtype=states.dtype, device=states.device)
    mask = mask.masked_fill(~visible, torch.finfo(states.dtype).min)[:, None]
    with target.family.passing():
        _, weights = _copied(block.self_attn, "eager")(
            hidden_states=block.input_layernorm(states),
            position_embeddings=turning(target, layer, states, positions),
            attention_mask=mask,
            **{CACHE: _Committed(keys, values)},
            **target.family.attention_inputs(layer, (keys, values)),
        )
    return weights[..., : keys.shape[2]].float().to(states.device)


class _Committed(DynamicCache):
    """A cache that gives the keys and values that are there, and takes none: the tokens' own are among them."""

    def __init__(self, keys: Tensor, values: Tensor):
        super().__init__()
        self._there = keys, values

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Return the committed keys and values."""
        return self._there


def layers_of_attention(target: Model, layer: int) -> list[int]:
    """Return the layers whose entering states `attention_weights` of a layer reads."""
    return list(dict.fromkeys([layer, target.family.keys_layer(layer)]))


class LayerLook:
    """The keys of right-padded prompts in one layer, of which the attention of any tokens can be asked, any number of
    times. Memory and time grow with the length of the prompts, and with the tokens that are asked.

    Args:
        target: the model.
        layer: number of the layer.
        features: layer to `[batch, length, hidden]` states that enter it, see `attention_weights`.
        inputs: inputs of the request.

    Raises:
        MMSpecError: if the heads are divided among processes.
    """

    @torch.no_grad()
    def __init__(self, target: Model, layer: int, features: Mapping[int, Tensor], inputs: dict[str, Any]):
        refuse_divided(target)
        self.target, self.layer, self.inputs = target, layer, inputs
        block: Any = target.family.layers[layer]  # its parts have the same names in all families
        keyed: Any = block
        states, source = features[layer], target.family.keys_layer(layer)
        positions = target.family.positions(inputs)[0][..., : states.shape[1]]
        with target.family.passing():
            self._normed, self._rope = block.input_layernorm(states), turning(target, layer, states, positions)
            self._further, self._cache = target.family.attention_inputs(layer), None
            if source == layer:
                normed, self._cache = self._normed, _FirstKeys()
            else:  # the layer whose keys are read leaves them in `_further`
                keyed = target.family.layers[source]
                normed = keyed.input_layernorm(features[source])
            _copied(keyed.self_attn, KEYS_ALONE)(
                hidden_states=normed,
                position_embeddings=self._rope,
                attention_mask=None,
                **{CACHE: self._cache},
                **self._further,
            )

    @torch.no_grad()
    def weights(self, queries: Tensor, keys: Tensor | None = None) -> Tensor:
        """Return the attention weights of some tokens.

        Args:
            queries: `[batch, count]` indices of the tokens.
            keys: `[batch, length]` True at the tokens among which the attention is divided, whatever a token sees; by
                default all those that it sees. Rows in which it is False everywhere mean nothing.

        Returns:
            `[batch, heads, count, length]` weights; every row sums to one.
        """
        length = self._normed.shape[1]
        normed = pick(self._normed, queries)
        rope = tuple(part.take_along_dim(queries[..., None], dim=-2) for part in self._rope)
        if keys is None:
            visible = _visible(self.target, self.layer, queries, length, self.inputs)
        else:
            visible = keys[:, None].expand(-1, queries.shape[1], -1)
        mask = torch.zeros(visible.shape, dtype=normed.dtype, device=normed.device)
        mask = mask.masked_fill(~visible, torch.finfo(normed.dtype).min)[:, None]
        block: Any = self.target.family.layers[self.layer]
        with self.target.family.passing():
            _, weights = _copied(block.self_attn, "eager")(
                hidden_states=normed,
                position_embeddings=rope,
                attention_mask=mask,
                **{CACHE: self._cache},
                **self._further,
            )
        return weights[..., :length].to(normed.device)

    def by_word(self, words: Tensor, keys: Tensor | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield `[batch, some, length]` the attention of some of the words, averaged over the heads, and `[batch,
        some]` False where a row has no more words; until it was that of all. Only so many words are asked at a time
        that no matrix of all tokens is made, however long the text is.

        Args:
            words: `[batch, length]` True at the tokens that are asked.
            keys: see `weights`.
        """
        counts = words.sum(1)
        queries = words.long().argsort(dim=1, descending=True, stable=True)[:, : max(int(counts.max()), 1)]
        asked = torch.arange(queries.shape[1], device=words.device) < counts[:, None]
        for some, real in zip(queries.split(PORTION, dim=1), asked.split(PORTION, dim=1), strict=True):
            yield self.weights(some, keys).float().mean(1), real

    def received(self, words: Tensor, keys: Tensor | None = None) -> Tensor:
        """Return the attention that every token receives, `[batch, length]`, averaged over the heads and some words.

        Args:
            words: `[batch, length]` True at the tokens whose attention is averaged.
            keys: see `weights`.
        """
        total = sum((weights * real[..., None]).sum(1) for weights, real in self.by_word(words, keys))
        return cast(Tensor, total) / words.sum(1)[:, None].clamp(min=1)


class _FirstKeys(DynamicCache):
    """A cache that keeps the first keys and values that it is given, and returns them ever after."""

    _there: tuple[Tensor, Tensor] | None = None

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Return the first keys and values."""
        if self._there is None:
            self._there = key_states, value_states
        return self._there


def received_attention(
    target: Model, layer: int, features: Mapping[int, Tensor], inputs: dict[str, Any], words: Tensor
) -> Tensor:
    """Return the attention that every token receives in one layer, averaged over the heads and over some words.

    Words before a token pay it no attention. So for the tokens of one picture this is the mean over the words behind
    it, up to a common factor.

    Args:
        target, layer, features, inputs: see `attention_weights`.
        words: `[batch, length]` True at the tokens whose attention is averaged.

    Returns:
        `[batch, length]` mean weights.
    """
    return LayerLook(target, layer, features, inputs).received(words)


@torch.no_grad()
def entropy_of_layers(target: Target, requests: Iterable[Request]) -> list[float]:
    """Return the mean entropy of attention rows, in nats, for every layer: AE(l) of DREAM (arXiv 2505.19201).

    The mean is over all heads and all tokens of all requests.

    Args:
        target: the model.
        requests: prompts, see `mmspec.inputs.prepare`.
    """
    family = target.family
    layers = range(len(family.layers))
    sums, tokens = [0.0] * len(layers), 0
    for request in requests:
        inputs = request.inputs
        vision = target.encode(request)
        embeds = family.embed(inputs["input_ids"], vision)
        mask = padding_mask(request.lengths, embeds.shape[1], embeds.device)
        real = torch.ones(embeds.shape[:2], dtype=torch.bool, device=embeds.device) if mask is None else mask.bool()
        further = family.prefill_inputs(inputs, vision) | family.lasting_inputs(vision)
        features = read_states(family, layers, embeds, mask, family.positions(inputs)[0], further)
        for layer in layers:
            weights = attention_weights(target, layer, features, inputs).float()
            rows = torch.special.entr(weights).sum(-1).mean(1)
            sums[layer] += float(rows[real].sum())
        tokens += int(real.sum())
    return [total / max(tokens, 1) for total in sums]


def _keys_alone(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Any:
    """Attend to nothing, so that a layer computes its keys and values and no more."""
    batch, heads, length, _ = query.shape
    return value.new_zeros(1).expand(batch, length, heads, value.shape[-1]), None


AttentionInterface.register(KEYS_ALONE, _keys_alone)


def _copied(attention: nn.Module, back_end: str) -> nn.Module:
    """Return a copy of an attention module that shares its weights and has a back end of its own, on the same device
    where accelerate has spread the layers: its hook is bound to the module itself, so the copy gets one of its own.

    Args:
        attention: the module.
        back_end: `eager`, which returns attention weights, or `KEYS_ALONE`.
    """
    module: Any = copy.copy(attention)
    if (hook := vars(module).pop("_hf_hook", None)) is not None:
        from accelerate.hooks import AlignDevicesHook, add_hook_to_module

        for wrapped in ("forward", "_old_forward"):
            vars(module).pop(wrapped, None)
        add_hook_to_module(module, AlignDevicesHook(getattr(hook, "execution_device", None)))
    module.config = copy.copy(module.config)
    module.config._attn_implementation = back_end
    return module


def turning(target: Model, layer: int, states: Tensor, positions: Tensor) -> Any:
    """Return the cosines and sines of a layer, as it takes them.

    Args:
        target: the model.
        layer: number of the layer.
        states: `[batch, length, hidden]` states of the dtype and on the device that are wanted.
        positions: `[batch, length]`, or `[axes, batch, length]`.
    """
    rotary, config = target.family.decoder.rotary_emb, target.family.text_config
    if positions.ndim == 2 and "mrope_section" in (getattr(config, "rope_parameters", None) or {}):
        positions = positions.expand(3, -1, -1)  # text alone: all axes are the same
    if "layer_type" in inspect.signature(rotary.forward).parameters:  # Gemma 3 has a rotary embedding per kind of layer
        return rotary(states, positions, config.layer_types[layer])
    return rotary(states, positions)


def _visible(target: Model, layer: int, places: Tensor, length: int, inputs: dict[str, Any]) -> Tensor:
    """Return which tokens each of `[batch, count]` places sees in a layer, `[batch, count, length]`.

    Padding needs no care: it is on the right, behind everything.
    """
    family, (kind, window) = target.family, _window(target, layer)
    columns, rows = torch.arange(length, device=places.device), places[..., None]
    visible = columns <= rows
    near = None if window is None else rows - columns < window
    if near is not None:
        visible = visible & near
    groups = family.bidirectional_groups(inputs, kind)
    if groups is None:
        return visible
    groups = groups[:, :length]
    own = groups.gather(1, places)[..., None]
    together = (own == groups[:, None]) & (own >= 0)
    return visible | (together & near if family.window_bounds_groups and near is not None else together)


def _window(target: Model, layer: int) -> tuple[str, int | None]:
    """Return the kind of attention of a layer, and its sliding window in tokens, or None."""
    windows, kinds = target.family.attention_windows(), getattr(target.family.text_config, "layer_types", None)
    kind = kinds[layer] if kinds else next(iter(windows))
    return kind, windows[kind]
