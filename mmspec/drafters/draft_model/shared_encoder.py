"""A draft model that attends to what its target's encoder has heard."""

from __future__ import annotations

from ...families import Family, Vision
from ...inputs import Request
from .base import DraftModelDrafter


class SharedEncoderDrafter(DraftModelDrafter):
    """A decoder on the states of the target's encoder of sound, which is run once (Distil-Whisper, arXiv 2311.00430,
    whose encoder is a copy of the target's). An encoder that the draft model may have is left idle.

    Lossless with every lossless verifier.
    """

    mode = "shared_encoder"

    def check_model(self, draft: Family, target: Family) -> None:
        """Refuse models that do not attend to sound, and states of another width."""
        if not draft.cross_attends:
            raise self.unfit("it does not attend to an encoder; use TextOnlyDrafter or OwnEncoderDrafter")
        if not target.cross_attends:
            raise self.unfit(
                f"it attends to sound, which {type(target.model).__name__} does not; use a model of the target's family"
            )
        theirs, ours = draft.text_config.hidden_size, target.text_config.hidden_size
        if theirs != ours:
            raise self.unfit(
                f"it attends to states of width {theirs}, and the target's encoder makes those of {ours}; use "
                "OwnEncoderDrafter"
            )

    def prompt_of(self, request: Request, vision: Vision | None) -> tuple[Request, Vision | None]:
        """Return what the target reads and hears."""
        return request, vision
