"""Layout: where the pictures of a batch of prompts stand, and what is said around them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..families import Family, Vision, visual_spans
from ..families.vision import Grid
from ..inputs import Request


class Layout(NamedTuple):
    """Where the pictures of a right-padded batch are.

    Args:
        visual: `[batch, length]` True on the tokens of pictures.
        spans: per row, where each picture begins and ends.
        grids: per row, times, rows and columns of each picture; None where it has none.
        kinds: per row, `"image"`, `"video"` or `"audio"` for each.
        words: `[batch, length]` True on the text of the prompt: no picture, no padding, no answer.
    """

    visual: Tensor
    spans: Sequence[Sequence[tuple[int, int]]]
    grids: Sequence[Sequence[Grid | None]]
    kinds: Sequence[Sequence[str]]
    words: Tensor


def layout_of(family: Family, request: Request, prompt: Request, vision: Vision) -> Layout:
    """The layout of a request with pictures.

    Args:
        family: whose placeholders are in the request.
        request: the prompt, or the prompt and an answer.
        prompt: the prompt alone.
        vision: the encoded pictures.
    """
    ids = request.inputs["input_ids"]
    visual = family.is_visual(ids)
    rows = prompt.token_ids()
    spans = visual_spans(rows, family.placeholders, vision.sizes)
    grids = _grids(family, request, vision, spans)
    ends = torch.tensor(prompt.lengths, device=ids.device)[:, None]
    said = torch.arange(ids.shape[1], device=ids.device) < ends
    kinds = [[family.placeholders[ids[start]] for start, _ in row] for ids, row in zip(rows, spans, strict=True)]
    return Layout(visual, spans, [[next(grids) for _ in row] for row in spans], kinds, said & ~visual)


def _grids(
    family: Family, request: Request, vision: Vision, spans: Sequence[Sequence[tuple[int, int]]]
) -> Iterator[Grid | None]:
    """The grid of every picture of a batch. What says so is there once for all copies of a row."""
    numbers, rows = iter(range(len(vision.sizes))), []
    for row in spans:
        rows.append([next(numbers) for _ in row])
    once = rows[:: request.copies]
    known = iter(family.grids(request.inputs, vision.picked([number for row in once for number in row])))
    for row in once:
        yield from [next(known) for _ in row] * request.copies
