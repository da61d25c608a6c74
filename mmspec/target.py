"""Target: a Hugging Face model whose output is to be preserved, and Context: one request on it.

The context owns everything that a request changes (cache, positions, history); the model is only ever read, so any
number of requests may be interleaved on it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from .cache import AHEAD, SlotShape
from .calls import named_arguments
from .check import Report, check_target
from .compat import CACHE, warn_if_untested
from .compiled import CompiledModel
from .errors import MMSpecError, first_line, shown
from .families import Vision, family_of, visual_spans
from .families.frequencies import ceilings
from .inputs import Request
from .masks import MaskForm
from .outcome import Scores, Verdict
from .runner import LAST, Runner, capture
from .tree import DraftTree
from .trees import Proposals
from .weights import device_of, digest, stored_tensors

CHECKING: ContextVar[bool] = ContextVar("mmspec_checking", default=False)
"""Whether this thread compares a target with its model, for which pictures may be shown that were not checked yet."""

ATTENTION_BACK_ENDS = tuple(form.value for form in MaskForm)


def unwrapped(model: Any) -> PreTrainedModel:
    """What was given, or what peft has wrapped, as a model of transformers.

    Raises:
        MMSpecError: for anything else, and for an adapter that does more than to change layers.
    """
    if hasattr(model, "peft_config") and hasattr(model, "get_base_model"):
        name, wrapped = type(model).__name__, model.eval()
        model = wrapped.get_base_model()
        if any(getattr(config, "is_prompt_learning", False) for config in wrapped.peft_config.values()):
            raise MMSpecError(
                f"{name}: its adapter writes virtual tokens into the prompt, which no drafter could see; give a model "
                "whose adapter acts inside layers, such as LoRA"
            )
        token = torch.zeros(1, 3, dtype=torch.long, device=device_of(model.get_input_embeddings()))
        with torch.inference_mode():
            outer, inner = (one(input_ids=token).logits for one in (wrapped, model))
        if not torch.equal(outer, inner):
            raise MMSpecError(
                f"{name}: its adapter does more than to change layers: the model inside writes something else; merge "
                "it with merge_and_unload() and give the result"
            )
    if isinstance(model, PreTrainedModel):
        return model
    if isinstance(model, str):
        raise MMSpecError(f"Target({shown(model)}): a name is loaded with mmspec.load_target({shown(model)})")
    raise MMSpecError(
        f"a {type(model).__name__} is no model of transformers; give Target one, or load one with "
        "mmspec.load_target(name)"
    )


class Target:
    """A causal or vision-language model ready for tree passes.

    Args:
        model: a Hugging Face model, in memory, with an sdpa, eager or flex attention back end; or peft's of one, whose
            adapter acts inside its layers. `target.model` is then the model inside, with the adapter.
        processor: its processor or tokenizer; needed for text prompts, not for `inputs=`.
        compile: whether to compile the passes that score trees, and those of small models that draft for it, see
            `mmspec.compiled`. The first answer then takes a minute or more.
        check: whether to compare it with its own `generate` at once, see `mmspec.check`; by default only if it is of no
            listed family. Such a model reads no pictures before it was checked with some: with those that its processor
            makes, or by `check(inputs=...)`.

    Raises:
        MMSpecError: if the model cannot be decoded speculatively: attention without arbitrary masks, recurrent state,
            a vision-language model without the parts that are read, one that does not pass its self-check.
    """

    @named_arguments("Target")
    def __init__(self, model, processor=None, compile: bool = False, check: bool | None = None):
        warn_if_untested()
        model = unwrapped(model)
        if getattr(model, "_is_stateful", False):
            raise MMSpecError(
                f"{type(model).__name__} keeps recurrent state that cannot be rolled back after a rejected draft; "
                "mmspec supports attention-only models"
            )
        self.model = model.eval()
        self.processor = processor
        self.family = family_of(model)
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
        self.compile = compile
        self.compiled = CompiledModel(model, self.family) if compile else None
        self.pictures_checked = self.family.verified or check is False
        if check or (check is None and not self.family.verified):
            try:
                report = check_target(self, thorough=False)
            except Exception as error:  # whatever a model of another shape stumbles over
                raise MMSpecError(
                    f"{type(model).__name__} does not pass the self-check: it cannot be run as mmspec runs models "
                    f"({first_line(error)}). It may need a family of its own in mmspec/families"
                ) from error
            report.raise_if_wrong(self)

    def check(self, inputs: Mapping[str, Any] | None = None) -> Report:
        """Compare trees with the model's own `generate`, see `mmspec.check.check_target`.

        Args:
            inputs: of one row with pictures, from the model's processor; by default pictures of noise are made.

        Raises:
            MMSpecError: if they differ.
        """
        report = check_target(self, inputs)
        report.raise_if_wrong(self)
        return report

    def _check_flex(self, compile: bool) -> None:
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
        return device_of(self.model.get_input_embeddings())

    @property
    def dtype(self) -> torch.dtype:
        return self.model.get_input_embeddings().weight.dtype

    @property
    def arithmetic(self) -> torch.dtype:
        """The dtype that matrices are multiplied in: the weights', or autocast's where a caller has turned it on."""
        kind = self.device.type
        cast = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
        return torch.get_autocast_dtype(kind) if cast else self.dtype

    @property
    def tokenizer(self):
        """The tokenizer, or None."""
        return getattr(self.processor, "tokenizer", self.processor)

    @property
    def vocab_size(self) -> int:
        return self.family.text_config.vocab_size

    @property
    def hidden_size(self) -> int:
        return self.family.text_config.hidden_size

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        """The tokens at which the model's own `generate` would stop."""
        eos = self.model.generation_config.eos_token_id
        return () if eos is None else tuple(eos) if isinstance(eos, (list, tuple)) else (eos,)

    def first_capacity(self, prompt: int, new: int) -> int:
        """Slots per row to reserve for a prompt of so many tokens and so many new ones: for an answer of usual length,
        and not beyond the model's own limit. `generate` goes on behind both, and so does the cache, which then grows.
        """
        limit = getattr(self.family.text_config, "max_position_embeddings", None) or prompt + new
        return max(prompt, min(prompt + min(new, AHEAD), limit))

    @property
    def fingerprint(self) -> str:
        """Sixteen characters that change when any weight does: what was computed with other weights can be told.

        All weights and buffers that would be saved count, in the dtype in which they are held, adapters among them.
        Nothing is kept: every weight is read anew, about a gigabyte a second on one thread of a processor.
        """
        # Equal tensors count once, as tied ones may be held twice, and neither names nor order count, which may differ
        # between versions of transformers.
        digests = sorted({digest(tensor) for tensor in stored_tensors(self.model)})
        active = getattr(self.model, "_hf_peft_config_loaded", False) and self.model.active_adapters()
        further = [getattr(self.model.config, "quantization_config", None), active or None]
        whole = hashlib.sha256(b"".join(digests))
        for told in filter(None, further):
            whole.update(repr(told).encode())
        return whole.hexdigest()[:16]

    @property
    def cache_shapes(self) -> list[tuple[SlotShape, SlotShape]]:
        """What every layer stores per token, of keys and of values; learnt anew once the model was moved or cast, and
        under autocast, where keys and values may be of different dtypes."""
        now = self.device, self.dtype, self.arithmetic
        if now not in self._probed:
            self._probed[now] = self._probe()
        return self._probed[now]

    @torch.inference_mode()
    def _probe(self) -> list[tuple[SlotShape, SlotShape]]:
        """One pass over one token, to learn what every layer stores, wherever it lives, and what the head does."""
        cache = DynamicCache()
        token = torch.zeros(1, 1, dtype=torch.long, device=self.device)
        try:
            with self.family.passing(), capture(self.family, [LAST]) as features:
                out = self.model(input_ids=token, position_ids=token, use_cache=True, **{CACHE: cache})
        except ValueError as error:  # such as flex attention on a processor, with attention sinks
            raise MMSpecError(f"{type(self.model).__name__} does not run with {self.attention!r}: {error}") from error

        self.family.compare_head(features[LAST].to(self.device), out.logits)

        def shape(states: Tensor) -> SlotShape:
            return SlotShape(states.shape[1], states.shape[3], states.dtype, states.device)

        return [(shape(layer.keys), shape(layer.values)) for layer in cache.layers]

    @torch.no_grad()  # and not inference mode: what is trained beside the target reads this too
    def encode(self, request: Request) -> Vision | None:
        """Run the vision tower over a request's pictures; None if it has none.

        Raises:
            MMSpecError: see `Family.encode`; for a model of no listed family whose pictures were not checked.
        """
        with self.family.passing():
            vision = self.family.encode(request.inputs)
        if vision is not None and not (self.pictures_checked or CHECKING.get()):
            raise MMSpecError(
                f"{type(self.model).__name__} is of no listed family, and how it reads pictures was not checked, for "
                "there is no processor: give Target(model, processor), or run target.check(inputs=...) once with "
                "inputs of one row from its processor"
            )
        return vision

    @torch.inference_mode()
    def prefill(
        self, request: Request, vision: Vision | None = None, capacity: int = 0, feature_layers: Iterable[int] = ()
    ) -> Context:
        """Run a request's prompt.

        Args:
            request: right-padded inputs, see `mmspec.inputs.prepare`.
            vision: what `encode` returned for it.
            capacity: tokens per row to reserve in the cache, the prompt included.
            feature_layers: hidden states to keep for the drafter, see `mmspec.runner`.
        """
        inputs = request.inputs
        runner = Runner(self, request.batch_size, max(capacity, request.max_length), feature_layers)
        embeds = self.family.embed(inputs["input_ids"], vision)
        position_ids, delta = self.family.positions(inputs)
        runner.ceilings = ceilings(self.family, position_ids, delta)
        further = self.family.prefill_inputs(inputs, vision)
        logits = runner.prefill(embeds, position_ids, delta, request.lengths, further)
        return Context(self, request, runner, logits, vision, embeds, runner.features)


class Context:
    """One request on a target: what drafters and verifiers may look at, and the target's half of a round.

    Attributes:
        request: the prompt; `request.inputs["input_ids"]` is `[batch, length]`, right-padded.
        history: per row, all token ids so far, prompt included, the newest (the root) last.
        active: per row, False once it has finished.
        proposals: how a drafter is to choose children.
        logits: `[batch, vocab]` after the prompt.
        vision: the encoded pictures, or None.
        embeds: `[batch, length, hidden]` what the language model read as its prompt.
        features: layer to `[batch, length, hidden]`, states of the prompt asked for by the drafter.
    """

    def __init__(self, target, request, runner, logits, vision, embeds, features):
        self.target: Target = target
        self.request: Request = request
        self.runner: Runner = runner
        self.logits: Tensor = logits
        self.vision: Vision | None = vision
        self.embeds: Tensor = embeds
        self.features: dict[int, Tensor] = features
        self.history = request.token_ids()
        self.proposals = Proposals()
        self.active = [True] * request.batch_size

    @property
    def batch_size(self) -> int:
        return self.request.batch_size

    @property
    def room(self) -> int:
        """Tokens per row that fit into the cache behind the longest prompt before it must grow."""
        return self.runner.cache.capacity - self.request.max_length

    @property
    def lengths(self) -> Tensor:
        """`[batch]` committed tokens in the cache: all of the history but the root."""
        return self.runner.cache.lengths

    @torch.inference_mode()
    def score(self, tree: DraftTree) -> Scores:
        """The target's logits (and features) at every node of the tree, in one pass."""
        logits = self.runner.extend(tree.tokens, tree.ancestors, tree.depth)
        return Scores(logits, self.runner.features)

    @torch.inference_mode()
    def commit(self, tree: DraftTree, verdict: Verdict) -> list[list[int]]:
        """Keep the accepted path in the cache, append what it emits to the history, and return that per row."""
        verdict.length *= torch.tensor(self.active, device=verdict.length.device)
        counts, emitted = verdict.host(tree)
        self.runner.commit(counts, None if tree.is_chain else verdict.path)
        for history, tokens in zip(self.history, emitted, strict=True):
            history.extend(tokens)
        return emitted

    def visual_spans(self) -> list[list[tuple[int, int]]]:
        """Per row, the `(start, end)` index ranges of its pictures in the prompt, in order."""
        sizes = [] if self.vision is None else self.vision.sizes
        return visual_spans(self.request.token_ids(), self.target.family.placeholders, sizes)
