"""Layout: the places of the pictures in a batch of prompts, and the text around them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..families import Family, Vision, visual_spans
from ..families.vision import Grid
from ..inputs import Request


class Layout(NamedTuple):
    """The places of the pictures in a right-padded batch.

    Args:
        visual: `[batch, length]` True at the tokens of pictures.
        spans: per row, the begin and the end of each picture.
        grids: per row, the numbers of frames, rows and columns of each picture; None where a picture has no grid.
        kinds: per row, `"image"`, `"video"` or `"audio"` for each picture.
        words: `[batch, length]` True at the text of the prompt: not at pictures, padding or the answer.
    """

    visual: Tensor
    spans: Sequence[Sequence[tuple[int, int]]]
    grids: Sequence[Sequence[Grid | None]]
    kinds: Sequence[Sequence[str]]
    words: Tensor

    def pictures(self) -> Iterator[tuple[int, int]]:
        """Yield the row of every picture, and its number in that row."""
        yield from ((row, number) for row, spans in enumerate(self.spans) for number in range(len(spans)))

    def tokens(self, row: int, number: int) -> Tensor:
        """Return the places of a picture's tokens in its row, `[tokens]` in order."""
        start, end = self.spans[row][number]
        return start + self.visual[row, start:end].nonzero()[:, 0]

    def asked(self, row: int, number: int) -> Tensor:
        """Return True at the text that asks about a picture, `[length]`: all text behind it, or all text if there is
        none behind it."""
        words, (_, end) = self.words[row], self.spans[row][number]
        behind = words & (torch.arange(len(words), device=words.device) >= end)
        return behind if behind.any() else words


def layout_of(family: Family, request: Request, prompt: Request, vision: Vision) -> Layout:
    """Return the layout of a request with pictures.

    Args:
        family: model family that knows the placeholders in the request.
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
    """Yield the grid of every picture of a batch. The encoder gives it once for all copies of a row."""
    numbers, rows = iter(range(len(vision.sizes))), []
    for row in spans:
        rows.append([next(numbers) for _ in row])
    once = rows[:: request.copies]
    known = iter(family.grids(request.inputs, vision.picked([number for row in once for number in row])))
    for pictures in once:
        yield from [next(known) for _ in pictures] * request.copies
