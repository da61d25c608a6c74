"""The target's attention weights, computed again for one layer from the state that enters it.

Fast attention back ends do not return attention weights. Here a layer's own norm and projections run once more on the
eager back end, so nothing about a family's attention has to be known. The model and its configuration do not change: a
shallow copy of the attention module shares its weights and has a configuration of its own.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache

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
    refuse_divided(target)
    with target.family.passing():
        return _attention_weights(target, layer, features, inputs, queries)


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
        _, weights = _eager(block.self_attn)(
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


def _attention_weights(
    target: Model, layer: int, features: Mapping[int, Tensor], inputs: dict[str, Any], queries: Tensor | None
) -> Tensor:
    block: Any = target.family.layers[layer]  # its parts have the same names in all families
    states, further = features[layer], target.family.attention_inputs(layer)
    length, source = states.shape[1], target.family.keys_layer(layer)
    positions = target.family.positions(inputs)[0][..., :length]
    normed, rope = block.input_layernorm(states), turning(target, layer, states, positions)
    places = torch.arange(length, device=states.device).expand(states.shape[:2]) if queries is None else queries
    cache, own = None, source == layer
    if not own:  # the layer whose keys are read leaves them in `further`
        other: Any = target.family.layers[source]
        others = other.input_layernorm(features[source])
        other.self_attn(hidden_states=others, position_embeddings=rope, attention_mask=None, **{CACHE: None}, **further)
    elif queries is not None:
        # A first pass leaves the keys of all tokens in a cache, and the second asks them. What the second one writes
        # there itself is hidden.
        cache = DynamicCache()
        passed = {CACHE: cache, **further}
        block.self_attn(hidden_states=normed, position_embeddings=rope, attention_mask=None, **passed)
    if queries is not None:
        normed = pick(normed, queries)
        rope = tuple(part.take_along_dim(queries[..., None], dim=-2) for part in rope)
    visible = _visible(target, layer, places, length, inputs)
    if queries is not None and own:
        visible = torch.cat([visible, visible.new_zeros(*queries.shape, queries.shape[1])], dim=-1)
    mask = torch.zeros(visible.shape, dtype=states.dtype, device=states.device)
    mask = mask.masked_fill(~visible, torch.finfo(states.dtype).min)[:, None]
    _, weights = _eager(block.self_attn)(
        hidden_states=normed, position_embeddings=rope, attention_mask=mask, **{CACHE: cache}, **further
    )
    return weights[..., :length].to(states.device)


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
    counts = words.sum(1)
    queries = words.long().argsort(dim=1, descending=True, stable=True)[:, : max(int(counts.max()), 1)]
    asked = torch.arange(queries.shape[1], device=words.device) < counts[:, None]
    weights = attention_weights(target, layer, features, inputs, queries).float().mean(1)
    return (weights * asked[..., None]).sum(1) / counts[:, None].clamp(min=1)


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


def _eager(attention: nn.Module) -> nn.Module:
    """Return a copy of an attention module that shares its weights and returns attention weights, on the same device
    where accelerate has spread the layers: its hook is bound to the module itself, so the copy gets one of its own."""
    module: Any = copy.copy(attention)
    if (hook := vars(module).pop("_hf_hook", None)) is not None:
        from accelerate.hooks import AlignDevicesHook, add_hook_to_module

        for wrapped in ("forward", "_old_forward"):
            vars(module).pop(wrapped, None)
        add_hook_to_module(module, AlignDevicesHook(getattr(hook, "execution_device", None)))
    module.config = copy.copy(module.config)
    module.config._attn_implementation = "eager"
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
