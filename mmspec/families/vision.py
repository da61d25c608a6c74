"""Vision: the pictures, videos and sounds of a batch as a target reads them, and where they stand."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

from torch import Tensor

Grid = tuple[int, int, int]
"""Times, rows and columns of the tokens of a picture, a video or a sound, in reading order."""


@dataclass
class Vision:
    """The pictures, videos and sounds of a batch, encoded once, in the order of their placeholders.

    Each of them is called a picture here.

    Args:
        embeds: one `[tokens, hidden]` tensor per picture: what the language model reads in place of its placeholders.
        features: one `[tokens, vision_hidden]` tensor per picture, token for token the same: what the vision tower
            saw, before the target's projector; 0 where the model itself makes a token, such as a line break. Drafters
            that share the tower put their own projector on it. None where transformers encoded the pictures and kept
            only `embeds`, and where a family does not say.
        kinds: `"image"`, `"video"` or `"audio"` for each; all are images by default.
        deep: one `[layers, tokens, hidden]` tensor per picture: what is added to the states behind the first layers at
            its tokens (DeepStack, arXiv 2406.04334). None for most models.
        memory: `[batch, length, hidden]` states of an encoder, one for every row of the batch, which all layers of the
            decoder attend to (cross-attention). None for models that read what they see and hear in the prompt.
    """

    embeds: list[Tensor]
    features: list[Tensor] | None
    kinds: list[str] | None = None
    deep: list[Tensor] | None = None
    memory: Tensor | None = None

    @property
    def sizes(self) -> list[int]:
        """Visual tokens per picture."""
        return [len(image) for image in self.embeds or self.features or []]

    def picked(self, numbers: list[int]) -> Vision:
        """Return the pictures of these numbers, in their order; `memory` stays as it is."""
        lists = {name: getattr(self, name) for name in ("embeds", "features", "kinds", "deep")}
        chosen: dict[str, Any] = {name: [found[n] for n in numbers] for name, found in lists.items() if found}
        return replace(self, **chosen)

    def repeated(self, rows: list[list[int]], tokens: Collection[int], copies: int) -> Vision:
        """Return the pictures of a batch in which every row stands so many times in succession.

        Args:
            rows: token ids of every row once.
            tokens: the placeholders of visual tokens.
            copies: number of times that each row stands there.
        """
        counts, first, numbers = map(len, visual_spans(rows, tokens, self.sizes)), 0, []
        for count in counts:
            numbers += [*range(first, first + count)] * copies
            first += count
        memory = None if self.memory is None else self.memory.repeat_interleave(copies, 0)
        return replace(self.picked(numbers), memory=memory)


def visual_spans(rows: list[list[int]], tokens: Collection[int], sizes: list[int]) -> list[list[tuple[int, int]]]:
    """Return, per row of token ids, the `(start, end)` index ranges of its pictures, in order.

    Args:
        rows: token ids, without padding.
        tokens: the placeholders of visual tokens.
        sizes: number of visual tokens of every picture of the batch.
    """
    spans: list[list[tuple[int, int]]] = []
    left = iter(sizes)
    for ids in rows:
        places = [index for index, one in enumerate(ids) if one in tokens]
        row, first = [], 0
        while first < len(places):  # placeholders of one picture may be broken up by row separators
            last = first + next(left) - 1
            row.append((places[first], places[last] + 1))
            first = last + 1
        spans.append(row)
    return spans


def runs(rows: list[list[int]], token: int | None) -> list[int]:
    """Return the lengths of the runs of a token, row after row."""
    return [len(list(run)) for ids in rows for one, run in groupby(ids) if one == token]


def in_order(parts: Mapping[str, Vision], rows: list[list[int]], placeholders: Mapping[int, str]) -> Vision:
    """Return pictures of several kinds as their placeholders follow one another.

    Args:
        parts: kind to its pictures, which fill the placeholders.
        rows: token ids of every row.
        placeholders: placeholder token to the kind of medium.
    """
    kinds: list[str] = []
    sizes = {kind: iter(part.sizes) for kind, part in parts.items()}
    for ids in rows:
        unfilled = 0
        for kind in filter(None, map(placeholders.get, ids)):
            if not unfilled:
                kinds.append(kind)
                unfilled = next(sizes[kind])
            unfilled -= 1

    def merged(name: str) -> list | None:
        sources = {kind: getattr(part, name) for kind, part in parts.items()}
        if any(source is None for source in sources.values()):
            return None
        rest = {kind: iter(source) for kind, source in sources.items()}
        return [next(rest[kind]) for kind in kinds]

    return Vision(merged("embeds") or [], merged("features"), kinds, merged("deep"))
