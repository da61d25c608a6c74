"""P-EAGLE, as the library speculators saves it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..drafters import PEagleDrafter, PEagleSettings
from ..errors import MMSpecError, shown
from ..target import Target
from .assembly import assemble
from .base import Format, Shapes
from .checkpoint import Checkpoint
from .eagle3 import HEAD, SPECULATORS, idle_bias, read_settings, vocabulary_of

MASK_STATE = "mask_hidden"
MASK_TOKENS = ("mask_token_id", "pard_token", "ptd_token_id")
"""Names that speculators, or vLLM, have for the token whose embedding stands where there is no token yet."""


class PEagle(Format):
    """P-EAGLE (arXiv 2602.01469): EAGLE-3's tensors, further layers, and the learned state `mask_hidden`.

    What is said of EAGLE-3's switches, layers and positions holds here too. The mask token leaves no weights, so the
    configuration must name it. How many depths a pass guesses is what the configuration proposes, and otherwise 8, as
    speculators trains; no weight depends on it.
    """

    name = "peagle"

    def matches(self, keys: Shapes, config: Mapping[str, Any]) -> bool:
        """Return True if a checkpoint has this format."""
        return is_peagle(keys, config)

    def build(self, checkpoint: Checkpoint, target: Target) -> PEagleDrafter:
        """Make the drafter with the checkpoint's weights."""
        if checkpoint.config.get(SPECULATORS, self.name) != self.name:
            raise MMSpecError(
                f"{checkpoint}: {SPECULATORS} is {shown(checkpoint.config[SPECULATORS])}, but {MASK_STATE} is of "
                f"{self.name!r}; correct the one that is wrong"
            )
        checkpoint.require("fc.weight", "norm.weight", HEAD, MASK_STATE)
        checkpoint.header.check_kind(MASK_STATE, floating=True)
        made = vocabulary_of(checkpoint, target)
        count = layers_of(checkpoint.shapes)
        settings = PEagleSettings(
            **read_settings(checkpoint, made, target),
            layers=count,
            depths=depths_of(checkpoint),
            mask_token_id=mask_token(checkpoint),
        )
        state = checkpoint.read(MASK_STATE)
        if state.numel() != 3 * target.hidden_size:
            raise MMSpecError(
                f"{checkpoint}: {MASK_STATE} has shape {list(state.shape)}, but three states of the target have "
                f"{3 * target.hidden_size} numbers"
            )
        biases = [key for number in range(count) for key in idle_bias(checkpoint, f"layers.{number}")]
        return assemble(
            PEagleDrafter,
            checkpoint,
            target,
            settings,
            axes=settings.rope == "mrope",
            made=made | {MASK_STATE: state.view(1, 1, -1)},  # vLLM's own files have one axis less
            unread=("d2t", "t2d", HEAD, MASK_STATE, *biases),
        )


def is_peagle(keys: Shapes, config: Mapping[str, Any]) -> bool:
    """Return True if a checkpoint has the state of a mask, or says that it should have one."""
    return MASK_STATE in keys or config.get(SPECULATORS) == PEagle.name


def layers_of(keys: Shapes) -> int:
    """Return the number of layers, from the last one that there is; keys that are missing before it are refused
    later."""
    numbers = [key.split(".")[1] for key in keys if key.startswith("layers.")]
    return max((int(number) for number in numbers if number.isdecimal()), default=0) + 1


def depths_of(checkpoint: Checkpoint) -> int:
    """Return the number of tokens that the configuration proposes at once.

    Raises:
        MMSpecError: if that is no positive integer.
    """
    said = checkpoint.said("speculators_config", dict, {}).get("proposal_methods")
    first = said[0] if isinstance(said, list) and said else None
    depths = first.get("speculative_tokens") if isinstance(first, dict) else None
    if depths is None:
        return PEagleSettings.depths
    if not isinstance(depths, int) or isinstance(depths, bool) or depths < 1:
        raise MMSpecError(
            f"{checkpoint}: config.json proposes speculative_tokens={shown(depths)}, which should be a positive integer"
        )
    return depths


def mask_token(checkpoint: Checkpoint) -> int:
    """Return the mask token.

    Raises:
        MMSpecError: if the configuration names none, or two.
    """
    said = {name: token for name in MASK_TOKENS if (token := checkpoint.said(name, int)) is not None}
    if not said:
        raise MMSpecError(
            f"{checkpoint}: config.json must say {MASK_TOKENS[0]}: its embedding stands where there is no token yet, "
            "and no weight tells which it is"
        )
    if len(set(said.values())) > 1:
        both = ", ".join(f"{name}={token}" for name, token in said.items())
        raise MMSpecError(
            f"{checkpoint}: config.json names different mask tokens, {both}; correct the one that is wrong"
        )
    return next(iter(said.values()))
