"""The visual tokens that a drafter keeps of a picture, or of every frame of a clip, drawn over it."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from einops import einsum, rearrange
from torch import Tensor

from ..compressors import Compressed, Elastic, Resampler, VisualCompressor, VisualSpan
from ..compressors.budgets import evenly_spaced
from ..drafters import DraftModelDrafter, FeatureDrafter
from ..errors import MMSpecError, shown
from ..families import Vision
from ..families.vision import Grid
from ..inputs import Request, prepare
from ..media import load_image, load_video
from ..models.hooks import Ear, listening
from ..settings.arguments import as_int
from .figures import Plot, figure

if TYPE_CHECKING:
    from ..drafters import Drafter
    from ..target import Target

VEIL = (0.45, 0.45, 0.45)
"""Colour, red to blue from 0 to 1, that covers what is left out. It is grey because white would not show on white
paper."""
TITLE = 32
"""Number of letters in a line above a picture."""


@dataclass
class Kept:
    """The part of one picture, or of one frame of a video, that is left for a drafter.

    Args:
        weights: `[rows, columns]` share of each visual token in what the drafter reads, scaled so that the largest is
            1. For a resampler it is the attention of its queries.
        entries: number of entries that the drafter reads for the picture. One that stands for tokens of several frames
            is counted with the first of them.
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
        raise _shapeless(target)
    return [
        Kept((weights / weights.max().clamp(min=1e-9)).view(grid[1:]), len(first))
        for (weights, first), grid in zip(_seen(drafter, request, vision, grids), grids, strict=True)
    ]


@torch.inference_mode()
def kept_frames(drafter: Drafter, prompt: str, video: Any) -> list[Kept]:
    """Return what a drafter reads of a video, one `Kept` for every time step of the target, in order.

    A step is what the target makes one frame of tokens of: two frames of the file for Qwen-VL, one for most others. All
    weights have one scale, so that steps can be compared.

    Args:
        drafter: a drafter of any kind, see `kept_tokens`.
        prompt: the question, which some compressors read.
        video: one video, see `mmspec.generate`.

    Raises:
        MMSpecError: for a video whose visual tokens are not arranged in frames, rows and columns.
    """
    target = drafter.target
    request = prepare(target, [prompt], videos=[[video]])
    vision = target.encode(request)
    if vision is None or not vision.sizes:
        raise MMSpecError("the prompt has no video: give one")
    known = target.family.grids(request.inputs, vision)
    grids = [grid for grid in known if grid is not None]
    if len(grids) < len(known):
        raise _shapeless(target)
    seen = _seen(drafter, request, vision, grids)
    largest = max(float(weights.max()) for weights, _ in seen)
    steps = []
    for (weights, first), (frames, rows, columns) in zip(seen, grids, strict=True):
        size = rows * columns  # behind the frames of LLaVA-OneVision is a line break
        counts = (first // size).clamp(max=frames - 1).bincount(minlength=frames).tolist()
        parts = (weights[: frames * size] / max(largest, 1e-9)).view(frames, rows, columns)
        steps += [Kept(part, count) for part, count in zip(parts, counts, strict=True)]
    return steps


def _shapeless(target: Target) -> MMSpecError:
    """Return the error that there is nothing to draw over."""
    return MMSpecError(
        f"the visual tokens of {type(target.model).__name__} do not form a rectangle, so they cannot be drawn"
    )


def _seen(drafter: Drafter, request: Request, vision: Vision, grids: Sequence[Grid]) -> list[tuple[Tensor, Tensor]]:
    """Return, for every picture of a prompt, `[tokens]` the share of each token in what a drafter reads, and
    `[entries]` the first token that each entry stands for."""
    drafter, target = drafter.fork(), drafter.target
    compressor = drafter.compressor
    if compressor is None:
        reads = _reads_pictures(drafter)
        sizes = [math.prod(grid) for grid in grids]
        return [(torch.full((size,), float(reads)), torch.arange(size if reads else 0)) for size in sizes]
    seen = []

    def look(spans: tuple[VisualSpan], left: Compressed) -> None:
        count, tokens = left.source.shape
        first = torch.full((count,), tokens).scatter_reduce(
            0, left.source.entries.cpu(), left.source.tokens.cpu(), "amin"
        )
        seen.append((_weights(compressor, spans[0], left), first))

    with listening([Ear(compressor, after=look)]):
        context = target.prefill(request, vision, request.max_length + 1, drafter.feature_layers)
        context.admit(context.logits.argmax(-1)[:, None].tolist())
        drafter.start(context)
    return seen


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
        _draw(axes, picture, kept)
        title = textwrap.fill(name, TITLE)  # beside its neighbours
        axes.set_title(f"{title}\n{kept.entries} entries for {kept.tokens} tokens", fontsize=9)
    return plot


def draw_kept_frames(drafters: dict[str, Drafter], prompt: str, video: Any, most: int = 8) -> Plot:
    """Draw a clip as several drafters read it, frame by frame: a row for each drafter, a column for each time step, the
    number of entries above. Kept parts are clear, and a veil covers the parts left out.

    Args:
        drafters: names with their drafters.
        prompt: the question.
        video: a video, see `mmspec.generate`.
        most: the most steps that are drawn; of a longer video evenly spaced ones.

    Raises:
        MMSpecError: if no step is to be drawn, or the tokens are not arranged in frames.
    """
    if as_int(most) is None or most < 1:
        raise MMSpecError(f"draw_kept_frames: most={shown(most)} must be a positive integer")
    frames = load_video(video).frames
    rows = {name: kept_frames(drafter, prompt, video) for name, drafter in drafters.items()}
    steps = len(next(iter(rows.values())))
    numbers = evenly_spaced(min(most, steps), steps).tolist()
    plot = figure(1.25 * len(numbers) + 1.3, 1.6 * len(drafters))
    panels = plot.subplots(len(drafters), len(numbers), squeeze=False)
    for line, (name, kept) in zip(panels, rows.items(), strict=True):
        for axes, number in zip(line, numbers, strict=True):
            _draw(axes, frames[number * len(frames) // steps], kept[number])
            axes.set_title(f"{kept[number].entries} of {kept[number].tokens}", fontsize=8)
        total = f"{sum(each.entries for each in kept)} of {sum(each.tokens for each in kept)}"
        line[0].set_ylabel(f"{textwrap.fill(name, TITLE // 2)}\n{total}", fontsize=8)
    for axes, number in zip(panels[-1], numbers, strict=True):
        axes.set_xlabel(f"step {number}", fontsize=8)
    return plot


def _draw(axes: Any, picture: Any, kept: Kept) -> None:
    """Draw a picture, with a veil over what is left out."""
    rows, columns = kept.weights.shape
    axes.imshow(picture, extent=(0, columns, rows, 0), aspect="auto")
    veil = torch.tensor([*VEIL, 0.0]).repeat(rows, columns, 1)
    veil[..., 3] = 0.8 * (1 - kept.weights)
    axes.imshow(veil.numpy(), extent=(0, columns, rows, 0), aspect="auto", interpolation="nearest")
    axes.set_xticks(range(columns + 1), labels=[])
    axes.set_yticks(range(rows + 1), labels=[])
    axes.grid(color="#00000030", lw=0.5)
    axes.tick_params(length=0)
