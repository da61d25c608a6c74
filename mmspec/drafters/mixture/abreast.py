"""Members of a mixture that are one model with several prompts: they read what is drafted as the rows of one batch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from ...models.session import ModelSession, Pass
from ...trees.growth import Block
from ..draft_model import DraftModelDrafter
from ..step import StepDrafter

VERBS = ("expand_root", "expand", "observe")
"""The methods that draft in a round, which members leave to the first of those that they read with."""


class AbreastSession(ModelSession):
    """A session in whose cache every row of the text has as many rows as there are members, those of the first member
    first. Whoever uses it sees the rows of the text, but for `cache` and `position_offset`, which hold all.

    Args:
        sessions: the members' own sessions behind their prompts, on one model. What they hold is copied.
    """

    def __init__(self, sessions: Sequence[ModelSession]):
        first = sessions[0]
        self.members, self.rows = len(sessions), first.cache.batch
        capacity = max(session.cache.capacity for session in sessions)
        super().__init__(first.model, self.members * self.rows, capacity)
        longest = max(session.cache.longest for session in sessions)
        layers = []
        for number in range(len(self.cache.tree_layers)):
            parts = zip(*(session.keys_values(number) for session in sessions), strict=True)
            keys, values = (
                torch.cat([functional.pad(one, (0, 0, 0, longest - one.shape[2])) for one in each]) for each in parts
            )
            layers.append((keys, values))
        self.cache.begin(longest)
        for layer, keys_values in zip(self.cache.tree_layers, layers, strict=True):
            layer.update(*keys_values)
        self.cache.end()
        self.cache.commit([length for session in sessions for length in session.cache.lengths_list])
        self.position_offset = torch.cat([session.position_offset for session in sessions], dim=-1)
        assert first.history is not None, "the members follow the text"
        self.follow(first.history, first.active)

    @property
    def entries(self) -> list[int]:
        """The entries of the first member's rows; the others have as many more or fewer as at the beginning."""
        return self.cache.lengths_list[: self.rows]

    @property
    def going_on(self) -> list[bool]:
        """One flag per row of the cache, True while its text goes on: the rows of all members end together."""
        return [*self.active] * self.members

    def read(
        self, tokens: Tensor, visible: Tensor, depth: Tensor, extends_chain: bool = False, logits: bool = True
    ) -> Pass:
        """Read a block behind the rows of all members; the logits are `[batch, new, members, vocab]`."""
        m = self.members
        read = super().read(tokens.repeat(m, 1), visible.repeat(m, 1, 1), depth.repeat(m, 1), extends_chain, logits)
        return Pass(read.logits.unflatten(0, (self.members, self.rows)).movedim(0, 2), {})

    def keep(self, counts: list[int], path: Tensor | None = None, kept: Tensor | None = None) -> None:
        """End a round for the rows of all members; see `Session.keep`."""
        path = None if path is None else path.repeat(self.members, 1)
        super().keep([*counts] * self.members, path, None if kept is None else kept.repeat(self.members))


class Abreast:
    """Members of a mixture that draft in one pass.

    Args:
        members: draft models behind their prompts; the first one reads for all of them from now on.
        places: their numbers among the members of the mixture.
    """

    def __init__(self, members: Sequence[DraftModelDrafter], places: Sequence[int]):
        self.first, self.places = members[0], [*places]
        session = AbreastSession([member.session for member in members])
        for member in members:
            member.session = session

    def expand_root(self, root: Tensor) -> list[Tensor]:
        """Return each member's `[batch, vocab]` logits; see `DraftModelDrafter.expand_root`."""
        session = self.first.session
        trunk = self.first.newest(root, session.pending)
        logits = self.first.expand(trunk)
        session.keep(trunk.counts, kept=trunk.kept)
        last = trunk.last_of(logits.flatten(2)).unflatten(-1, logits.shape[2:])
        return [*last.unbind(1)]

    def expand(self, block: Block) -> list[Tensor]:
        """Return each member's `[batch, new, vocab]` logits after a block of nodes."""
        return [*self.first.expand(block).unbind(2)]


class Alone:
    """A member of a mixture that drafts in passes of its own.

    Args:
        member: the member.
        place: its number among the members of the mixture.
    """

    def __init__(self, member: StepDrafter, place: int):
        self.first, self.places = member, [place]

    def expand_root(self, root: Tensor) -> list[Tensor]:
        """Return its `[batch, vocab]` logits."""
        return [self.first.expand_root(root)]

    def expand(self, block: Block) -> list[Tensor]:
        """Return its `[batch, new, vocab]` logits after a block of nodes."""
        return [self.first.expand(block)]


def side_by_side(members: Sequence[StepDrafter], together: bool) -> list[Abreast | Alone]:
    """Return the members in the groups that pass through a model together.

    Args:
        members: the members, each behind its prompt.
        together: False to leave all alone.
    """
    groups: list[list[int]] = []
    for place, member in enumerate(members):
        fits = (group for group in groups if together and _one_pass(members[group[0]], member))
        group = next(fits, None)
        if group is None:
            groups.append([place])
        else:
            group.append(place)
    return [
        Alone(members[group[0]], group[0])
        if len(group) == 1
        else Abreast([member for place in group if isinstance(member := members[place], DraftModelDrafter)], group)
        for group in groups
    ]


def _one_pass(one: StepDrafter, other: StepDrafter) -> bool:
    """Return True if two members can be rows of one batch: one model, nothing beside the text to attend to, no pairs of
    prompts (guidance). A class that reads in a way of its own goes alone."""
    for member in (one, other):
        if not isinstance(member, DraftModelDrafter):
            return False
        if any(getattr(type(member), verb) is not getattr(DraftModelDrafter, verb) for verb in VERBS):
            return False
        session = member.session
        if type(session) is not ModelSession or session.extra or session.beside is not None:
            return False
    assert isinstance(one, DraftModelDrafter) and isinstance(other, DraftModelDrafter)
    same_axes = one.session.position_offset.ndim == other.session.position_offset.ndim
    return one.model is other.model and same_axes
