"""Medusa, as vLLM reads it: a configuration of its own, and the names of the first release."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from ...drafters import MedusaDrafter
from ...errors import MMSpecError
from .writer import check_length, write_files


def write_medusa(drafter: MedusaDrafter, folder: Path, speculative_tokens: int | None) -> int:
    """Write the heads, and return how many of them a server asks, all where `speculative_tokens` is None.

    A server takes the best token of every head, so the chain that it drafts is the first branch of our tree.

    Raises:
        MMSpecError: for more tokens than there are heads.
    """
    check_length(speculative_tokens)
    settings, target = drafter.settings, drafter.target
    heads = settings.heads if speculative_tokens is None else speculative_tokens
    if heads > settings.heads:
        raise MMSpecError(f"speculative_tokens={heads} is more than the {settings.heads} heads of this MedusaDrafter")
    config: dict[str, Any] = {
        "architectures": ["MedusaModel"],
        "model_type": "medusa",
        "hidden_size": target.hidden_size,
        "vocab_size": target.vocab_size,
        "medusa_num_heads": heads,
        "medusa_num_layers": settings.layers,
        "medusa_fc_bias": True,
        "dtype": str(next(drafter.parameters()).dtype).removeprefix("torch."),
    }
    weights: dict[str, Tensor] = {}
    for number in range(heads):
        for name, tensor in drafter.medusa_head[number].state_dict().items():
            place, _, rest = name.partition(".")
            if rest.startswith("linear."):
                weights[f"blocks.{number}.layers.{place}.{rest.removeprefix('linear.')}"] = tensor
            else:
                weights[f"lm_heads.{number}.{rest}"] = tensor
    write_files(folder, config, weights)
    return heads
