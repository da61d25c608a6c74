"""What the page takes from those who reach it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """
    Args:
        megabytes: of a picture's file.
        megapixels: of the picture, which a small file can unfold to very many of.
        characters: of a question.
        longest: tokens that an answer may have.
    """

    megabytes: float = 10
    megapixels: float = 40
    characters: int = 4000
    longest: int = 512
