"""The layers of a block drafter: one pair of maps makes keys and values of the target's states and of the block.

The names of the parameters are those of the published checkpoints.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import LlamaConfig

from ..layer import DraftAttention, DraftLayer, Rope, joined, rotate, side_by_side

if TYPE_CHECKING:
    from .settings import BlockSettings

Norm = Callable[[Tensor], Tensor]
"""Function that norms vectors of one size, whatever stands before that."""

Entries = tuple[Tensor, Tensor]
"""Keys and values, each `[batch, key_value_heads, length, head_dim]`, perhaps with the layers before the batch."""


class BlockAttention(DraftAttention):
    """Attention whose queries and keys may be normed per head, before or after they are turned.

    Args:
        config: configuration of the layer.
        settings: the settings of the drafter.
    """

    def __init__(self, config: LlamaConfig, settings: BlockSettings):
        super().__init__(config, config.hidden_size)
        self.norms_turned = settings.norms_turned
        self.k_proj_target = self.v_proj_target = None
        if settings.context_maps:
            self.k_proj_target, self.v_proj_target = (
                nn.Linear(map.in_features, map.out_features, bias=map.bias is not None)
                for map in (self.k_proj, self.v_proj)
            )
        self.q_norm = self.k_norm = None
        if settings.qk_norm:
            self.q_norm, self.k_norm = (nn.RMSNorm(self.head_dim, eps=config.rms_norm_eps) for _ in range(2))

    def project(self, states: Tensor, rope: Rope) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries, keys and values of `[batch, length, width]` states, each `[batch, heads, length, head_dim]`:
        one product and one rotation. Gradients do not flow."""
        joint = self._heads(side_by_side(states, self.q_proj, self.k_proj, self.v_proj))
        queries, keys = (map.out_features // self.head_dim for map in (self.q_proj, self.k_proj))
        norm = None
        if self.q_norm is not None and self.k_norm is not None:
            # Their weights differ, and both are normed at once.
            weights = torch.cat([self.q_norm.weight.expand(queries, -1), self.k_norm.weight.expand(keys, -1)])
            norm = norm_by(weights[:, None], self.q_norm.eps)
        turned = self.turned(joint[:, : queries + keys], norm, rope)
        return turned[:, :queries], turned[:, queries:], joint[:, queries + keys :]

    def queries(self, states: Tensor, rope: Rope) -> Tensor:
        """Return queries `[batch, heads, length, head_dim]` of `[batch, length, width]` states."""
        return self.turned(self._heads(self.q_proj(states)), self.q_norm, rope)

    def keys_values(self, states: Tensor, rope: Rope) -> Entries:
        """Return keys and values of `[batch, length, width]` states, see `DraftAttention.keys_values`."""
        return self._made(self.k_proj, self.v_proj, states, rope)

    def context(self, states: Tensor, rope: Rope) -> Entries:
        """Return keys and values of the target's fused states, `[batch, length, width]`."""
        return self._made(self.k_proj_target or self.k_proj, self.v_proj_target or self.v_proj, states, rope)

    def _made(self, keys: nn.Linear, values: nn.Linear, states: Tensor, rope: Rope) -> Entries:
        return self.turned(self._heads(keys(states)), self.k_norm, rope), self._heads(values(states))

    def turned(self, heads: Tensor, norm: Norm | None, rope: Rope) -> Tensor:
        """Return `[..., heads, length, head_dim]` queries or keys, turned and, where there is a norm, normed."""
        if norm is None:
            return rotate(heads, rope)
        return norm(rotate(heads, rope)) if self.norms_turned else rotate(norm(heads), rope)

    @property
    def maps(self) -> list[nn.Linear]:
        """The maps of states to queries, keys and values; the last two are those for the target's states."""
        own = (self.q_proj, self.k_proj, self.v_proj, self.k_proj_target, self.v_proj_target)
        return [map for map in own if map is not None]


class BlockLayer(DraftLayer):
    """A pre-norm transformer layer over a block, whose attention sees the target's states too.

    Args:
        config: sizes and biases of the layer.
        settings: the settings of the drafter.
    """

    self_attn: BlockAttention

    def __init__(self, config: LlamaConfig, settings: BlockSettings):
        super().__init__(config, config.hidden_size)
        self.self_attn = BlockAttention(config, settings)
        self.input_layernorm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.attention_conv = self.mlp_conv = None
        if settings.conv_kernel:
            sizes = config.hidden_size, settings.conv_kernel, settings.conv_group
            self.attention_conv, self.mlp_conv = BlockConv(*sizes), BlockConv(*sizes)

    def enter(self, states: Tensor, size: int) -> tuple[Tensor, tuple[Tensor, int] | None]:
        """Return what the attention reads, from `[batch, slots, hidden]` states of any number of blocks of `size`
        slots, and what `finish` is to be told."""
        normed = self.input_layernorm(states)
        if self.attention_conv is None:
            return normed, None
        before, after = self.attention_conv.kernels(normed)
        return self.attention_conv(normed, before, size), (after, size)

    def finish(self, residual: Tensor, attended: Tensor, told: tuple[Tensor, int] | None = None) -> Tensor:
        """Return the layer's output, see `DraftLayer.finish`; `told` is what `enter` has said."""
        if self.attention_conv is None or self.mlp_conv is None or told is None:
            return super().finish(residual, attended)
        after, size = told
        states = residual + self.attention_conv(self.self_attn.merge(attended), after, size)
        normed = self.post_attention_layernorm(states)
        before, after = self.mlp_conv.kernels(normed)
        return states + self.mlp_conv(self.mlp(self.mlp_conv(normed, before, size)), after, size)


class BlockConv(nn.Module):
    """The grouped dynamic convolution of DFlash 2: every slot of a block reads those before it, by weights of its own.

    `y_t = sum_o (base[o] + dynamic_t[o]) x_{t-o}` inside a block, with nothing before its first slot. There are two
    such kernels, for what enters a part of a layer and for what leaves it; the dynamic part of both is a map of the
    state that enters, and is shared by groups of numbers. It begins as the identity.

    Args:
        hidden: width of a state.
        kernel: slots that are read, itself included.
        group: numbers of a state that share a dynamic weight.
    """

    def __init__(self, hidden: int, kernel: int, group: int):
        super().__init__()
        self.kernel, self.group = kernel, group
        self.base_kernel = nn.Parameter(torch.zeros(2, kernel, hidden))
        self.kernel_projection = nn.Linear(hidden, 2 * kernel * hidden // group, bias=False)

    @torch.no_grad()
    def reset(self) -> None:
        """Make it the identity."""
        nn.init.zeros_(self.kernel_projection.weight)
        nn.init.zeros_(self.base_kernel)
        nn.init.ones_(self.base_kernel[:, 0])

    def kernels(self, normed: Tensor) -> tuple[Tensor, Tensor]:
        """Return the two kernels, each `[batch, slots, kernel, hidden]`, for `[batch, slots, hidden]` states."""
        made = self.kernel_projection(normed).unflatten(-1, (2, self.kernel, -1))
        first, second = (made.repeat_interleave(self.group, dim=-1) + self.base_kernel).unbind(-3)
        return first, second

    def forward(self, states: Tensor, kernel: Tensor, size: int) -> Tensor:
        """Return `[batch, slots, hidden]` states of any number of blocks of `size` slots, convolved with one of the
        kernels."""
        blocks, weights = states.unflatten(1, (-1, size)), kernel.unflatten(1, (-1, size))
        shifted = (functional.pad(blocks, (0, 0, back, 0))[:, :, :size] for back in range(self.kernel))
        return torch.stack([weights[..., back, :] * part for back, part in enumerate(shifted)]).sum(0).flatten(1, 2)


def keys_values_of(layers: Sequence[BlockLayer], states: Tensor, rope: Rope) -> Entries:
    """Return the keys and values that all layers make of the target's fused states, without gradients: each `[layers,
    batch, key_value_heads, length, head_dim]`.

    The states are read as they are, without the norm that a block's states pass. All layers take one product: the
    weights of all their projections stand in one storage, behind one another.

    Args:
        layers: the layers.
        states: `[layers or 1, batch, length, hidden]` fused states, one for each layer or one for all.
        rope: the positions of these states.
    """
    parts = [layer.self_attn for layer in layers]
    maps = [map for part in parts for map in part.maps]
    if any(type(map) is not nn.Linear for map in maps):  # quantised, say, or with an adapter
        shown = states.expand(len(parts), -1, -1, -1)
        every = [part.context(own, rope) for part, own in zip(parts, shown, strict=True)]
        return torch.stack([keys for keys, _ in every]), torch.stack([values for _, values in every])
    first, count = parts[0], len(parts)
    wide, keys = 2 * first.k_proj.out_features, first.k_proj.out_features // first.head_dim
    weight = joined([map.weight for map in maps]).view(count, -1, states.shape[-1])[:, -wide:]
    flat = states.flatten(1, 2).expand(count, -1, -1)
    if first.k_proj.bias is None:
        made = torch.bmm(flat, weight.mT)
    else:
        bias = joined([map.bias for map in maps]).view(count, 1, -1)[..., -wide:]
        made = torch.baddbmm(bias, flat, weight.mT)
    made = made.view(count, *states.shape[1:3], -1, first.head_dim).transpose(2, 3)
    norm = None
    if first.k_norm is not None:
        weights = torch.stack([part.k_norm.weight for part in parts if part.k_norm is not None])
        norm = norm_by(weights[:, None, None, None], first.k_norm.eps)
    return first.turned(made[:, :, :keys], norm, rope), made[:, :, keys:]


def norm_by(weights: Tensor, eps: float | None) -> Norm:
    """Return the norm of vectors with weights that differ from one to the next, `[..., size]`."""
    return lambda heads: functional.rms_norm(heads, heads.shape[-1:], None, eps) * weights
