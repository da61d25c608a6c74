"""Medusa: heads alone, numbered, with or without the name of the list from which they were saved."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from typing import Any

from ..drafters import MedusaDrafter
from ..drafters.vocabulary import is_padding
from ..errors import MMSpecError, listed
from ..files.checkpoints import fill
from ..target import Target
from .base import Format, Shapes
from .checkpoint import Checkpoint

PREFIX = "medusa_head."
KEY = re.compile(rf"(?:{re.escape(PREFIX)})?(\d{{1,9}})\.(\d{{1,9}})\.(?:linear\.weight|linear\.bias|weight)")
"""Pattern of a key, with the numbers of head and block: the residual blocks' linear maps, and after them the map to the
vocabulary."""


class Medusa(Format):
    """Medusa (arXiv 2401.10774). The numbers of heads and blocks follow from the keys, whatever the configuration says.

    The release puts one and the same block several times into a head with several; its checkpoints hold it as often, so
    the result is the same.
    """

    name = "medusa"

    def matches(self, keys: Shapes, config: Mapping[str, Any]) -> bool:
        """Return True if a checkpoint has this format."""
        return is_medusa(keys)

    def build(self, checkpoint: Checkpoint, target: Target) -> MedusaDrafter:
        """Make the drafter with the checkpoint's weights."""
        found = [match for key in checkpoint.shapes if (match := KEY.fullmatch(key))]
        if not found:
            raise MMSpecError(f"{checkpoint} holds no heads of Medusa, whose keys are such as '0.0.linear.weight'")
        numbers = [tuple(int(match[group]) for group in (1, 2)) for match in found]
        heads, layers = (1 + max(column) for column in zip(*numbers, strict=True))
        for name, count in (("heads", heads), ("blocks of a head", layers), ("blocks", heads * (layers - 1))):
            checkpoint.header.check_count(name, count)  # a key may hold any number
        drafter = MedusaDrafter.empty({"heads": heads, "layers": layers - 1}, target)
        prefixed = found[0][0].startswith(PREFIX)
        keys = {name: name if prefixed else name.removeprefix(PREFIX) for name in drafter.state_dict()}
        missing = set(keys.values()) - set(checkpoint.shapes)
        unexpected = set(checkpoint.shapes) - set(keys.values())
        if missing or unexpected:
            raise MMSpecError(
                f"{checkpoint} does not fit MedusaDrafter: missing keys {listed(missing)}, unexpected keys "
                f"{listed(unexpected)}"
            )
        read = {}
        for name, tensor in drafter.state_dict().items():
            key, wanted = keys[name], tuple(tensor.shape)
            shape = checkpoint.shapes[key]
            to_vocabulary = name.endswith(f".{layers - 1}.weight") and len(shape) == 2
            padded = to_vocabulary and shape[0] > wanted[0] and is_padding(shape[0], wanted[0])
            if (wanted[:1] if padded else shape[:1]) + shape[1:] != wanted:
                raise MMSpecError(
                    f"{checkpoint}: {key} has shape {list(shape)}, but the target asks for {list(tensor.shape)} "
                    f"(hidden size {target.hidden_size}, {target.vocab_size} tokens): load it for the model that it "
                    "was trained for"
                )
            checkpoint.header.check_kind(key, floating=True)
            read[name] = partial(checkpoint.rows, key, 0, wanted[0]) if padded else partial(checkpoint.read, key)
        fill(drafter, read, str(checkpoint))
        return drafter.eval()


def is_medusa(keys: Shapes) -> bool:
    """Return True if all keys are those of Medusa's heads."""
    return bool(keys) and all(KEY.fullmatch(key) for key in keys)
