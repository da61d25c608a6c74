"""Which of two states a checkpoint was trained on, where visual features join the target's between its layers."""

from __future__ import annotations

import logging
from collections.abc import Iterable

from ..models.states import before_joining
from ..target import Target
from .checkpoint import Checkpoint

SETTING = "before_deepstack"
"""Name of the setting in `config.json`."""

logger = logging.getLogger(__name__)


def reads_before(checkpoint: Checkpoint, target: Target, layers: Iterable[int], said: bool | None) -> bool:
    """Return True if a drafter reads states before visual features join them; warn where it matters and is not said.

    Args:
        checkpoint: the checkpoint, none of whose weights tells.
        target: the model to draft for.
        layers: layers whose entering states are read.
        said: what its `config.json` says; None for nothing.
    """
    joined = [layer for layer in layers if before_joining([layer], target.family.joined_layers) != (layer,)]
    if joined and said is None:
        logger.warning(
            "%s reads the states that enter layers %s, and on this target visual features join them on the way "
            "(DeepStack): they are read behind that, as vLLM hands them over. For a drafter that was trained on "
            "hidden_states of transformers write %s: true into its config.json",
            checkpoint,
            joined,
            SETTING,
        )
    return bool(said)
