"""One Hugging Face model as passes over it see it. Targets are models, and draft models are too."""

from __future__ import annotations

import copy
from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from transformers import DynamicCache, PreTrainedModel

from ..errors import MMSpecError
from ..families import Family, Vision, family_of
from ..inputs import PER_TOKEN, Request
from .cache_layer import SlotShape, shape_of, stored
from .compiled import CompiledModel
from .masks import MaskForm
from .own_layers import kind_of
from .skipping import layers_without
from .states import LAST, capture, layer_entered, numbered
from .twins import with_layers
from .weights import device_of

ATTENTION_BACK_ENDS = tuple(form.value for form in MaskForm)


class Model:
    """A causal or vision-language model ready for tree passes: its weights, and nothing of any request.

    Args:
        model: a Hugging Face model, in memory, with an sdpa, eager or flex attention back end.
        processor: its processor or tokenizer; needed for text prompts, not for `inputs=`.
        compile: True to compile its passes over blocks of nodes, see `mmspec.models.compiled`.
        writes: `"text"` or `"image"`, for models that can write both.

    Attributes:
        space: the meaning of its token ids, for rules that go by it; may be set, see `TokenSpace`.

    Raises:
        MMSpecError: if the model cannot be decoded speculatively: attention without arbitrary masks, recurrent state,
            a vision-language model without the parts that are read.
    """

    def __init__(self, model: PreTrainedModel, processor: Any = None, compile: bool = False, writes: str = "text"):
        if getattr(model, "_is_stateful", False):
            raise MMSpecError(
                f"{type(model).__name__} keeps recurrent state that cannot be rolled back after a rejected draft; "
                "mmspec supports attention-only models"
            )
        self.model, self.processor = model.eval(), processor
        self.family: Family = family_of(model, writes)
        self.space = self.family.token_space
        self.attention = self.family.text_config._attn_implementation
        if self.attention not in ATTENTION_BACK_ENDS:
            raise MMSpecError(
                f"attention back end {self.attention!r} takes no tree mask; load the model with "
                f"attn_implementation={' or '.join(map(repr, ATTENTION_BACK_ENDS))}"
            )
        self.windows = self.family.attention_windows()
        self._probed: dict[tuple, list[tuple[SlotShape, SlotShape]]] = {}
        self._probed[self.device, self.dtype, self.arithmetic] = self._probe()
        if MaskForm(self.attention) is MaskForm.BLOCK:
            self._check_flex(compile)
        if compile and self.family.cross_attends:
            raise MMSpecError(
                f"compile=true: passes of {type(model).__name__}, which attend to an encoder, are not compiled; leave "
                "compile out"
            )
        self.compile = compile
        self.compiled = CompiledModel(model, self.family) if compile else None

    def _check_flex(self, compile: bool) -> None:
        """Refuse flex attention together with compiled passes, or with layers on several devices."""
        if compile:
            raise MMSpecError(
                "compile=true takes masks that are tensors, and flex attention compiles its own: load the model with "
                "attn_implementation='sdpa', or leave compile out"
            )
        if {keys.device for keys, _ in self.cache_shapes} != {self.device}:
            raise MMSpecError(
                "the masks of flex attention cannot follow the layers to several devices: load the model with "
                "attn_implementation='sdpa', or on one device"
            )

    @property
    def device(self) -> torch.device:
        """The device of the input embedding, where drafters are."""
        return device_of(self.model.get_input_embeddings())

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the input embedding."""
        return self.model.get_input_embeddings().weight.dtype

    @property
    def arithmetic(self) -> torch.dtype:
        """The dtype that matrices are multiplied in: the weights', or autocast's where a caller has turned it on."""
        kind = self.device.type
        cast = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
        return torch.get_autocast_dtype(kind) if cast else self.dtype

    @property
    def vocab_size(self) -> int:
        """The number of tokens in the vocabulary."""
        return self.family.vocab_size

    @property
    def hidden_size(self) -> int:
        """The width of the language model's hidden states."""
        return self.family.text_config.hidden_size

    @property
    def tokenizer(self):
        """The tokenizer, or None."""
        return getattr(self.processor, "tokenizer", self.processor)

    @property
    def speller(self) -> Any:
        """The tokenizer that says which text the written tokens are; None where there is none, or they are no text."""
        return self.tokenizer if self.family.writes == "text" else None

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        """The tokens at which the model's own `generate` would stop."""
        if self.family.writes != "text":
            return ()
        eos = self.model.generation_config.eos_token_id
        return () if eos is None else tuple(eos) if isinstance(eos, (list, tuple)) else (eos,)

    @property
    def cache_shapes(self) -> list[tuple[SlotShape, SlotShape]]:
        """Per layer, the shapes of the keys and of the values that it stores per token. They are learnt anew once the
        model was moved or cast, and under autocast, where keys and values may be of different dtypes."""
        now = self.device, self.dtype, self.arithmetic
        if now not in self._probed:
            self._probed[now] = self._probe()
        return self._probed[now]

    @torch.inference_mode()
    def _probe(self) -> list[tuple[SlotShape, SlotShape]]:
        """Run one pass over one token, to learn what every layer stores, wherever it lives, and what the head does."""
        cache = DynamicCache()
        token = torch.zeros(1, 1, dtype=torch.long, device=self.device)
        try:
            with self.family.passing(), capture(self.family, [LAST]) as features:
                logits = self.family.probe(token, cache)
        except ValueError as error:  # such as flex attention on a processor, with attention sinks
            raise MMSpecError(f"{type(self.model).__name__} does not run with {self.attention!r}: {error}") from error

        self.family.compare_head(features[LAST].to(self.device), logits)
        return [(shape_of(keys), shape_of(values)) for keys, values in map(stored, cache.layers)]

    def layer_entered(self, layer: int) -> int:
        """Return the number of the layer that a feature enters, see `mmspec.models.states`; that of all layers for what
        enters the final norm."""
        return layer_entered(numbered(layer, len(self.family.layers)))

    @torch.no_grad()  # and not inference mode: what is trained beside a target reads this too
    def encode(self, request: Request) -> Vision | None:
        """Run the encoders over a request's media; None if it has none.

        Raises:
            MMSpecError: see `Family.encode`.
        """
        once = request.distinct
        with self.family.passing():
            vision = self.family.encode(once.inputs)
        if vision is None or request.copies == 1:
            return vision
        return vision.repeated(once.token_ids(), self.family.placeholders, request.copies)

    def repeat(self, request: Request, copies: int) -> Request:
        """Return the request for so many independent answers to each of its rows, see `Request.repeated`.

        Args:
            request: prepared for this model.
            copies: answers per row, at least 1.
        """
        if copies == 1:
            return request
        return self._placed(request).repeated(copies)

    def sharing(self, request: Request, first: Request) -> Request:
        """Return the request of different questions about the same media, which are then held and encoded once.

        Args:
            request: prepared for this model, with the media in every row.
            first: its first row, prepared alone.
        """
        if request.batch_size == 1:
            return request
        own = self._placed(request).inputs
        inputs = {name: own[name] for name in PER_TOKEN if name in own}
        inputs |= {name: value for name, value in first.inputs.items() if name not in PER_TOKEN}
        return replace(request, inputs=inputs, copies=request.batch_size, once=first)

    def _placed(self, request: Request) -> Request:
        """Return a request with its positions, where they depend on the sizes of pictures, which may then go."""
        positions, _ = self.family.positions(request.inputs)
        return replace(request, inputs={**request.inputs, "position_ids": positions}) if positions.ndim > 2 else request

    def first_layers(self, count: int, above: Sequence[nn.Module] = ()) -> Model:
        """Return the model of the first `count` layers, with the final norm and the head: every weight is shared.

        Args:
            count: number of its own layers.
            above: further layers between these and the final norm, see `mmspec.models.own_layers`.

        Raises:
            MMSpecError: for layers that there are not, and for a model whose layers are spread by accelerate.
        """
        total = len(self.family.layers)
        if not 0 < count <= total:
            raise MMSpecError(f"layers={count!r} must lie between 1 and the {total} of {type(self.model).__name__}")
        return self._part([*self.family.layers[:count], *above], [*range(count), *map(kind_of, above)])

    def last_layers(self, first: int) -> Model:
        """Return the model of the layers from number `first` on, for passes that go on from the states that enter that
        layer (`mmspec.models.states.entering`): every weight is shared.

        Raises:
            MMSpecError: for a model whose last layers read more than those states, or are spread by accelerate.
        """
        self._refuse_ties(f"a pass of {type(self.model).__name__} cannot begin at layer {first}")
        total = len(self.family.layers)
        return self._part(list(self.family.layers[first:]), list(range(first, total)))

    def _refuse_ties(self, what: str) -> None:
        """Refuse a pass that lacks layers, for a model whose last layers read more than the states before them."""
        for setting in ("num_kv_shared_layers", "hidden_size_per_layer_input"):
            if value := getattr(self.family.text_config, setting, None):
                raise MMSpecError(
                    f"{what}: with {setting}={value} its last layers read more than the states before them; choose "
                    "another drafter than its own layers"
                )

    def without(self, skipped: Collection[int]) -> Model:
        """Return the model without some of its sub-layers: every weight is shared.

        Args:
            skipped: their numbers, see `mmspec.models.skipping`.

        Raises:
            MMSpecError: for sub-layers that there are not or that cannot be told apart, if nothing is left, and for a
                model whose last layers read more than the states before them, or are spread by accelerate.
        """
        self._refuse_ties(f"a pass of {type(self.model).__name__} cannot skip layers")
        kept = layers_without(list(self.family.layers), skipped)
        return self._part(list(kept.values()), list(kept))

    def only_layers(self, layers: Sequence[nn.Module]) -> Model:
        """Return the model of other layers than its own, with its final norm and its head, see `first_layers`."""
        return self._part(list(layers), list(map(kind_of, layers)))

    def _part(self, layers: list[nn.Module], kinds: list[int]) -> Model:
        """Return a model with other layers, each of the kind (`layer_types`) of one of its own."""
        part = copy.copy(self)
        part.__class__ = Model
        part.model = with_layers(self.model, self.family.decoder, layers, kinds)
        part.family = copy.copy(self.family)
        part.family.model, part.family.decoder = part.model, part.model.get_decoder()
        part.family.text_config = part.model.config.get_text_config(decoder=True)
        part.windows = part.family.attention_windows()
        part._probed = {}
        part.compile, part.compiled = False, None
        return part
