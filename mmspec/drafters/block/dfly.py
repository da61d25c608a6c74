"""DFly: a block whose layers mix the target's states in their own ways, and whose states the token above corrects."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from ...settings.arguments import whole_number
from ..head_config import initialise
from .correction import Correction, Embed, Head
from .drafter import BlockDrafter
from .settings import BlockSettings


@dataclass(frozen=True, kw_only=True)
class DFlySettings(BlockSettings):
    """The settings of a `DFlyDrafter`, beside those of `BlockSettings`.

    Args:
        correction_size: width inside the correction of states; null for as wide as a layer's MLP, 0 for none.
    """

    fusion: Literal["linear", "mix", "both"] = "both"
    correction_size: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.correction_size is not None:
            whole_number(self, lowest=0, correction_size=self.correction_size)


class DFlyDrafter(BlockDrafter):
    """The drafter of DFly (arXiv 2607.25852); of DFlare (arXiv 2606.02091) with `fusion=mix`, `context_maps` and no
    correction (`correction_size=0`).

    Every layer mixes the target's states with weights of its own, beside a linear map of all of them. Before the
    vocabulary head, `h' = h + W_down (SiLU(W_g z) * W_u z)` with `z = [norm h; norm E(x_{k-1})]` lets the token above
    speak: a chain as in DSpark, at the price of the vocabulary head for every level.

    Faithful: the formulas, W_down = 0 at first. Our own: what `DFlashDrafter` lists; h is the state behind the final
    norm.

    Lossless with every lossless verifier. Trained: everything but the embedding and the vocabulary head.

    The arguments are those of `BlockDrafter`, and its settings those of `DFlySettings`.
    """

    Settings = DFlySettings
    settings: DFlySettings

    def build(self) -> None:
        """Make the block and the correction of its states."""
        super().build()
        size = self.settings.correction_size
        inner = self.head.intermediate_size if size is None else size
        self.hidden_correction = None
        if inner:
            self.hidden_correction = HiddenCorrection(self.head.hidden_size, inner, self.head.rms_norm_eps)

    @property
    def correction(self) -> Correction | None:
        """The correction of states."""
        return self.hidden_correction


class HiddenCorrection(Correction):
    """A gated MLP of a slot's state and of the embedding of the token above, whose output is added to the state.

    Args:
        hidden: width of the block's states and of embeddings.
        inner: width inside.
        eps: that of the norms.
    """

    asks_head = True

    def __init__(self, hidden: int, inner: int, eps: float):
        super().__init__()
        self.hidden_norm, self.embed_norm = nn.RMSNorm(hidden, eps=eps), nn.RMSNorm(hidden, eps=eps)
        self.gate_proj, self.up_proj = (
            nn.Linear(2 * hidden, inner, bias=False),
            nn.Linear(2 * hidden, inner, bias=False),
        )
        self.down_proj = nn.Linear(inner, hidden, bias=False)
        initialise(self)
        nn.init.zeros_(self.down_proj.weight)

    def begin(self, anchors: Tensor, embed: Embed) -> Tensor:
        """Return the normed embeddings of the anchors."""
        return self.embed_norm(embed(anchors))

    def advance(self, state: Tensor, tokens: Tensor, hidden: Tensor, embed: Embed) -> Tensor:
        """Return the normed embeddings of the tokens: those further above are forgotten."""
        return self.embed_norm(embed(tokens))

    def logits(self, base: Tensor, hidden: Tensor, state: Tensor, head: Head) -> Tensor:
        """Return the logits of the corrected states."""
        both = torch.cat([self.hidden_norm(hidden), state], dim=-1)
        return head(hidden + self.down_proj(functional.silu(self.gate_proj(both)) * self.up_proj(both)))
