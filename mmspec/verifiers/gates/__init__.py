"""Gates for `Gated`: they decide when the target is asked. Each file holds one."""

from .base import Gate, Gated
from .confident import Confident
from .every import Every, first_path

__all__ = ["Confident", "Every", "Gate", "Gated", "first_path"]
