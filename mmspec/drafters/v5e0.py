"""V5e-0: a linear map per level, from the target's newest state and the embeddings of what has been chosen."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Self, cast

import torch
from torch import Tensor, nn

from ..lesson import Guess, Lesson
from ..models.slots import pick
from ..models.states import LAST
from ..settings.arguments import positive
from ..settings.fields import settings_from
from ..trees import StaticTree, TreeBuilder
from ..trees.growth import Block
from .head import HeadDrafter, HeadSettings
from .one_state import OneStateDrafter

if TYPE_CHECKING:
    from ..files.folders import Header
    from ..target import Target


@dataclass(frozen=True, kw_only=True)
class V5e0Settings(HeadSettings):
    """The settings of a `V5e0Drafter`.

    Args:
        heads: number of levels, each with a linear map of its own.
        alpha: factor of the root's embedding, 30 in the release; null makes it as long as the target's states.
        beta: factor of the embeddings of the drafted tokens, 30 in the release; null for alpha's.
    """

    heads: int = 2
    alpha: float | None = None
    beta: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        positive(self, heads=self.heads)

    def fit(self, target: Target) -> Self:
        """Choose the factors that are left to the target."""
        alpha = relative_length(target) if self.alpha is None else self.alpha
        return replace(super().fit(target), alpha=alpha, beta=alpha if self.beta is None else self.beta)


@torch.no_grad()
def relative_length(target: Target) -> float:
    """Return by how much the target's states after the final norm are longer than the embeddings of its tokens."""
    family, device = target.family, target.device
    tokens = torch.arange(min(target.vocab_size, 1024), device=device)
    noise = torch.randn(16, target.hidden_size, generator=torch.Generator().manual_seed(0), device="cpu")
    with family.passing():
        states = family.final_norm(noise.to(device, target.dtype))
    lengths = [float(vectors.float().norm(dim=-1).mean()) for vectors in (states, family.embed(tokens[None], None))]
    return lengths[0] / max(lengths[1], 1e-6)


class V5e0Drafter(OneStateDrafter, HeadDrafter):
    """The linear heads of V5e-0 (an anonymous submission of 2026, "A Minimalist Self-Speculative Decoding Framework for
    Vision-Language Models"; from its released code, the text has no arXiv number).

    h is the target's last state after the final norm, at the token before the root, and E the target's embedding of
    tokens. Level k is guessed by `z_k = W_k (h + alpha E(root) + beta (E(c_1) + .. + E(c_{k-1}))) + b_k`, c the drafted
    tokens above it, and the target's own vocabulary head on z_k. So a round's drafting is one product with a square
    matrix a level, and there is no cache. The pictures are known from h alone.

    Faithful: two heads, frozen factors, the identity as the first weights, and the released tree as the native one
    (`StaticTree("v5e0")`: five children of the root with three each). Our own: any number of heads, as the sum allows;
    factors that follow from the target (the release has 30 for models whose embeddings are about so much shorter than
    their states); any tree, batches, and positions that count pictures as the target does, where the release counts
    tokens. The heads are trained together here and one after the other there: they share no weight.

    Lossless with every lossless verifier. Trained: W and b of every head (recipe `v5e0`).

    Args:
        target: the model to draft for.
        tree: the builder of its trees, see `Drafter`.
        settings: fields of `V5e0Settings`.

    Raises:
        MMSpecError: for a number of heads that is no positive integer, or a factor that is no finite number.
    """

    Settings = V5e0Settings
    settings: V5e0Settings
    cheap_levels = True

    def __init__(self, target: Target, *, tree: TreeBuilder | None = None, **settings: Any):
        super().__init__(target, tree=tree, **settings)
        hidden = target.hidden_size
        self.max_depth = self.settings.heads
        assert self.settings.alpha is not None and self.settings.beta is not None  # chosen by `fit`
        self._alpha, self._beta = self.settings.alpha, self.settings.beta
        self.heads = nn.ModuleList(nn.Linear(hidden, hidden) for _ in range(self.settings.heads))
        for head in self._maps:
            nn.init.eye_(head.weight)
            nn.init.zeros_(head.bias)

    def native_tree(self) -> TreeBuilder:
        """Return the released tree of 20 nodes."""
        return StaticTree("v5e0")

    def expand_root(self, root: Tensor) -> Tensor:
        """Return the logits of the first head."""
        self._rows = self.target.family.head_rows()
        self._sums = [self._state.to(self._dtype) + self._alpha * self._embed(root[:, None]).to(self._dtype)]
        return self._logits(self._maps[0](self._sums[0]))[:, 0]

    def expand(self, block: Block) -> Tensor:
        """Return the logits of the head for each node's depth, from what its parent has summed up and its own
        embedding."""
        above = self._sums[-1] if block.extends_chain else pick(torch.cat(self._sums, dim=1), block.parents)
        states = above + self._beta * self._embed(block.tokens).to(self._dtype)
        self._sums.append(states)
        if block.level is not None:
            return self._logits(self._maps[block.level + 1](states))
        guesses = torch.zeros_like(states)
        for depth, head in enumerate(self._maps[1:]):  # a builder may mix depths
            guesses = torch.where((block.depth == depth)[..., None], head(states), guesses)
        return self._logits(guesses)

    def unroll(self, lesson: Lesson, steps: int = 1, detach: bool = False) -> Iterator[Guess]:
        """Yield the guesses of every step, see `Drafter.unroll`: step i is head i + 1 at every root. The steps hand no
        states on, so there is nothing to detach, and no more steps than heads."""
        slots, rows = lesson.root_slots, self.target.family.head_rows()
        embeds = self.target.family.embed(lesson.request.inputs["input_ids"], None).to(self._dtype)
        last = embeds.shape[1] - 1
        states = pick(lesson.features[LAST].to(self._dtype), slots)
        for step, head in enumerate(self._maps[:steps]):
            valid, places = lesson.drafted(step)
            if not valid.any():
                return
            factor = self._beta if step else self._alpha
            # Beyond the end of an answer anything will do.
            states = states + factor * pick(embeds, (slots + step + 1).clamp(max=last))
            yield Guess(self._logits(head(states[valid]), rows), None, places, valid.flatten().nonzero()[:, 0])

    def _logits(self, hidden: Tensor, rows: tuple[Tensor, Tensor | None] | None = None) -> Tensor:
        """Return logits `[..., vocab]` of the target's head."""
        return self.target.family.head(hidden, rows or self._rows)

    @property
    def _maps(self) -> list[nn.Linear]:
        """The linear map of every level."""
        return [cast(nn.Linear, head) for head in self.heads]

    @property
    def _dtype(self) -> torch.dtype:
        """The dtype of the weights."""
        return self._maps[0].weight.dtype

    @classmethod
    def empty(cls, config: dict[str, Any], target: Target, there: Header | None = None) -> Self:
        """Rebuild the drafter on the meta device, see `Drafter.empty`."""
        if there is not None:
            there.check_count("heads", settings_from(V5e0Settings, cls._keywords(config)).heads)
        return super().empty(config, target, there)
