"""Hide: a compressor that keeps pictures from the drafter altogether."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..errors import MMSpecError, shown
from ..settings.arguments import as_int
from .base import Compressed, VisualCompressor, VisualSpan
from .token_assignment import Sources


class Hide(VisualCompressor):
    """Leaves every visual token out. What the target saw reaches the drafter through the hidden states at the text
    (HiViS, arXiv 2509.23928, section 3). It does so before states and embeddings are paired; heads on text alone
    (`attention_scope="text"`) leave slots out that are paired, see `text_alone`.

    Args:
        packed: True if the text moves up (as released for LLaVA), False if it keeps its positions (as released for
            Qwen2.5-VL).
        margin: numbers of text tokens before and after a picture that are hidden with it. The release for Qwen2.5-VL
            hides the delimiters and one token more, (1, 2).

    Raises:
        MMSpecError: if the margin is not a pair of whole numbers of 0 or more.
    """

    settings = ("packed", "margin")
    blind = True

    def __init__(self, packed: bool = False, margin: Sequence[int] = (0, 0)):
        super().__init__()
        tokens = [as_int(count) for count in margin] if isinstance(margin, Sequence) else []
        if len(tokens) != 2 or any(count is None or count < 0 for count in tokens):
            raise MMSpecError(f"Hide: margin={shown(margin)} must be two numbers of tokens, before and after a picture")
        self.packed, self.margin = packed, (margin[0], margin[1])
        self.positions = "packed" if packed else "original"

    def forward(self, span: VisualSpan) -> Compressed:
        """Return no entries."""
        nothing = torch.zeros(0, dtype=torch.long, device=span.embeds.device)
        return Compressed(span.embeds[:0], Sources.some(nothing, len(span)))
