"""The fastest tree for this machine and this text: measured costs, learnt acceptance, and the shape that is best for
both."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from ..drafters import Drafter
from ..errors import MMSpecError
from ..inputs import Request
from ..outcome import Scores, Verdict
from ..settings.arguments import positive
from ..tree import DraftTree
from ..trees import Chain, DynamicTree, Growth, StaticTree, TreeBuilder
from ..trees.growth import Expander
from . import store
from .acceptance import Acceptance
from .calibration import describe, measure_costs
from .choosing import Candidate, candidates, fastest
from .costs import Costs
from .learning import AcceptanceTracker
from .prediction import predict

PRIOR = (0.7, 0.12, 0.05, 0.03, 0.02, 0.01, 0.008, 0.006)
"""Acceptance of the drafter's ranks before anything is known: about that of published trained heads [OUR]."""

GAIN = 1.05
"""Factor by which a dynamic tree is assumed to accept more than the best tree of ranks, before one was tried [OUR]."""

GAIN_ROUNDS = 16
"""Number of rounds that this assumption weighs as much as."""

_MEASURING = threading.RLock()


class AutoTree(TreeBuilder):
    """Chooses the tree with the best predicted speed among chains, static and dynamic trees, and chooses again while
    decoding.

    On first use it measures what drafting and scoring cost on this machine (`mmspec.speed.measure_costs`: once for a
    target, drafter, dtype, device, number of threads and batch size; kept in `$MMSPEC_CACHE` or `~/.cache/mmspec`).
    From those costs and the acceptance by level and rank that it sees (`mmspec.speed.learning`) it predicts tokens per
    second of every candidate, and every `every` rounds changes to the fastest if that is `margin` faster than the
    present one. All rows of a batch have the same shape. A drafter never drafts less than a chain of one: its root pass
    is also what keeps it in step with the text.

    The rank model is Sequoia's (arXiv 2402.12374), and so is the choice by measured hardware; choosing while decoding,
    the estimate and the hysteresis are ours. Needs no training.

    Lossless with any verifier. With greedy and point-mass verification the *text* is the target's whatever the shape,
    so no timing can change it. With drawn children (`RejectionSampling`) only shapes that do not depend on the drawn
    tokens are used, chains and static trees; the law is then the target's, but which sample is drawn depends on the
    shapes, and so on the costs: give `costs` to repeat a run elsewhere.

    Args:
        max_depth: largest number of levels of drafted nodes.
        limit: largest number of drafted nodes.
        every: number of rounds between two choices; before that, it also chooses in rounds 2, 4, 8 and so on.
        margin: relative gain in predicted speed from which on the shape is changed.
        decay: factor per round by which older rounds count less.
        weight: number of tries that the prior acceptance weighs as much as.
        prior: acceptance of the drafter's ranks at the beginning, the first rank first.
        remember: whether to begin every request with the acceptance that earlier ones taught, instead of the prior.
            Shapes then depend on the order of requests; texts do not. Refused for drawn children, whose text would.
        repeats: number of measurements of every shape.
        remeasure: whether to measure again, even if costs are on disk, once for the lifetime of this object.
        costs: costs on this machine, `Costs` or the result of `Costs.to_dict()`; then nothing is measured or stored.

    Raises:
        MMSpecError: if a number is out of range.
    """

    shared = ("_measured", "_learnt")

    def __init__(
        self,
        max_depth: int = 8,
        limit: int = 32,
        every: int = 16,
        margin: float = 0.05,
        decay: float = 0.98,
        weight: float = 4.0,
        prior: Sequence[float] = PRIOR,
        remember: bool = False,
        repeats: int = 3,
        remeasure: bool = False,
        costs: Costs | Mapping[str, Any] | None = None,
    ):
        positive(self, max_depth=max_depth, limit=limit, every=every, repeats=repeats)
        if not 0 < decay <= 1:
            raise MMSpecError(f"AutoTree: decay={decay!r} must be above 0, and 1 at most")
        for name, value in {"margin": margin, "weight": weight}.items():
            if value < 0:
                raise MMSpecError(f"AutoTree: {name}={value!r} must not be negative")
        Acceptance((tuple(prior),))  # refuses what is no distribution
        self.max_depth, self.limit, self.every, self.margin = max_depth, limit, every, margin
        self.decay, self.weight, self.prior = decay, weight, tuple(prior)
        self.remember, self.repeats, self.remeasure = remember, repeats, remeasure
        self.costs = Costs.from_dict(costs) if isinstance(costs, Mapping) else costs
        self.sampled = False
        self.chosen: Candidate | None = None
        """Tree that is drafted at present; None before the first round."""
        # What all requests share: costs by their file, and under `remember` what was learnt about each drafter.
        self._measured: dict[str, Costs] = {}
        self._learnt: dict[str, tuple[AcceptanceTracker, list[float]]] = {}
        self._reset()

    def _reset(self) -> None:
        self._builder: TreeBuilder | None = None
        self._rounds = 0

    @property
    def max_nodes(self) -> int:
        """Largest number of drafted nodes."""
        return self.limit

    def renew(self) -> None:
        """Prepare for a new request: forget the acceptance of the last one, unless `remember` is set."""
        self.chosen = None
        self._reset()

    def check(self, proposal: str) -> None:
        """Refuse drawn children together with `remember`, and record whether children are drawn."""
        if proposal == "sampled" and self.remember:
            raise MMSpecError(
                "AutoTree(remember=True) lets earlier requests decide what is drawn in this one; with "
                "RejectionSampling leave remember=False"
            )
        self.sampled = proposal == "sampled"

    def build(self, growth: Growth) -> DraftTree:
        """Grow the tree that is chosen at present."""
        builder = self._builder or self._begin(growth)
        return builder.build(growth)

    def observe(self, tree: DraftTree, scores: Scores | None, verdict: Verdict) -> None:
        """Update the acceptance from the verdict, and choose again when it is time.

        A round that was settled without the target teaches nothing about what the target accepts.
        """
        if verdict.settled:
            return
        rows = [row for row, length in enumerate(verdict.length.tolist()) if length]
        parents, paths = tree.parents.tolist(), verdict.path.tolist()
        self._tracker.fade()
        self._gains[:] = [count * self.decay for count in self._gains]
        for row in rows:
            path = [node for node in paths[row] if node >= 0]
            self._tracker.add(parents[row], path)
            if self.chosen is not None and self.chosen.shape.kind == "dynamic":
                self._gains[0] += len(path) - 1
                self._gains[1] += self.chosen.ranked
        self._rounds += 1
        # Sooner at first, at rounds 2, 4, 8 and so on: most is learnt then, and many answers are short.
        early = 1 < self._rounds < self.every and self._rounds.bit_count() == 1
        if early or self._rounds % self.every == 0:
            self._choose()

    @property
    def gain(self) -> float:
        """Factor by which dynamic trees accept more than trees of ranks, as far as it is known."""
        accepted, ranked = self._gains
        return (accepted + GAIN_ROUNDS * GAIN) / (ranked + GAIN_ROUNDS)

    def _begin(self, growth: Growth) -> TreeBuilder:
        """Get the costs and make the first choice."""
        drafter = growth.drafter
        request: Any = None if drafter is None else drafter.context.request
        if self.costs is not None:
            self._costs = self.costs
        elif isinstance(drafter, Drafter):
            self._costs = self._measure(drafter, request)
        else:
            raise MMSpecError("AutoTree does not know its drafter: pass costs= (mmspec.speed.measure_costs)")
        self._reach = growth.limit_depth(self.max_depth)
        self._tracker = AcceptanceTracker(self.prior, self._reach, self.decay, self.weight)
        self._gains = [0.0, 0.0]
        if self.remember:
            name = _name(drafter, request) if isinstance(drafter, Drafter) else ""
            self._tracker, self._gains = self._learnt.setdefault(name, (self._tracker, self._gains))
        return self._choose()

    def calibrate(self, drafter: Expander, request: Request) -> None:
        """Measure the costs for a request in advance."""
        if self.costs is None and isinstance(drafter, Drafter):
            self._measure(drafter, request)

    def _measure(self, drafter: Drafter, request: Request) -> Costs:
        """Return the costs of this machine: from an earlier request, from disk, or measured now."""
        key = describe(drafter.target, drafter, request) | {"max_nodes": self.limit}
        name = store.file_of(key).name
        with _MEASURING:  # two requests that measure at once would each measure the other
            if name not in self._measured:
                costs = None if self.remeasure else store.load(key)
                if costs is None:
                    costs = measure_costs(
                        drafter.target, _plain_tree(drafter), request, max_nodes=self.limit, repeats=self.repeats
                    )
                    store.store(key, costs)
                self._measured[name] = costs
            return self._measured[name]

    def _choose(self) -> TreeBuilder:
        """Change to the fastest shape if it is faster by the margin, and return the builder to use."""
        found = candidates(
            self._costs,
            self._tracker.acceptance(),
            max_depth=self._reach,
            max_nodes=self.limit,
            dynamic=not self.sampled,
            gain=self.gain,
        )
        best = fastest(found)
        if self.chosen is not None and self._builder is not None:
            present = self._again(self.chosen, found)
            # Static trees are made of the likeliest nodes, so the present one is as good as its size allows.
            threshold = present.prediction.tokens_per_second * (1 + self.margin)
            if best.prediction.tokens_per_second <= threshold:
                self.chosen = present
                return self._builder
        self.chosen = best
        self._builder = _builder(best)
        return self._builder

    def _again(self, present: Candidate, found: Sequence[Candidate]) -> Candidate:
        """Return the present shape with its present prediction."""
        for one in found:
            if (one.shape, one.settings, one.paths) == (present.shape, present.settings, present.paths):
                return one
        accepted = self._tracker.acceptance().static(present.paths)
        return replace(present, prediction=predict(self._costs, present.shape, accepted), ranked=accepted)


def _builder(candidate: Candidate) -> TreeBuilder:
    if candidate.settings is not None:
        return DynamicTree(*candidate.settings)
    return StaticTree(candidate.paths) if candidate.paths else Chain(int(candidate.shape.nodes))


def _name(drafter: Drafter, request: Request) -> str:
    """Return a text that tells a drafter and its target from others: their classes, settings and sizes."""
    return store.file_of(describe(drafter.target, drafter, request)).name


def _plain_tree(drafter: Drafter) -> Drafter:
    """Return the drafter with a tree that does not measure: calibration sets its own trees."""
    return drafter.fork(Chain(1))
