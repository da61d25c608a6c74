"""MTP: the layer that a model was trained with to predict a further token, used over and over."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Self, cast

import torch
from torch import Tensor, nn
from transformers import LlamaConfig

from ..errors import MMSpecError, shown
from ..models.states import LAST
from .feature import FeatureDrafter
from .feature_settings import FeatureSettings
from .head_config import initialise
from .layer import DraftAttention, DraftLayer, Rope, rotate
from .layer_pass import LayerPass
from .rope import axes_of, rotary_of

if TYPE_CHECKING:
    from ..target import Target


@dataclass(frozen=True, kw_only=True)
class MtpSettings(FeatureSettings):
    """The settings of an `MtpDrafter`, beside those of `FeatureSettings`.

    Args:
        states_first: whether the fusion reads states before embeddings, as in Inkling.
        head_norms: whether queries and keys are normed head by head, as in Qwen3.
        gate: whether what was attended to is gated, as in Qwen3-Next and Qwen3.5.
        turned: how many of a head's numbers positions turn, as in Qwen3.5 a quarter; null for all.
        rope: `1d`, or `mrope` for the target's positions of time, height and width in the prompt; `head` then has a
            `mrope_section` among its `rope_parameters`.
    """

    states_first: bool = False
    head_norms: bool = False
    gate: bool = False
    turned: int | None = None
    rope: Literal["1d", "mrope"] = "1d"

    def fit(self, target: Target) -> Self:
        """Refuse a number of turned ones that is no even part of a head."""
        fitted = super().fit(target)
        turned, size = self.turned, fitted.head["head_dim"]
        if turned is not None and not (0 < turned <= size and turned % 2 == 0):
            raise MMSpecError(f"turned={shown(turned)} must be an even number up to the head's {size}")
        return fitted


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


class MtpDrafter(FeatureDrafter):
    """A native multi-token head: one layer of the target's kind, as DeepSeek-V3 (arXiv 2412.19437, section 2.2), GLM,
    MiMo and Qwen3.5 are trained with, applied recursively as FastMTP (arXiv 2509.18362) does.

    `u = W [norm_e E(x_{t+1}); norm_h h_t]`, then the layer, then a norm, whose output is h_{t+1} for the next level and
    goes into the target's own vocabulary head. h is the state after the target's final norm. That is EAGLE-1 with norms
    before the fusion and one behind the layer.

    Faithful: fusion, norms, the recursion of a single layer as in vLLM and FastMTP, the switches of the layer, and the
    names of the weights, which are Qwen3.5's (the gate apart: there it stands among the queries). Our own: positions of
    the slots are those of the states, pictures enter by their visual embeddings, and after a verification all slots are
    computed anew from true states. Not there: several layers in a row (DeepSeek's D modules; most published models have
    one), and experts instead of the MLP.

    Lossless with every lossless verifier. Trained: everything but the embedding and the vocabulary head (recipe `mtp`,
    the weighted loss of FastMTP). The arguments are those of `FeatureDrafter`, and its settings those of `MtpSettings`.

    Raises:
        MMSpecError: for settings that do not fit the target, or sections of `mrope` that do not fill what is turned.
    """

    Settings = MtpSettings
    settings: MtpSettings
    feature_layers = (LAST,)
    guesses_features = False

    def build(self) -> None:
        """Make the norms, the fusion and the layer."""
        settings, hidden = self.settings, self.head.hidden_size
        self.rotary = rotary_of(self._turning_config)
        if settings.rope == "mrope":
            self.axes = axes_of(dict(self.head.rope_parameters or {}), self._turning_config.head_dim or 0)
        self.pre_fc_norm_embedding = nn.RMSNorm(hidden, eps=self.head.rms_norm_eps)
        self.pre_fc_norm_hidden = nn.RMSNorm(hidden, eps=self.head.rms_norm_eps)
        self.fc = nn.Linear(2 * hidden, hidden, bias=False)
        self.layers = nn.ModuleList([MtpLayer(self.head, settings)])
        self.norm = nn.RMSNorm(hidden, eps=self.head.rms_norm_eps)
        initialise(self)

    @property
    def layer(self) -> DraftLayer:
        """The only layer."""
        return cast(DraftLayer, self.layers[0])

    def passes(self) -> tuple[LayerPass, ...]:
        """Return the layer as a request runs it."""
        return (MtpPass(cast(MtpLayer, self.layer)),)

    def fuse_features(self, features: dict[int, Tensor]) -> Tensor:
        """Return the target's last states."""
        return features[LAST].to(self._dtype)

    def layer_input(self, embeds: Tensor, states: Tensor, step: int | Tensor = 0) -> tuple[Tensor, Tensor]:
        """Return the fusion of normed embeddings and states, normed again, and as it is."""
        parts = [self.pre_fc_norm_embedding(embeds), self.pre_fc_norm_hidden(states)]
        fused = self.fc(torch.cat(parts[::-1] if self.settings.states_first else parts, dim=-1))
        return self.layer.input_layernorm(fused), fused

    def next_state(self, output: Tensor) -> Tensor:
        """Return the normed output, as the target's own states are normed."""
        return self.norm(output)

    def head_input(self, output: Tensor) -> Tensor:
        """Return the normed output."""
        return self.norm(output)

    def compute_unstored(self) -> None:
        """Compute the frequencies of the rotary positions."""
        self.rotary = rotary_of(self._turning_config).to(self.target.device)

    @property
    def _turning_config(self) -> LlamaConfig:
        """The layer's configuration, with heads of as many numbers as are turned."""
        config = LlamaConfig.from_dict(self.head.to_dict())
        config.head_dim = self.settings.turned or self.head.head_dim
        return config
