"""VisualProjector: the map by which a small model sees through its target's eyes."""

from __future__ import annotations

from torch import Tensor, nn


class VisualProjector(nn.Module):
    """Two linear layers with a GELU between, from vision features to a draft model's embeddings (as in LLaVA-1.5).

    Args:
        vision_hidden: width of the vision tower's features, see `mmspec.families.Vision`.
        hidden: width of the draft model.
    """

    def __init__(self, vision_hidden: int, hidden: int):
        super().__init__()
        self.sizes = [vision_hidden, hidden]
        self.inner = nn.Linear(vision_hidden, hidden)
        self.outer = nn.Linear(hidden, hidden)

    def forward(self, features: Tensor) -> Tensor:
        """Return `[tokens, hidden]` embeddings of `[tokens, vision_hidden]` features."""
        return self.outer(nn.functional.gelu(self.inner(features)))
