"""DraftPrompt: a prompt as a drafter reads it, with its pictures compressed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ..errors import MMSpecError
from .base import VisualCompressor, VisualSpan
from .layout import Layout


@dataclass
class DraftPrompt:
    """The entries of a batch of prompts, right-padded. An entry is a token, or one of the entries that are left of a
    picture.

    Args:
        embeds: `[batch, entries, hidden]` embeddings.
        states: `[batch, entries, state]` features that the drafter computed from the target's hidden states.
        positions: `[batch, entries]`, or `[axes, batch, entries]` for multi-axis rotary embeddings.
        visual: `[batch, entries]` True at the entries that are left of pictures.
        removed: `[batch]` number of tokens of the target's prompt that have no entry.
        position_offset: `[batch]` or `[axes, batch]` position of the next token minus its index in the drafter's
            sequence.
        origin: `[batch, entries]` index of the token of the whole prompt that each entry is, or of the first one of the
            picture that it is left of; None for the whole prompt.
        summary: `[batch, entries, hidden]` summary of the latest picture before or at each entry, 0 before the first;
            None if the compressor makes none.
        state_positions: positions of the states, shaped like `positions`, where a state is that of what stood directly
            before the next entry (`text_alone`); None where it is that of its own entry.
    """

    embeds: Tensor
    states: Tensor
    positions: Tensor
    visual: Tensor
    removed: Tensor
    position_offset: Tensor
    origin: Tensor | None = None
    summary: Tensor | None = None
    state_positions: Tensor | None = None


def whole_prompt(embeds: Tensor, states: Tensor, visual: Tensor) -> DraftPrompt:
    """Return the prompt with all of its tokens and with positions that count them; `visual` is `[batch, length]`."""
    positions = torch.arange(embeds.shape[1], device=embeds.device).expand(embeds.shape[:2])
    none = torch.zeros(len(embeds), dtype=torch.long, device=embeds.device)
    return DraftPrompt(embeds, states, positions, visual, none, none)


def compressed_prompt(
    compressor: VisualCompressor,
    whole: DraftPrompt,
    layout: Layout,
    last: Tensor | None = None,
    scores: Tensor | None = None,
) -> DraftPrompt:
    """Compress every picture of every row.

    Args:
        compressor: compressor that is applied to each picture.
        whole: the prompt with all of its tokens.
        layout: places of the pictures.
        last: `[batch, length, target hidden]` the target's last hidden states, for compressors that read the question.
        scores: `[batch, length]` what `VisualCompressor.token_scores` returned, for compressors that need it.

    Raises:
        MMSpecError: for a prompt without text.
    """
    if not layout.words.any(-1).all():
        raise MMSpecError(f"{type(compressor).__name__}: a prompt has no text beside its pictures; ask a question")
    rows = [_row(compressor, whole, layout, last, scores, row) for row in range(len(whole.embeds))]
    parts = ([row.embeds for row in rows], [row.states for row in rows], [row.visual for row in rows])
    embeds, states, visual = (pad_sequence(part, batch_first=True) for part in parts)
    positions = pad_sequence([row.positions.movedim(-1, 0) for row in rows], batch_first=True)
    origin = pad_sequence([row.origin for row in rows if row.origin is not None], batch_first=True)
    removed = torch.tensor([whole.embeds.shape[1] - len(row.embeds) for row in rows], device=embeds.device)
    return DraftPrompt(
        embeds,
        states,
        positions.movedim(-1, 0) if positions.ndim == 3 else positions,
        visual,
        removed,
        torch.zeros_like(removed) if compressor.positions == "packed" else whole.position_offset + removed,
        origin,
        _summaries([row.summary for row in rows], embeds.shape[1]),
    )


def _summaries(rows: Sequence[Tensor | None], width: int) -> Tensor | None:
    """Return the summaries of all rows, `[batch, width, hidden]`: rows without pictures are zero, and padding repeats
    the entry before it."""
    made = [row for row in rows if row is not None]
    if not made:
        return None
    zero = made[0].new_zeros(1, made[0].shape[-1])
    parts = [zero if row is None else row for row in rows]
    return torch.stack([torch.cat([part, part[-1:].expand(width - len(part), -1)]) for part in parts])


def _row(
    compressor: VisualCompressor,
    whole: DraftPrompt,
    layout: Layout,
    last: Tensor | None,
    scores: Tensor | None,
    row: int,
) -> DraftPrompt:
    """Compress one row, without the batch dimension; the padding behind it stays."""
    embeds, states, places = whole.embeds[row], whole.states[row], whole.positions[..., row, :]
    numbers = torch.arange(len(embeds), device=embeds.device)
    parts: list[tuple[Tensor, Tensor, Tensor, Tensor, Tensor]] = []
    summaries: list[tuple[int, Tensor]] = []
    cursor, count = 0, 0
    before, after = compressor.margin
    length = int((layout.words | layout.visual)[row].nonzero().max()) + 1  # of the prompt

    def keep(embeds: Tensor, states: Tensor, positions: Tensor, origin: Tensor, seen: bool) -> None:
        nonlocal count
        parts.append((embeds, states, positions, origin, torch.full((len(embeds),), seen, device=embeds.device)))
        count += len(embeds)

    shown = zip(layout.spans[row], layout.grids[row], layout.kinds[row], strict=True)
    for number, ((start, end), grid, kind) in enumerate(shown):
        first = max(start - before, cursor)
        keep(embeds[cursor:first], states[cursor:first], places[..., cursor:first], numbers[cursor:first], False)
        index, asked = layout.tokens(row, number), layout.asked(row, number)
        said = None if last is None else last[row, asked]
        scored = None if scores is None else scores[row, index]
        seen = None if last is None else last[row, index]
        left = compressor(VisualSpan(embeds[index], grid, embeds[asked], said, scored, kind, seen))
        if compressor.positions == "gap":
            positions = places[..., end - len(left.embeds) : end]
        else:
            here = places[..., index].double()  # [tokens], or [axes, tokens]
            mean = left.source.mean(here.reshape(-1, len(index)).T).detach().T.reshape(*here.shape[:-1], -1)
            positions = mean.round().long()
        if left.summary is not None:
            summaries.append((count, left.summary))
        first_one = index[:1].expand(len(left.embeds))
        keep(left.embeds.to(embeds.dtype), left.source.mean(states[index]), positions, first_one, True)
        cursor = max(end, min(end + after, length))
    keep(embeds[cursor:], states[cursor:], places[..., cursor:], numbers[cursor:], False)
    columns = list(zip(*parts, strict=True))
    embeds, states, origin, seen = (torch.cat(columns[number]) for number in (0, 1, 3, 4))
    positions = torch.cat(columns[2], dim=-1)
    numbers = numbers[: len(embeds)]
    if compressor.positions == "packed":
        positions = numbers.expand_as(positions)
    summary = None
    if summaries:
        summary = embeds.new_zeros(len(embeds), summaries[0][1].shape[-1])
        for first, vector in summaries:
            summary = torch.where((numbers >= first)[:, None], vector.to(summary.dtype), summary)
    none = torch.zeros((), dtype=torch.long, device=embeds.device)
    return DraftPrompt(embeds, states, positions, seen, none, none, origin, summary)
