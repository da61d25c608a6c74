"""Gates of rounds: they decide whether a round is drafted, or is a plain step of the target."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from ..errors import MMSpecError
from ..outcome import Scores, Verdict
from ..per_request import PerRequest
from ..settings.calls import Named
from ..tree import DraftTree
from ..trees import Growth, NativeTree, TreeBuilder
from ..trees.base import Grower

if TYPE_CHECKING:
    from ..context import Context
    from ..models.model import Model


class RoundGate(Named, PerRequest):
    """Decides before every round whether the drafter is asked.

    A subclass implements `drafts`, and `start` and `observe` if it keeps something. It decides by what is committed
    alone, never by a draft: so whatever it decides, the text is the target's, sampled text too.
    """

    def feature_layers(self, target: Model) -> tuple[int, ...]:
        """Return the states of the target that the gate looks at, see `Drafter.feature_layers`."""
        return ()

    def start(self, context: Context) -> None:
        """Take up a request whose prompt the target has read."""

    def drafts(self) -> bool:
        """Return True to draft the round, False for a plain step."""
        raise NotImplementedError

    def observe(self, scores: Scores | None, verdict: Verdict) -> None:
        """Update the gate's state from any round, drafted or not; `scores` is None where the target was not asked."""


@dataclass(eq=False)
class GatedTree(TreeBuilder):
    """A tree builder behind a gate: where the gate says so, nothing is drafted, the round is a plain step of the
    target, and the drafter reads its token later.

    Lossless with every lossless verifier and with every builder behind it, since a gate knows nothing of the draft.

    Args:
        gate: what decides, such as `VisualAttention()`.
        inner: the builder of the rounds that are drafted; the native one by default.

    Raises:
        MMSpecError: for objects of other classes.
    """

    gate: RoundGate
    inner: TreeBuilder = field(default_factory=NativeTree)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.renew()

    def renew(self) -> None:
        """Begin anew for another request."""
        self._begun, self._drafted = False, False

    @property
    def value_independent(self) -> bool:  # type: ignore[override]
        """As the builder behind the gate."""
        return self.inner.value_independent

    @property
    def max_nodes(self) -> int | None:
        """As the builder behind the gate."""
        return self.inner.max_nodes

    def for_drafter(self, drafter: Grower) -> TreeBuilder:
        """Return a gate before the builder that the one behind it stands for."""
        return replace(self, inner=self.inner.for_drafter(drafter))

    def feature_layers(self, target: Model) -> tuple[int, ...]:
        """Return the states that the gate and the builder behind it look at."""
        return (*self.gate.feature_layers(target), *self.inner.feature_layers(target))

    def check(self, proposal: str) -> None:
        """Ask the builder behind the gate."""
        self.inner.check(proposal)

    def build(self, growth: Growth) -> DraftTree:
        """Grow a tree, or none."""
        self._begin(growth.drafter)
        self._drafted = self.gate.drafts()
        return self.inner.build(growth) if self._drafted else growth.nothing()

    def _begin(self, drafter: object) -> None:
        """Let the gate take up the request of a drafter, if it has not."""
        if self._begun:
            return
        context: Any = getattr(drafter, "context", None)
        if context is None:
            raise MMSpecError("GatedTree does not know the request: it grows the trees of drafters in mmspec alone")
        self.gate.start(context)
        self._begun = True

    def rest(self, drafter: Grower, scores: Scores | None, verdict: Verdict) -> None:
        """Tell the gate of a round that another builder has drafted, and the builder behind it."""
        self._begin(drafter)
        self.gate.observe(scores, verdict)
        self.inner.rest(drafter, scores, verdict)

    def observe(self, tree: DraftTree, scores: Scores | None, verdict: Verdict) -> None:
        """Tell the gate of every round, and the builder behind it of those that it has drafted."""
        if self._drafted:
            self.inner.observe(tree, scores, verdict)
        if self._begun:
            self.gate.observe(scores, verdict)
