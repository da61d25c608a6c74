"""Project methods that were measured on a small target to a big one: `mmspec bench simulate`.

The bundle tells how many tokens are accepted, how many nodes are drafted in how many passes, and how big the drafter is
next to its target. All times come from the roofline. These are projections: a bigger target with its own drafter
accepts another number of tokens, and no device reaches its peaks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..errors import MMSpecError
from .deployment import Deployment
from .prediction import Prediction
from .roofline import Architecture, model_of
from .structure import MODEL, BlockStructure, Structure, structure_from

if TYPE_CHECKING:
    from ..evaluation.figures import Row


@dataclass(frozen=True)
class MeasuredMethod:
    """A measured method, as a bundle describes it.

    Args:
        label: name of the method.
        tokens: tokens per round and row.
        nodes: drafted nodes per round and row.
        passes: passes of the drafter per round; levels of the tree.
        width: number of nodes that the drafter expands per pass after the first.
        structure: size of the drafter.
    """

    label: str
    tokens: float
    nodes: float
    passes: float
    width: float
    structure: Structure | BlockStructure


def project(method: MeasuredMethod, target: Architecture, setting: Deployment) -> Prediction:
    """Predict the mean round of a method on a target of that size."""
    step = setting.seconds(target, 1)
    return Prediction(
        tokens=method.tokens,
        draft=method.structure.seconds(method.passes, method.tokens, method.width, target, setting),
        score=setting.seconds(target, method.nodes + 1),
        overhead=setting.overhead,
        step=step,
        plain=step + setting.overhead,
        depth=method.passes,
        rows=setting.batch,
    )


def methods_of(rows: Sequence[Row], structures: Mapping[str, Any], share: float | None = None) -> list[MeasuredMethod]:
    """Return the methods that a report's rows describe, with the same weight for each task as in the table.

    The baseline, transformers' own methods and methods that did not answer every task are left out.

    Args:
        rows: rows of a report.
        structures: structures of drafters by name, for bundles that do not say; these win over the bundles.
        share: share of the target's size for every small draft model, instead of the measured one.

    Raises:
        MMSpecError: if no method is left, or a bundle does not say how a drafter is made.
    """
    found = []
    for row in rows:
        figures = row.mean  # over tasks, as in the table
        if row.baseline or figures is None or figures.nodes is None or row.side.get("drafter") is None:
            continue
        levels = figures.levels or 0.0
        tree = row.side["settings"].get("tree")
        width = tree.get("top_k") if isinstance(tree, Mapping) and "depth" in tree else None
        if (
            not isinstance(width, int) or width < 1
        ):  # each pass but the last makes about as many nodes as the next one expands
            width = max(1.0, figures.nodes / levels) if levels else 1.0
        structure = _structure(row, structures, share)
        tokens = figures.mean_acceptance_length.value
        found.append(MeasuredMethod(row.method, tokens, figures.nodes, levels, float(width), structure))
    if not found:
        raise MMSpecError(
            "the bundles hold no method of mmspec's own loop that drafts: measure one, such as mmspec bench "
            "drafter=eagle3"
        )
    return found


def _structure(row: Row, structures: Mapping[str, Any], share: float | None) -> Structure | BlockStructure:
    name = row.side["drafter"]
    if name in structures:
        return Structure.of(structures[name])
    described = row.side.get("drafter_structure")
    if described is None:
        raise MMSpecError(
            f"the bundle does not say how drafter {name!r} is made, because an older mmspec wrote it: measure again, "
            f"or say it with structures={{{name}:head}}, or lookup, or a share such as 0.1"
        )
    try:
        structure = structure_from(described)
    except (AttributeError, TypeError):
        raise MMSpecError(f"the bundle gives drafter {name!r} the structure {str(described)[:80]}") from None
    if structure.kind == MODEL and share is not None:
        return Structure.of(share)
    return structure


def project_all(
    methods: Sequence[MeasuredMethod], models: Sequence[str], setting: Deployment
) -> dict[str, list[Prediction]]:
    """Project every method to every model; the result is by the model's name."""
    return {name: [project(method, model_of(name), setting) for method in methods] for name in models}
