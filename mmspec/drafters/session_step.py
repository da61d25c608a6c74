"""Drafters that grow trees with a model of their own, in a session of their own."""

from __future__ import annotations

from torch import Tensor

from ..models.session import ModelSession
from ..outcome import Scores, Verdict
from ..tree import DraftTree
from ..trees.growth import Block
from .step import StepDrafter


class SessionDrafter(StepDrafter):
    """A drafter that reads the text behind the target, in a session that keeps what was accepted.

    A subclass sets `session` in `start`, behind the prompt and following the context's history: a draft model's own
    prompt (`ModelSession.prefill` and `follow`), or a branch of the target's session (`context.branch(entries=...)`).
    """

    session: ModelSession

    def expand_root(self, root: Tensor) -> Tensor:
        """Read what is still unread, then the root; both are certain, so they are kept at once."""
        trunk = self.newest(root, self.session.pending)
        logits = self.expand(trunk)
        self.session.keep(trunk.counts, kept=trunk.kept)
        return trunk.last_of(logits)

    def expand(self, block: Block) -> Tensor:
        """Return the logits after a block of nodes."""
        return self.session.read(block.tokens, block.visible, block.depth, block.extends_chain).logits

    def observe(self, tree: DraftTree, scores: Scores | None, verdict: Verdict) -> None:
        """Keep the accepted path in the session."""
        super().observe(tree, scores, verdict)
        # The newest token is read again if it was drafted, for what comes after it is asked then.
        path = None
        if not tree.is_chain:  # entry 0 of the expansions is the root, which is kept already
            assert tree.expansion is not None, "the tree is one of Growth"
            path = tree.expansion.gather(1, verdict.path.clamp(min=0))[:, 1:] - 1
        assert tree.read is not None, "the host has heard the verdict"
        self.session.keep(tree.read, path)
