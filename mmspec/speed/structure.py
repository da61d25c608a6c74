"""The structure of drafters next to their targets, and the seconds that drafting takes on a target of another size."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

from ..errors import MMSpecError
from .roofline import Architecture, bound

if TYPE_CHECKING:
    from .deployment import Deployment

LOOKUP, HEAD, MODEL, BLOCK = "lookup", "head", "model", "block"


@dataclass(frozen=True)
class Structure:
    """The size of a drafter in relation to its target.

    Args:
        kind: `lookup` (no passes), `head` (layers over the target's features, with its vocabulary head), or `model` (a
            small model of its own).
        layers: for a head, its weights in layers of the target; for a model, its layers as a share of the target's.
        share: for a model, its weights as a share of the target's.
        vocabulary: share of the vocabulary that it drafts from.
        one_pass: True if it drafts all levels in one pass that is as wide as the tree is deep.
    """

    kind: str
    layers: float = 1.0
    share: float = 1.0
    vocabulary: float = 1.0
    one_pass: bool = False

    @classmethod
    def of(cls, written: Any) -> Structure:
        """Make a structure from a user's setting: `lookup`, `head`, or a model's share of the target's size, such as
        0.1."""
        if written in (LOOKUP, HEAD):
            return cls(written)
        if isinstance(written, int | float) and not isinstance(written, bool) and 0 < written <= 1:
            # Weights grow with layers times width squared: of a model that is slimmer in all three alike.
            return cls(MODEL, layers=float(written) ** (1 / 3), share=float(written))
        raise MMSpecError(
            f"the structure {written!r} of a drafter is unknown: give {LOOKUP}, {HEAD}, or a small model's share of "
            "the target's size, such as 0.1"
        )

    def sized(self, target: Architecture) -> Architecture | None:
        """Return the architecture of such a drafter for a target; None if it makes no passes."""
        if self.kind == LOOKUP:
            return None
        if self.kind == HEAD:
            return replace(target, layers=self.layers, vocabulary=self.vocabulary * target.vocabulary)
        # Fewer layers of less width: of all weights the share, of all layers the share that it has.
        slim = replace(target, layers=self.layers * target.layers)
        return replace(slim, share=self.share * target.parameters / slim.parameters)

    def seconds(self, passes: float, tokens: float, width: float, target: Architecture, setting: Deployment) -> float:
        """Return the seconds of drafting a round: a pass over what is new, and one for each further level.

        Args:
            passes: levels of the tree.
            tokens: new tokens per row.
            width: nodes per row that are expanded at each further level.
            target: the size of the target.
            setting: the conditions.
        """
        drafter = self.sized(target)
        if drafter is None or passes <= 0:
            return 0.0
        block = passes if self.one_pass else 0.0
        further = 0.0 if block else max(0.0, passes - 1) * setting.seconds(drafter, width)
        return setting.seconds(drafter, tokens + block) + further


@dataclass(frozen=True)
class BlockStructure:
    """The size of a drafter that guesses all levels in one pass, in relation to its target. Weights are counted in
    layers of the target, those of vocabulary heads in heads of the target.

    Args:
        slots: slots of a pass, however deep the tree is.
        layers: weights that every slot passes.
        read: weights that a pass reads, vocabulary heads left out: those of `layers`, and what fuses new states.
        entering: weights that the states of a new token pass on their way into keys and values.
        cached: number of layers that keep keys and values, and attend to them.
        guesses: slots whose states go through vocabulary heads.
        heads: weights of these vocabulary heads.
        level: weights of what a level takes beside the pass, such as a correction.
        level_heads: the same of those that are as many as there are tokens to guess.
    """

    slots: float
    layers: float
    read: float
    entering: float
    cached: float
    guesses: float
    heads: float
    level: float = 0.0
    level_heads: float = 0.0

    kind: ClassVar[str] = BLOCK

    def first_pass(self, tokens: float, target: Architecture, setting: Deployment) -> tuple[float, float]:
        """Return the bytes and the operations of the pass behind so many new tokens per row, for all rows."""
        layer, head, batch, prefix = target.layer_parameters, target.head_parameters, setting.batch, setting.prefix
        entries = 2 * self.cached * target.key_value_heads * target.head_dim
        moved = setting.width * (self.read * layer + self.heads * head + batch * prefix * entries)
        attended = self.cached * target.heads * target.head_dim * prefix
        weights = self.slots * self.layers * layer + tokens * self.entering * layer + self.guesses * self.heads * head
        return moved, batch * (2 * weights + 4 * self.slots * attended)

    def one_level(self, nodes: float, target: Architecture, setting: Deployment) -> tuple[float, float]:
        """Return the bytes and the operations of a level of so many nodes per row, beside the pass."""
        weights = self.level * target.layer_parameters + self.level_heads * target.head_parameters
        return setting.width * weights, 2 * setting.batch * nodes * weights

    def seconds(self, passes: float, tokens: float, width: float, target: Architecture, setting: Deployment) -> float:
        """Return the seconds of drafting a round: the pass, and what each level takes. Where a level takes something,
        it is launched like a layer. See `Structure.seconds`."""
        if passes <= 0:
            return 0.0
        first = bound(setting.device, *self.first_pass(tokens, target, setting)) + self.layers * setting.launch
        if not self.level + self.level_heads:
            return first
        level = bound(setting.device, *self.one_level(width, target, setting)) + setting.launch
        return first + passes * level


def structure_from(described: dict[str, Any]) -> Structure | BlockStructure:
    """Return the structure that a bundle describes.

    Raises:
        TypeError: if it is none.
    """
    if described.get("kind") != BLOCK:
        return Structure(**described)
    return BlockStructure(**{name: value for name, value in described.items() if name != "kind"})
