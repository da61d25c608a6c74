"""Medusa: heads alone, numbered, with or without the name of the list that they were saved from."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from typing import Any

from ..checkpoints import fill
from ..drafters import MedusaDrafter
from ..errors import MMSpecError
from ..target import Target
from .base import Format, Shapes
from .checkpoint import Checkpoint

PREFIX = "medusa_head."
KEY = re.compile(rf"(?:{re.escape(PREFIX)})?(\d+)\.(\d+)\.(?:linear\.weight|linear\.bias|weight)")
"""Of head and block: the residual blocks' linear maps, and behind them the map to the vocabulary."""


class Medusa(Format):
    """Medusa (arXiv 2401.10774). How many heads and blocks there are is told by the keys, whatever the configuration
    counts.

    The release puts one and the same block several times into a head of several; its checkpoints hold it as often, so
    nothing changes.
    """

    name = "medusa"

    def matches(self, keys: Shapes, config: Mapping[str, Any]) -> bool:
        return is_medusa(keys)

    def build(self, checkpoint: Checkpoint, target: Target) -> MedusaDrafter:
        found = [match for key in checkpoint.shapes if (match := KEY.fullmatch(key))]
        if not found:
            raise MMSpecError(f"{checkpoint} holds no heads of Medusa, whose keys are such as '0.0.linear.weight'")
        heads, layers = (1 + max(int(match[group]) for match in found) for group in (1, 2))
        drafter = MedusaDrafter.empty({"heads": heads, "layers": layers - 1}, target)
        prefixed = found[0][0].startswith(PREFIX)
        keys = {name: name if prefixed else name.removeprefix(PREFIX) for name in drafter.state_dict()}
        missing = sorted(set(keys.values()) - set(checkpoint.shapes))
        unexpected = sorted(set(checkpoint.shapes) - set(keys.values()))
        if missing or unexpected:
            raise MMSpecError(
                f"{checkpoint} does not fit MedusaDrafter: missing keys {missing or 'none'}, unexpected keys "
                f"{unexpected or 'none'}"
            )
        for name, tensor in drafter.state_dict().items():
            if checkpoint.shapes[keys[name]] != tuple(tensor.shape):
                raise MMSpecError(
                    f"{checkpoint}: {keys[name]} has shape {list(checkpoint.shapes[keys[name]])}, but the target asks "
                    f"for {list(tensor.shape)} (hidden size {target.hidden_size}, {target.vocab_size} tokens): load it "
                    "for the model that it was trained for"
                )
        fill(drafter, {name: partial(checkpoint.read, key) for name, key in keys.items()})
        return drafter.eval()


def is_medusa(keys: Shapes) -> bool:
    return bool(keys) and all(KEY.fullmatch(key) for key in keys)
