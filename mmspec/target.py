"""Target: a Hugging Face model whose output is to be preserved, and Context: one request on it.

The context owns everything that a request changes (cache, positions, history); the model is only ever read, so any
number of requests may be interleaved on it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from .cache import AHEAD
from .calls import named_arguments
from .check import Report, check_target
from .compat import warn_if_untested
from .errors import MMSpecError, first_line, shown
from .families import Vision, visual_spans
from .families.frequencies import ceilings
from .inputs import Request
from .model import Model
from .outcome import Scores, Verdict
from .session import ModelSession
from .tree import DraftTree
from .trees import Proposals
from .weights import device_of, digest, stored_tensors
from .wellformed import refuse_malformed

CHECKING: ContextVar[bool] = ContextVar("mmspec_checking", default=False)
"""Whether this thread compares a target with its model, for which pictures may be shown that were not checked yet."""


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


class Target(Model):
    """The model whose output is to be preserved, with its processor.

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
        super().__init__(unwrapped(model), compile)
        self.processor = processor
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

    @property
    def tokenizer(self):
        """The tokenizer, or None."""
        return getattr(self.processor, "tokenizer", self.processor)

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        """The tokens at which the model's own `generate` would stop."""
        eos = self.model.generation_config.eos_token_id
        return () if eos is None else tuple(eos) if isinstance(eos, (list, tuple)) else (eos,)

    def first_capacity(self, prompt: int, new: int) -> int:
        """Slots per row to reserve for a prompt of so many tokens and so many new ones: for an answer of usual length,
        and not beyond the model's own limit. `generate` goes on behind both, and so does the cache, which then grows.
        """
        limit = self.family.longest or prompt + new
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
            feature_layers: hidden states to keep for the drafter, see `mmspec.states`.
        """
        return Context(self, request, vision, max(capacity, request.max_length), feature_layers)


class Context(ModelSession):
    """One request on a target: what drafters and verifiers may look at, and the target's half of a round.

    It is the only writer of `history` and `active`.

    Attributes:
        request: the prompt; `request.inputs["input_ids"]` is `[batch, length]`, right-padded.
        history: per row, all token ids so far, prompt included, the newest (the root) last.
        active: per row, False once it has finished.
        proposals: how a drafter is to choose children.
        logits: `[batch, vocab]` after the prompt.
        vision: the encoded pictures, or None.
        embeds: `[batch, length, hidden]` what the language model read as its prompt.
        features: layer to `[batch, length, hidden]`, states of the prompt asked for by the drafter.

    Args:
        target, request, vision, feature_layers: see `Target.prefill`.
        capacity: tokens per row to reserve in the cache.
    """

    def __init__(
        self,
        target: Target,
        request: Request,
        vision: Vision | None = None,
        capacity: int = 0,
        feature_layers: Iterable[int] = (),
    ):
        super().__init__(target, request.batch_size, capacity, feature_layers)
        self.target, self.request, self.vision = target, request, vision
        inputs, family = request.inputs, target.family
        self.embeds = family.embed(inputs["input_ids"], vision)
        once, extra = family.prefill_inputs(inputs, vision), family.lasting_inputs(vision)
        position_ids, offset = family.positions(inputs)
        self._ceilings = ceilings(family, position_ids, offset)
        self.logits, self.features = self.prefill(self.embeds, position_ids, offset, request.lengths, once, extra)
        self.follow(request.token_ids(), [True] * request.batch_size, pending=0)
        self.proposals = Proposals()

    @property
    def batch_size(self) -> int:
        return self.request.batch_size

    @property
    def room(self) -> int:
        """Tokens per row that fit into the cache behind the longest prompt before it must grow."""
        return self.cache.capacity - self.request.max_length

    @property
    def lengths(self) -> Tensor:
        """`[batch]` committed tokens in the cache: all of the history but what is `pending`, the root at least."""
        return self.cache.lengths

    def admit(self, tokens: Sequence[Sequence[int]]) -> None:
        """Append tokens to the rows of the history: from now on they are certain, and the last one is the root."""
        for history, new in zip(self.history, tokens, strict=True):
            history.extend(new)

    def finish(self, row: int) -> None:
        """Say that a row has ended: nothing is read, kept or emitted for it from now on."""
        self.active[row] = False

    def check(self, tree: DraftTree, root: Tensor, by: object) -> None:
        """Look at a tree, unless mmspec chose its tokens and places itself, see `mmspec.wellformed`.

        Args:
            tree: as drafted.
            root: `[batch]`, the newest tokens.
            by: the drafter.

        Raises:
            MMSpecError: if it is none that the target can be asked about.
        """
        if not (isinstance(tree, DraftTree) and tree.grown):
            refuse_malformed(tree, root, self.active, self.target.vocab_size, type(by).__name__)

    @torch.inference_mode()
    def score(self, tree: DraftTree) -> Scores:
        """The target's logits (and features) at every node of the tree, in one pass.

        Tokens that were emitted unread (see `Verdict`) are read by the same pass, before the tree.
        """
        unread = self._unread()
        behind = max(unread)
        if not behind:
            return Scores(*self.read(tree.tokens, tree.ancestors, tree.depth))
        tokens, visible, depth = self._with_unread(tree, unread)
        logits, features = self.read(tokens, visible, depth)
        return Scores(logits[:, behind:], {layer: states[:, behind:] for layer, states in features.items()})

    def _unread(self) -> list[int]:
        """Per row, how many tokens were emitted unread, before the root, which is node 0 of the next tree."""
        return [max(count - 1, 0) for count in self.pending]

    def _with_unread(self, tree: DraftTree, unread: list[int]) -> tuple[Tensor, Tensor, Tensor]:
        """A block of the unread tokens, right-aligned, and the tree below them: tokens, visible nodes, depths."""
        behind, device = max(unread), tree.tokens.device
        rows = [
            [0] * (behind - count) + (history[-1 - count : -1] if count else [])
            for history, count in zip(self.history, unread, strict=True)
        ]
        prefix = torch.tensor(rows, device=device)
        count = torch.tensor(unread, device=device)[:, None]
        column = torch.arange(behind, device=device)
        real = column >= behind - count
        trunk = torch.ones(behind, behind, dtype=torch.bool, device=device).tril() & real[:, None]
        trunk = trunk | torch.eye(
            behind, dtype=torch.bool, device=device
        )  # a node of padding sees itself: nothing gives NaN
        above = real[:, None].expand(-1, tree.num_nodes, -1)
        none = trunk.new_zeros(tree.batch_size, behind, tree.num_nodes)
        visible = torch.cat([torch.cat([trunk, none], 2), torch.cat([above, tree.ancestors], 2)], 1)
        depth = torch.cat([(column - (behind - count)).clamp(min=0), tree.depth + count], 1)
        return torch.cat([prefix, tree.tokens], 1), visible, depth

    @torch.inference_mode()
    def commit(self, tree: DraftTree, verdict: Verdict) -> list[list[int]]:
        """Keep what the target has read of the accepted path, append what the round emits to the history, and return
        that per row."""
        counts, emitted = verdict.only(self.active).host(tree)
        if not verdict.settled:
            unread = self._unread()
            behind = max(unread)
            path = None if tree.is_chain else verdict.path
            if behind:
                steps = torch.arange(behind, device=verdict.path.device) - behind
                path = torch.cat([steps.expand(len(unread), -1), verdict.path], 1) + behind
                # The unread tokens of a row come first, then its path.
                shift = torch.tensor([behind - count for count in unread], device=path.device)[:, None]
                columns = torch.arange(path.shape[1], device=path.device) + shift
                path = path.gather(1, columns.clamp(max=path.shape[1] - 1))
                counts = [count + more if count else 0 for count, more in zip(counts, unread, strict=True)]
            self.keep(counts, path)
        self.admit(emitted)
        return emitted

    def visual_spans(self) -> list[list[tuple[int, int]]]:
        """Per row, the `(start, end)` index ranges of its pictures in the prompt, in order."""
        sizes = [] if self.vision is None else self.vision.sizes
        return visual_spans(self.request.token_ids(), self.target.family.placeholders, sizes)
