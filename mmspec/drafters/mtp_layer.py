"""The layer of native multi-token heads: norms of queries and keys, a gate, positions that turn a part of a head."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from transformers import LlamaConfig

from .layer import DraftAttention, DraftLayer, Rope, rotate
from .layer_pass import LayerPass
from .mtp_settings import MtpSettings


class MtpAttention(DraftAttention):
    """A head's attention with what newer models add: norms of queries and keys, a gate, numbers that are not turned.

    Args:
        config: configuration of the layer.
        settings: switches, see `MtpSettings`.
    """

    def __init__(self, config: LlamaConfig, settings: MtpSettings):
        super().__init__(config, config.hidden_size)
        self.turned = settings.turned or self.head_dim
        if settings.head_norms:
            self.q_norm = nn.RMSNorm(self.head_dim, eps=config.rms_norm_eps)
            self.k_norm = nn.RMSNorm(self.head_dim, eps=config.rms_norm_eps)
        if settings.gate:
            self.gate_proj = nn.Linear(config.hidden_size, self.q_proj.out_features, bias=config.attention_bias)

    def queries(self, states: Tensor, rope: Rope) -> Tensor:
        """Return queries `[batch, heads, length, head_dim]` of `[batch, length, width]` states."""
        return self.turn(self.normed("q_norm", self._heads(self.q_proj(states))), rope)

    def keys_values(self, states: Tensor, rope: Rope) -> tuple[Tensor, Tensor]:
        """Return keys and values of `[batch, length, width]` states, see `DraftAttention.keys_values`."""
        keys = self.turn(self.normed("k_norm", self._heads(self.k_proj(states))), rope)
        return keys, self._heads(self.v_proj(states))

    def normed(self, name: str, heads: Tensor) -> Tensor:
        """Return queries or keys behind their norm, where there is one."""
        norm = getattr(self, name, None)
        return heads if norm is None else norm(heads)

    def turn(self, heads: Tensor, rope: Rope) -> Tensor:
        """Turn the first numbers of every head by its position."""
        if self.turned == self.head_dim:
            return rotate(heads, rope)
        first, rest = heads.split([self.turned, self.head_dim - self.turned], dim=-1)
        return torch.cat([rotate(first, rope), rest], dim=-1)


class MtpLayer(DraftLayer):
    """A layer with such an attention, whose input is normed.

    Args:
        config: sizes and biases of the layer.
        settings: switches, see `MtpSettings`.
    """

    def __init__(self, config: LlamaConfig, settings: MtpSettings):
        super().__init__(config, config.hidden_size)
        self.self_attn = MtpAttention(config, settings)
        self.input_layernorm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self._gated = settings.gate

    def finish(self, residual: Tensor, attended: Tensor) -> Tensor:
        """Return the layer's output, see `DraftLayer.finish`."""
        return super().finish(residual, self.gated(residual, attended))

    def gated(self, residual: Tensor, attended: Tensor) -> Tensor:
        """Return what was attended to behind the gate, which reads what the attention has read; both `[batch, heads,
        length, head_dim]`."""
        if not self._gated:
            return attended
        attention = cast(MtpAttention, self.self_attn)
        return attended * attention._heads(attention.gate_proj(self.input_layernorm(residual)).sigmoid())


class MtpPass(LayerPass):
    """Such a layer as one request runs it.

    Args:
        layer: the layer.
    """

    def __init__(self, layer: MtpLayer):
        super().__init__(layer)
        self._layer = layer

    def project(self, states: Tensor, rope: Rope) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries, keys and values, see `LayerPass.project`."""
        heads, attention = self._heads(states), cast(MtpAttention, self._layer.self_attn)
        queries = attention.normed("q_norm", heads[:, : self._queries])
        keys = attention.normed("k_norm", heads[:, self._queries : self._turned])
        return attention.turn(queries, rope), attention.turn(keys, rope), heads[:, self._turned :]

    def finish(self, residual: Tensor, attended: Tensor) -> Tensor:
        """Return the layer's output, see `LayerPass.finish`."""
        return super().finish(residual, self._layer.gated(residual, attended))
