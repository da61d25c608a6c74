"""Arm: one of several ways to draft a round."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..compressors import VisualCompressor
from ..drafters.base import Drafter
from ..errors import MMSpecError, shown
from ..per_request import PerRequest
from ..settings.arguments import number
from ..trees import TreeBuilder


@dataclass(eq=False)
class Arm(PerRequest):
    """A way to draft a round. What it leaves out is as the selector's drafter has it.

    Args:
        tree: the builder of its trees.
        compressor: its view of the pictures. The drafter then has a state of its own for it.
        drafter: another drafter, made for the same target.
        settings: settings of the drafter, for `Drafter.adjust`, such as the sub-layers that it skips.
        cost: what a round costs, in any unit that all arms share; None to measure it, or estimate it.

    Raises:
        MMSpecError: for parts of another kind, and a cost that is not above 0.
    """

    tree: TreeBuilder | None = None
    compressor: VisualCompressor | None = None
    drafter: Drafter | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    cost: float | None = None

    def __post_init__(self) -> None:
        kinds: tuple[tuple[str, type, Any], ...] = (
            ("tree", TreeBuilder, self.tree),
            ("compressor", VisualCompressor, self.compressor),
            ("drafter", Drafter, self.drafter),
        )
        for name, kind, value in kinds:
            if not isinstance(value, kind | None):
                raise MMSpecError(
                    f"Arm: {name}={shown(value)} is no {kind.__name__}; pass an instance, or leave it out"
                )
        if not isinstance(self.settings, Mapping) or not all(isinstance(name, str) for name in self.settings):
            raise MMSpecError(f"Arm: settings={shown(self.settings)} must be settings of the drafter by name")
        if self.cost is not None:
            self.cost = number(self, above=0, cost=self.cost)

    @classmethod
    def of(cls, given: Any) -> Arm:
        """Return an arm from itself, a tree builder, a compressor, a drafter, or settings of the drafter.

        Raises:
            MMSpecError: for anything else.
        """
        if isinstance(given, TreeBuilder):
            return cls(tree=given)
        if isinstance(given, VisualCompressor):
            return cls(compressor=given)
        if isinstance(given, Drafter):
            return cls(drafter=given)
        if isinstance(given, Mapping):
            return cls(settings=dict(given))
        if not isinstance(given, cls):
            raise MMSpecError(
                f"ArmSelector: arms has {shown(given)}, which is no arm: give tree builders, compressors, drafters, "
                "settings of the drafter by name, or an Arm of several of these"
            )
        return given
