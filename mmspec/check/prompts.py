"""The prompts of a self-check: texts of ordinary tokens, long ones where the model reads them in another way, and
pictures, videos and sounds of noise."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ..errors import first_line
from ..families.frequencies import STATIC
from ..inputs import PER_TOKEN, Request, prepare
from ..inputs.media import ARGUMENTS
from ..media import Video
from ..models.model import Model
from .report import CheckReport

TEXTS = (5, 12, 21)
"""Text tokens of the rows that are checked without pictures."""
COUNTS = ((1, 0, 2), (1, 2), (1, 0), (1,))
"""Pictures, videos or sounds per row; the first of these that the processor takes is checked."""
NAMES = {"image": "pictures", "video": "videos", "audio": "sounds"}
LONGEST = 1024
"""A sliding window, or a length at which positions are read in another way, is exceeded by a longer row, if it has no
more tokens than this."""
ROOM = 16
"""Tokens behind a prompt that the rounds reach at most."""


def ordinary_tokens(target: Model) -> Tensor:
    """Return the tokens that neither stand for anything else nor end a text."""
    special = {*target.family.placeholders, *target.eos_token_ids}
    for name, value in target.model.config.to_dict().items():
        if name.endswith(("_token_id", "_token_index")) and isinstance(value, int):
            special.add(value)
    tokenizer = target.tokenizer
    vocab = target.vocab_size if tokenizer is None else min(target.vocab_size, len(tokenizer))
    special |= set(getattr(tokenizer, "all_special_ids", ()))
    return torch.tensor([token for token in range(vocab) if token not in special], device="cpu")


def text_lengths(target: Model, thorough: bool, report: CheckReport) -> tuple[int, ...]:
    """Text tokens of the rows: with the last one a sliding window is exceeded, but no row gets to a point at which the
    rotary frequencies change."""
    windows = [window for window in target.windows.values() if window is not None]
    switch = min((switch.length for switch in target.family.switches), default=LONGEST + 2 * ROOM)
    most, lengths = min(switch - ROOM, LONGEST + TEXTS[0] if thorough else TEXTS[-1]), TEXTS
    if windows and min(windows) >= TEXTS[-1]:
        if min(windows) + TEXTS[0] <= most:
            lengths = (*TEXTS[:-1], min(windows) + TEXTS[0])
        else:
            report.notes.append(f"not checked: text that is longer than the sliding window of {min(windows)} tokens")
    return tuple(length for length in lengths if length <= most) or TEXTS[:1]


def turning_points(target: Model, thorough: bool, report: CheckReport) -> list[int]:
    """Lengths behind which a text of its own is to be checked: where the rotary frequencies change, or queries are
    scaled by their position."""
    points = {switch.length: switch.settles for switch in target.family.switches}
    ropes = getattr(target.family.text_config, "rope_parameters", None) or {}
    for rope in [ropes, *(value for value in ropes.values() if isinstance(value, dict))]:
        length = rope.get("original_max_position_embeddings")
        if length and (rope.get("rope_type") not in STATIC or "llama_4_scaling_beta" in rope):
            points.setdefault(int(length), True)
    checked = []
    for length, settles in sorted(points.items()):
        if settles and thorough and length <= LONGEST:
            checked.append(length)
        else:
            why = "" if settles else ", which is refused"
            report.notes.append(f"not checked: text behind {length} positions{why}")
    return checked


def joined(target: Model, rows: Sequence[Request]) -> Request:
    """Rows of text as one batch."""
    width = max(row.max_length for row in rows)
    ids = torch.zeros(len(rows), width, dtype=torch.long, device=target.device)
    mask = torch.zeros_like(ids)
    for number, row in enumerate(rows):
        ids[number, : row.max_length] = row.inputs["input_ids"][0]
        mask[number, : row.max_length] = 1
    others = {name: [row.inputs[name] for row in rows] for name in rows[0].inputs if name not in PER_TOKEN}
    joint = {name: torch.cat(values) for name, values in others.items()}
    return prepare(target, inputs={"input_ids": ids, "attention_mask": mask, **joint})


def with_noise(
    target: Model, kind: str, generator: torch.Generator, report: CheckReport
) -> tuple[list[Request], Request] | None:
    """Return rows with pictures, videos or sounds of noise, alone and as a batch, as the processor writes them; None if
    it cannot."""
    if target.processor is None:
        report.notes.append(f"not checked: {NAMES[kind]}, for there is no processor; give check the inputs= of one")
        return None
    for counts in [(1, 1, 1)] if target.family.cross_attends else COUNTS:  # or every row has exactly one
        prompts = [f"What is in number {number}?" for number in range(len(counts))]
        try:
            shown = [[_noise(target, kind, index, generator) for index in range(count)] for count in counts]
            given: list[dict[str, Any]] = [{ARGUMENTS[kind]: media} for media in [*([one] for one in shown), shown]]
            rows = [prepare(target, [prompt], **media) for prompt, media in zip(prompts, given[:-1], strict=True)]
            return rows, prepare(target, prompts, **given[-1])
        except Exception as error:  # processors raise errors of many kinds
            numbers = ", ".join(map(str, counts))
            report.notes.append(f"not checked: rows with {numbers} {NAMES[kind]} ({first_line(error)})")
    return None


def _noise(target: Model, kind: str, index: int, generator: torch.Generator) -> Any:
    """Make the n-th picture, video or sound of a row, each of a size of its own."""
    if kind == "audio":
        rate = target.processor.feature_extractor.sampling_rate
        samples = torch.rand(rate * (2 + index) // 4, generator=generator, device="cpu")
        return (2 * samples - 1).numpy(), rate
    frames = 1 if kind == "image" else 4 + 2 * index
    size = (frames, 96 + 32 * index, 128, 3)
    pixels = torch.randint(256, size, generator=generator, dtype=torch.uint8, device="cpu").numpy()
    return Image.fromarray(pixels[0]) if kind == "image" else Video(pixels, fps=2)
