"""Family: the questions about a model that mmspec asks, with the answers that most families share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import Cache, GenerationConfig, PreTrainedModel

from ..compat import CACHE
from ..errors import MMSpecError
from ..models.slots import pick_numbers
from ..models.weights import changes_while_running
from .encoders import check_layers
from .frequencies import Switch, check_reach, switches_of
from .head import Head
from .media import Media
from .vision import Vision
from .writing import Writing

if TYPE_CHECKING:
    from ..chat import Conversation
    from ..inputs.reader import Reader


class Family(Media, Head, Writing):
    """A view of one model: where its parts are, how pictures, videos and sounds enter, and which positions its tokens
    have.

    The base class describes a LLaVA-shaped model: a vision tower behind `get_image_features`, one placeholder token per
    visual token, positions that count tokens.
    """

    model_types: tuple[str, ...] = ()
    appended_type = 0
    """The `token_type_ids` of what is appended to a prompt."""
    final_norm_name = "norm"
    """The module of the decoder behind its last layer."""
    first_layers_alone: tuple[str, ...] = ()
    """Names, among the `prefill_inputs`, of what acts behind the first layers only."""
    cross_attends = False
    """True if every layer also attends to the states of an encoder (`Vision.memory`), whose keys and values a session
    computes once."""
    can_be_cut = True
    """True if the first layers are a smaller model of the same class, whose weights are as they are in the whole."""
    verified = True
    """True if the test suite compares this family with the model's own `generate`. If not, a target checks itself when
    it is made, see `mmspec.check`."""

    def __init__(self, model: PreTrainedModel):
        self.model = model
        self.text_config = model.config.get_text_config(decoder=True)
        decoder: Any = model.get_decoder()
        if not (hasattr(decoder, "layers") and hasattr(decoder, self.final_norm_name)):
            raise MMSpecError(
                f"{type(model).__name__}: its decoder {type(decoder).__name__} has no `layers` and "
                f"`{self.final_norm_name}` where mmspec reads hidden states; give it a family of its own in "
                "mmspec/families"
            )
        self.decoder = decoder
        check_layers(model)
        self.encoders = {encoder.kind: encoder for encoder in self.encoders_of(model)}
        self.one_at_a_time = changes_while_running(model)
        self.switches: tuple[Switch, ...] = switches_of(decoder)
        """Where the rotary frequencies change with the length of the text; nowhere for most models."""

    @property
    def layers(self) -> nn.ModuleList:
        """The layers of the language model."""
        return self.decoder.layers

    @property
    def layer_config(self) -> Any:
        """The configuration of the first layer: that of the language model where all layers have the same sizes."""
        of_layers = getattr(self.text_config, "per_layer_config", None)  # since transformers 5.24
        return self.text_config if of_layers is None else of_layers[0]

    @property
    def joined_layers(self) -> int:
        """The number of first layers behind which visual features join the states, outside of the layers (DeepStack);
        0 for most models."""
        return 0

    @property
    def final_norm(self) -> nn.Module:
        """The norm behind the last layer."""
        return getattr(self.decoder, self.final_norm_name)

    @property
    def longest(self) -> int | None:
        """The positions that the model was made for; None if its configuration does not say."""
        return getattr(self.text_config, "max_position_embeddings", None)

    def positions(self, inputs: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """Return the positions of a right-padded prompt, and those of what follows it.

        Decoding goes on from the position of a row's last token, by one a token, and on every axis from its own: behind
        a picture at the end of a prompt the axes stay apart for the whole answer.

        Returns:
            position_ids: `[batch, length]`, or `[axes, batch, length]` for multi-axis rotary embeddings.
            position_offset: `[batch]` or `[axes, batch]` number to add to a later token's index in its sequence to get
                its position.
        """
        ids, given = inputs["input_ids"], inputs.get("position_ids")
        if given is not None and given.ndim == 2:
            return given, self.offset_behind(given, inputs)
        position_ids = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
        return position_ids, torch.zeros(ids.shape[0], dtype=torch.long, device=ids.device)

    @staticmethod
    def offset_behind(position_ids: Tensor, inputs: dict[str, Any]) -> Tensor:
        """Return `[batch]` or `[axes, batch]` numbers by which the positions behind right-padded prompts exceed
        indices."""
        lengths = inputs["attention_mask"].long().sum(-1)
        return pick_numbers(position_ids, (lengths - 1)[:, None])[..., 0] + 1 - lengths

    def positions_until(self, inputs: dict[str, Any], width: int) -> tuple[Tensor, Tensor]:
        """Return the positions of a right-padded prompt that goes on to `width` tokens, at the positions that decoding
        gives them, and the offset of what follows.

        A model's own pass over prompt and answer may disagree: where the prompt ends with a picture, Qwen-VL's does.
        """
        prompt, position_offset = self.positions(inputs)
        later = torch.arange(width, device=position_offset.device) + position_offset[..., None]
        later = later.expand(*prompt.shape[:-1], width).clone()
        length = prompt.shape[-1]
        later[..., :length] = torch.where(inputs["attention_mask"].bool(), prompt, later[..., :length])
        return later, position_offset

    def prefill_inputs(
        self, inputs: dict[str, Any], vision: Vision | None = None, visual: Tensor | None = None
    ) -> dict[str, Any]:
        """Return further arguments of `forward` over a prompt.

        Args:
            inputs: inputs of the request, nothing missing. Of a prompt that was compressed, those that there is one of
                for every entry; a token that is left of a picture is its placeholder.
            vision: the encoded pictures of the request.
            visual: `[batch, length]` True where pictures stand; by default at their placeholders.
        """
        return {}

    def as_request(self, inputs: Mapping[str, Any]) -> Mapping[str, Any]:
        """Name what a processor returned as requests do: the tokens that the language model reads are `input_ids`, and
        their mask is the `attention_mask`."""
        return inputs

    token_inputs = ("input_ids", "attention_mask")
    """Names that the model's own `generate` has for the tokens that the language model reads, and for their mask."""
    prompt_optional = False
    """True if media alone are a prompt: without one, with an empty one, or with one of markers."""

    def write(
        self, reader: Reader, conversations: Sequence[Conversation], settings: Mapping[str, Any]
    ) -> Mapping[str, Any] | None:
        """Return conversations as a processor would, where the model has a way of its own to be asked; None where it
        has a chat template or reads plain text, see `mmspec.inputs.template`.

        Args:
            reader: the target.
            conversations: one per row, with loaded media.
            settings: see `chat_template_kwargs` of `mmspec.generate`.
        """
        return None

    def features_of(self, reader: Reader, conversations: Sequence[Conversation]) -> dict[str, Tensor]:
        """Return the features of the sound of every row; for families that cross-attend."""
        raise NotImplementedError(f"{type(self).__name__} attends to no sound")

    def noise(self, generator: torch.Generator) -> dict[str, Tensor]:
        """Draw what a row has to have besides its tokens, for the self-check."""
        return {}

    def as_arguments(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Name the inputs of a request as the model's own `generate` does."""
        names = dict(zip(("input_ids", "attention_mask"), self.token_inputs, strict=True))
        return {names.get(name, name): value for name, value in inputs.items()}

    def lasting_inputs(self, vision: Vision | None) -> dict[str, Any]:
        """Return arguments of every pass of a request, see `Session.extra`: what its layers attend to beside the text.

        Args:
            vision: the result of `encode`.
        """
        return {}

    def hears_like(self, other: Family) -> bool:
        """Tell whether another model's encoder makes the states that this one attends to, see `cross_attends`."""
        return False

    def example(self, tokens: Tensor) -> dict[str, Any]:
        """Return arguments of the model's own outermost forward pass: `[batch, length]` tokens and what it needs."""
        return {"input_ids": tokens}

    def probe(self, token: Tensor, cache: Cache) -> Tensor:
        """Return the `[1, 1, vocab]` logits of a single token by the model's own outermost forward pass.

        Args:
            token: `[1, 1]` token id, which is read at position 0.
            cache: an empty one, to be filled.
        """
        return self.model(input_ids=token, position_ids=token, use_cache=True, **{CACHE: cache}).logits

    settings_not_applied: Mapping[str, Any] = {}
    """Settings of a generation config that only this family has, that change the text, and that nothing here applies:
    name to the value that does nothing."""

    def processors(self, config: GenerationConfig) -> list[Callable]:
        """Return the logits processors that the model's own `generate` makes of its generation config, besides those
        that every model has; see `LogitsPipeline`."""
        return []

    def check_reach(self, inputs: dict[str, Any], max_new_tokens: int) -> None:
        """Refuse a request whose answer could come to positions that the model, or mmspec, has nothing right for.

        Raises:
            MMSpecError: see `mmspec.families.frequencies.check_reach`.
        """
        if self.switches:
            mask, name = inputs["attention_mask"], type(self.model).__name__
            check_reach(self.switches, name, *self.positions(inputs), mask, max_new_tokens)

    window_bounds_groups = False
    """True if the tokens of a group see one another within a sliding window only, see `bidirectional_groups`."""

    def bidirectional_groups(self, inputs: dict[str, Any], kind: str | None = None) -> Tensor | None:
        """Return `[batch, length]` numbers of groups of tokens that see one another in both directions, -1 for none;
        None where attention is causal throughout.

        Args:
            inputs: inputs of the request, nothing missing.
            kind: the kind of attention, one of `attention_windows`; None where the model has one only.
        """
        return None

    def keys_layer(self, layer: int) -> int:
        """Return the number of the layer whose keys and values a layer reads: its own for most models."""
        return layer

    def attention_inputs(self, layer: int, entries: tuple[Tensor, Tensor] | None = None) -> dict[str, Any]:
        """Return further arguments of the attention module of a layer that runs by itself.

        Args:
            layer: number of the layer.
            entries: the keys and values of its `keys_layer`; None where that layer runs before it, with the same
                arguments.
        """
        return {}

    def run(self, **arguments: Any) -> Tensor:
        """Return the `[batch, length, vocab]` logits of a pass of the language model.

        Args:
            arguments: arguments of the model's own forward pass, with tokens or embeddings; pictures are in the
                embeddings.
        """
        with self.passing():
            return self.forward(**arguments)

    def forward(self, **arguments: Any) -> Tensor:
        """Run the pass that `run` guards; for subclasses."""
        return self.model(**arguments).logits

    def forward_decoder(self, logits_to_keep: int | Tensor = 0, **arguments: Any) -> Tensor:
        """Run the pass past the outer model, for arguments that it does not pass on to its language model."""
        states = self.decoder(**arguments).last_hidden_state
        keep = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        return self.head(states[:, keep])

    def attention_windows(self) -> dict[str, int | None]:
        """Return the kinds of attention in the model: name to sliding window, None for full attention.

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
