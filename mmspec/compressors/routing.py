"""Routing: a compressor that is asked anew before every round which visual tokens the drafter sees (TIGER)."""

from __future__ import annotations

import torch
from torch import Tensor

from ..settings.arguments import flags, whole_number
from .base import Compressed, VisualCompressor, VisualSpan
from .token_assignment import Sources


class Routing(VisualCompressor):
    """Shows the drafter k visual tokens of the prompt, chosen before every round by the newest token that the target
    has read (TIGER, arXiv 2607.11131).

    The drafter keeps keys and values of all tokens; in a round it attends to text and to the chosen ones. So what is
    shown follows the text, and changes nothing that was computed before.

    Faithful: a query from the newest state scores all visual tokens, the k largest scores are shown, chosen anew at
    every block. Ours: query and key are the target's own in its last layer, so a score is its attention, averaged over
    the heads, and nothing has to be trained; `LearnedRouting` has maps that are. Each row of a batch is routed by
    itself, over all of its pictures together. A drafter that is trained with it sees what it will see when it drafts.

    Args:
        k: visual tokens to show, 1 or more.
        anew: whether to choose anew before every round; False keeps the first choice, by the prompt's last token.

    Raises:
        MMSpecError: for a value out of range.
    """

    settings: tuple[str, ...] = ("k", "anew")
    routes = True

    def __init__(self, k: int = 8, anew: bool = True):
        super().__init__()
        self.k = whole_number(self, lowest=1, k=k)
        flags(self, anew=anew)
        self.anew = anew

    def forward(self, span: VisualSpan) -> Compressed:
        """Leave every token where it is."""
        return Compressed(span.embeds, Sources.some(torch.arange(len(span), device=span.embeds.device), len(span)))

    def route(self, relevance: Tensor, visual: Tensor) -> Tensor:
        """Show the k visual tokens that matter most; among equals the first."""
        visual = visual.expand(relevance.shape)
        order = relevance.detach().masked_fill(~visual, -torch.inf).sort(dim=-1, descending=True, stable=True).indices
        return visual & torch.zeros_like(visual).scatter(-1, order[..., : self.k], True)
