"""The interface of tree builders."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from ..errors import MMSpecError
from ..outcome import Scores, Verdict
from ..per_request import PerRequest
from ..settings.arguments import positive
from ..settings.calls import Named
from ..settings.fields import check_fields, kinds_of
from ..tree import DraftTree
from .growth import Growth

if TYPE_CHECKING:
    from ..models.model import Model


class Grower(Protocol):
    """A drafter, as far as a builder that stands for another asks about it."""

    def native_tree(self) -> TreeBuilder | None:
        """Return the builder of the trees that its authors drafted with."""


@dataclass(eq=False)
class TreeBuilder(Named, PerRequest):
    """A builder of draft trees: it grows the tree of a round from a drafter's next-token distributions.

    A subclass implements `build`; one that adapts also `observe`, keeping what it learns in attributes: every request
    works on a copy (`fork`). Its settings are the fields of a dataclass, of which those of type `int` are sizes, 1 or
    more.
    """

    value_independent = True
    """True if the shape never depends on which tokens were chosen. Only such trees may be drawn from q."""

    called = ""
    """The name that errors give it, if that is not its class's: that of the builder which stands for it."""

    def __post_init__(self) -> None:
        """Refuse values that do not fit their field's type, and sizes below 1; a subclass adds further checks."""
        cls: Any = type(self)
        positive(self, **{name: getattr(self, name) for name, kind in kinds_of(cls).items() if kind is int})
        check_fields(self)

    @property
    def max_nodes(self) -> int | None:
        """Drafted nodes of a tree at most, the root not counted; None if that cannot be said beforehand."""
        return None

    def for_drafter(self, drafter: Grower) -> TreeBuilder:
        """Return the builder for the trees of a drafter: itself, unless it stands for another."""
        return self

    def feature_layers(self, target: Model) -> tuple[int, ...]:
        """Return states of the target that the builder looks at, beside those that its drafter reads; see
        `Drafter.feature_layers`."""
        return ()

    def build(self, growth: Growth) -> DraftTree:
        """Expand nodes of `growth`, beginning with `growth.root`, and return the nodes worth verifying."""
        raise NotImplementedError

    def observe(self, tree: DraftTree, scores: Scores | None, verdict: Verdict) -> None:
        """Update the builder's state from the verdict on its last tree. Where the verdict is `settled`, the target was
        not asked, so nothing is known of what it accepts."""

    def rest(self, drafter: Grower, scores: Scores | None, verdict: Verdict) -> None:
        """Hear the verdict on a tree that another builder has grown; does nothing by default.

        Args:
            drafter: whose trees this one grows in other rounds.
            scores, verdict: see `observe`.
        """

    def check(self, proposal: str) -> None:
        """Refuse proposals that this shape would bias.

        Raises:
            MMSpecError: for sampled proposals in a tree whose nodes are picked by their probability.
        """
        if proposal == "sampled" and not self.value_independent:
            name = self.called or type(self).__name__
            raise MMSpecError(
                f"{name} keeps the likeliest nodes, so they are no longer draws from q and "
                "RejectionSampling would not be lossless; use PointMassSampling, or Chain or StaticTree"
            )
