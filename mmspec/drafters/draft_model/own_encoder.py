"""A draft model that encodes pictures and sounds itself."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ...compressors import VisualCompressor
from ...errors import MMSpecError
from ...families import Family, Vision
from ...inputs import Request, prepare
from ...trees import TreeBuilder
from .base import DraftModelDrafter
from .same_encoders import SameEncoders

if TYPE_CHECKING:
    from ...target import Target


class OwnEncoderDrafter(DraftModelDrafter):
    """A model with encoders of its own, with which it looks at the pictures, or hears the sound, anew.

    If its processor is another one than the target's, it reads the whole conversation by that one. A Whisper, whose
    tokens are the target's, only hears the sound anew. Encoders run only where their work is of use: those that are
    copies of the target's (`recipe=small_copy`) take what the target's have made, and behind a compressor that leaves
    nothing of a picture (`Hide`) a model that reads the target's prompt looks at none.

    Lossless with every lossless verifier. Any smaller model of the target's family will do.
    """

    mode = "own_vision"
    encodes = True

    def __init__(
        self,
        target: Target,
        model: nn.Module,
        processor: Any = None,
        tree: TreeBuilder | None = None,
        compressor: VisualCompressor | None = None,
    ):
        super().__init__(target, model, processor, tree, compressor)
        self._same_encoders = SameEncoders()

    def check_model(self, draft: Family, target: Family) -> None:
        """Refuse a model without encoders, and one that attends to sound beside a target that does not."""
        if not draft.kinds:
            other = "SharedEncoderDrafter" if draft.cross_attends else "TextOnlyDrafter"
            raise self.unfit(f"it takes neither pictures nor sound; use {other}")
        if draft.cross_attends and not target.cross_attends:
            raise self.unfit(
                f"it attends to sound, which {type(target.model).__name__} does not; use a model of the target's family"
            )

    @property
    def reads_pictures(self) -> bool:
        """True if what it encodes stands in its prompt."""
        return not self.draft_target.family.cross_attends

    def prompt_of(self, request: Request, vision: Vision | None) -> tuple[Request, Vision | None]:
        """Return the prompt with its media, encoded by the draft model itself unless that is of no use."""
        own = self.draft_target
        if (known := self._seen_already(vision)) is not None:
            return request, known
        if own.processor is None or (own.family.cross_attends and request.conversations is None):
            pixels = own.family.sample_inputs
            if vision is not None and all(request.inputs.get(name) is None for name in pixels):
                raise MMSpecError(
                    f"the media were passed encoded and without {' or '.join(pixels)}, which OwnEncoderDrafter reads; "
                    "pass them as the processor returned them"
                )
        elif request.conversations is None:
            raise MMSpecError(
                "a draft model with its own processor needs the prompt and the media; call generate(prompt=, images=) "
                "or generate(audio=) instead of generate(inputs=)"
            )
        elif own.family.cross_attends:  # the tokens are the decoder's, of one vocabulary; the sound is another matter
            heard = own.family.features_of(own, request.distinct.conversations or [])
            inputs = {name: value.to(own.family.dtype_of(name, value)) for name, value in heard.items()}
            request = request.showing({name: value.to(own.device) for name, value in inputs.items()})
        else:
            once = request.distinct if request.of_one_text else request
            asked: dict[str, Any] = {
                "messages": once.conversations,
                "chat_template_kwargs": request.template_settings or None,
            }
            request = own.repeat(prepare(own, **asked), request.batch_size // once.batch_size)
        return request, own.encode(request)

    def _seen_already(self, vision: Vision | None) -> Vision | None:
        """Return what its encoders would make of the target's media, or what will do for it, if they need not run."""
        own = self.draft_target
        if vision is None or own.processor is not None or own.family.cross_attends:
            return None
        if self._same_encoders.between(own.family, self.target.family):
            return vision
        if self.compressor is None or not self.compressor.blind:
            return None
        like: dict[str, Any] = {"dtype": own.dtype, "device": own.device}
        return Vision([torch.zeros(size, own.hidden_size, **like) for size in vision.sizes], None, vision.kinds)

    def embed(self, request: Request, vision: Vision | None) -> Tensor:
        """Return embeddings with its own encodings in place of the pictures."""
        return self.draft_target.family.embed(request.inputs["input_ids"], vision)
