"""InternVL: square tiles, four patches to a token; videos are pictures in a row."""

from __future__ import annotations

from .base import Family


class InternVL(Family):
    """`InternVLForConditionalGeneration`. Each tile counts as a picture of its own: the inputs do not say which belong
    together."""

    model_types = ("internvl",)
