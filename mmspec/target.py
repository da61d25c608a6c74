"""Target: a Hugging Face model whose output is to be preserved, and Context: one request on it.

The context owns everything that a request changes (cache, positions, history); the model is only ever read, so any
number of requests may be interleaved on it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import torch
from torch import Tensor
from transformers import DynamicCache

from .cache import SlotShape
from .compiled import CompiledModel
from .errors import MMSpecError
from .families import Vision, family_of, visual_spans
from .inputs import Request
from .outcome import Scores, Verdict
from .runner import Runner
from .tree import DraftTree
from .trees import Proposals

ATTENTION_BACK_ENDS = ("sdpa", "eager")


class Target:
    """A causal or vision-language model ready for tree passes.

    Args:
        model: a Hugging Face model, in memory, with an sdpa or eager attention back end.
        processor: its processor or tokenizer; needed for text prompts, not for `inputs=`.
        compile: whether to compile the passes that score trees, and those of small models that draft for it, see
            `mmspec.compiled`. The first answer then takes a minute or more.

    Raises:
        MMSpecError: if the model cannot be decoded speculatively: attention without arbitrary masks, recurrent state,
            an unknown vision-language family.
    """

    def __init__(self, model, processor=None, compile: bool = False):
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
        self._probed = (self.device, self.dtype), self._probe()
        self.compile = compile
        self.compiled = CompiledModel(model, self.family) if compile else None

    @property
    def device(self) -> torch.device:
        return self.model.get_input_embeddings().weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.model.get_input_embeddings().weight.dtype

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

    @property
    def fingerprint(self) -> str:
        """Sixteen characters that change when the weights do: what was computed with other weights can be told."""
        digest = hashlib.sha256()
        for tensor in (self.family.final_norm.weight, self.model.get_input_embeddings().weight[:64]):
            digest.update(tensor.detach().float().cpu().numpy().tobytes())
        return digest.hexdigest()[:16]

    @property
    def cache_shapes(self) -> list[tuple[SlotShape, SlotShape]]:
        """What every layer stores per token, of keys and of values; learnt anew once the model was moved or cast."""
        if self._probed[0] != (self.device, self.dtype):
            self._probed = (self.device, self.dtype), self._probe()
        return self._probed[1]

    @torch.inference_mode()
    def _probe(self) -> list[tuple[SlotShape, SlotShape]]:
        """One pass over one token, to learn what every layer stores, wherever it lives."""
        cache = DynamicCache()
        self.model(
            input_ids=torch.zeros(1, 1, dtype=torch.long, device=self.device),
            position_ids=torch.zeros(1, 1, dtype=torch.long, device=self.device),
            past_key_values=cache,
            use_cache=True,
        )

        def shape(states: Tensor) -> SlotShape:
            return SlotShape(states.shape[1], states.shape[3], states.dtype, states.device)

        return [(shape(layer.keys), shape(layer.values)) for layer in cache.layers]

    @torch.no_grad()  # and not inference mode: what is trained beside the target reads this too
    def encode(self, request: Request) -> Vision | None:
        """Run the vision tower over a request's pictures; None if it has none.

        Raises:
            MMSpecError: if the prompt's placeholders and the pictures' tokens differ in number, or it holds a video.
        """
        inputs, token = request.inputs, self.family.image_token_id
        placeholders = 0 if token is None else int((inputs["input_ids"] == token).sum())
        video = getattr(self.model.config, "video_token_id", None)
        if video is not None and (inputs["input_ids"] == video).any():
            raise MMSpecError(
                "the prompt has video placeholder tokens, but mmspec reads pictures only; pass single frames"
            )
        pictures = [name for name in self.family.vision_inputs if inputs.get(name) is not None]
        encoded = (inputs.get("mm_encoder_outputs") or {}).get("image")
        if not pictures and encoded is None:
            if placeholders:
                raise MMSpecError(
                    f"the prompt has {placeholders} image placeholder tokens but no image was given; pass images=[...]"
                )
            return None
        vision = self.family.encode_images(inputs) if encoded is None else self.family.adopt_images(encoded)
        tokens = sum(image.shape[0] for image in vision.embeds)
        if tokens != placeholders:
            raise MMSpecError(
                f"the prompt has {placeholders} image placeholder tokens but the {len(vision.embeds)} images given "
                f"fill {tokens}; pass as many images as the prompt has places for"
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
        logits = runner.prefill(embeds, position_ids, delta, request.lengths, self.family.prefill_inputs(inputs))
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
        return visual_spans(self.request.token_ids(), self.target.family.image_token_id, sizes)
