"""Gemma 4: an embedding of every token for every layer, layers that read the keys of others, and pictures whose tokens
see each other within the sliding window."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from ..errors import MMSpecError
from .base import Family
from .encoders import Encoder
from .vision import Grid, Vision

TYPES = {"image": 1, "video": 2, "audio": 3}
"""The `mm_token_type_ids` of placeholders."""


class Placed(Encoder):
    """Pictures and videos of any size, as patches that say where they are. A token is a square of patches."""

    @property
    def projector(self) -> nn.Module:
        """The norm in the projector, the first module that sees one vector per visual token."""
        return self.model.model.embed_vision.embedding_pre_projection_norm

    @property
    def dtype(self) -> torch.dtype:
        """Single precision: the tower scales pixels before it turns them into its own dtype."""
        return torch.float32

    @property
    def edge(self) -> int:
        """The number of patches along a side of a token."""
        return self.model.config.vision_config.pooling_kernel_size

    def grids(self, sizes: list[int], inputs: dict[str, Any]) -> list[Grid | None]:
        """Return times, rows and columns of the tokens, from the places of the patches."""
        places = inputs.get(f"{self.kind}_position_ids")
        if places is None:  # consumed by `generate`
            return [None] * len(sizes)
        if places.ndim == 4:  # videos of equally many frames, which old versions of transformers put side by side
            frames, places = [places.shape[1]] * len(sizes), places.flatten(0, 1)
        else:
            frames = [1] * len(sizes) if self.kind == "image" else inputs["num_frames_per_video"].tolist()
        shapes = ((places.amax(1) + 1) // self.edge).flip(-1).tolist()  # (rows, columns) of every picture, or frame
        firsts = [sum(frames[:number]) for number in range(len(frames))]
        return [(times, *shapes[first]) for times, first in zip(frames, firsts, strict=True)]


class Projected(Placed):
    """Pictures and videos without a tower: patches as large as a token, of which a linear map makes tokens."""

    edge = 1

    @property
    def projector(self) -> nn.Module:
        """The norm behind the map."""
        return self.model.model.embed_vision.multimodal_embedder.embedding_pre_projection_norm

    def align(self, features: Tensor, embeds: list[Tensor], inputs: dict[str, Any]) -> list[Tensor] | None:
        """Leave out what the map made of padding."""
        real = (inputs[f"{self.kind}_position_ids"] != -1).all(-1)
        return super().align(features.flatten(0, -2)[real.flatten()], embeds, inputs)


class Heard(Encoder):
    """Sounds, padded to the longest of the batch."""

    def read(self, output: Any, features: Tensor | None, inputs: dict[str, Any]) -> Vision:
        """Leave out what the encoder made of padding."""
        real = output.attention_mask.bool()
        embeds = [sound[own] for sound, own in zip(output.pooler_output, real, strict=True)]
        return Vision(embeds, None, [self.kind] * len(embeds))


class Gemma4(Family):
    """`Gemma4ForConditionalGeneration` and `Gemma4ForCausalLM`.

    In sliding layers of the larger models, the tokens of a picture or of a video's frame see each other, as far as the
    window reaches; full layers are causal. The smaller models add to every layer an embedding of the token (PLE). A
    model that is given embeddings would look for their tokens in its table, so a prompt comes with these, and with the
    padding token's where something else than text is read.

    Raises:
        MMSpecError: for a model that reads all of its text in both directions.
    """

    model_types = ("gemma4", "gemma4_text")
    seen: type[Placed] = Placed
    """The class of its encoders of pictures and videos."""
    window_bounds_groups = True
    can_be_cut = False

    def __init__(self, model: PreTrainedModel):
        super().__init__(model)
        both_ways = getattr(self.text_config, "use_bidirectional_attention", None)
        if both_ways == "all":
            raise MMSpecError(
                f"{type(model).__name__} reads its text in both directions (use_bidirectional_attention='all'), so it "
                "cannot write any: give a Gemma 4 that generates"
            )
        self._grouped = both_ways == "vision" and bool(self.encoders)

    def encoders_of(self, model: PreTrainedModel) -> list[Encoder]:
        """Return the encoders of pictures, of videos and of sounds, of those that the model has."""
        encoders: list[Encoder] = []
        if getattr(model.config, "vision_config", None) is not None:
            encoders += [
                self.seen(model, "image", "pixel_values", "image_position_ids"),
                self.seen(model, "video", "pixel_values_videos", "video_position_ids", "num_frames_per_video"),
            ]
        if getattr(model.config, "audio_config", None) is not None:
            encoders.append(Heard(model, "audio", "input_features", "input_features_mask"))
        return encoders

    def add_missing_inputs(self, inputs: dict[str, Any]) -> None:
        """Add the kinds of tokens."""
        if self.encoders and "mm_token_type_ids" not in inputs:
            ids = inputs["input_ids"]
            inputs["mm_token_type_ids"] = types = torch.zeros_like(ids)
            for token, kind in self.placeholders.items():
                types[ids == token] = TYPES[kind]

    def prefill_inputs(
        self, inputs: dict[str, Any], vision: Vision | None = None, visual: Tensor | None = None
    ) -> dict[str, Any]:
        """Return the kinds of tokens, from which the model builds its block mask, and the embeddings for its layers."""
        further = {"mm_token_type_ids": inputs["mm_token_type_ids"]} if self._grouped else {}
        if getattr(self.text_config, "hidden_size_per_layer_input", None):
            ids = inputs["input_ids"]
            other = self.is_no_text(ids) | (ids >= self.text_config.vocab_size_per_layer_input)
            other = other if visual is None else other | visual
            with self.passing():
                text = ids.masked_fill(other, self.text_config.pad_token_id)
                further["per_layer_inputs"] = self.decoder.get_per_layer_inputs(text, None)
        return further

    def embed(self, input_ids: Tensor, vision: Vision | None) -> Tensor:
        """Return token embeddings as `Media.embed` does, with the padding token's for placeholders of which nothing was
        encoded: that is how the model reads one that it has written itself."""
        seen = torch.zeros_like(input_ids, dtype=torch.bool) if vision is None else self.is_visual(input_ids)
        unseen = self.is_no_text(input_ids) & ~seen
        return super().embed(input_ids.masked_fill(unseen, self.text_config.pad_token_id), vision)

    def is_no_text(self, ids: Tensor) -> Tensor:
        """Return True on the tokens that stand for something else than text, whatever this model has encoders for."""
        names = (f"{kind}_token_id" for kind in TYPES)
        tokens = [token for name in names if (token := getattr(self.model.config, name, None)) is not None]
        return torch.isin(ids, torch.tensor(tokens, dtype=ids.dtype, device=ids.device))

    def bidirectional_groups(self, inputs: dict[str, Any], kind: str | None = None) -> Tensor | None:
        """Return a group for every run of tokens that are seen, in layers with a window."""
        if not self._grouped or kind == "full_attention":
            return None
        types = inputs["mm_token_type_ids"]
        seen = (types == TYPES["image"]) | (types == TYPES["video"])
        begins = seen & ~functional.pad(seen, (1, 0))[:, :-1]
        return (begins.long().cumsum(1) - 1).masked_fill(~seen, -1)

    def keys_layer(self, layer: int) -> int:
        """Return the last layer of the same kind that has keys of its own."""
        kinds = self.text_config.layer_types
        own = len(kinds) - (self.text_config.num_kv_shared_layers or 0)
        return layer if layer < own else max(n for n in range(own) if kinds[n] == kinds[layer])

    def attention_inputs(self, layer: int, entries: tuple[Tensor, Tensor] | None = None) -> dict[str, Any]:
        """Return the place where layers leave the keys and values that others read, by kind of attention."""
        return {"shared_kv_states": {} if entries is None else {self.text_config.layer_types[layer]: entries}}


class Gemma4Unified(Gemma4):
    """`Gemma4UnifiedForConditionalGeneration`, the 12B: neither pictures nor sounds have a tower, and the tokens of a
    picture or of a video's frame see each other in all layers, however far apart they are."""

    model_types = ("gemma4_unified", "gemma4_unified_text")
    seen = Projected
    window_bounds_groups = False

    def bidirectional_groups(self, inputs: dict[str, Any], kind: str | None = None) -> Tensor | None:
        """Return a group for every run of tokens that are seen, in layers of every kind."""
        return super().bidirectional_groups(inputs)
