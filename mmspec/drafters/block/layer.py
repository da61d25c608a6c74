"""The layers of a block drafter: one pair of maps makes keys and values of the target's states and of the block.

The names of the parameters are those of the published checkpoints.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import LlamaConfig

from ..layer import DraftAttention, DraftLayer, Rope, joined, rotate, side_by_side

Entries = tuple[Tensor, Tensor]
"""Keys and values, each `[batch, key_value_heads, length, head_dim]`, perhaps with the layers before the batch."""


class BlockAttention(DraftAttention):
    """Attention whose queries and keys may be normed per head before they are turned.

    Args:
        config: configuration of the layer.
        qk_norm: whether they are.
    """

    def __init__(self, config: LlamaConfig, qk_norm: bool):
        super().__init__(config, config.hidden_size)
        norm = {"normalized_shape": config.head_dim, "eps": config.rms_norm_eps}
        self.q_norm = nn.RMSNorm(**norm) if qk_norm else None
        self.k_norm = nn.RMSNorm(**norm) if qk_norm else None

    def project(self, states: Tensor, rope: Rope) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries, keys and values of `[batch, length, width]` states, see `DraftAttention.project`."""
        joint = self._heads(side_by_side(states, self.q_proj, self.k_proj, self.v_proj))
        queries, keys = (map.out_features // self.head_dim for map in (self.q_proj, self.k_proj))
        turned = joint[:, : queries + keys]
        if self.q_norm is not None and self.k_norm is not None:
            # Their weights differ, and both are normed at once.
            weights = torch.cat([self.q_norm.weight.expand(queries, -1), self.k_norm.weight.expand(keys, -1)])
            turned = functional.rms_norm(turned, (self.head_dim,), None, self.q_norm.eps) * weights[:, None]
        turned = rotate(turned, rope)
        return turned[:, :queries], turned[:, queries:], joint[:, queries + keys :]

    def queries(self, states: Tensor, rope: Rope) -> Tensor:
        """Return queries `[batch, heads, length, head_dim]` of `[batch, length, width]` states."""
        made = self._heads(self.q_proj(states))
        return rotate(made if self.q_norm is None else self.q_norm(made), rope)

    def keys_values(self, states: Tensor, rope: Rope) -> Entries:
        """Return keys and values of `[batch, length, width]` states, see `DraftAttention.keys_values`."""
        made = self._heads(self.k_proj(states))
        return rotate(made if self.k_norm is None else self.k_norm(made), rope), self._heads(self.v_proj(states))


class BlockLayer(DraftLayer):
    """A pre-norm transformer layer over a block, whose attention sees the target's states too.

    Args:
        config: sizes and biases of the layer.
        qk_norm: whether queries and keys are normed per head.
    """

    self_attn: BlockAttention

    def __init__(self, config: LlamaConfig, qk_norm: bool):
        super().__init__(config, config.hidden_size)
        self.self_attn = BlockAttention(config, qk_norm)
        self.input_layernorm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)


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
    maps = [map for part in parts for map in (part.q_proj, part.k_proj, part.v_proj)]
    if any(type(map) is not nn.Linear for map in maps):  # quantised, say, or with an adapter
        shown = states.expand(len(parts), -1, -1, -1)
        every = [part.keys_values(own, rope) for part, own in zip(parts, shown, strict=True)]
        return torch.stack([keys for keys, _ in every]), torch.stack([values for _, values in every])
    first, count = parts[0], len(parts)
    queries, keys = first.q_proj.out_features, first.k_proj.out_features // first.head_dim
    weight = joined([map.weight for map in maps]).view(count, -1, states.shape[-1])[:, queries:]
    flat = states.flatten(1, 2).expand(count, -1, -1)
    if first.k_proj.bias is None:
        made = torch.bmm(flat, weight.mT)
    else:
        bias = joined([map.bias for map in maps]).view(count, 1, -1)[..., queries:]
        made = torch.baddbmm(bias, flat, weight.mT)
    made = made.view(count, *states.shape[1:3], -1, first.head_dim).transpose(2, 3)
    turned = made[:, :, :keys]
    if first.k_norm is not None:
        weights = torch.stack([part.k_norm.weight for part in parts if part.k_norm is not None])
        turned = functional.rms_norm(turned, (first.head_dim,), None, first.k_norm.eps) * weights[:, None, None, None]
    return rotate(turned, rope), made[:, :, keys:]
