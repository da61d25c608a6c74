"""What a family of models must answer, with the answers that most families share."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import MMSpecError


@dataclass
class Vision:
    """The pictures of a batch, encoded once, in the order of their placeholders.

    Args:
        embeds: one `[tokens, hidden]` tensor per picture: what the language model reads in place of its placeholders.
        features: one `[tokens, vision_hidden]` tensor per picture, token for token the same: what the vision tower
            saw, before the target's projector. Drafters that share the tower put their own projector on it. None where
        transformers encoded the pictures and kept only `embeds`.
    """

    embeds: list[Tensor]
    features: list[Tensor] | None

    @property
    def sizes(self) -> list[int]:
        """Visual tokens per picture."""
        return [len(image) for image in self.embeds or self.features or []]


def visual_spans(rows: list[list[int]], token: int | None, sizes: list[int]) -> list[list[tuple[int, int]]]:
    """Per row of token ids, the `(start, end)` index ranges of its pictures, in order.

    Args:
        rows: token ids, without padding.
        token: the placeholder of a visual token.
        sizes: visual tokens of every picture of the batch.
    """
    spans: list[list[tuple[int, int]]] = []
    left = iter(sizes)
    for ids in rows:
        places = [index for index, one in enumerate(ids) if one == token]
        row, first = [], 0
        while first < len(places):  # placeholders of one picture may be broken up by row separators
            last = first + next(left) - 1
            row.append((places[first], places[last] + 1))
            first = last + 1
        spans.append(row)
    return spans


class Family:
    """A view of one model: where its parts are, how pictures enter, and which positions its tokens have.

    The base class describes a LLaVA-shaped model: a vision tower behind `get_image_features`, one placeholder token per
    visual token, positions that count tokens.
    """

    model_types: tuple[str, ...] = ()
    vision_inputs: tuple[str, ...] = ("pixel_values",)
    """Processor outputs that belong to pictures, not to token positions."""

    def __init__(self, model: nn.Module):
        self.model = model
        self.text_config = model.config.get_text_config(decoder=True)
        decoder = model.get_decoder()
        if not (hasattr(decoder, "layers") and hasattr(decoder, "norm")):
            raise MMSpecError(
                f"{type(model).__name__}: its decoder {type(decoder).__name__} has no `layers` and `norm` where mmspec "
                "reads hidden states; give it a family of its own in mmspec/families"
            )
        self.decoder = decoder

    @property
    def image_token_id(self) -> int | None:
        """The placeholder token, one per visual token; None if the model takes no pictures."""
        return self.model.config.image_token_id

    @property
    def layers(self) -> nn.ModuleList:
        return self.decoder.layers

    @property
    def final_norm(self) -> nn.Module:
        return self.decoder.norm

    @property
    def vision_projector(self) -> nn.Module:
        """The module whose input is `Vision.features`: `[pictures, tokens, vision_hidden]`."""
        return self.model.model.multi_modal_projector

    def encode_images(self, inputs: dict[str, Any]) -> Vision:
        """Run the vision tower on the `vision_inputs` of a batch."""
        captured = []
        hook = self.vision_projector.register_forward_pre_hook(lambda _, args: captured.append(args[0]))
        try:
            output = self.model.get_image_features(
                **{name: inputs[name] for name in self.vision_inputs if inputs.get(name) is not None},
                return_dict=True,
            )
        finally:
            hook.remove()
        embeds = [image.reshape(-1, image.shape[-1]) for image in output.pooler_output]
        return Vision(embeds, self.align_features(captured[0], embeds, inputs))

    def adopt_images(self, output: Any) -> Vision:
        """Pictures that `generate` has encoded already; what the tower saw is lost then."""
        return Vision([image.reshape(-1, image.shape[-1]) for image in output.pooler_output], None)

    def align_features(self, features: Tensor, embeds: list[Tensor], inputs: dict[str, Any]) -> list[Tensor]:
        """Cut the projector's input into one tensor per picture, in the order of the visual tokens."""
        return list(features.flatten(0, -2).split([image.shape[0] for image in embeds]))

    def grids(self, inputs: dict[str, Any], sizes: list[int]) -> list[tuple[int, int] | None]:
        """Rows and columns of the visual tokens of every picture, in the order of the pictures; None where they are no
        rectangle. By default a picture is a square.

        Args:
            inputs: of the request.
            sizes: visual tokens per picture.
        """
        edges = [math.isqrt(size) for size in sizes]
        return [(edge, edge) if edge**2 == size else None for edge, size in zip(edges, sizes, strict=True)]

    def embed(self, input_ids: Tensor, vision: Vision | None) -> Tensor:
        """Token embeddings `[batch, length, hidden]` with the pictures in place of their placeholders."""
        if vision is None:
            return self.model.get_input_embeddings()(input_ids)
        visual = input_ids == self.image_token_id
        # The placeholder may lie outside the embedding table.
        embeds = self.model.get_input_embeddings()(input_ids.masked_fill(visual, 0))
        return embeds.masked_scatter(visual[..., None], torch.cat(vision.embeds).to(embeds))

    def head_rows(self, tokens: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Weight `[count, hidden]` and bias `[count]` (or None) of the output embedding, of all tokens or `[count]`."""
        head = self.model.get_output_embeddings()
        weight, bias = head.weight, getattr(head, "bias", None)
        return (weight, bias) if tokens is None else (weight[tokens], None if bias is None else bias[tokens])

    @property
    def logit_scale(self) -> float:
        """What the model multiplies the output embedding's logits by: 1 for most."""
        scale = getattr(self.text_config, "logit_scale", None) or 1.0  # Cohere
        scaling = getattr(self.text_config, "logits_scaling", None) or 1.0  # Granite divides, HyperCLOVA X multiplies
        return scale * scaling if self.text_config.model_type.startswith("hyperclovax") else scale / scaling

    def head(self, hidden: Tensor, rows: tuple[Tensor, Tensor | None] | None = None) -> Tensor:
        """Logits `[..., count]` for `[..., hidden]` states after the final norm, of all tokens or given `head_rows`.

        They are the model's own: scaled and capped as it does.
        """
        weight, bias = rows or self.head_rows()
        logits = nn.functional.linear(hidden, weight.to(hidden.dtype), None if bias is None else bias.to(hidden.dtype))
        if self.logit_scale != 1:
            logits = logits * self.logit_scale
        cap = getattr(self.text_config, "final_logit_softcapping", None)
        return logits if cap is None else cap * torch.tanh(logits / cap)

    def positions(self, inputs: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """Positions of a right-padded prompt.

        Returns:
            position_ids: `[batch, length]`, or `[axes, batch, length]` for multi-axis rotary embeddings.
            delta: `[batch]`, what to add to a later token's index in its sequence to get its position.
        """
        ids = inputs["input_ids"]
        position_ids = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
        return position_ids, torch.zeros(ids.shape[0], dtype=torch.long, device=ids.device)

    def prefill_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """Further arguments of the model's forward pass over the prompt."""
        return {}

    def attention_windows(self) -> dict[str, int | None]:
        """The kinds of attention in the model: name to sliding window, None for full attention.

        Raises:
            MMSpecError: for a kind that tree passes cannot use.
        """
        config = self.text_config
        window = getattr(config, "sliding_window", None) if getattr(config, "use_sliding_window", True) else None
        kinds = getattr(config, "layer_types", None)
        if not kinds:
            return {"full_attention" if window is None else "sliding_attention": window}
        windows = {"full_attention": None, "sliding_attention": getattr(config, "sliding_window", None)}
        unknown = sorted(set(kinds) - set(windows))
        if unknown:
            raise MMSpecError(
                f"model type {config.model_type!r} has layers of type {', '.join(unknown)}, whose state cannot be "
                "rolled back or masked per tree node; mmspec supports full and sliding-window attention"
            )
        return {kind: windows[kind] for kind in sorted(set(kinds))}
