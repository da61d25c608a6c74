"""The target's own guesses about what comes later, read off the pass that verifies the guesses before."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..arguments import whole_number
from ..outcome import Scores, Verdict
from ..tree import DraftTree
from .base import Drafter

if TYPE_CHECKING:
    from ..context import Context
    from ..target import Target


class JacobiDrafter(Drafter):
    """Jacobi decoding (Santilli et al., arXiv 2305.10427): a window of guesses goes into every pass, and what the
    target says behind each of them is the guess for the next pass.

    After a round, the target's likeliest token behind every node that was not kept becomes the next window, moved to
    where the text ends now. The window begins with the newest token, repeated, and so do the places that move in [OUR].

    Lossless with every lossless verifier. Needs no training.

    Args:
        target: the model to draft for, and with.
        window: guesses in a pass, at least 1.

    Raises:
        MMSpecError: for a value out of range.
    """

    def __init__(self, target: Target, window: int = 8):
        super().__init__(target)
        self.window = whole_number(self, window=window, lowest=1)

    @property
    def max_nodes(self) -> int:
        return self.window

    def start(self, context: Context) -> None:
        self._guesses: Tensor | None = None

    def draft(self, root: Tensor) -> DraftTree:
        guesses = root[:, None].expand(-1, self.window) if self._guesses is None else self._guesses
        return DraftTree.chain(torch.cat([root[:, None], guesses], dim=1))

    def observe(self, tree: DraftTree, scores: Scores | None, verdict: Verdict) -> None:
        self._guesses = None
        if scores is None:
            return
        said = scores.p.argmax(-1)  # behind node i stands what comes i + 1 places after the root
        places = torch.arange(self.window, device=said.device) + verdict.length[:, None]
        known = said.gather(1, places.clamp(max=said.shape[1] - 1))
        self._guesses = torch.where(places < said.shape[1], known, verdict.bonus[:, None])
