"""What a family of models must answer, with the answers that most families share."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import Cache, GenerationConfig

from ..compat import CACHE
from ..errors import MMSpecError
from ..hooks import Ear, listening
from ..masks import kernels
from ..weights import changes_while_running, device_of, is_adapted, is_plain, linear_weight
from .frequencies import Switch, check_reach, switches_of
from .vision import Vision, in_order

if TYPE_CHECKING:
    from ..chat import Conversation
    from ..inputs.reader import Reader

HEAD_TOLERANCE = {torch.float32: 1e-3, torch.float16: 2e-2, torch.bfloat16: 1e-1}
"""How far the head's logits may be from the model's, in standard deviations of the logits, by dtype."""
QUANTISED_TOLERANCE = 0.5
"""The same where the head multiplies in fewer bits than its weight is read with."""

_TURN = threading.RLock()
"""Of models that only one thread may run at a time, see `Family.passing`."""


class Family:
    """A view of one model: where its parts are, how pictures enter, and which positions its tokens have.

    The base class describes a LLaVA-shaped model: a vision tower behind `get_image_features`, one placeholder token per
    visual token, positions that count tokens. Videos are pictures of another kind: with `get_video_features` behind
    `video_inputs` and a placeholder of their own.
    """

    model_types: tuple[str, ...] = ()
    image_inputs: tuple[str, ...] = ("pixel_values",)
    """Arguments of `get_image_features`, as processors name them, the pixels first."""
    video_inputs: tuple[str, ...] = ()
    """Arguments of `get_video_features`, the pixels first; none for a family without videos."""
    further_inputs: tuple[str, ...] = ()
    """Other outputs of the processor that say something about pictures."""
    appended_type = 0
    """The `token_type_ids` of what is appended to a prompt."""
    shapes_logits = True
    """Whether the model scales and caps its logits as its language model's configuration says, see `compare_head`."""
    final_norm_name = "norm"
    """The module of the decoder behind its last layer."""
    cross_attends = False
    """Whether every layer also attends to the states of an encoder (`Vision.memory`), whose keys and values a session
    computes once."""
    verified = True
    """Whether the test suite compares this family with the model's own `generate`. If not, a target checks itself when
    it is made, see `mmspec.check`."""

    def __init__(self, model: nn.Module):
        self.model = model
        self.text_config = model.config.get_text_config(decoder=True)
        decoder = model.get_decoder()
        if not (hasattr(decoder, "layers") and hasattr(decoder, self.final_norm_name)):
            raise MMSpecError(
                f"{type(model).__name__}: its decoder {type(decoder).__name__} has no `layers` and "
                f"`{self.final_norm_name}` where mmspec reads hidden states; give it a family of its own in "
                "mmspec/families"
            )
        self.decoder = decoder
        self.one_at_a_time = changes_while_running(model)
        self.switches: tuple[Switch, ...] = switches_of(decoder)
        """Where the rotary frequencies change with the length of the text; nowhere for most models."""

    @property
    def image_token_id(self) -> int | None:
        """The placeholder token, one per visual token; None if the model takes no pictures."""
        return self.model.config.image_token_id

    @property
    def video_token_id(self) -> int | None:
        """The placeholder of videos; None if the model takes none, or takes their frames as pictures."""
        return self.model.config.video_token_id if self.video_inputs else None

    @property
    def placeholders(self) -> dict[int, str]:
        """Placeholder token to `"image"` or `"video"`."""
        tokens = {self.image_token_id: "image", self.video_token_id: "video"}
        return {token: kind for token, kind in tokens.items() if token is not None}

    @property
    def kinds(self) -> set[str]:
        """The kinds of media that the model takes."""
        return set(self.placeholders.values())

    @property
    def vision_inputs(self) -> tuple[str, ...]:
        """Processor outputs that belong to pictures, not to token positions."""
        return (*self.image_inputs, *self.video_inputs, *self.further_inputs)

    @property
    def pixel_inputs(self) -> tuple[str, ...]:
        """Processor outputs that hold pixels."""
        return (*self.image_inputs[:1], *self.video_inputs[:1])

    def dtype_of(self, name: str, value: Tensor) -> torch.dtype:
        """The dtype in which an input is read: pixels in that of the vision tower, whatever the language model's is.

        Everything else is read as it is given: a clock in half precision would move the frames of a video.
        """
        if name not in self.pixel_inputs or not value.is_floating_point():
            return value.dtype
        tower = self.model.get_encoder(modality="image").parameters()
        return next((weight.dtype for weight in tower if weight.is_floating_point()), value.dtype)

    def is_visual(self, ids: Tensor) -> Tensor:
        """Of `[...]` token ids, True on the placeholders of visual tokens."""
        visual = torch.zeros_like(ids, dtype=torch.bool)
        for token in self.placeholders:
            visual |= ids == token
        return visual

    @property
    def layers(self) -> nn.ModuleList:
        return self.decoder.layers

    @property
    def final_norm(self) -> nn.Module:
        return getattr(self.decoder, self.final_norm_name)

    @property
    def longest(self) -> int | None:
        """The positions that the model was made for; None if its configuration does not say."""
        return getattr(self.text_config, "max_position_embeddings", None)

    @property
    def vision_projector(self) -> nn.Module | None:
        """The module whose input is `Vision.features`: `[pictures, tokens, vision_hidden]`; None if there is none."""
        return self.model.model.multi_modal_projector

    def encode(self, inputs: dict[str, Any]) -> Vision | None:
        """Run the vision tower on the `vision_inputs` of a batch, or adopt what `generate` has encoded already.

        Raises:
            MMSpecError: if the prompt's placeholders and the pictures' tokens differ in number, or it holds a video
                that this family does not read.
        """
        encoded, ids = inputs.get("mm_encoder_outputs") or {}, inputs["input_ids"]
        video = getattr(self.model.config, "video_token_id", None)
        if not self.video_inputs and video is not None and (ids == video).any():
            raise MMSpecError(
                f"the prompt has video placeholder tokens, but of {type(self.model).__name__} mmspec reads pictures "
                "only; pass single frames"
            )
        parts: dict[str, Vision] = {}
        for token, kind in self.placeholders.items():
            names = self.image_inputs if kind == "image" else self.video_inputs
            if encoded.get(kind) is not None:
                parts[kind] = self.pictures(encoded[kind], None, inputs, kind)
            elif inputs.get(names[0]) is not None:
                parts[kind] = self._encode(kind, names, inputs)
            wanted = int((ids == token).sum())
            if kind not in parts and wanted:
                way = "images=[...]" if kind == "image" else f"the processor's {names[0]}"
                raise MMSpecError(
                    f"the prompt has {wanted} {kind} placeholder tokens but no {kind} was given; pass {way}"
                )
            if kind in parts and sum(parts[kind].sizes) != wanted:
                sizes = parts[kind].sizes
                raise MMSpecError(
                    f"the prompt has {wanted} {kind} placeholder tokens but the {len(sizes)} {kind}s given fill "
                    f"{sum(sizes)}; pass as many {kind}s as the prompt has places for"
                )
        if len(parts) < 2:
            return next(iter(parts.values()), None)
        return in_order(parts, ids.tolist(), self.placeholders)

    def _encode(self, kind: str, names: Sequence[str], inputs: dict[str, Any]) -> Vision:
        captured: list[Tensor] = []
        projector = self.vision_projector
        ears = [] if projector is None else [Ear(projector, before=lambda args, _: captured.append(args[0]))]
        with listening(ears):
            pixels, *further = names
            # The pixels' name is not the same in all versions of transformers, their place is.
            output = getattr(self.model, f"get_{kind}_features")(
                inputs[pixels].to(self.dtype_of(pixels, inputs[pixels])),  # for a draft model, in another's
                **{name: inputs[name] for name in further if inputs.get(name) is not None},
                return_dict=True,
            )
        return self.pictures(output, captured[0] if captured else None, inputs, kind)

    def pictures(self, output: Any, features: Tensor | None, inputs: dict[str, Any], kind: str) -> Vision:
        """One kind of pictures from what the model's own encoder returned.

        Args:
            output: of `get_image_features` or `get_video_features`.
            features: what entered the projector; None where transformers encoded the pictures.
            inputs: of the request.
            kind: `"image"` or `"video"`.
        """
        embeds = [image.reshape(-1, image.shape[-1]) for image in output.pooler_output]
        aligned = None if features is None else self.align_features(features, embeds, inputs, kind)
        return Vision(embeds, aligned, [kind] * len(embeds))

    def align_features(
        self, features: Tensor, embeds: list[Tensor], inputs: dict[str, Any], kind: str
    ) -> list[Tensor] | None:
        """Cut the projector's input into one tensor per picture, in the order of the visual tokens."""
        return list(features.flatten(0, -2).split([image.shape[0] for image in embeds]))

    def grids(self, inputs: dict[str, Any], vision: Vision) -> list[tuple[int, int] | None]:
        """Rows and columns of the visual tokens of every picture, in the order of the pictures; None where they are no
        rectangle. By default a picture is a square.
        """
        edges = [math.isqrt(size) for size in vision.sizes]
        return [(edge, edge) if edge**2 == size else None for edge, size in zip(edges, vision.sizes, strict=True)]

    def embed(self, input_ids: Tensor, vision: Vision | None) -> Tensor:
        """Token embeddings `[batch, length, hidden]` with the pictures in place of their placeholders.

        Without pictures a placeholder is a token like any other, or token 0 if it lies outside the embedding table.
        """
        table = self.model.get_input_embeddings()
        if vision is None or not vision.embeds:
            if any(token >= len(table.weight) for token in self.placeholders):
                input_ids = input_ids.masked_fill(self.is_visual(input_ids), 0)
            with self.passing():
                return table(input_ids)
        visual = self.is_visual(input_ids)
        with self.passing():
            embeds = table(input_ids.masked_fill(visual, 0))
        return embeds.masked_scatter(visual[..., None], torch.cat(vision.embeds).to(embeds))

    def head_rows(self, tokens: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Weight `[count, hidden]` and bias `[count]` (or None) of the output embedding, of all tokens or `[count]`.

        They are on the device of the input embedding, where drafters are.
        """
        head = self.model.get_output_embeddings()
        table, bias = self.model.get_input_embeddings(), getattr(head, "bias", None)
        device = device_of(table)
        with self.passing():
            weight, bias = linear_weight(head, table.weight.dtype, device), None if bias is None else bias.to(device)
        return (weight, bias) if tokens is None else (weight[tokens], None if bias is None else bias[tokens])

    @property
    def logit_scale(self) -> float:
        """What the model multiplies the output embedding's logits by: 1 for most."""
        return self._configured_scale if self.shapes_logits else 1.0

    @property
    def _configured_scale(self) -> float:
        scale = getattr(self.text_config, "logit_scale", None) or 1.0  # Cohere
        scaling = getattr(self.text_config, "logits_scaling", None) or 1.0  # Granite divides, HyperCLOVA X multiplies
        return scale * scaling if self.text_config.model_type.startswith("hyperclovax") else scale / scaling

    def head(self, hidden: Tensor, rows: tuple[Tensor, Tensor | None] | None = None) -> Tensor:
        """Logits `[..., count]` for `[..., hidden]` states after the final norm, of all tokens or given `head_rows`.

        They are the model's own: scaled and capped as it does.
        """
        weight, bias = rows or self.head_rows()
        logits = nn.functional.linear(hidden, weight.to(hidden.dtype), None if bias is None else bias.to(hidden.dtype))
        return self._shaped(logits) if self.shapes_logits else logits

    def _shaped(self, logits: Tensor) -> Tensor:
        """Scaled and capped as the configuration says."""
        scale, cap = self._configured_scale, self._configured_cap
        if scale != 1:
            logits = logits * scale
        return logits if cap is None else cap * torch.tanh(logits / cap)

    @property
    def logit_cap(self) -> float | None:
        """The bound that logits approach; None for most models."""
        return self._configured_cap if self.shapes_logits else None

    @property
    def _configured_cap(self) -> float | None:
        return getattr(self.text_config, "final_logit_softcapping", None)

    def compare_head(self, hidden: Tensor, logits: Tensor) -> None:
        """Make sure that `head` gives the model's own logits.

        Find out on the way whether the model scales and caps them as its configuration says: some vision-language
        models (Aya Vision, PaliGemma 2 in transformers 5.17) have a head of their own, which does not.

        Args:
            hidden: `[..., hidden]` states after the final norm.
            logits: `[..., vocab]` that the model made of them.

        Raises:
            MMSpecError: if they are not the model's, whichever way.
        """
        weight, bias = self.head_rows()
        plain = nn.functional.linear(hidden, weight.to(hidden.dtype), None if bias is None else bias.to(hidden.dtype))
        found = {shaped: (self._shaped(plain) if shaped else plain).to(logits).float() for shaped in (True, False)}
        theirs = logits.float()
        # What a model masks by itself is no logit, and a model that gives no numbers cannot be compared.
        seen = theirs.isfinite() & (theirs > torch.finfo(torch.float16).min)
        if plain.shape == logits.shape and not seen.any():
            return
        errors = {
            shaped: float((ours - theirs)[seen].abs().max()) if ours.shape == theirs.shape else math.inf
            for shaped, ours in found.items()
        }
        self.shapes_logits = errors[True] <= errors[False]
        head = self.model.get_output_embeddings()
        stored = is_plain(head.weight) or is_adapted(head)
        tolerance = HEAD_TOLERANCE.get(logits.dtype, HEAD_TOLERANCE[torch.bfloat16]) if stored else QUANTISED_TOLERANCE
        error, spread = errors[self.shapes_logits], float(theirs[seen].std())
        if not error <= tolerance * max(spread, torch.finfo(torch.float32).tiny):
            raise MMSpecError(
                f"{type(self.model).__name__}: its output embedding does not make its logits of its last states (they "
                f"differ by {error:.2g}, and spread by {spread:.2g}), so drafters that read the head would guess "
                "wrongly; merge an adapter on the head into it, or give the model a family in mmspec/families"
            )

    def positions(self, inputs: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """Positions of a right-padded prompt.

        Decoding goes on from the position of a row's last token, by one a token, and on every axis from its own: behind
        a picture at the end of a prompt the axes stay apart for the whole answer.

        Returns:
            position_ids: `[batch, length]`, or `[axes, batch, length]` for multi-axis rotary embeddings.
            delta: `[batch]` or `[axes, batch]`, what to add to a later token's index in its sequence to get its
                position.
        """
        ids, given = inputs["input_ids"], inputs.get("position_ids")
        if given is not None and given.ndim == 2:
            return given, self.delta_behind(given, inputs)
        position_ids = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
        return position_ids, torch.zeros(ids.shape[0], dtype=torch.long, device=ids.device)

    @staticmethod
    def delta_behind(position_ids: Tensor, inputs: dict[str, Any]) -> Tensor:
        """`[batch]` or `[axes, batch]`: by how much the positions behind right-padded prompts exceed indices."""
        lengths = inputs["attention_mask"].long().sum(-1)
        last = (lengths - 1)[:, None].expand(*position_ids.shape[:-1], 1)
        return position_ids.gather(-1, last)[..., 0] + 1 - lengths

    def positions_until(self, inputs: dict[str, Any], width: int) -> tuple[Tensor, Tensor]:
        """The same of a right-padded prompt that goes on to `width` tokens, at the positions that decoding gives them.

        A model's own pass over prompt and answer may disagree: where the prompt ends with a picture, Qwen-VL's does.
        """
        prompt, delta = self.positions(inputs)
        later = torch.arange(width, device=delta.device) + delta[..., None]
        later = later.expand(*prompt.shape[:-1], width).clone()
        length = prompt.shape[-1]
        later[..., :length] = torch.where(inputs["attention_mask"].bool(), prompt, later[..., :length])
        return later, delta

    def token_types(self, visual: Tensor, lengths: Sequence[int]) -> Tensor | None:
        """`token_type_ids` of a sequence that no processor made; None for most models.

        Args:
            visual: `[batch, length]` True on visual tokens.
            lengths: tokens of the prompt per row; an answer may follow.
        """
        return None

    def complete(self, inputs: dict[str, Any]) -> None:
        """Add to prepared inputs what the model's own processor would have: kinds of tokens, if they are missing."""

    def prefill_inputs(
        self, inputs: dict[str, Any], vision: Vision | None = None, visual: Tensor | None = None
    ) -> dict[str, Any]:
        """Further arguments of `forward` over a prompt.

        Args:
            inputs: of the request, completed.
            vision: its pictures.
            visual: `[batch, length]` where they stand; by default at their placeholders.
        """
        return {}

    def as_request(self, inputs: Mapping[str, Any]) -> Mapping[str, Any]:
        """What a processor returned, with the tokens that the language model reads as `input_ids` and their mask as
        `attention_mask`."""
        return inputs

    prompt_optional = False
    """Whether media alone are a prompt."""

    def write(
        self, reader: Reader, conversations: Sequence[Conversation], settings: Mapping[str, Any]
    ) -> Mapping[str, Any] | None:
        """Conversations as a processor would return them, where the model has a way of its own to be asked; None where
        it has a chat template or reads plain text, see `mmspec.inputs.template`.

        Args:
            reader: the target.
            conversations: one per row, with loaded media.
            settings: see `chat_template_kwargs` of `mmspec.generate`.
        """
        return None

    def as_arguments(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """The inputs of a request as the model's own `generate` names them."""
        return dict(inputs)

    def lasting_inputs(self, vision: Vision | None) -> dict[str, Any]:
        """Arguments of every pass of a request, see `Session.extra`: what its layers attend to beside the text.

        Args:
            vision: what `encode` returned.
        """
        return {}

    def hears_like(self, other: Family) -> bool:
        """Whether another model's encoder makes the states that this one attends to, see `cross_attends`."""
        return False

    def probe(self, token: Tensor, cache: Cache) -> Tensor:
        """`[1, 1, vocab]` logits of a single token, `[1, 1]`, by the model's own outermost forward pass.

        Args:
            token: to read, at position 0.
            cache: an empty one, to be filled.
        """
        return self.model(input_ids=token, position_ids=token, use_cache=True, **{CACHE: cache}).logits

    settings_not_applied: Mapping[str, Any] = {}
    """Settings of a generation config that only this family has, that change the text, and that nothing here applies:
    name to the value that does nothing."""

    def processors(self, config: GenerationConfig) -> list[Callable]:
        """Logits processors that the model's own `generate` makes of its generation config, besides those that every
        model has; see `LogitsPipeline`."""
        return []

    def check_reach(self, inputs: dict[str, Any], max_new_tokens: int) -> None:
        """Refuse a request whose answer could come to positions that the model, or mmspec, has nothing right for.

        Raises:
            MMSpecError: see `mmspec.families.frequencies.check_reach`.
        """
        if self.switches:
            mask, name = inputs["attention_mask"], type(self.model).__name__
            check_reach(self.switches, name, *self.positions(inputs), mask, max_new_tokens)

    def seen_together(self, inputs: dict[str, Any]) -> Tensor | None:
        """`[batch, length]` numbers of groups of tokens that see one another in both directions, -1 for none; None
        where attention is causal throughout."""
        return None

    def run(self, **arguments: Any) -> Tensor:
        """`[batch, length, vocab]` logits of a pass of the language model.

        Args:
            arguments: of the model's own forward pass, with tokens or embeddings; pictures are in the embeddings.
        """
        with self.passing():
            return self.forward(**arguments)

    @contextmanager
    def passing(self) -> Iterator[None]:
        """Around everything that runs modules of the model.

        Any number of threads may be inside at once, but for models whose modules change while they run: frequencies of
        rotary embeddings that depend on the length of the text, weights that are fetched for a pass. Of these, one at a
        time.
        """
        turn = _TURN if self.one_at_a_time else nullcontext()
        with turn, kernels(self.text_config._attn_implementation, device_of(self.model.get_input_embeddings())):
            yield

    def forward(self, **arguments: Any) -> Tensor:
        """What `run` does; for subclasses."""
        return self.model(**arguments).logits

    def forward_decoder(self, logits_to_keep: int | Tensor = 0, **arguments: Any) -> Tensor:
        """The same past the outer model, for arguments that it does not pass on to its language model."""
        states = self.decoder(**arguments).last_hidden_state
        keep = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        return self.head(states[:, keep])

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
