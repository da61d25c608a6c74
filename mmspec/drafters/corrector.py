"""VisualCorrector: a look at the picture between a head's state and the vocabulary, at every node (FOVEA)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from ..errors import MMSpecError
from ..models.slots import pick
from ..settings.arguments import positive
from ..settings.fields import check_fields
from .head_config import initialise


@dataclass(frozen=True, kw_only=True)
class CorrectorSettings:
    """The settings of a `VisualCorrector`, `corrector` of a feature head.

    Args:
        depth: levels of a draft whose guesses are corrected, from the root's on: 1 is the first drafted token alone.
        width: width of queries, keys and values; null for that of the head's states.
        inner: width inside the networks of the change and of its gate.
        share: the part of the attention that the visual tokens which are looked at have together at least.
        least: visual tokens that are looked at in any case; as many as `most` for a fixed number.
        most: visual tokens that are looked at, at most.
        reads: what is looked at: `embeds`, the visual embeddings that the target reads, or `states`, its last hidden
            states at these tokens.
        gate: bias at which the gate begins: 0 lets half of a change through, -4 a fiftieth. There is no change at first
            in either case, but it is learnt as much slower.
        alone: whether training changes the corrector alone, and leaves the head as it is.
    """

    depth: int = 1
    width: int | None = None
    inner: int = 512
    share: float = 0.8
    least: int = 32
    most: int = 256
    reads: Literal["embeds", "states"] = "embeds"
    gate: float = 0.0
    alone: bool = False

    def __post_init__(self) -> None:
        check_fields(self)
        sizes = {name: getattr(self, name) for name in ("depth", "inner", "least", "most")}
        positive(self, **sizes, width=1 if self.width is None else self.width)
        if not 0 < self.share <= 1:
            raise MMSpecError(f"CorrectorSettings: share={self.share} must be above 0 and at most 1")
        if self.least > self.most:
            raise MMSpecError(f"CorrectorSettings: least={self.least} must not exceed most={self.most}")


class Looked(NamedTuple):
    """The visual tokens of every row, packed, as a corrector looks at them.

    Args:
        keys: `[batch, tokens, width]`.
        values: likewise.
        there: `[batch, tokens]` False at the padding of rows with fewer tokens, and in rows without a picture.
    """

    keys: Tensor
    values: Tensor
    there: Tensor


class VisualCorrector(nn.Module):
    """The corrector of FOVEA (arXiv 2608.22883), for the states of any feature head.

    For a node n at level l, with the head's state h and the visual tokens v_i of its row:

    - `k_i = W_K LN(v_i)` and `u_i = W_U LN(v_i)`, once a request;
    - `q = W_Q (LN(h) + E_l)`, and a softmax of `q k_i / sqrt(width)` over all tokens;
    - of these the likeliest K, the fewest with a mass of `share`, but `least` to `most`; `r = sum a_i u_i` over them;
    - `h + g c` goes into the head's norm and the vocabulary, with a change `c = f([h; r])` and `g = sigmoid(g'([h;
      r]))`.

    The state that the head goes on with, and its cache, are not touched.

    Faithful: the formulas, the budget, the shapes of f and g'. Our own: it begins as the identity (the last layer of f
    is zero); a row without a picture is left as it is; several pictures of a row are looked at as one;
    `reads="states"`; a head without a norm before the vocabulary gets none. The paper's numbers of levels are read as
    those of drafted tokens, so that its "depth at most 1" is `depth=1`.

    Args:
        settings: what it is told.
        hidden: width of the head's states.
        seen: width of what it looks at.
    """

    def __init__(self, settings: CorrectorSettings, hidden: int, seen: int):
        super().__init__()
        self.settings = settings
        width, inner = settings.width or hidden, settings.inner
        self.state_norm, self.seen_norm = nn.LayerNorm(hidden), nn.LayerNorm(seen)
        self.levels = nn.Embedding(settings.depth, hidden)
        self.q_proj = nn.Linear(hidden, width, bias=False)
        self.k_proj, self.u_proj = nn.Linear(seen, width, bias=False), nn.Linear(seen, width, bias=False)
        change, gate = nn.Linear(inner, hidden), nn.Linear(inner, 1)
        self.change = nn.Sequential(nn.Linear(hidden + width, inner), nn.SiLU(), change)
        self.gate = nn.Sequential(nn.Linear(hidden + width, inner), nn.SiLU(), gate)
        initialise(self)
        nn.init.normal_(self.levels.weight, std=0.02)
        nn.init.zeros_(change.weight)
        nn.init.constant_(gate.bias, settings.gate)

    def look_at(self, seen: Tensor, visual: Tensor) -> Looked | None:
        """Return what there is to look at in some texts; None if there is nothing.

        Args:
            seen: `[batch, length, seen]` what is looked at.
            visual: `[batch, length]` True at visual tokens.
        """
        counts = visual.sum(1)
        if not (most := int(counts.max())):
            return None
        places = visual.long().sort(dim=1, descending=True, stable=True).indices[:, :most]
        there = torch.arange(most, device=visual.device) < counts[:, None]
        normed = self.seen_norm(pick(seen, places).to(self.k_proj.weight.dtype))
        return Looked(self.k_proj(normed), self.u_proj(normed), there)

    def forward(self, states: Tensor, looked: Looked, level: int | Tensor) -> Tensor:
        """Return `[batch, nodes, hidden]` corrected states.

        Args:
            states: `[batch, nodes, hidden]` outputs of the head's layers.
            looked: what there is to look at.
            level: the nodes' level, 0 for the root: a number for all, or `[batch or 1, nodes, 1]`.
        """
        depth, device = self.settings.depth, states.device
        if isinstance(level, int) and level >= depth:
            return states
        levels = torch.as_tensor(level, device=device).expand(*states.shape[:2], 1)
        asking = self.state_norm(states) + self.levels(levels[..., 0].clamp(max=depth - 1))
        both = torch.cat([states, self.attend(self.q_proj(asking), looked).to(states.dtype)], dim=-1)
        change = self.gate(both).sigmoid() * self.change(both)
        counts = (levels < depth) & looked.there.any(1)[:, None, None]
        return states + change.masked_fill(~counts, 0.0)

    def attend(self, queries: Tensor, looked: Looked) -> Tensor:
        """Return `[batch, nodes, width]` what queries of that shape see in the tokens that they look at."""
        scores = (queries @ looked.keys.mT).float() * queries.shape[-1] ** -0.5
        # A row without a picture sees padding, which its mask then keeps from changing anything.
        scores = scores.masked_fill(~looked.there[:, None], torch.finfo(scores.dtype).min)
        weights = scores.softmax(-1)
        return self.budgeted(weights).to(looked.values.dtype) @ looked.values

    def budgeted(self, weights: Tensor) -> Tensor:
        """Return `[..., tokens]` weights without those of tokens that are not looked at, summing to one again."""
        share, least, most = self.settings.share, self.settings.least, self.settings.most
        count = weights.shape[-1]
        if count <= least:
            return weights
        ordered, order = weights.sort(dim=-1, descending=True, stable=True)
        rank = torch.arange(count, device=weights.device)
        wanted = (ordered.cumsum(-1) - ordered < share) | (rank < least)
        ordered = ordered * (wanted & (rank < most))
        return torch.zeros_like(weights).scatter(-1, order, ordered / ordered.sum(-1, keepdim=True))
