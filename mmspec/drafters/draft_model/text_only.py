"""A draft model that reads the text and leaves the pictures out."""

from __future__ import annotations

import torch

from ...errors import MMSpecError
from ...families import Vision
from ...inputs import Request
from .base import DraftModelDrafter


class TextOnlyDrafter(DraftModelDrafter):
    """A language model that drafts without the pictures (Gagrani et al., arXiv 2404.08856). Its prompt is shorter than
    the target's, and so are its positions.

    Lossless with every lossless verifier. Any language model with the target's tokenizer will do; `recipe=text_only`
    trains one.
    """

    mode = "text_only"

    def prompt_of(self, request: Request, vision: Vision | None) -> tuple[Request, Vision | None]:
        """Return the prompt with every placeholder left out."""
        placeholders = self.target.family.placeholders
        rows = [[token for token in ids if token not in placeholders] for ids in request.token_ids()]
        return self.as_text(rows, request), None

    def as_text(self, rows: list[list[int]], request: Request) -> Request:
        """Return a prompt of text alone, from the tokens of its rows; refuse a row without any.

        Args:
            rows: token ids per row.
            request: the target's prompt.
        """
        lengths = [len(row) for row in rows]
        if min(lengths) == 0:
            raise MMSpecError(
                "a prompt without its images is empty, so a TextOnlyDrafter has nothing to read: ask something in words"
            )
        device = request.inputs["input_ids"].device
        ids = torch.tensor([row + [0] * (max(lengths) - len(row)) for row in rows], device=device)
        mask = torch.arange(max(lengths), device=device) < torch.tensor(lengths, device=device)[:, None]
        return Request({"input_ids": ids, "attention_mask": mask.long()}, lengths)
