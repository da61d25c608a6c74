"""Drafters that grow trees with a model of their own, in a session of their own."""

from __future__ import annotations

import torch
from torch import Tensor

from ..outcome import Scores, Verdict
from ..session import ModelSession
from ..tree import DraftTree
from ..trees.growth import Block
from .step import StepDrafter, last_of


class SessionDrafter(StepDrafter):
    """Reads the text behind the target, in a session that keeps what was accepted.

    A subclass sets `session` in `start`, behind the prompt and following the context's history: a draft model's own
    prompt (`ModelSession.prefill` and `follow`), or a branch of the target's session (`context.branch(entries=...)`).
    """

    session: ModelSession

    def expand_root(self, root: Tensor) -> Tensor:
        """Read what is still unread, then the root; both are certain, so they are kept at once."""
        pending = self.session.pending
        logits = self.expand(self.newest(root, pending))
        self.session.keep(pending)
        return last_of(logits, pending)

    def expand(self, block: Block) -> Tensor:
        return self.session.read(block.tokens, block.visible, block.depth, block.sees_all).logits

    def observe(self, tree: DraftTree, scores: Scores | None, verdict: Verdict) -> None:
        super().observe(tree, scores, verdict)
        # Entry 0 of the expansions is the root, which is kept already.
        entries = tree.expansion.gather(1, verdict.path.clamp(min=0))[:, 1:] - 1
        # The newest token is read again if it was drafted, for what comes after it is asked then.
        kept = verdict.length[:, None] - int(verdict.settled)
        on_path = torch.arange(1, entries.shape[1] + 1, device=entries.device) < kept
        read = ((entries >= 0) & on_path).sum(-1).tolist()
        self.session.keep(read, None if tree.is_chain else entries)
