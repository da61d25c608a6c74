"""Drafts from reference texts: one file for a text, one for what was found in it, one for files of texts."""

from .alignment import Alignment, Guess, Windows
from .drafter import REFERENCES, ReferenceDrafter
from .reading import read_references
from .text import ReferenceText

__all__ = [
    "REFERENCES",
    "Alignment",
    "Guess",
    "ReferenceDrafter",
    "ReferenceText",
    "Windows",
    "read_references",
]
