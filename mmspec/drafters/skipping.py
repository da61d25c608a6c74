"""The target without some of its sub-layers as drafter; which ones, a bandit chooses (SP2EC)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor

from ..errors import MMSpecError, shown
from ..models.session import ModelSession
from ..models.slots import pick
from ..models.states import capture
from ..outcome import Scores, Verdict
from ..settings.arguments import positive
from ..tree import DraftTree
from ..trees import ConfidenceChain, TreeBuilder
from .head import HeadSettings
from .own_layers import OwnLayersDrafter
from .skipping_arms import Arms, least_important, whole_layers
from .skipping_knapsack import knapsack_arms
from .step import StepDrafter

if TYPE_CHECKING:
    from ..context import Context
    from ..target import Target

BUILDERS = ("importance", "knapsack")
"""Ways to find sets of sub-layers that may be skipped."""


@dataclass(frozen=True, kw_only=True)
class SkippingSettings(HeadSettings):
    """The settings of a `SkippingDrafter`.

    Args:
        skipped: numbers of the sub-layers that are always skipped (the attention of layer n is 2n, its MLP 2n + 1);
            null for sets that are found while drafting.
        arms: `importance` for whole layers that change the states least, one more in every set; `knapsack` for
            attentions and MLPs by themselves.
        protected: first and last layers that stay, so many of each; null for two with `importance`, one with
            `knapsack`, fewer of small targets.
        most: number of sets at most; null for half of the layers that may be skipped.
        whole: True for one more set, of nothing, with which every guess is right.
        renew: rounds after which the sets are found anew.
    """

    skipped: tuple[int, ...] | None = None
    arms: str = "importance"
    protected: int | None = None
    most: int | None = None
    whole: bool = False
    renew: int = 512

    def __post_init__(self) -> None:
        super().__post_init__()
        positive(self, renew=self.renew)
        if self.most is not None:
            positive(self, most=self.most)
        if self.protected is not None and self.protected < 0:
            raise MMSpecError(f"protected={self.protected} must not be negative")
        if self.arms not in BUILDERS:
            raise MMSpecError(f"arms={shown(self.arms)} is unknown; there are {', '.join(BUILDERS)}")

    def fit(self, target: Target) -> Self:
        """Choose the sizes that are left to the target, and refuse what does not fit it."""
        target.without(self.skipped or ())  # refuses what cannot be
        total, protected = len(target.family.layers), self.protected
        if protected is None:
            protected = min(2 if self.arms == "importance" else 1, (total - 1) // 2)
        free = min(total - 2 * protected, total - 1)
        if self.skipped is None and free < 1:
            raise MMSpecError(
                f"protected={protected} leaves none of the {total} layers of "
                f"{type(target.model).__name__} to be skipped: protect fewer"
            )
        most = self.most or max(free // 2, 1)
        return replace(self, protected=protected, most=min(most, max(free, 1)))


class SkippingDrafter(OwnLayersDrafter):
    """A drafter that is the target without some of its attentions and MLPs, on the target's own entries. Nothing is
    trained (SP2EC, in the repository of that name; sets by a knapsack are KnapSpec's).

    Sets of sub-layers ("arms") are found while drafting, for all requests together. The first round skips nothing, so
    its guesses are all right, and it tells how much each layer changes the states: one minus the cosine between what
    enters and what leaves it. Then every round skips one more layer, the least important of those left, and measures
    anew at the tokens that were accepted. With `arms="knapsack"` the first round finds all sets at once. Afterwards
    `Arms` chooses a set for every round, by tokens per cost.

    Faithful: sub-layers, nested sets by block importance, protected layers, the choice under a single peak, a draft
    that ends where it is unsure (0.7). Our own: the scoring pass goes on behind the first layers that lack nothing;
    costs are counted in sub-layers instead of seconds, so that a seed gives the same rounds everywhere; importance is
    that of the drafting passes; the knapsack compares states at the first tokens of a draft.

    Lossless with every lossless verifier, whatever is skipped.

    Args:
        target: the model to draft for, and with.
        tree: the builder of its trees, see `Drafter`; the native one is a chain that ends where it is unsure.
        settings: fields of `SkippingSettings`.

    Raises:
        MMSpecError: for sub-layers that the target does not have or that cannot be told apart, for targets whose layers
            are spread over devices or whose last layers read more than the states before them.
    """

    Settings = SkippingSettings
    settings: SkippingSettings

    def __init__(self, target: Target, *, tree: TreeBuilder | None = None, **settings: Any):
        super().__init__(target, tree=tree, **settings)
        self._given: frozenset[int] | None = None

    def native_tree(self) -> TreeBuilder:
        """Return a chain that ends where the draft is less sure than 0.7."""
        return ConfidenceChain(threshold=0.7)

    @property
    def arms(self) -> Arms:
        """The sets found so far, which all requests share."""
        if "arms" not in self.known or self.known["arms"].rounds >= self.settings.renew:
            fixed = self.settings.skipped
            self.known["arms"] = Arms([frozenset(fixed or ())], complete=fixed is not None)
        return self.known["arms"]

    @property
    def kept(self) -> float:
        """The share of the target's sub-layers that drafts with the arm that has paid most so far."""
        return 1 - len(self.arms.best) / (2 * len(self.target.family.layers))

    def join(self, others: Sequence[StepDrafter]) -> None:
        """Refuse a mixture without given sub-layers, for nobody chooses sets there, and one with others of the target's
        layers, see `StepDrafter.join`: what it reads stands in the same entries, and is not what they would read."""
        if self.settings.skipped is None:
            raise MMSpecError(
                f"MixtureDrafter: a {type(self).__name__} chooses what it skips round by round, which a member cannot: "
                "say what it skips, such as skipped=[4, 5]"
            )
        if own := [one for one in others if isinstance(one, OwnLayersDrafter) and one.in_targets_cache]:
            raise MMSpecError(
                f"MixtureDrafter: a {type(self).__name__} and a {type(own[0]).__name__} would overwrite each other's "
                "entries in the target's cache: mix only one of them with drafters of other kinds"
            )

    def start(self, context: Context) -> None:
        """Take up a request; further branches are opened when their arms are chosen."""
        super().start(context)
        self._branches: dict[frozenset[int], ModelSession] = {}
        self._measures, self._chosen, self._passes = False, False, 0
        self._changes: list[Tensor] = []
        self._use(frozenset(self.settings.skipped or ()))

    def adjust(self, **settings: Any) -> None:
        """Skip another set of sub-layers from now on: `skipped`, None for those that are chosen here.

        Raises:
            MMSpecError: for any other setting, and for sub-layers that cannot be skipped.
        """
        if set(settings) != {"skipped"}:
            super().adjust(**{name: value for name, value in settings.items() if name != "skipped"})
        skipped = replace(self.settings, **settings).skipped  # checked as in the constructor
        self.target.without(skipped or ())  # refuses what cannot be
        self._given = None if skipped is None else frozenset(skipped)

    def _use(self, skipped: frozenset[int]) -> None:
        """Draft without some sub-layers, on a branch that this request keeps for them."""
        if skipped not in self._branches:
            self._branches[skipped] = self.context.branch(skipped=skipped)
        self._skipped, self.session = skipped, self._branches[skipped]

    def draft(self, root: Tensor) -> DraftTree:
        """Choose an arm, and let the builder grow a tree with it."""
        self._of, self._passes, self._changes = self.arms, 0, []
        arms = self._of
        if self._given is not None:
            self._measures = False
            self._use(self._given)
            return super().draft(root)
        if not arms.complete and self.settings.arms == "knapsack" and max(self.context.pending) == 1:
            self._take(arms, knapsack_arms(self.context, root, self._protected, self._most))
        self._measures = not arms.complete and self.settings.arms == "importance"
        self._use(arms.choose())
        self._chosen = True
        return super().draft(root)

    @property
    def _protected(self) -> int:
        assert self.settings.protected is not None  # as `fit` made it
        return self.settings.protected

    @property
    def _most(self) -> int:
        assert self.settings.most is not None  # as `fit` made it
        return self.settings.most

    def read(self, tokens: Tensor, visible: Tensor, depth: Tensor, extends_chain: bool = False) -> Tensor:
        """Return the logits after the nodes of a block; while arms are found, note how much each layer changes them."""
        self._passes += 1
        if not self._measures:
            return super().read(tokens, visible, depth, extends_chain)
        family = self.session.model.family
        numbers = range(len(family.layers) + 1)
        with capture(family, numbers) as states:
            logits = super().read(tokens, visible, depth, extends_chain)
        near = [torch.cosine_similarity(states[a].float(), states[b].float(), dim=-1) for a, b in pairwise(numbers)]
        self._changes.append(self.session.whole(1 - torch.stack(near, dim=-1)))
        return logits

    def observe(self, tree: DraftTree, scores: Scores | None, verdict: Verdict) -> None:
        """Learn what the arm has brought, and find the next one."""
        if self._chosen:
            lengths = [length for length in verdict.lengths if length]
            kept = 1 - len(self._skipped) / (2 * len(self.target.family.layers))
            if lengths and self._passes and not verdict.settled:
                self._of.learn(self._skipped, sum(lengths) / len(lengths), self._passes * kept + 1)
                if self._changes:
                    self._grow(self._of, self._importance(tree, verdict))
            else:  # a round without a draft, or whose draft the target has not judged
                self._of.withdraw(self._skipped)
        self._chosen = False
        self._passes, self._changes = 0, []
        super().observe(tree, scores, verdict)

    def _importance(self, tree: DraftTree, verdict: Verdict) -> list[float]:
        """Return how much each layer of the arm has changed the states of the root and of accepted tokens."""
        changes = torch.cat(self._changes, dim=1)
        path = verdict.path.clamp(min=0)
        entries = self.entries_of(tree).gather(1, path)
        steps = torch.arange(path.shape[1], device=path.device)
        counts = (steps < verdict.length[:, None]) & (entries >= 0)
        return pick(changes, entries.clamp(min=0))[counts].mean(0).tolist()

    def _grow(self, arms: Arms, importance: list[float]) -> None:
        """Add the next arm, which skips one layer more than this round's; or end with those that there are."""
        if self._skipped != arms.sets[-1]:  # another request was faster
            return
        total = len(self.target.family.layers)
        layers = [number for number in range(total) if 2 * number not in self._skipped]
        protected = [*range(self._protected), *range(total - self._protected, total)]
        least = least_important(importance, layers, protected)
        if least is None or len(arms.sets) > self._most:
            self._take(arms, arms.sets[1:])
        else:
            arms.take([*arms.sets, self._skipped | whole_layers([least])])

    def _take(self, arms: Arms, found: list[frozenset[int]]) -> None:
        """Go on with the sets that were found, without that of nothing unless it is wanted or the only one."""
        arms.take([*(arms.sets[:1] if self.settings.whole or not found else []), *found])
        arms.complete = True
