"""TwigScore: a compressor that keeps the visual tokens to which a twig of the target attends (TwigVLM)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .compressors import TargetView
from .compressors.guided import MostAttended
from .drafters import EarlyExitDrafter
from .errors import MMSpecError, shown
from .loading import load_drafter
from .models.attention import layers_of_attention, received_attention
from .models.masks import whole_mask
from .models.model import Model
from .models.newest import deepest
from .models.states import entering, left
from .models.whole_texts import read_states
from .settings.arguments import positive, whole_number
from .target import Target

FIRST_TWIG = 4
"""The layer of the target whose weights the last layer of the paper's twig begins with: three above the first two."""


class Twig(NamedTuple):
    """The layers that a twig puts above the first ones of its target.

    Args:
        first: number of the target's layers below it.
        lower: its layers but the last one; None if there are no others.
        top: its last layer.
    """

    first: int
    lower: Model | None
    top: Model


class TwigScore(MostAttended):
    """Keeps the visual tokens that receive the most attention in the last layer of a twig, at their positions: the
    score by which TwigVLM (arXiv 2503.14075) drops visual tokens of the target itself, here those of a drafter alone.

    A twig is a few layers upon the first ones of the target (`EarlyExitDrafter` with `imitation="block"`, recipe
    `twig`), of which any drafter can make use, whether it drafts with the twig or not. The attention of a few tokens is
    computed in one layer, from the states that enter it: no matrix of all tokens is made. Without the name of a trained
    twig the score is that of an untrained one, whose layers are the target's own.

    Faithful: the layer, the prompt's last token as the one that attends, the mean over the heads. Ours: the target
    keeps all of its tokens, so the text stays its own (TwigVLM prunes the target, which changes it); a share of the
    tokens in place of a number; each picture keeps its own share.

    Args:
        keep: the share to keep, above 0 and at most 1; at least one token of a picture stays.
        name: the twig, as for `mmspec.load_drafter`, such as `tiny/fastvlm`; None for layers of the target.
        layer: without a twig, the layer of the target whose attention is the score; None for that with whose weights
            the last layer of the paper's twig begins, or the last one of a smaller target.
        words: number of the prompt's last text tokens whose attention is averaged; the paper asks one.

    Raises:
        MMSpecError: for values out of range, for a twig and a layer; in use, for a drafter that is no twig.
    """

    settings = ("keep", "name", "layer", "words")

    _twig: Twig | None = None

    def __init__(self, keep: float = 0.25, name: str | None = None, layer: int | None = None, words: int = 1):
        super().__init__(keep)
        positive(self, words=words)
        if layer is not None:
            whole_number(self, lowest=0, layer=layer)
        if name is not None and not isinstance(name, str):
            raise MMSpecError(f"TwigScore: name={shown(name)} must be the name of a twig, such as 'tiny/fastvlm'")
        if name is not None and layer is not None:
            raise MMSpecError(
                f"TwigScore: name={shown(name)} is a twig, whose last layer is asked, and layer={layer} is one of the "
                "target: give one of both"
            )
        self.name, self.layer, self.words = name, layer, words

    def meet(self, target: Target) -> None:
        """Load the twig, or look for the layer."""
        if self.name is not None:
            self._twig = twig_of(load_drafter(self.name, target), self.name)
        elif self.layer is not None and self.layer > deepest(target):
            raise MMSpecError(
                f"TwigScore: layer={self.layer} is none of the {deepest(target) + 1} of {type(target.model).__name__}"
            )

    def layers_seen(self, target: Target) -> list[int]:
        """Return the layer that the twig stands on, or those that the attention of the target's layer needs."""
        return layers_of_attention(target, self._own(target)) if self._twig is None else [self._twig.first]

    def _own(self, target: Target) -> int:
        """Return the layer of the target that is asked without a twig."""
        return min(FIRST_TWIG, deepest(target)) if self.layer is None else self.layer

    @torch.no_grad()
    def attention(self, target: Target, view: TargetView, words: Tensor) -> Tensor:
        """Return the attention that every token receives from the last words, `[batch, length]`."""
        behind = words.long().flip(1).cumsum(1).flip(1)  # words from each one to the last
        last, inputs = words & (behind <= self.words), view.request.inputs
        if self._twig is None:
            return received_attention(target, self._own(target), view.features, inputs, last)
        first, lower, top = self._twig
        states = view.features[first].to(next(top.family.layers[0].parameters()).dtype)
        if lower is not None:
            positions, _ = lower.family.positions_until(view.prompt.inputs, states.shape[1])
            mask = whole_mask(view.request.lengths, states.shape[1], states.device)
            further = lower.family.prefill_inputs(inputs) | lower.family.lasting_inputs(view.vision)
            leaving = left(len(lower.family.layers) - 1)
            with entering(lower.family.layers[0], states):
                states = read_states(lower.family, [leaving], states, mask, positions, further)[leaving]
        return received_attention(top, 0, {0: states}, inputs, last)


def twig_of(drafter: object, name: str) -> Twig:
    """Return the layers of a drafter that is a twig.

    Args:
        drafter: the drafter.
        name: its name, for errors.

    Raises:
        MMSpecError: if it has no layers with attention above the target's.
    """
    if not isinstance(drafter, EarlyExitDrafter) or drafter.settings.imitation != "block":
        raise MMSpecError(
            f"TwigScore: {name!r} is a {type(drafter).__name__} without layers of attention above its target's: name "
            "one that recipe=twig or recipe=fastvlm trained, or give layer="
        )
    *lower, top = drafter.imitation
    only = drafter.target.only_layers
    return Twig(drafter.first, only(lower) if lower else None, only([top]))
