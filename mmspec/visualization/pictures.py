"""The visual tokens that a drafter keeps of a picture, drawn over it."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from einops import einsum, rearrange
from torch import Tensor

from ..compressors import Compressed, Elastic, Resampler, VisualCompressor, VisualSpan
from ..drafters import DraftModelDrafter, FeatureDrafter
from ..errors import MMSpecError
from ..inputs import prepare
from ..media import load_image
from ..models.hooks import Ear, listening
from .figures import Plot, figure

if TYPE_CHECKING:
    from ..drafters import Drafter

VEIL = (0.45, 0.45, 0.45)
"""Colour, red to blue from 0 to 1, that covers what is left out. It is grey because white would not show on white
paper."""
TITLE = 32
"""Number of letters in a line above a picture."""


@dataclass
class Kept:
    """The part of one picture that is left for a drafter.

    Args:
        weights: `[rows, columns]` share of each visual token in what the drafter reads, scaled so that the largest is
            1. For a resampler it is the attention of its queries.
        entries: number of entries that the drafter reads for the picture.
    """

    weights: Tensor
    entries: int

    @property
    def tokens(self) -> int:
        """Number of visual tokens in the picture."""
        return self.weights.numel()


@torch.inference_mode()
def kept_tokens(drafter: Drafter, prompt: str, images: Any) -> list[Kept]:
    """Return what a drafter reads of the pictures in a prompt.

    Args:
        drafter: a drafter of any kind. One without a compressor keeps all, and one that reads no pictures keeps
            nothing.
        prompt: the question, which some compressors read.
        images: the pictures, see `mmspec.generate`.

    Raises:
        MMSpecError: for pictures whose visual tokens do not form a rectangle.
    """
    target = drafter.target
    request = prepare(target, [prompt], [images if isinstance(images, (list, tuple)) else [images]])
    vision = target.encode(request)
    if vision is None or not vision.sizes:
        raise MMSpecError("the prompt has no pictures: give at least one in images")
    known = target.family.grids(request.inputs, vision)
    grids = [grid for grid in known if grid is not None and grid[0] == 1]
    if len(grids) < len(known):
        raise MMSpecError(
            f"the visual tokens of {type(target.model).__name__} do not form a rectangle, so they cannot be drawn"
        )
    drafter = drafter.fork()
    compressor = drafter.compressor
    if compressor is None:
        share = 1.0 if _reads_pictures(drafter) else 0.0
        return [Kept(torch.full(grid[1:], share), round(share * grid[1] * grid[2])) for grid in grids]
    seen = []

    def look(spans: tuple[VisualSpan], left: Compressed) -> None:
        seen.append((_weights(compressor, spans[0], left), len(left.embeds)))

    with listening([Ear(compressor, after=look)]):
        context = target.prefill(request, vision, request.max_length + 1, drafter.feature_layers)
        context.admit(context.logits.argmax(-1)[:, None].tolist())
        drafter.start(context)
    return [
        Kept((weights / weights.max().clamp(min=1e-9)).view(grid[1:]), entries)
        for (weights, entries), grid in zip(seen, grids, strict=True)
    ]


def _reads_pictures(drafter: Drafter) -> bool:
    """Return True if the prompt of a drafter without a compressor contains the pictures. N-gram look-up and heads that
    read a single state have no prompt of their own."""
    if isinstance(drafter, DraftModelDrafter):
        return drafter.reads_pictures
    return isinstance(drafter, FeatureDrafter)


def _weights(compressor: VisualCompressor, span: VisualSpan, left: Compressed) -> Tensor:
    """Return the share of each visual token that is left, `[tokens]`."""
    if isinstance(compressor, Elastic) and compressor.mode == "selection":
        compressor = compressor.operators[compressor.choice(span)]
    if isinstance(compressor, Resampler):
        keys = compressor.k_proj(span.embeds.to(compressor.q.dtype))
        keys = rearrange(keys, "token (head width) -> token head width", head=compressor.heads)
        scores = einsum(compressor.q, keys, "query head width, token head width -> query head token")
        scores = scores / keys.shape[-1] ** 0.5
        return scores.float().softmax(-1).mean((0, 1)).cpu()
    source = left.source
    weights = torch.zeros(source.shape[1])
    return weights.index_add_(0, source.tokens.cpu(), source.weights.float().abs().cpu())


def draw_kept(drafters: dict[str, Drafter], prompt: str, image: Any) -> Plot:
    """Draw one picture as several drafters read it: kept parts are clear, and a veil covers the parts left out.

    The grid of visual tokens is stretched over the picture, so where a processor crops it the edges are not exact.

    Args:
        drafters: names with their drafters.
        prompt: the question.
        image: a picture, see `mmspec.generate`.
    """
    picture = load_image(image)
    plot = figure(2.6 * len(drafters), 3.1)
    panels = plot.subplots(1, len(drafters), squeeze=False)[0]
    for axes, (name, drafter) in zip(panels, drafters.items(), strict=True):
        (kept,) = kept_tokens(drafter, prompt, [picture])
        rows, columns = kept.weights.shape
        axes.imshow(picture, extent=(0, columns, rows, 0), aspect="auto")
        veil = torch.tensor([*VEIL, 0.0]).repeat(rows, columns, 1)
        veil[..., 3] = 0.8 * (1 - kept.weights)
        axes.imshow(veil.numpy(), extent=(0, columns, rows, 0), aspect="auto", interpolation="nearest")
        axes.set_xticks(range(columns + 1), labels=[])
        axes.set_yticks(range(rows + 1), labels=[])
        axes.grid(color="#00000030", lw=0.5)
        axes.tick_params(length=0)
        shown = textwrap.fill(name, TITLE)  # beside its neighbours
        axes.set_title(f"{shown}\n{kept.entries} entries for {kept.tokens} tokens", fontsize=9)
    return plot
