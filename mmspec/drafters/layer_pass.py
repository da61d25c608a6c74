"""LayerPass: the passes of a draft layer during one request, with its weights looked up once."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from .layer import DraftLayer, Rope, as_one, is_plain_linear, rotate


class LayerPass:
    """A draft layer as one request runs it: without gradients, its weights looked up beforehand.

    A draft runs the layer once a level on a single token, and there to find a module takes as long as its product. What
    `DraftLayer` computes with a map for queries, one for keys and one for values is one product here, as are gate and
    input of the MLP; what is added to a product is added by it.

    Args:
        layer: the layer. Its weights must stay what they are while the request lasts.
    """

    def __init__(self, layer: DraftLayer):
        attention, mlp = layer.self_attn, layer.mlp
        self._head_dim = attention.head_dim
        self._queries = attention.q_proj.out_features // attention.head_dim
        self._turned = self._queries + attention.k_proj.out_features // attention.head_dim
        self._project = as_one(attention.q_proj, attention.k_proj, attention.v_proj)
        self._merge, self._down = added(attention.o_proj), added(mlp.down_proj)
        self._norm, self._gate_up = layer.post_attention_layernorm, as_one(mlp.gate_proj, mlp.up_proj)
        self._gate = mlp.act_fn

    def project(self, states: Tensor, rope: Rope) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries, keys and values of `[batch, length, width]` states, each `[batch, heads, length, head_dim]`,
        the first two turned."""
        heads = self._heads(states)
        turned = rotate(heads[:, : self._turned], rope)
        return turned[:, : self._queries], turned[:, self._queries :], heads[:, self._turned :]

    def _heads(self, states: Tensor) -> Tensor:
        """Return queries, keys and values, `[batch, heads of all, length, head_dim]`, none of them turned."""
        return self._project(states).unflatten(-1, (-1, self._head_dim)).transpose(1, 2)

    def finish(self, residual: Tensor, attended: Tensor) -> Tensor:
        """Return the layer's output, see `DraftLayer.finish`."""
        states = self._merge(attended.transpose(1, 2).flatten(2), residual)
        gate, up = self._gate_up(self._norm(states)).chunk(2, dim=-1)
        return self._down(self._gate(gate) * up, states)


def added(map: nn.Module) -> Callable[[Tensor, Tensor], Tensor]:
    """Return the function that applies a linear map to `[batch, length, width]` states and adds `[batch, length,
    hidden]` numbers: in one step, where it is plain and has no bias."""
    if not is_plain_linear(map) or map.bias is not None:
        return lambda states, others: others + map(states)
    turned = map.weight.detach().t()

    def plus(states: Tensor, others: Tensor) -> Tensor:
        return torch.addmm(others.flatten(0, 1), states.flatten(0, 1), turned).view_as(others)

    return plus
