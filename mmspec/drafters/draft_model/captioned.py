"""A draft model that is told in words what the pictures show."""

from __future__ import annotations

from ...errors import MMSpecError, shown
from ...families import Vision, visual_spans
from ...inputs import Request
from .text_only import TextOnlyDrafter

CAPTIONS = "captions"
"""The name of the captions among `generate(extras=)`."""

OPENING = "image: "


class CaptionedDrafter(TextOnlyDrafter):
    """A language model that reads a caption in the place of every picture (a drafter of TABED, arXiv 2601.20357, whose
    captions are Florence-2's).

    The captions come with the request, `generate(extras={"captions": [...]})`: per row a text, or a list with one for
    each of its pictures (videos and sounds count too); None for a row without any. Where the paper's are made by a
    model beside the target, here whoever asks makes them, or has them already.

    Lossless with every lossless verifier, whatever the captions say.
    """

    mode = "captioned"

    def prompt_of(self, request: Request, vision: Vision | None) -> tuple[Request, Vision | None]:
        """Return the prompt with a caption in the place of every picture."""
        placeholders, rows = self.target.family.placeholders, request.token_ids()
        spans = visual_spans(rows, placeholders, [] if vision is None else vision.sizes)
        given = request.extras.get(CAPTIONS, [None] * len(rows))
        told = []
        for number, (ids, row, captions) in enumerate(zip(rows, spans, given, strict=True)):
            words = [captions] if isinstance(captions, str) else [*(captions or [])]
            if len(words) != len(row) or not all(isinstance(caption, str) for caption in words):
                raise MMSpecError(
                    f"extras[{CAPTIONS!r}] of row {number} is {shown(captions)}, and the row has {len(row)} pictures: "
                    "CaptionedDrafter reads a text for each of them"
                )
            for (start, end), caption in reversed([*zip(row, words, strict=True)]):
                ids = [*ids[:start], *self._ids(OPENING + caption), *ids[end:]]
            told.append([token for token in ids if token not in placeholders])
        return self.as_text(told, request), None

    def _ids(self, text: str) -> list[int]:
        """Return the tokens of a text."""
        if self.target.tokenizer is None:
            raise MMSpecError("CaptionedDrafter needs the target's tokenizer: pass mmspec.Target its processor")
        return self.target.tokenizer(text, add_special_tokens=False)["input_ids"]
