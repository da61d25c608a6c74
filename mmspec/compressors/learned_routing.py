"""LearnedRouting: routing by a query and a key that are learned with the drafter (TIGER)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn

from ..errors import MMSpecError, shown
from ..models.newest import NewestLook
from ..models.states import LAST
from ..settings.arguments import number, positive
from .routing import Routing
from .view import TargetView

if TYPE_CHECKING:
    from ..target import Target


class LearnedRouting(Routing):
    """Shows the drafter the k visual tokens with the largest `(W_q h_t) . (W_k v_i) / sqrt(width)`, where h_t is the
    target's last state at the newest token that it has read (TIGER, arXiv 2607.11131).

    TIGER's maps are not public. Our own are the product, as the paper gives none, and v_i: the target's last state at
    the token, or its embedding. So that W_q and W_k learn although the choice has no gradient, the drafter is taught
    with the choice as it is, and the gradient of its attention to what is shown goes on into the logarithm of a softmax
    over all visual tokens (a straight-through estimate): what helps gains, at the cost of all others. Noise on the
    scores lets it try others meanwhile.

    Args:
        k: visual tokens to show, 1 or more.
        anew: whether to choose anew before every round; False keeps the first choice, by the prompt's last token.
        width: numbers of a query, and of a key.
        by: what a token is known by: `states`, the target's at the token, or `embeds`, its embedding.
        noise: scale of the Gumbel noise on the scores in training, 0 or more.

    Raises:
        MMSpecError: for a value out of range.
    """

    settings = ("k", "anew", "width", "by", "noise")
    asks = LAST

    _keys: tuple[NewestLook, Tensor] | None = None  # of the request at hand

    def __init__(
        self,
        k: int = 8,
        anew: bool = True,
        width: int = 64,
        by: Literal["states", "embeds"] = "states",
        noise: float = 1.0,
    ):
        super().__init__(k, anew)
        positive(self, width=width)
        number(self, lowest=0, noise=noise)
        if by not in ("states", "embeds"):
            raise MMSpecError(f"LearnedRouting: by={shown(by)} must be 'states' or 'embeds'")
        self.width, self.by, self.noise = width, by, noise

    def layers_seen(self, target: Target) -> list[int]:
        """Return the last states alone."""
        return [LAST]

    def attach(self, hidden: int, state: int) -> None:
        """Create the maps. At first both are one, so that a token is sought that resembles the newest state."""
        self.query, self.key = (nn.Linear(state, self.width, bias=False) for _ in range(2))
        if not self.query.weight.is_meta:
            self.key.load_state_dict(self.query.state_dict())

    def relevance(self, look: NewestLook) -> Tensor:
        """Return the products of the newest states with all tokens of the prompt."""
        if self._keys is None or self._keys[0] is not look:
            context = look.context
            self._keys = look, self.keys(context.embeds if self.by == "embeds" else context.features[LAST])
        return self.products(look.state, self._keys[1])[:, 0]

    def relevance_at(self, target: Target, view: TargetView, places: Tensor) -> Tensor:
        """Return the products of the states at some places with all tokens; in training with noise."""
        states = view.features[LAST]
        keys = self.keys(view.embeds if self.by == "embeds" else states)
        found = self.products(states.take_along_dim(places[..., None], dim=1), keys)
        if not (self.training and torch.is_grad_enabled() and self.noise):
            return found
        return found - self.noise * torch.empty_like(found).exponential_().log()

    def keys(self, states: Tensor) -> Tensor:
        """Return `[batch, length, width]` keys of `[batch, length, state]` states or embeddings."""
        return self.key(states.to(self.key.weight.dtype))

    def products(self, states: Tensor, keys: Tensor) -> Tensor:
        """Return the scores of all tokens for some states, `[batch, count, length]`, from `[batch, count, state]`
        states and `[batch, length, width]` keys."""
        queries = self.query(states.to(self.query.weight.dtype))
        return (queries.float() @ keys.float().transpose(1, 2)) * self.width**-0.5
