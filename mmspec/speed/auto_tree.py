"""The fastest tree for this machine and this text, learnt while decoding."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from itertools import groupby
from typing import Any

import torch

from ..decoding.clock import PhaseClock
from ..drafters import Drafter
from ..errors import MMSpecError
from ..inputs import Request
from ..models.tensor_parallel import is_divided
from ..outcome import Scores, Verdict
from ..settings.arguments import flags, number, positive
from ..tree import DraftTree
from ..trees import BestFirstTree, DynamicTree, Growth, StaticTree, TreeBuilder
from . import store
from .calibration import describe
from .choosing import Candidate, candidates, fastest
from .costs import Costs
from .knowledge import Knowledge, seconds_of
from .prediction import predict
from .round_costs import RoundCosts
from .shapes import Shape
from .suitability import Suitability

FIRST_LENGTH = 8
"""Levels that the very first round drafts at most: nothing is known of the drafter yet."""


class AutoTree(TreeBuilder):
    """Drafts what pays on this machine for this text: chains that end where the next guess is not worth its cost, trees
    where these are faster, or nothing.

    **Costs.** Every round is timed anyway, so nothing is measured beforehand: what a level of drafting, a scored node
    and the rest of a round take follows from the rounds themselves (`RoundCosts`).

    **Chains.** A further level is drafted while

        (chance that the chain so far is accepted) x (usual chance of a guess) x (tokens per second so far)

    is above what the level costs in drafting and scoring: where the marginal yield falls to the mean yield, the mean is
    largest. The chance of a chain is the product of the drafter's probabilities, each of them corrected by what such
    probabilities turned out to be worth in texts like this one (`Confidence`). So lengths follow the text, token by
    token, and have no limit but `limit`.

    **Trees.** Now and then the predictions for static and dynamic trees (from the acceptance by rank, as in Sequoia,
    arXiv 2402.12374) are compared with what chains reach, and the kind that is faster by `margin` is drafted. Where
    levels below the first cost no pass (`Drafter.cheap_levels`), best-first trees of several budgets are among them.

    **Nothing.** There are texts that a drafter suits, and texts that it does not (`TwoKinds`). Where the answer at hand
    is likely of the second kind, so that plain decoding would be faster, the drafter rests, and is tried again after 32
    rounds, 64, and 128. Until it is known to suit the text, chains are drafted, which end where they are unsure.

    What is learnt holds for a target, drafter, dtype, device, number of threads and batch size, and is kept in this
    process and in `$MMSPEC_CACHE` or `~/.cache/mmspec` (`remember`). All rows of a batch have the same shape. All of
    this is our own. Needs no training.

    Lossless with any verifier. With greedy and point-mass verification the *text* is the target's whatever the shape,
    so no timing can change it. With drawn children (`RejectionSampling`) only chains and static trees are used, for
    whether a level is drafted depends on the tokens before it; the law is then the target's, but which sample is drawn
    depends on the shapes. There nothing is remembered and no time is looked at, so that a seed repeats its text: the
    costs are `costs`, or a fixed guess. The same holds for a target that tensor parallelism divides: its processes have
    to draft the same trees.

    Args:
        limit: largest number of drafted nodes.
        margin: relative gain in predicted speed from which on another kind of tree is drafted.
        remember: whether to begin with what earlier requests taught, and to keep what this one teaches.
        costs: costs on this machine (`mmspec.speed.measure_costs`, or the result of `Costs.to_dict()`), to be believed
            instead of any times. Shapes then repeat everywhere, and nothing is remembered.

    Attributes:
        shape: shape of the newest round; None before the first one.

    Raises:
        MMSpecError: if a number is out of range.
    """

    def __init__(
        self,
        limit: int = 32,
        margin: float = 0.05,
        remember: bool = True,
        costs: Costs | Mapping[str, Any] | None = None,
    ):
        positive(self, limit=limit)
        number(self, margin=margin, lowest=0)
        flags(self, remember=remember)
        self.limit, self.margin, self.remember = limit, margin, remember
        self.costs = Costs.from_dict(costs) if isinstance(costs, Mapping) else costs
        if not isinstance(self.costs, Costs | None):
            raise MMSpecError(f"AutoTree: costs={costs!r} are no Costs; mmspec.speed.measure_costs makes them")
        self.sampled = False
        self.renew()

    @property
    def max_nodes(self) -> int:
        """Largest number of drafted nodes."""
        return self.limit

    def check(self, proposal: str) -> None:
        """Record whether children are drawn."""
        self.sampled = proposal == "sampled"

    def renew(self) -> None:
        """Prepare for a new request."""
        self.shape: Shape | None = None
        self._known: Knowledge | None = None
        self._reach = self.limit
        self._confirmed = 1
        self._conditions: dict[str, Any] | None = None
        self._seconds: dict[str, float] | None = None
        self._waiting: deque[tuple[Shape, int, dict[str, float]]] = deque()

    def build(self, growth: Growth) -> DraftTree:
        """Grow the tree that pays, or none."""
        known = self._known or self._begin(growth)
        if self._waiting:
            self._learn()
        clock = self._clock
        self._seconds = None if clock is None else clock.round
        if self._suits.resting:
            self._suits.go_on_resting()
            self.shape = Shape.plain()
            return growth.nothing()
        if self._builder is not None and not self._suits.probing:
            assert self._candidate is not None, "a builder is of a candidate"
            self.shape = self._candidate.shape
            return self._builder.build(growth)
        self._suits.probing = max(self._suits.probing - 1, 0)
        self._sure: list[list[float]] = []
        suited = self._suits.chances
        self._shares = suited, [1 - chance for chance in suited]
        self._chances = [1.0] * len(suited), [1.0] * len(suited)
        tree = growth.chain(self._reach if known.rounds else min(self._reach, FIRST_LENGTH), self._go_on)
        self.shape = Shape.chain(len(self._sure))
        return tree

    def observe(self, tree: DraftTree, scores: Scores | None, verdict: Verdict) -> None:
        """Learn from the verdict. A round that was settled without the target teaches nothing about what the target
        accepts."""
        known, shape, lengths = self._known, self.shape, verdict.lengths
        assert known is not None and shape is not None, "build has begun the round"
        rows = [row for row, length in enumerate(lengths) if length]
        if verdict.settled:
            self._confirmed += max(lengths)
            return
        if self._seconds is not None:
            self._waiting.append((shape, self._confirmed, self._seconds))
        if shape.kind == "plain":
            self._confirmed += 1
            return
        tokens, seconds = float(sum(lengths)), seconds_of(known.costs, shape, self._confirmed)
        self._confirmed = max(lengths)
        self._suits.rate.add(tokens, seconds)
        self._accept(tree, verdict, rows, lengths)
        chains = [[level[row] for level in self._sure] for row in rows] if shape.kind == "chain" else None
        self._suits.judge(rows, [lengths[row] - 1 for row in rows], chains)
        known.gains[shape.kind].add(tokens, self._expected * seconds)
        known.add(tokens, seconds)
        if known.rounds in (8, 16) or known.rounds % 32 == 0:
            self._choose()
        self._suits.weigh(len(rows), known.costs.plain, known.learnt)

    def _accept(self, tree: DraftTree, verdict: Verdict, rows: list[int], lengths: list[int]) -> None:
        """Learn from what was accepted."""
        known, shape = self._known, self.shape
        assert known is not None and shape is not None
        if known.rounds % 8 == 0:
            known.ranks.fade(8)
        if shape.kind == "chain":
            for row in rows:
                known.ranks.add_chain(shape.passes, lengths[row] - 1)
            return
        parents, paths = tree.parents.tolist(), verdict.path.tolist()
        for row in rows:
            known.ranks.add(parents[row], [node for node in paths[row] if node >= 0])

    def _begin(self, growth: Growth) -> Knowledge:
        """Find out what is known, and where an answer like this one begins."""
        known, rows = self._what_is_known(growth.drafter), len(growth.root)
        self._known, self._rows = known, rows
        self._cheap = growth.drafter is not None and growth.drafter.cheap_levels
        self._reach = growth.limit_depth(self.limit)
        first = Shape.chain(min(3, self._reach))
        tokens, seconds = known.usual or (2.0 * rows, seconds_of(known.costs, first, 2))
        self._suits = Suitability(known.kinds, rows, tokens, seconds)
        self._builder: TreeBuilder | None = None
        self._candidate: Candidate | None = None
        if known.chosen is not None and known.chosen[0] == self._bounds:
            self._draft(known.chosen[1])
        elif known.kind == "chain":
            self._look_at_costs()
        else:
            self._choose()
        return known

    @property
    def _bounds(self) -> tuple[int, int, bool]:
        """The largest depth and number of nodes, and whether children are drawn: a candidate is chosen within these."""
        return self._reach, self.limit, self.sampled

    def _what_is_known(self, drafter: Any) -> Knowledge:
        """Return given costs, or what this and earlier requests teach."""
        self._clock: PhaseClock | None = None
        if not isinstance(drafter, Drafter):
            if self.costs is None:
                raise MMSpecError("AutoTree does not know its drafter: pass costs= (mmspec.speed.measure_costs)")
            return Knowledge(self.costs)
        context: Any = drafter.context
        conditions = _conditions(drafter, context.request)
        share = conditions["drafter_parameters"] / max(conditions["target_parameters"], 1)
        if self.costs is not None or self.sampled or is_divided(drafter.target):
            return Knowledge(self.costs or RoundCosts(share, drafter.cheap_levels).costs)
        self._clock = context.clock
        if not self.remember:
            return Knowledge(share=share, cheap=drafter.cheap_levels)
        self._conditions = conditions
        return store.knowledge_of(conditions, share, drafter.cheap_levels)

    def _learn(self) -> None:
        """Learn the costs from the rounds whose times are known by now."""
        known, clock = self._known, self._clock
        assert known is not None and known.learnt is not None and clock is not None
        while self._waiting and clock.booked(self._waiting[0][2]):
            known.learnt.add(*self._waiting.popleft())
            rounds, new = known.learnt.rounds, known.learnt.waiting
            if rounds in (1, 2, 4) or new >= 8:
                self._suits.rate.seconds *= known.learn()
                self._look_at_costs()
            # Often enough that short answers of short-lived processes leave something, and ever more seldom.
            if self._conditions is not None and rounds - known.kept >= max(8, rounds // 8):
                known.kept = rounds
                store.keep(self._conditions, known)

    def _look_at_costs(self) -> None:
        """Work out what a further level of a chain costs, a pass of the drafter and one more node to score, what the
        drafter has to reach, and how fast the best tree of the present kind is predicted to be."""
        known = self._known
        assert known is not None
        costs = known.costs
        self._suits.compare(costs)
        self._level = costs.level(1) + costs.score(10) - costs.score(9) + costs.overhead.slope
        self._usual = [confidence.usual for confidence in known.kinds.confidences]
        candidate = self._candidate or fastest(self._found("chain"))
        prediction = predict(costs, candidate.shape, candidate.ranked)
        self._expected = self._rows * prediction.tokens_per_second

    def _go_on(self, probabilities: list[float]) -> bool:
        """Return whether a further level of the chain is worth what it costs."""
        assert self._known is not None
        self._sure.append(probabilities)
        gain = 0.0
        for kind, confidence in enumerate(self._known.kinds.confidences):
            chances, shares = self._chances[kind], self._shares[kind]
            for row, probability in enumerate(probabilities):
                chances[row] *= confidence.chance(probability)
                gain += shares[row] * chances[row] * self._usual[kind]
        return gain > self._level * self._suits.rate.value

    def _found(self, *kinds: str) -> list[Candidate]:
        """Return the candidates of some kinds, with their predictions."""
        known, reach, limit = self._known, self._reach, self.limit
        assert known is not None
        return candidates(known.costs, known.acceptance, max_depth=reach, max_nodes=limit, kinds=kinds)

    def _choose(self) -> None:
        """Change to the fastest kind of tree if it is faster by the margin."""
        known = self._known
        assert known is not None
        kinds = ["chain", "static"]
        if not self.sampled:
            # Where levels cost no pass, the likeliest paths are the best tree of any size.
            kinds = ["chain", "best_first"] if self._cheap else ["chain", "static", "dynamic"]
        best = {kind: fastest(list(found)) for kind, found in groupby(self._found(*kinds), lambda one: one.shape.kind)}
        speeds = {kind: one.prediction.tokens_per_second * known.gains[kind].value for kind, one in best.items()}
        present = known.kind if known.kind in speeds else "chain"
        fastest_kind = max(speeds, key=lambda kind: speeds[kind])
        if speeds[fastest_kind] > speeds[present] * (1 + self.margin):
            present = fastest_kind
        known.kind, known.chosen = present, (self._bounds, best[present])
        self._draft(best[present])

    def _draft(self, candidate: Candidate) -> None:
        """Draft such trees from now on."""
        self._candidate, self._builder = None, None
        if candidate.shape.kind != "chain":
            self._candidate, self._builder = candidate, _builder(candidate)
        self._look_at_costs()


def _conditions(drafter: Drafter, request: Request) -> dict[str, Any]:
    """Return `describe`, which takes as long as a round, made once for a drafter."""
    target = drafter.target
    key = request.batch_size, target.dtype, target.attention, target.compile, torch.get_num_threads()
    if key not in drafter.known:
        drafter.known[key] = describe(target, drafter, request)
    return drafter.known[key]


def _builder(candidate: Candidate) -> TreeBuilder:
    if candidate.shape.kind == "best_first":
        return BestFirstTree(int(candidate.shape.nodes))
    if candidate.settings is not None:
        return DynamicTree(*candidate.settings)
    return StaticTree(candidate.paths)
