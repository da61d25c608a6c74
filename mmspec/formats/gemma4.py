"""Gemma 4's assistants, as transformers and Google publish them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..drafters import Gemma4AssistantDrafter
from ..drafters.gemma4_assistant import assistant_class
from ..errors import MMSpecError, listed
from ..target import Target
from .base import Format, Shapes
from .checkpoint import Checkpoint


class Gemma4Assistant(Format):
    """A repository such as `google/gemma-4-E4B-it-assistant`, which transformers reads."""

    name = "gemma4_assistant"

    def matches(self, keys: Shapes, config: Mapping[str, Any]) -> bool:
        """Return True if a checkpoint has this format."""
        return "pre_projection.weight" in keys and "post_projection.weight" in keys

    def build(self, checkpoint: Checkpoint, target: Target) -> Gemma4AssistantDrafter:
        """Make the drafter with the checkpoint's weights."""
        model, told = assistant_class(target, "ForCausalLM").from_pretrained(
            checkpoint.folder, dtype=target.dtype, local_files_only=True, output_loading_info=True
        )
        missing, unexpected = set(told["missing_keys"]), set(told["unexpected_keys"])
        if missing or unexpected or told["mismatched_keys"]:
            raise MMSpecError(
                f"{checkpoint} does not fit {type(model).__name__}: missing keys {listed(missing)}, unexpected keys "
                f"{listed(unexpected)}, of other shapes {listed({key for key, *_ in told['mismatched_keys']})}"
            )
        return Gemma4AssistantDrafter(target, model.to(target.device)).eval()
