"""Media: the work of a family with all of its encoders, of whatever media."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..errors import MMSpecError
from ..media import KINDS
from .encoders import Encoder
from .view import ModelView
from .vision import Grid, Vision, in_order

ARGUMENTS = {"image": "images=[...]", "video": "videos=[...]", "audio": "audio=[...]"}
"""The argument of `generate` for each medium."""


class Media(ModelView):
    """The part of a family that knows its encoders.

    Attributes:
        encoders: kind of medium to its encoder; empty for a model that reads text alone.
    """

    encoders: dict[str, Encoder]

    def encoders_of(self, model: PreTrainedModel) -> Iterable[Encoder]:
        """Return one encoder for every medium. By default pictures are all, and their pixels say all about them."""
        return [Encoder(model, "image", "pixel_values")]

    @property
    def image_token_id(self) -> int | None:
        """The placeholder of pictures; None if the model takes none."""
        return self.encoders["image"].token if "image" in self.encoders else None

    @property
    def vision_projector(self) -> nn.Module | None:
        """The module whose input is `Vision.features` of pictures; None if there is none."""
        return self.encoders["image"].projector if "image" in self.encoders else None

    @property
    def placeholders(self) -> dict[int, str]:
        """Placeholder token to the kind of medium."""
        tokens = {encoder.token: kind for kind, encoder in self.encoders.items()}
        return {token: kind for token, kind in tokens.items() if token is not None}

    @property
    def kinds(self) -> set[str]:
        """The kinds of media that the model takes."""
        return set(self.encoders)

    @property
    def media_inputs(self) -> tuple[str, ...]:
        """Processor outputs that belong to pictures, videos and sounds, not to token positions."""
        return tuple(name for encoder in self.encoders.values() for name in (*encoder.inputs, *encoder.further))

    @property
    def sample_inputs(self) -> tuple[str, ...]:
        """Processor outputs that hold pixels or samples."""
        return tuple(encoder.samples for encoder in self.encoders.values())

    def dtype_of(self, name: str, value: Tensor) -> torch.dtype:
        """Return the dtype in which an input is read: pixels and samples in that of their encoder.

        Everything else is read as it is given: a clock in half precision would move the frames of a video.
        """
        encoder = next((encoder for encoder in self.encoders.values() if encoder.samples == name), None)
        if encoder is None or not value.is_floating_point():
            return value.dtype
        return encoder.dtype or value.dtype

    def is_visual(self, ids: Tensor) -> Tensor:
        """Return True on the placeholders of what is seen, and of what is heard, among `[...]` token ids."""
        visual = torch.zeros_like(ids, dtype=torch.bool)
        for token in self.placeholders:
            visual |= ids == token
        return visual

    def encode(self, inputs: dict[str, Any]) -> Vision | None:
        """Run the encoders on the `media_inputs` of a batch, or adopt what `generate` has encoded already.

        Raises:
            MMSpecError: if the prompt's placeholders and what fills them differ in number, or it holds those of a
                medium that this family does not read.
        """
        encoded, ids = inputs.get("mm_encoder_outputs") or {}, inputs["input_ids"]
        self._refuse_others(ids)
        parts: dict[str, Vision] = {}
        for kind, encoder in self.encoders.items():
            if encoded.get(kind) is not None:
                parts[kind] = encoder.read(encoded[kind], None, inputs)
            elif inputs.get(encoder.samples) is not None:
                parts[kind] = encoder.encode(inputs)
            wanted = 0 if encoder.token is None else int((ids == encoder.token).sum())
            if kind not in parts and wanted:
                raise MMSpecError(
                    f"the prompt has {wanted} {kind} placeholder tokens but no {kind} was given; pass "
                    f"{ARGUMENTS[kind]}, or the processor's {encoder.samples}"
                )
            if kind in parts and sum(parts[kind].sizes) != wanted:
                count = len(parts[kind].sizes)
                raise MMSpecError(
                    f"the prompt has {wanted} {kind} placeholder tokens but the {count} {kind}s given fill "
                    f"{sum(parts[kind].sizes)}; pass as many {kind}s as the prompt has places for"
                )
        if len(parts) < 2:
            return next(iter(parts.values()), None)
        return in_order(parts, ids.tolist(), self.placeholders)

    def _refuse_others(self, ids: Tensor) -> None:
        """Refuse placeholders of media that the family does not read."""
        for kind in KINDS:
            token = getattr(self.model.config, f"{kind}_token_id", None)
            if token is not None and kind not in self.encoders and (ids == token).any():
                read = " and ".join(f"{one}s" for one in self.encoders) or "text"
                raise MMSpecError(
                    f"the prompt has {kind} placeholder tokens, but of {type(self.model).__name__} mmspec reads {read} "
                    "only" + ("; pass single frames" if kind == "video" else "")
                )

    def grids(self, inputs: dict[str, Any], vision: Vision) -> list[Grid | None]:
        """Return times, rows and columns of the tokens of every picture, video and sound, in order; None where they are
        no cuboid."""
        kinds = vision.kinds or ["image"] * len(vision.sizes)
        sizes = {kind: [size for one, size in zip(kinds, vision.sizes, strict=True) if one == kind] for kind in kinds}
        found = {kind: iter(self.encoders[kind].grids(sizes[kind], inputs)) for kind in sizes}
        return [next(found[kind]) for kind in kinds]

    def embed(self, input_ids: Tensor, vision: Vision | None) -> Tensor:
        """Return token embeddings `[batch, length, hidden]` with what was encoded in place of its placeholders.

        Without it a placeholder is a token like any other, or token 0 if it lies outside the embedding table.
        """
        if vision is None or not vision.embeds:
            return self._text_embedder()(input_ids)
        visual = self.is_visual(input_ids)
        with self.passing():
            embeds = self.model.get_input_embeddings()(input_ids.masked_fill(visual, 0))
        return embeds.masked_scatter(visual[..., None], torch.cat(vision.embeds).to(embeds))

    def embedder(self) -> Callable[[Tensor], Tensor]:
        """Return the function from `[batch, length]` tokens to their embeddings `[batch, length, hidden]`, as `embed`
        gives them without anything encoded. It has looked up the table: to find it takes a pass of a small head as long
        as to read it."""
        return self._text_embedder()

    def _text_embedder(self) -> Callable[[Tensor], Tensor]:
        """Return the function that reads the embedding table."""
        table = self.model.get_input_embeddings()
        outside = any(token >= len(table.weight) for token in self.placeholders)
        if not outside and self.passes_freely:
            return table.__call__  # which a module can keep without taking the table for a part of itself

        def embed(tokens: Tensor) -> Tensor:
            with self.passing():
                return table(tokens.masked_fill(self.is_visual(tokens), 0) if outside else tokens)

        return embed
