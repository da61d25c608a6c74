"""Mixtures by name: one small model with several views of the pictures, and others beside it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from .compressors import Hide, Pool, VisualCompressor
from .drafters import CaptionedDrafter, DraftModelDrafter, MixtureDrafter, MixtureWeights, StepDrafter
from .errors import MMSpecError, shown
from .loading import load_drafter, made_without_weights
from .trees import TreeBuilder

if TYPE_CHECKING:
    from .target import Target

VIEWS = ("whole", "text", "pooled", "captioned")


def mixture_of_views(
    target: Target,
    name: str,
    views: Sequence[str | VisualCompressor] = ("whole", "text", "pooled"),
    others: Sequence[str] = (),
    weights: str | Sequence[float] | MixtureWeights = "matches",
    tree: TreeBuilder | None = None,
    together: bool = True,
) -> MixtureDrafter:
    """Return the mixture of a small model with itself, each time with another view of the pictures, and of others (the
    drafters of TABED, arXiv 2601.20357).

    `"whole"` is the model as it is; `"text"` leaves visual tokens out (the paper puts a newline in the place of each,
    which costs as much as the picture); `"pooled"` takes the mean of two by two (the paper: before the projector);
    `"captioned"` reads a caption in the place of each picture, see `CaptionedDrafter`.

    Args:
        target: the model to draft for.
        name: the small model, see `mmspec.load_drafter`; it reads pictures.
        views: names of views, or compressors for views of your own.
        others: names of further drafters, see `mmspec.load_drafter`.
        weights, tree, together: see `MixtureDrafter`.

    Raises:
        MMSpecError: for a drafter that is no draft model which reads pictures, or a view that there is not.
    """
    for part, given, such_as in (("views", views, VIEWS[0]), ("others", others, "tiny/text_only")):
        if isinstance(given, str) or not isinstance(given, Sequence):
            raise MMSpecError(f"mixture_of_views: {part}={shown(given)} must be a list, such as [{such_as}]")
    model = load_drafter(name, target)
    if not isinstance(model, DraftModelDrafter) or not model.reads_pictures:
        raise MMSpecError(
            f"mixture_of_views: name={shown(name)} is a {type(model).__name__} that reads no pictures, so there are no "
            "views of them; choose a draft model that does, such as tiny/draft_model"
        )
    members: list[StepDrafter] = [view_of(model, view) for view in views]
    for other in others:
        if (made := made_without_weights(other)) is not None:
            raise MMSpecError(
                f"mixture_of_views: others={shown(other)} is not loaded but made, by {made}; name drafters that were "
                "trained, such as tiny/text_only, or give the members yourself, MixtureDrafter(target, members)"
            )
        member = load_drafter(other, target)
        if not isinstance(member, StepDrafter):
            raise MMSpecError(f"mixture_of_views: others={shown(other)} is a {type(member).__name__}, without logits")
        members.append(member)
    return MixtureDrafter(target, members, weights, tree, together)


def view_of(model: DraftModelDrafter, view: str | VisualCompressor) -> DraftModelDrafter:
    """Return a draft model with a view of the pictures, see `mixture_of_views`; it shares the weights."""
    compressors = {"text": Hide(packed=True), "pooled": Pool(2)}
    if isinstance(view, VisualCompressor) or view in compressors:
        seen = model.with_compressor(view if isinstance(view, VisualCompressor) else compressors[view])
        assert isinstance(seen, DraftModelDrafter)
        return seen
    if view == "whole":
        fork = model.fork()
        assert isinstance(fork, DraftModelDrafter)
        return fork
    if view == "captioned":
        return CaptionedDrafter(model.target, model.model, model.draft_target.processor)
    raise MMSpecError(f"mixture_of_views: views={shown(view)} is none of {', '.join(VIEWS)}, and no compressor")
