"""Load a trained head and choose what its attention sees: all of the prompt, or its text alone."""

from __future__ import annotations

from typing import Any, Literal

from .drafters import FeatureDrafter
from .loading import load_drafter_as
from .target import Target


def load_scoped(
    name: str, target: Target, attention_scope: Literal["all", "text"] = "text", **kwargs: Any
) -> FeatureDrafter:
    """Load a head and let it attend to text alone, or to all of the prompt (Sparrow, arXiv 2602.15318).

    Args:
        name: a head on the target's states, as for `mmspec.load_drafter`: an embedded one, a folder, or a checkpoint
            that the authors published.
        target: the model to draft for.
        attention_scope: `text` or `all`, see `FeatureSettings`.
        kwargs: further arguments of `mmspec.load_drafter`.

    Raises:
        MMSpecError: see `load_drafter` and `FeatureDrafter.with_scope`; for a drafter of another kind.
    """
    lacking = (
        "pairs no states with tokens and has no attention_scope: name a head such as tiny/eagle, or leave pictures out "
        "with compressor=hide"
    )
    return load_drafter_as(FeatureDrafter, name, target, lacking, **kwargs).with_scope(attention_scope)
