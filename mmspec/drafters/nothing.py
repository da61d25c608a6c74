"""Plain decoding, as a drafter."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from ..outcome import Scores, Verdict
from ..tree import DraftTree
from .base import Drafter

if TYPE_CHECKING:
    from ..context import Context


class NoDrafter(Drafter):
    """A drafter that proposes nothing: every round gives one token. `generate(drafter=None)` decodes with it."""

    def start(self, context: Context) -> None:
        """Do nothing."""

    def draft(self, root: Tensor) -> DraftTree:
        """Return the root alone."""
        return DraftTree.root_only(root)

    def observe(self, tree: DraftTree, scores: Scores | None, verdict: Verdict) -> None:
        """Do nothing."""
