"""Whisper: a decoder that attends to the states of an encoder of sound, at every layer and every token."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import (
    Cache,
    DynamicCache,
    EncoderDecoderCache,
    GenerationConfig,
    PreTrainedModel,
    WhisperTimeStampLogitsProcessor,
)
from transformers.modeling_outputs import BaseModelOutput

from ..chat import Conversation, media_of
from ..compat import CACHE
from ..decoding.by_row import BehindPrompt
from ..errors import MMSpecError, first_line
from .base import Family
from .encoders import Encoder
from .vision import Vision

if TYPE_CHECKING:
    from ..inputs.reader import Reader

SOUND = "input_features"
HEARD = "encoder_outputs"


class Window(Encoder):
    """A window of sound for every row, which no token of the text stands for."""

    @property
    def dtype(self) -> torch.dtype:
        """The encoder's dtype; for a decoder alone its own."""
        reader = getattr(self.model.base_model, "encoder", None) or self.model.get_decoder()
        return reader.embed_positions.weight.dtype


class Whisper(Family):
    """`WhisperForConditionalGeneration` (arXiv 2212.04356), with every window of 30 seconds of sound a row.

    The encoder runs once, and so do the keys and values that the decoder's layers compute of its states. The decoder is
    an ordinary language model besides: a tree of its tokens is read under a mask, with a position of its own for every
    node, which is an entry of a learned table.

    `WhisperForCausalLM`, the decoder alone, can only draft, with the states of the target's encoder.
    """

    model_types = ("whisper",)
    final_norm_name = "layer_norm"
    cross_attends = True
    token_inputs = ("decoder_input_ids", "decoder_attention_mask")
    prompt_optional = True
    settings_not_applied = {"no_speech_threshold": None}

    def encoders_of(self, model: PreTrainedModel) -> list[Encoder]:
        """Return the one of sound."""
        return [Window(model, "audio", SOUND, further=(HEARD,))]

    @property
    def kinds(self) -> set[str]:
        """Sound, if there is an encoder of it."""
        return set() if self.encoder is None else {"audio"}

    @property
    def encoder(self) -> nn.Module | None:
        """The encoder of sound; None if the model is a decoder alone."""
        return getattr(self.model.base_model, "encoder", None)

    @property
    def longest(self) -> int:
        """The entries of the decoder's table of positions."""
        return self.decoder.max_target_positions

    @property
    def frames(self) -> int:
        """Frames of the window of sound that the encoder reads."""
        return 2 * self.model.config.max_source_positions

    def as_request(self, inputs: Mapping[str, Any]) -> Mapping[str, Any]:
        """Take the decoder's tokens and their mask; where none are given, those with which `generate` begins.

        The mask of the sound, which the feature extractor may add, is left out: the model reads the whole window.
        """
        inputs = dict(inputs)
        tokens, mask = (inputs.pop(name, None) for name in self.token_inputs)
        if tokens is not None or inputs.get("input_ids") is None:
            inputs["input_ids"], inputs["attention_mask"] = tokens, mask
        elif (mask := inputs.get("attention_mask")) is not None and len(mask[0]) == self.frames:
            inputs["attention_mask"] = None
        if self.encoder is not None and inputs.get(HEARD) is None:
            self._check(inputs.get(SOUND), None if inputs["input_ids"] is None else len(inputs["input_ids"]))
        if inputs["input_ids"] is None and inputs.get(SOUND) is not None:
            inputs["input_ids"] = self.opening(inputs[SOUND])
        return inputs

    def write(
        self, reader: Reader, conversations: Sequence[Conversation], settings: Mapping[str, Any]
    ) -> Mapping[str, Any]:
        """Return the sound of every row, and the tokens before the answer: a text that came before, if the row has one
        (what `generate` calls `prompt_ids`), and those of `opening`.

        Raises:
            MMSpecError: for a row that is not one sound and texts of one user, for a sound that is longer than the
                window, and for settings but `language` and `task`.
        """
        if unknown := sorted(set(settings) - {"language", "task"}):
            raise MMSpecError(
                f"chat_template_kwargs has {unknown[0]!r}, but {type(self.model).__name__} takes language and task only"
            )
        heard = self.features_of(reader, conversations)
        before = [" ".join(text for message in row for text in message.texts) for row in conversations]
        rows = self.opening(heard[SOUND], **settings).tolist()
        for row, text in enumerate(before):
            if text.strip():
                try:
                    rows[row] = [*reader.processor.get_prompt_ids(text).tolist(), *rows[row]]
                except ValueError as error:
                    raise MMSpecError(f"prompt {row}: {first_line(error)}") from error
        width = max(map(len, rows))
        ids = torch.tensor([row + [0] * (width - len(row)) for row in rows])
        mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
        return {"decoder_input_ids": ids, "decoder_attention_mask": mask, **heard}

    def features_of(self, reader: Reader, conversations: Sequence[Conversation]) -> dict[str, Tensor]:
        """Return the log-mel features of the sound of every row, as the model's own processor makes them.

        Raises:
            MMSpecError: see `write`.
        """
        name, sounds, extractor = type(self.model).__name__, [], reader.processor.feature_extractor
        for row, conversation in enumerate(conversations):
            own = media_of(conversation, "audio")
            if len(own) != 1 or len(conversation) > 1:
                raise MMSpecError(
                    f"prompt {row} has {len(own)} sounds in {len(conversation)} messages, but {name} writes down one "
                    "sound: give one for every row, and perhaps a text that came before it as the prompt"
                )
            samples, rate = own[0]
            if len(samples) > extractor.n_samples:
                raise MMSpecError(
                    f"prompt {row}: its sound lasts {len(samples) / rate:.1f} seconds, but {name} hears "
                    f"{extractor.n_samples / rate:g} at a time: cut it, or use model.generate, which goes from window "
                    "to window"
                )
            sounds.append(samples)
        features = extractor(sounds, sampling_rate=rate, return_tensors="pt")
        return {SOUND: features[SOUND]}

    def as_arguments(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Name the inputs as `generate` does, and have it decode one window."""
        return super().as_arguments(inputs) | {"force_unique_generate_call": True, "return_timestamps": False}

    def noise(self, generator: torch.Generator) -> dict[str, Tensor]:
        """Draw features of a sound."""
        return {SOUND: torch.randn(1, self.model.config.num_mel_bins, self.frames, generator=generator)}

    def opening(self, sound: Tensor, **options: Any) -> Tensor:
        """Return the `[batch, tokens]` with which the model's own `generate` begins: start, language, task and, unless
        the generation config asks for timestamps, that there are none.

        A language that neither the options nor the generation config name is heard by the model, from one more pass
        over the sound.

        Args:
            sound: log-mel features, `[batch, bins, frames]`.
            options: `language` (or one for each row) and `task`, as `generate` takes them.

        Raises:
            MMSpecError: for a language or a task that the model does not know.
        """
        config = copy.deepcopy(self.model.generation_config)
        config.return_timestamps = getattr(config, "return_timestamps", None)
        try:
            self.model._set_language_and_task(
                options.get("language"), options.get("task"), is_multilingual=None, generation_config=config
            )
            with torch.inference_mode(), self.passing():
                return self.model._retrieve_init_tokens(
                    self.encoders["audio"].cast(sound.to(self.decoder.device)),
                    batch_size=len(sound),
                    generation_config=config,
                    config=self.model.config,
                    num_segment_frames=self.frames,
                    kwargs={},
                ).clone()
        except (ValueError, TypeError, KeyError) as error:
            raise MMSpecError(f"{type(self.model).__name__} cannot begin: {first_line(error)}") from error

    def encode(self, inputs: dict[str, Any]) -> Vision:
        """Run the encoder over the log-mel features of every row, `[batch, bins, frames]`, or adopt what `generate` has
        encoded already.

        Raises:
            MMSpecError: for a request without sound, or with sound of another form than this encoder reads.
        """
        if inputs.get(HEARD) is not None and inputs.get(SOUND) is None:
            return Vision([], None, memory=inputs[HEARD][0])
        if self.encoder is None:
            raise MMSpecError(f"{type(self.model).__name__} is a decoder alone: it hears what another encoder has made")
        self._check(inputs.get(SOUND), len(inputs["input_ids"]))
        with self.passing():
            states = self.encoder(self.encoders["audio"].cast(inputs[SOUND])).last_hidden_state
        return Vision([], None, memory=states)

    def _check(self, sound: Tensor | None, rows: int | None) -> None:
        """Refuse what is not a window of sound for each of so many rows."""
        name = type(self.model).__name__
        if sound is None:
            raise MMSpecError(
                f"{name} listens, and no sound was given; pass audio=, or the feature extractor's {SOUND} in inputs="
            )
        if not isinstance(sound, Tensor):
            kind = type(sound).__name__
            raise MMSpecError(f"{SOUND} is a {kind}; call the feature extractor with return_tensors='pt'")
        wanted = (len(sound) if rows is None else rows, self.model.config.num_mel_bins, self.frames)
        if tuple(sound.shape) != wanted:
            raise MMSpecError(
                f"{SOUND} has shape {tuple(sound.shape)}, but {name} reads {wanted}, a window of sound for every row: "
                "make it with the model's own feature extractor (for a draft model, give it processor=), and cut what "
                "is longer"
            )

    def processors(self, config: GenerationConfig) -> list[Callable]:
        """Return the one that pairs timestamps and keeps them in order, if they are asked for.

        Raises:
            MMSpecError: if the generation config does not say which tokens they are.
        """
        if not getattr(config, "return_timestamps", False):
            return []
        if not hasattr(config, "no_timestamps_token_id"):
            raise MMSpecError("the generation config has return_timestamps=True but no no_timestamps_token_id; set it")
        return [BehindPrompt(lambda length: WhisperTimeStampLogitsProcessor(config, begin_index=length))]

    def check_reach(self, inputs: dict[str, Any], max_new_tokens: int) -> None:
        """Refuse more tokens than the decoder has positions for.

        Raises:
            MMSpecError: as `generate` does.
        """
        prompt = int(inputs["attention_mask"].sum(-1).max())
        if prompt + max_new_tokens > self.longest:
            raise MMSpecError(
                f"a prompt of {prompt} tokens and max_new_tokens={max_new_tokens} do not fit into the {self.longest} "
                f"positions of {type(self.model).__name__}; ask for max_new_tokens={self.longest - prompt} at most"
            )

    def hears_like(self, other: Family) -> bool:
        """Compare the two encoders, number for number. A decoder alone hears as others do by necessity."""
        if self.encoder is None or not isinstance(other, Whisper) or other.encoder is None:
            return self.encoder is None and isinstance(other, Whisper)
        ours, theirs = self.encoder.state_dict(), other.encoder.state_dict()
        return ours.keys() == theirs.keys() and all(torch.equal(value, theirs[name]) for name, value in ours.items())

    def lasting_inputs(self, vision: Vision | None) -> dict[str, Any]:
        """Return the states of the encoder, for the decoder's cross-attention."""
        if vision is None or vision.memory is None:
            raise MMSpecError(f"{type(self.model).__name__} attends to sound, and there is none in this request")
        return {"encoder_hidden_states": vision.memory.to(self.decoder.embed_positions.weight.dtype)}

    def forward(self, **arguments: Any) -> Tensor:
        """Run the decoder; positions behind its table are those of its last entry."""
        # Nodes that no text can reach may lie behind the table; for a draft model with a shorter one, so may the text.
        arguments["position_ids"] = arguments["position_ids"].clamp(max=self.longest - 1)
        return self.forward_decoder(**arguments)

    def example(self, tokens: Tensor) -> dict[str, Any]:
        """Return tokens of the decoder, and silence that was encoded."""
        states = self.model.get_output_embeddings().weight.new_zeros(len(tokens), 1, self.text_config.hidden_size)
        ids = {"input_ids" if self.encoder is None else "decoder_input_ids": tokens}
        return ids | {"encoder_outputs": BaseModelOutput(last_hidden_state=states)}

    def probe(self, token: Tensor, cache: Cache) -> Tensor:
        """Run the whole model on one token and silence; the cache gets what self-attention keeps."""
        both = EncoderDecoderCache(cache, DynamicCache())
        return self.model(**self.example(token), use_cache=True, **{CACHE: both}).logits
