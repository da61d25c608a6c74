"""ArmSelector: which of several ways a round is drafted in is learnt while the text is written."""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from torch import Tensor, nn

from ..bandits import Bandit, Unimodal
from ..drafters.base import Drafter, expect_drafter
from ..errors import MMSpecError, shown
from ..loading import load_drafter
from ..models.weights import count_weights
from ..outcome import Scores, Verdict
from ..settings.arguments import flags, instance
from ..tree import DraftTree
from ..trees import Chain, TreeBuilder
from .arm import Arm

if TYPE_CHECKING:
    from ..context import Context
    from ..target import Target

NODE = 0.01
"""Cost of a drafted node in the target's pass, in plain steps, where costs are estimated."""


class _Waiting(NamedTuple):
    """A round whose seconds are not known yet."""

    arm: int
    tokens: float
    seconds: dict[str, float]


class ArmSelector(Drafter):
    """A drafter that drafts every round in one of several ways, its arms, as a bandit learns which gives most tokens
    for its cost (the selector of SP2EC, for any drafter and any kind of arm).

    Arms are lengths of chains, node budgets and other trees; compressors; settings of a drafter, such as the sub-layers
    that it skips (`Drafter.adjust`); and other drafters. Arms of one drafter and one compressor that set the same
    settings share a state. Members that rest in a round hear what was emitted, and read it when they are asked again.

    Faithful: the bandits, the first pull of every arm, tokens by cost. Ours: arms of any kind; batches, whose rows have
    the same arm; costs that are not times.

    An arm is chosen before a round, by rounds that are committed. So this is lossless with every lossless verifier; and
    greedy text and that of `PointMassSampling` do not depend on the arms at all. With drawn children
    (`RejectionSampling`) which sample is drawn depends on them: there costs are estimated, not measured, so that a seed
    repeats its text.

    Needs no training beyond that of its drafters.

    Args:
        target: the model to draft for.
        drafter: what drafts, in copies; None where every arm has a drafter of its own.
        arms: the arms, see `Arm.of`; for `Unimodal` in the order in which speed rises to a peak and falls again.
        bandit: what chooses: `Unimodal()` or `UpperConfidence()`, or one of your own.
        cost: `"time"` measures what a round takes from its beginning to its end; `"work"` estimates it, so that
            choices repeat everywhere: a step of the target, the drafter's share of its parameters for every level, and
            a hundredth of a step for every node. The processes of a divided target always estimate.
        lasting: whether what one request teaches holds for the next ones; else each begins anew.

    Attributes:
        chosen: the arm of the newest round, by its place; None before the first one.

    Raises:
        MMSpecError: for fewer than two arms, parts of another kind, arms for another target, and arms that their
            drafter cannot draft.
    """

    def __init__(
        self,
        target: Target,
        drafter: Drafter | None = None,
        arms: Sequence[Any] = (),
        bandit: Bandit | None = None,
        cost: Literal["time", "work"] = "time",
        lasting: bool = False,
    ):
        super().__init__(target)
        if isinstance(arms, str | Mapping) or not isinstance(arms, Iterable) or len(arms) < 2:
            raise MMSpecError(f"ArmSelector: arms={shown(arms)} must be a list of two arms or more, such as chains")
        if cost not in ("time", "work"):
            raise MMSpecError(f"ArmSelector: cost={shown(cost)} must be time or work")
        flags(self, lasting=lasting)
        self.cost, self.lasting = cost, lasting
        self.lessons = instance(self, Bandit, "Unimodal()", bandit=Unimodal() if bandit is None else bandit)
        self.arms = [Arm.of(given) for given in arms]
        members: list[Drafter] = []
        self.places: list[int] = []  # of each arm's drafter among the members
        known: dict[tuple[Any, ...], int] = {}
        for arm in self.arms:
            base = arm.drafter or drafter
            if base is None:
                raise MMSpecError("ArmSelector: drafter=None, so every arm needs a drafter of its own")
            expect_drafter(base, "ArmSelector")
            if base.target is not target and base.target.model is not target.model:
                raise MMSpecError(f"ArmSelector: a {type(base).__name__} was made for another target: make it anew")
            if base.anticipates:
                raise MMSpecError(
                    f"ArmSelector: {type(base).__name__} works while the target does, and arms that rest cannot: give "
                    "its draft model"
                )
            if arm.tree is not None and base.tree is None:
                raise MMSpecError(f"ArmSelector: {type(base).__name__} proposes whole trees of its own, and takes none")
            # Whoever was adjusted stays so: an arm that leaves a setting out needs a drafter that nobody adjusts.
            key = id(base), id(arm.compressor), *sorted(arm.settings)
            if key not in known:
                known[key] = len(members)
                members.append(base.fork() if arm.compressor is None else base.with_compressor(arm.compressor))
            self.places.append(known[key])
        if len(members) > 1 and (every := [one for one in members if one.reads_every_round]):
            raise MMSpecError(
                f"ArmSelector: {type(every[0]).__name__} has to read every round, so no other drafter or compressor "
                "can take turns with it: choose arms of trees and settings"
            )
        self.members = nn.ModuleList(members)
        self.feature_layers = tuple(dict.fromkeys(layer for one in members for layer in one.feature_layers))
        for arm, place in zip(self.arms, self.places, strict=True):
            if arm.settings:
                members[place].fork().adjust(**arm.settings)  # refuses what it cannot take
        self.renew()

    def renew(self) -> None:
        """Begin anew for another request; what it has learnt stays if it is `lasting`."""
        self.bandit = self.lessons if self.lasting else copy.deepcopy(self.lessons)
        self.bandit.begin(len(self.arms))
        self.chosen: int | None = None
        self._waiting: deque[_Waiting] = deque()
        self._sampled = False

    @property
    def states_read(self) -> tuple[int, ...]:
        """The states that its members and the builders of its arms look at."""
        of_members = [layer for member in self._all for layer in member.states_read]
        of_trees = [layer for arm in self.arms if arm.tree for layer in arm.tree.feature_layers(self.target)]
        return tuple(dict.fromkeys([*of_members, *of_trees]))

    @property
    def drafts_unread(self) -> bool:
        """True if the members can, and none of them has to draft behind unread tokens of another."""
        alone = len(self.members) == 1
        return all(one.drafts_unread and (alone or not one.feature_layers) for one in self._all)

    @property
    def max_nodes(self) -> int | None:
        """The largest number of nodes of any arm; None if one does not say."""
        most = [
            tree.max_nodes if tree else one.max_nodes for tree, one in zip(self._trees(), self._owners, strict=True)
        ]
        known = [one for one in most if one is not None]
        return max(known) if len(known) == len(most) else None

    def check(self, proposal: str) -> None:
        """Refuse proposals that the shape of an arm would bias."""
        self._sampled = proposal == "sampled"
        for tree, member in zip(self._trees(), self._owners, strict=True):
            if tree is None:
                member.check(proposal)
            else:
                tree.check(proposal)

    def config(self) -> dict[str, Any]:
        """Return what there is to say of the arms, which tells them from others where costs are noted."""
        return {
            "arms": [repr(arm.tree or arm.compressor or dict(arm.settings)) for arm in self.arms],
            "members": [type(member).__name__ for member in self.members],
            "bandit": type(self.lessons).__name__,
        }

    def save_pretrained(self, folder: Any, **metadata: Any) -> None:
        """Refuse to be saved: what there is to save are the drafters."""
        raise MMSpecError("an ArmSelector cannot be saved: save its drafters, and name the arms in a configuration")

    # In a request.

    def start(self, context: Context) -> None:
        """Let every member read the prompt."""
        self.context = context
        whole = count_weights(self.target.model)
        self._shares = [count_weights(member) / whole for member in self._all]
        for arm, tree in zip(self.arms, self._trees(), strict=True):
            arm.tree = tree  # its own, or that of its drafter, which a resting drafter is without
        for member in self._all:
            self._rest(member)
            member.start(context)

    def draft(self, root: Tensor) -> DraftTree:
        """Choose an arm, and draft with it."""
        clock = self.context.clock
        while self._waiting and clock is not None and clock.booked(self._waiting[0].seconds):
            past = self._waiting.popleft()
            self.bandit.learn(past.arm, past.tokens, sum(past.seconds.values()))
        self.chosen = self.bandit.choose()
        arm, member = self.arms[self.chosen], self._owners[self.chosen]
        if arm.tree is not None:
            member.tree = arm.tree
        if arm.settings:
            member.adjust(**arm.settings)
        return member.draft(root)

    def observe(self, tree: DraftTree, scores: Scores | None, verdict: Verdict) -> None:
        """Tell all members, each in its way, and learn what the arm was worth."""
        assert self.chosen is not None, "draft has chosen an arm"
        arm, owner = self.arms[self.chosen], self._owners[self.chosen]
        foreign = tree.of_another()
        for member in self._all:
            if member is owner:
                member.observe(tree, scores, verdict)
                self._rest(member)
            else:
                member.rest(foreign, scores, verdict)
        self._builders_rest(arm.tree, scores, verdict)
        if verdict.settled:
            self.bandit.withdraw(self.chosen)
            return
        tokens, clock = float(sum(verdict.lengths)), self.context.clock
        if arm.cost is not None:
            self.bandit.learn(self.chosen, tokens, arm.cost)
        elif self.cost == "work" or self._sampled or clock is None:
            self.bandit.learn(self.chosen, tokens, self._work(self.places[self.chosen], tree))
        else:
            self._waiting.append(_Waiting(self.chosen, tokens, clock.round))

    def rest(self, tree: DraftTree, scores: Scores | None, verdict: Verdict) -> None:
        """Tell all members of a round in which none of them was asked; no arm is judged by it."""
        for member in self._all:
            member.rest(tree, scores, verdict)
        self._builders_rest(None, scores, verdict)

    def _builders_rest(self, but: TreeBuilder | None, scores: Scores | None, verdict: Verdict) -> None:
        """Tell the builders of all arms, but for one, of a tree that they have not grown."""
        owners = {id(arm.tree): (arm.tree, owner) for arm, owner in zip(self.arms, self._owners, strict=True)}
        for builder, owner in owners.values():
            if builder is not None and builder is not but:
                builder.rest(owner, scores, verdict)

    def _work(self, place: int, tree: DraftTree) -> float:
        """Return what a round of a member costs by estimate, in plain steps of the target."""
        member = self._all[place]
        nodes = tree.num_nodes - 1
        levels = 0 if not nodes else 1 if member.cheap_levels else tree.max_depth
        return 1 + levels * self._shares[place] + NODE * nodes

    @staticmethod
    def _rest(member: Drafter) -> None:
        """Give a member that grows trees a builder that learns nothing, until it is asked again."""
        if member.tree is not None:
            member.tree = Chain()

    @property
    def _all(self) -> list[Drafter]:
        """The members."""
        return [member for member in self.members if isinstance(member, Drafter)]

    @property
    def _owners(self) -> list[Drafter]:
        """The member of each arm."""
        members = self._all
        return [members[place] for place in self.places]

    def _trees(self) -> list[TreeBuilder | None]:
        """Return the builder of each arm; None for one whose drafter proposes whole trees."""
        pairs = zip(self.arms, self._owners, strict=True)
        return [member.tree if arm.tree is None else arm.tree.for_drafter(member) for arm, member in pairs]


def arms_of(
    target: Target,
    name: str,
    arms: Sequence[Any],
    bandit: Bandit | None = None,
    cost: Literal["time", "work"] = "time",
    lasting: bool = False,
) -> ArmSelector:
    """Return an `ArmSelector` of a drafter by its name.

    Args:
        target: the model to draft for.
        name: the drafter, see `mmspec.load_drafter`.
        arms, bandit, cost, lasting: see `ArmSelector`.
    """
    return ArmSelector(target, load_drafter(name, target), arms, bandit, cost, lasting)
