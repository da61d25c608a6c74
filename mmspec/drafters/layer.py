"""The transformer layer of small draft heads, in parts that inference and training put together differently.

A Llama decoder layer (norms, rotary attention, SwiGLU) whose attention may read a wider input than it writes. The names
of its parameters are those of the published checkpoints.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeGuard, cast

import torch
from einops import repeat
from torch import Tensor, nn
from torch.nn import functional
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaMLP

from ..models.cache_layer import SlotShape
from ..models.twins import twin

Rope = tuple[Tensor, Tensor]
"""Cosines and signed sines, `[batch, length, head_dim]`, see `mmspec.drafters.rope`."""


class DraftAttention(nn.Module):
    """Rotary attention with grouped queries: `queries` and `keys_values`, attend, `merge`. A request takes all three in
    one product, see `LayerPass`.

    Args:
        config: configuration of the layer.
        width: width of what the projections read.
    """

    def __init__(self, config: LlamaConfig, width: int):
        super().__init__()
        heads, head_dim = config.num_key_value_heads, config.head_dim
        assert heads is not None and head_dim is not None  # LlamaConfig fills them in
        self.head_dim = head_dim
        inner, shared = config.num_attention_heads * head_dim, heads * head_dim
        self.q_proj = nn.Linear(width, inner, bias=config.attention_bias)
        self.k_proj = nn.Linear(width, shared, bias=config.attention_bias)
        self.v_proj = nn.Linear(width, shared, bias=config.attention_bias)
        self.o_proj = nn.Linear(inner, config.hidden_size, bias=False)

    @property
    def slot(self) -> SlotShape:
        """The shape of the keys, and of the values, of one token."""
        weight = self.k_proj.weight
        return SlotShape(weight.shape[0] // self.head_dim, self.head_dim, weight.dtype, weight.device)

    def queries(self, states: Tensor, rope: Rope) -> Tensor:
        """Return queries `[batch, heads, length, head_dim]` of `[batch, length, width]` states."""
        return rotate(self._heads(self.q_proj(states)), rope)

    def keys_values(self, states: Tensor, rope: Rope) -> tuple[Tensor, Tensor]:
        """Return keys and values of `[batch, length, width]` states, each `[batch, key_value_heads, length,
        head_dim]`."""
        return rotate(self._heads(self.k_proj(states)), rope), self._heads(self.v_proj(states))

    def merge(self, attended: Tensor) -> Tensor:
        """Return the output `[batch, length, hidden]` of what was attended to, `[batch, heads, length, head_dim]`."""
        return self.o_proj(attended.transpose(1, 2).flatten(2))

    def _heads(self, states: Tensor) -> Tensor:
        """Return `[batch, heads, length, head_dim]`, from heads that stand side by side."""
        return states.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)


class GatedMLP(LlamaMLP):
    """A SwiGLU, whose gate and input take one product where no gradient is wanted."""

    def forward(self, states: Tensor) -> Tensor:
        """Return an output of the shape of the input, `[..., hidden]`."""
        if torch.is_grad_enabled():
            return super().forward(states)
        gate, up = side_by_side(states, self.gate_proj, self.up_proj).chunk(2, dim=-1)
        return self.down_proj(self.act_fn(gate) * up)


class DraftLayer(nn.Module):
    """Attention and MLP around a residual stream; what enters the attention is the business of the drafter.

    Args:
        config: sizes and biases of the layer.
        width: width of the attention's input.
    """

    input_layernorm: nn.Module  # of drafters that have one
    hidden_norm: nn.Module  # likewise

    def __init__(self, config: LlamaConfig, width: int):
        super().__init__()
        self.self_attn = DraftAttention(config, width)
        self.post_attention_layernorm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.mlp = GatedMLP(config)

    def finish(self, residual: Tensor, attended: Tensor) -> Tensor:
        """Return the layer's output, from its input `[batch, length, hidden]` and what was attended to, `[batch, heads,
        length, head_dim]`."""
        states = residual + self.self_attn.merge(attended)
        return states + self.mlp(self.post_attention_layernorm(states))


def first_heads(layer: DraftLayer, share: float) -> DraftLayer:
    """Return a layer that is another one with its first heads alone, as many as a share of them and at least one (of
    grouped queries: one group). Its weights are views of the other's, so gradients reach those.

    Args:
        layer: the whole layer.
        share: the share, above 0 and at most 1.
    """
    attention = layer.self_attn
    groups = attention.k_proj.out_features // attention.head_dim
    kept = max(1, int(groups * share))
    queries = kept * attention.q_proj.out_features // groups
    shared = kept * attention.head_dim
    short, heads = twin(layer), twin(attention)
    for name, rows in (("q_proj", queries), ("k_proj", shared), ("v_proj", shared)):
        heads._modules[name] = _part(getattr(attention, name), rows, attention.q_proj.in_features)
    heads._modules["o_proj"] = _part(attention.o_proj, attention.o_proj.out_features, queries)
    short._modules["self_attn"] = heads
    return short


def _part(map: nn.Linear, rows: int, columns: int) -> nn.Linear:
    """Return a linear map of the first outputs and inputs of another one, on the same weights."""
    part = nn.Linear(columns, rows, bias=False, device="meta")
    del part.weight
    part.weight = map.weight[:rows, :columns]  # a view, and no parameter of its own
    if map.bias is not None:
        del part.bias
        part.bias = map.bias[:rows]  # type: ignore[assignment]
    return part


def side_by_side(states: Tensor, *maps: nn.Module) -> Tensor:
    """Apply several linear maps to `[..., width]` states, and return the results side by side, `[..., sum of widths]`.
    No gradients flow."""
    return as_one(*maps)(states)


def as_one(*maps: nn.Module) -> Callable[[Tensor], Tensor]:
    """Return the function that `side_by_side` is for some maps, their weights looked up: for callers that ask often.

    The first call moves the weights of the maps next to each other in memory, where they stay parameters of their own,
    under their own names; from then on all maps take one product.
    """
    linear = [map for map in maps if is_plain_linear(map)]
    if len(linear) < len(maps):
        return lambda states: torch.cat([map(states) for map in maps], dim=-1)
    weight = joined([map.weight for map in linear])
    bias = None if linear[0].bias is None else joined([map.bias for map in linear])
    return lambda states: functional.linear(states, weight, bias)


def is_plain_linear(map: nn.Module) -> TypeGuard[nn.Linear]:
    """Return True for a linear map that is nothing else: not quantised, without an adapter, watched by nobody."""
    return type(map) is nn.Linear and not map._forward_hooks and not map._forward_pre_hooks


def normed_side_by_side(parts: Sequence[Tensor], norms: Sequence[nn.Module]) -> Tensor:
    """Norm several `[..., width]` states, each with its own norm; return them side by side, `[..., sum of widths]`.
    Without gradients plain norms of one kind are one norm with a longer weight: the same numbers in float32, and in
    half precision rounded once more."""
    first = norms[0]
    plain = all(type(norm) is nn.RMSNorm and norm.eps == first.eps for norm in norms)
    if torch.is_grad_enabled() or not plain or any(part.shape != parts[0].shape for part in parts):
        return torch.cat([norm(part) for norm, part in zip(norms, parts, strict=True)], dim=-1)
    width = parts[0].shape[-1]
    both = torch.cat(list(parts), dim=-1).unflatten(-1, (len(parts), width))
    weight = joined([cast(nn.RMSNorm, norm).weight for norm in norms])
    normed = functional.rms_norm(both, (width,), None, cast(nn.RMSNorm, first).eps)
    return (normed * weight.view(-1, width)).flatten(-2)


def joined(parameters: Sequence[Tensor]) -> Tensor:
    """Return parameters as one tensor, stacked along their first dimension, without a copy once they lie behind one
    another in one storage."""
    first = parameters[0]
    size, start = first.element_size(), first.storage_offset()
    address, place = first.data_ptr() - start * size, start  # where the storage begins
    for parameter in parameters:  # this is asked in every pass, and has to be quick
        if parameter.storage_offset() != place or parameter.data_ptr() != address + place * size:
            _move_together(parameters)
            break
        place += parameter.numel()
    rows = sum(parameter.shape[0] for parameter in parameters)
    return first.detach().as_strided((rows, *first.shape[1:]), first.stride())


@torch.no_grad()
def _move_together(parameters: Sequence[Tensor]) -> None:
    """Give parameters a storage in which they lie one behind the other. Those of a drafter that was made in inference
    mode keep to it: they count no versions, and torch refuses to detach one that claims to."""
    with torch.inference_mode(all(parameter.is_inference() for parameter in parameters)):
        parts = torch.cat([parameter.data for parameter in parameters]).split([len(one) for one in parameters])
        for parameter, part in zip(parameters, parts, strict=True):
            parameter.data = part


def rotate(states: Tensor, rope: Rope) -> Tensor:
    """Apply a rotary embedding to `[batch, heads, length, head_dim]`."""
    cos, sin = (part[:, None].to(states.dtype) for part in rope)
    # The two halves of a head turn against each other: the sines of the first one are negative.
    return torch.addcmul(states * cos, states.roll(states.shape[-1] // 2, dims=-1), sin)


def attend(queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
    """Attend with a boolean mask `[batch, 1, length, slots]`, or over everything."""
    grouped = queries.shape[1] != keys.shape[1]
    return functional.scaled_dot_product_attention(queries, keys, values, attn_mask=mask, enable_gqa=grouped)


def attend_causally(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Attend from every slot to itself and what is before it; all three are of one length."""
    grouped = queries.shape[1] != keys.shape[1]
    return functional.scaled_dot_product_attention(queries, keys, values, is_causal=True, enable_gqa=grouped)


def attend_unrolled(
    queries: Tensor,
    prefix: tuple[Tensor, Tensor],
    own: list[tuple[Tensor, Tensor]],
    visible: Tensor,
    gain: Tensor | None = None,
) -> Tensor:
    """Attend as the unrolled steps of training-time test do (EAGLE-3, arXiv 2503.01840, section 3.2).

    A draft step sees the true prefix up to where its draft began, and of the draft itself what comes before it on the
    same path: of every earlier step only the entry of the same slot. That is the diagonal of the attention matrix.

    Args:
        queries: `[batch, heads, slots, head_dim]`, one per slot where a draft begins.
        prefix: keys and values of the true sequence, `[batch, key_value_heads, length, head_dim]`.
        own: keys and values of the draft steps so far, this one included: each `[batch, key_value_heads, slots,
            head_dim]`.
        visible: `[batch, 1, slots, length]`, True where a slot sees an entry of the prefix.
        gain: `[batch, 1, slots, length]` what is added to the scores of the prefix; None for nothing.
    """
    groups = queries.shape[1] // prefix[0].shape[1]
    keys, values = (repeat(part, "batch head ... -> batch (head group) ...", group=groups) for part in prefix)
    queries = queries * queries.shape[-1] ** -0.5
    scores = queries @ keys.transpose(2, 3)
    scores = (scores if gain is None else scores + gain).masked_fill(~visible, float("-inf"))
    if not own:
        return scores.softmax(-1, dtype=torch.float32).to(values.dtype) @ values
    own_keys, own_values = (
        repeat(list(part), "step batch head slot width -> batch (head group) slot step width", group=groups)
        for part in zip(*own, strict=True)
    )
    diagonal = (queries[..., None, :] * own_keys).sum(-1)
    weights = torch.cat([scores, diagonal], dim=-1).softmax(-1, dtype=torch.float32).to(values.dtype)
    length = keys.shape[2]
    return weights[..., :length] @ values + (weights[..., length:, None] * own_values).sum(3)
