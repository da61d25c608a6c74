"""ViSpec: EAGLE's layer with an image adaptor."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..compressors import Resampler
from ..drafters import FeatureDrafter, ViSpecDrafter, ViSpecSettings
from ..target import Target
from .assembly import assemble, fusion_of
from .base import Format, Shapes
from .checkpoint import Checkpoint

QUERIES = "imadpt.q"


class ViSpec(Format):
    """ViSpec (arXiv 2509.15235). The width of queries, heads and `head_dim` follow from `imadpt.q`.

    Attention is not grouped even where the target's is, so the numbers of heads in `config.json` are ignored.
    """

    name = "vispec"

    def matches(self, keys: Shapes, config: Mapping[str, Any]) -> bool:
        """Return True if a checkpoint has this format."""
        return is_vispec(keys)

    def build(self, checkpoint: Checkpoint, target: Target) -> FeatureDrafter:
        """Make the drafter with the checkpoint's weights."""
        checkpoint.require(QUERIES, "img_fc.weight", "img_fc.bias", "fc.weight")
        keys = checkpoint.shapes
        queries, heads, head_dim = checkpoint.sizes(QUERIES, "queries", "heads", "head_dim")
        adaptor = Resampler(queries, heads, summary=True, bias="imadpt.k_proj.bias" in keys)
        settings = ViSpecSettings(queries=queries, heads=heads, **fusion_of(keys))
        names = {"compressor.": "imadpt."}
        return assemble(ViSpecDrafter, checkpoint, target, settings, compressor=adaptor, head_dim=head_dim, names=names)


def is_vispec(keys: Shapes) -> bool:
    """Return True if there is a key of ViSpec's image adaptor."""
    return QUERIES in keys
