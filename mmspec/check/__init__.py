"""The self-check of a target: does it score trees as its own `generate` would score their paths, step by step?

    python -m mmspec.check MODEL

Nothing is known here about any family. The model's `generate` is made to write given tokens, one pass each, and tells
its logits before every one; the target reads the same prompts as one batch and the same tokens as branches of trees,
over two rounds, in which every row accepts another path.
"""

from .comparison import check_target
from .report import CheckReport, Finding

__all__ = ["CheckReport", "Finding", "check_target"]
