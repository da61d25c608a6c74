"""TargetView: what the target knows of a text, for drafters and compressors."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ..decoding.clock import PhaseClock
from ..families import Vision
from ..inputs import Request


@dataclass
class TargetView:
    """A text as the target has read it.

    Args:
        request: the prompt, or the prompt and an answer.
        prompt: the prompt alone.
        embeds: `[batch, length, hidden]` embeddings that the target read.
        features: layer to `[batch, length, hidden]` states that enter it, for all `feature_layers` of the drafter.
        vision: the encoded pictures, or None.
        taught: True for answers that are learnt from, or validated on.
        clock: the clock of the request, or None for a text that is known.
    """

    request: Request
    prompt: Request
    embeds: Tensor
    features: dict[int, Tensor]
    vision: Vision | None
    taught: bool = False
    clock: PhaseClock | None = None

    def lap(self, phase: str) -> None:
        """Book the time since the last lap to a phase, if there is a clock."""
        if self.clock is not None:
            self.clock.lap(phase)
