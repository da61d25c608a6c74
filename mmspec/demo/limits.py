"""Limits of what a visitor may send to the page."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class PageLimits:
    """Limits of what a visitor may send to the page.

    Args:
        megabytes: largest size of a picture's file, in MB.
        megapixels: largest size of a picture, in millions of pixels; a small file can hold very many of them.
        characters: longest question, in characters.
        longest: longest answer, in tokens.
    """

    megabytes: float = 10
    megapixels: float = 40
    characters: int = 4000
    longest: int = 512
