"""Medusa: a head for every place ahead, all of them on one state of the target."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..lesson import Guess, Lesson
from ..models.slots import pick
from ..models.states import LAST
from ..settings.arguments import positive
from ..settings.fields import settings_from
from ..trees import StaticTree, TreeBuilder
from ..trees.growth import Block
from .head import HeadDrafter, HeadSettings
from .one_state import OneStateDrafter
from .step import guesses_below

if TYPE_CHECKING:
    from ..files.folders import Header
    from ..target import Target


class ResBlock(nn.Module):
    """`x + SiLU(W x + b)`, which begins as the identity.

    Args:
        hidden: width of x.
    """

    def __init__(self, hidden: int):
        super().__init__()
        self.linear = nn.Linear(hidden, hidden)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, states: Tensor) -> Tensor:
        """Return a tensor of the shape of the input, `[..., hidden]`."""
        return states + functional.silu(self.linear(states))


@dataclass(frozen=True, kw_only=True)
class MedusaSettings(HeadSettings):
    """The settings of a `MedusaDrafter`.

    Args:
        heads: number of places ahead that are guessed.
        layers: number of residual blocks of a head.
    """

    heads: int = 5
    layers: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        positive(self, heads=self.heads, layers=self.layers)


class MedusaDrafter(OneStateDrafter, HeadDrafter):
    """The heads of Medusa (arXiv 2401.10774, section 2.1).

    Head k reads h, the target's last state after the final norm, at the newest token that has one. The root came from
    that state and has none yet, so `p_k = softmax(W_k ResBlocks(h))` is about the k-th token behind the root. The
    heads read no tokens: all nodes of a depth have one distribution, whatever stands above them, and trees are
    Cartesian products, cut down to what is likely. Nothing can be proposed deeper than there are heads, and trees end
    there.

    Faithful: the heads, their first weights, the released tree as the default, the names of the weights. Our own: any
    target with any pictures in any batch (the paper has none), the bias begins at zero too, the target's bias and cap
    of the logits are left out, and typical acceptance is not there, because it is not lossless.

    Lossless with every lossless verifier. Trained: everything, with the target frozen (Medusa-1; recipe `medusa`).

    Args:
        target: the model to draft for.
        tree: the builder of its trees, see `Drafter`; the native one is the released tree of 63 nodes.
        settings: fields of `MedusaSettings`.

    Raises:
        MMSpecError: for numbers that are not positive integers.
    """

    Settings = MedusaSettings
    settings: MedusaSettings
    independent = True
    cheap_levels = True

    def __init__(self, target: Target, *, tree: TreeBuilder | None = None, **settings: Any):
        super().__init__(target, tree=tree, **settings)
        heads, layers = self.settings.heads, self.settings.layers
        self.max_depth = heads
        hidden, vocab = target.hidden_size, target.vocab_size
        self.medusa_head = nn.ModuleList(
            nn.Sequential(*(ResBlock(hidden) for _ in range(layers)), nn.Linear(hidden, vocab, bias=False))
            for _ in range(heads)
        )
        if not self.last_maps[0].weight.is_meta:
            with torch.no_grad():
                weight = target.family.head_rows()[0][:vocab] * target.family.logit_scale
                for last in self.last_maps:
                    last.weight.copy_(weight)

    def native_tree(self) -> TreeBuilder:
        """Return the released tree of 63 nodes."""
        return StaticTree("medusa")

    def expand_root(self, root: Tensor) -> Tensor:
        """Run all heads at once, `[batch, heads, vocab]`; return the logits of the first. How deep the tree goes is up
        to the builder."""
        state = self._state.to(self._dtype)
        self._guesses = torch.cat([head(state) for head in self.medusa_head], dim=1)
        return self._guesses[:, 0]

    def expand(self, block: Block) -> Tensor:
        """Return the logits of the head for each node's depth."""
        return guesses_below(self._guesses, block)  # the root's children, of depth 0 here, heard the second head

    def marginals(self, depth: int) -> Tensor:
        """Return the logits of the first `depth` heads."""
        return self._guesses[:, :depth]

    def unroll(self, lesson: Lesson, steps: int = 1, detach: bool = False) -> Iterator[Guess]:
        """Yield the guesses of every step, see `Drafter.unroll`: step i is head i + 1 at every root. No step depends on
        another, so there is nothing to detach, and no more steps than heads."""
        states = pick(lesson.features[LAST].to(self._dtype), lesson.root_slots)
        for step, head in enumerate(self.medusa_head[:steps]):
            valid, places = lesson.drafted(step)
            if not valid.any():
                return
            yield Guess(head(states[valid]), None, places, valid.flatten().nonzero()[:, 0])

    @property
    def last_maps(self) -> list[nn.Linear]:
        """The last layer of every head."""
        return [cast(nn.Linear, cast(nn.Sequential, head)[-1]) for head in self.medusa_head]

    @property
    def _dtype(self) -> torch.dtype:
        """The dtype of the weights."""
        return self.last_maps[0].weight.dtype

    @classmethod
    def empty(cls, config: dict[str, Any], target: Target, there: Header | None = None) -> Self:
        """Rebuild the drafter on the meta device, see `Drafter.empty`."""
        if there is not None:
            settings = settings_from(MedusaSettings, cls._keywords(config))
            there.check_count("heads", settings.heads)
            there.check_count("layers", settings.layers)
            there.check_count("heads times layers", settings.heads * settings.layers)
        return super().empty(config, target, there)
