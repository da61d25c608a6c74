"""Gates, for `Gated`: when the target is asked. One a file."""

from .base import Gate, Gated
from .confident import Confident
from .every import Every, first_path

__all__ = ["Confident", "Every", "Gate", "Gated", "first_path"]
