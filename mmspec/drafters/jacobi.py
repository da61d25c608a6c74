"""The target's own guesses about what comes later, read off the pass that verifies the guesses before."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..models.slots import pick
from ..outcome import Scores, Verdict, one_hot
from ..settings.arguments import whole_number
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

    Where the verifier asks for drawn proposals (`RejectionSampling`), the next window is drawn from what the target
    says behind every node, and that is its q: speculative Jacobi decoding (Teng et al., SJD, arXiv 2410.01699), in
    which every place of a window is drawn anew after each round. Places that move in are certain of the token that they
    repeat.

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
        """The window."""
        return self.window

    def start(self, context: Context) -> None:
        """Take up a request, of which nothing was guessed yet."""
        self.context = context
        self._guesses: Tensor | None = None
        self._q: Tensor | None = None

    def draft(self, root: Tensor) -> DraftTree:
        """Propose the window below `[batch]` roots."""
        guesses = root[:, None].expand(-1, self.window) if self._guesses is None else self._guesses
        tokens = torch.cat([root[:, None], guesses], dim=1)
        if self._q is None:
            return DraftTree.chain(tokens)
        expansion = torch.arange(self.window + 1, device=root.device).expand_as(tokens)
        return DraftTree.chain(
            tokens, expansion=torch.where(expansion < self.window, expansion, -1), draft_probs=self._q
        )

    def rest(self, tree: DraftTree, scores: Scores | None, verdict: Verdict) -> None:
        """Forget the guesses: they were not in that tree."""
        self.observe(tree, None, verdict)

    def observe(self, tree: DraftTree, scores: Scores | None, verdict: Verdict) -> None:
        """Read the next window off what the target says behind every node."""
        self._guesses = self._q = None
        if scores is None:
            return
        # Behind node i stands what comes i + 1 places after the root.
        places = torch.arange(self.window, device=verdict.length.device) + verdict.length[:, None]
        nodes = places.clamp(max=tree.num_nodes - 1)
        known, repeated = places < tree.num_nodes, verdict.bonus[:, None].expand_as(places)
        if not self.context.proposals.sampled:
            self._guesses = torch.where(known, scores.p.argmax(-1).gather(1, nodes), repeated)
            return
        p = pick(scores.p, nodes)
        known &= p.sum(-1) > 0  # in rows that have ended it may be no distribution
        self._q = torch.where(known[..., None], p, one_hot(repeated, p))
        drawn = torch.multinomial(self._q.flatten(0, 1), 1, generator=self.context.proposals.generator)
        self._guesses = drawn.view_as(places)
