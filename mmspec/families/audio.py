"""Models that hear: an encoder of log-mel features before a language model, and a placeholder token for each of its
vectors."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from ..errors import MMSpecError, first_line
from ..models.hooks import Ear, listening
from .base import Family
from .encoders import Encoder
from .vision import Vision, runs


class Voxtral(Family):
    """`VoxtralForConditionalGeneration`. A sound is cut into windows of 30 seconds, whose tokens follow one another."""

    model_types = ("voxtral",)

    def encoders_of(self, model: PreTrainedModel) -> list[Encoder]:
        """Return the encoder of sounds."""
        return [Encoder(model, "audio", "input_features")]


class Masked(Family):
    """`AudioFlamingo3ForConditionalGeneration` and `GlmAsrForConditionalGeneration`, with a mask for the length of each
    sound."""

    model_types = ("audioflamingo3", "glmasr")

    def encoders_of(self, model: PreTrainedModel) -> list[Encoder]:
        """Return the encoder of sounds."""
        return [Encoder(model, "audio", "input_features", "input_features_mask")]


class Qwen2Audio(Family):
    """`Qwen2AudioForConditionalGeneration`, which has no method that encodes sounds."""

    model_types = ("qwen2_audio",)

    def encoders_of(self, model: PreTrainedModel) -> list[Encoder]:
        """Return the encoder of sounds."""
        return [WithinForward(model, "audio", "input_features", "feature_attention_mask")]

    def forward(self, **arguments: Any) -> Tensor:
        """Run the language model alone: the outer model gives the logits of all tokens."""
        return self.forward_decoder(**arguments)  # the outer model gives the logits of all tokens


class _Read(Exception):
    """The end of a pass, once what the language model reads is known."""


class WithinForward(Encoder):
    """The encoder of a model that encodes within its forward pass. The pass is run until the language model begins, and
    what stands at the placeholders then is what was encoded."""

    def encode(self, inputs: dict[str, Any]) -> Vision:
        """Return what the language model reads in place of the sounds.

        Raises:
            MMSpecError: for what the model's own forward pass refuses.
        """
        ids, read = inputs["input_ids"], []

        def stop(args: tuple, arguments: dict[str, Any]) -> None:
            read.append(arguments["inputs_embeds"])
            raise _Read

        given = {name: inputs[name] for name in self.inputs if inputs.get(name) is not None}
        given[self.samples] = self.cast(given[self.samples])
        try:
            with listening([Ear(self.model.get_decoder(), before=stop)]), suppress(_Read):
                self.model(input_ids=ids, attention_mask=inputs["attention_mask"], **given)
        except (ValueError, RuntimeError, AttributeError) as error:
            raise MMSpecError(
                f"{type(self.model).__name__} does not read this prompt and its {self.kind}: {first_line(error)}"
            ) from error
        (embeds,) = read
        if embeds.shape[:2] != ids.shape:  # one placeholder a sound is expanded by the model, as in its first releases
            raise MMSpecError(
                f"the prompt has fewer {self.kind} placeholder tokens than its sounds fill: make the inputs with the "
                "model's own processor, which writes one for each"
            )
        parts = embeds[ids == self.token].split(runs(ids.tolist(), self.token))
        return Vision(list(parts), None, [self.kind] * len(parts))
