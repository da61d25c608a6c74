"""Whisper: a decoder that attends to the states of an encoder of sound, at every layer and every token."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache, DynamicCache, EncoderDecoderCache
from transformers.modeling_outputs import BaseModelOutput

from ..compat import CACHE
from ..errors import MMSpecError
from .base import Family
from .vision import Vision

SOUND = "input_features"


class Whisper(Family):
    """`WhisperForConditionalGeneration` (arXiv 2212.04356), with every window of 30 seconds of sound a row.

    The encoder runs once, and so do the keys and values that the decoder's layers compute of its states. The decoder is
    an ordinary language model besides: a tree of its tokens is read under a mask, with a position of its own for every
    node, which is an entry of a learned table.

    `WhisperForCausalLM`, the decoder alone, can only draft, with the states of the target's encoder.
    """

    model_types = ("whisper",)
    image_inputs = ()
    further_inputs = (SOUND,)
    vision_projector = None
    final_norm_name = "layer_norm"
    cross_attends = True

    @property
    def image_token_id(self) -> None:
        return None

    @property
    def pixel_inputs(self) -> tuple[str, ...]:
        return (SOUND,)

    @property
    def encoder(self) -> nn.Module | None:
        """The encoder of sound; None if the model is a decoder alone."""
        return getattr(self.model.base_model, "encoder", None)

    @property
    def longest(self) -> int:
        return self.decoder.max_target_positions

    @property
    def frames(self) -> int:
        """Frames of the window of sound that the encoder reads."""
        return 2 * self.model.config.max_source_positions

    def dtype_of(self, name: str, value: Tensor) -> torch.dtype:
        reader = self.encoder or self.decoder
        return reader.embed_positions.weight.dtype if name == SOUND else value.dtype

    def encode(self, inputs: dict[str, Any]) -> Vision:
        """Run the encoder over the log-mel features of every row, `[batch, bins, frames]`.

        Raises:
            MMSpecError: for a request without sound, or with sound of another form than this encoder reads.
        """
        sound, name = inputs.get(SOUND), type(self.model).__name__
        if self.encoder is None:
            raise MMSpecError(f"{name} is a decoder without an encoder, so it reads no sound by itself")
        if sound is None:
            raise MMSpecError(
                f"{name} listens, and no sound was given; pass audio=, or the feature extractor's {SOUND} in inputs="
            )
        rows, bins = len(inputs["input_ids"]), self.encoder.num_mel_bins
        if sound.ndim != 3 or sound.shape[:2] != (rows, bins) or sound.shape[2] != self.frames:
            raise MMSpecError(
                f"{SOUND} has shape {tuple(sound.shape)}, but {name} reads a window of sound for each of {rows} "
                f"rows, [{rows}, {bins}, {self.frames}]: make it with the model's own feature extractor, and cut what "
                "is longer than its window"
            )
        with self.passing():
            states = self.encoder(sound.to(self.dtype_of(SOUND, sound))).last_hidden_state
        return Vision([], None, memory=states)

    def lasting_inputs(self, vision: Vision | None) -> dict[str, Any]:
        if vision is None or vision.memory is None:
            raise MMSpecError(f"{type(self.model).__name__} attends to sound, and there is none in this request")
        return {"encoder_hidden_states": vision.memory}

    def forward(self, position_ids: Tensor, **arguments: Any) -> Tensor:
        # Nodes that no text can reach may lie behind the table; for a draft model with a shorter one, so may the text.
        return self.forward_decoder(position_ids=position_ids.clamp(max=self.longest - 1), **arguments)

    def probe(self, token: Tensor, cache: Cache) -> Tensor:
        states = self.model.get_output_embeddings().weight.new_zeros(1, 1, self.text_config.hidden_size)
        arguments = {"use_cache": True, CACHE: EncoderDecoderCache(cache, DynamicCache())}
        if self.encoder is None:
            return self.model(input_ids=token, encoder_outputs=(states,), **arguments).logits
        heard = BaseModelOutput(last_hidden_state=states)
        return self.model(encoder_outputs=heard, decoder_input_ids=token, **arguments).logits
