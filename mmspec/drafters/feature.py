"""FeatureDrafter: the frame of small heads that draft from the target's own hidden states (EAGLE and its kin)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from ..cache import SlotShape, TreeCache
from ..errors import MMSpecError
from ..outcome import Scores, Verdict
from ..runner import Blocks
from ..tree import DraftTree
from ..trees import DynamicTree, TreeBuilder
from ..trees.growth import Block
from .head_config import HEAD_SETTINGS, head_config
from .layer import DraftLayer, Rope, attend, attend_unrolled
from .step import StepDrafter

if TYPE_CHECKING:
    from ..target import Context, Target
    from ..training.lesson import Guess, Lesson


class FeatureDrafter(StepDrafter):
    """Extrapolates the target's features, one draft token at a time, with a single transformer layer.

    Slot t of the drafter pairs the feature after token t with the embedding of token t + 1, and speaks of token t + 2.
    Slots of the true sequence hold true features and stay in the drafter's cache; the slots of a draft hold its own
    output instead, and are thrown away and computed anew from true features once the target has spoken (EAGLE, arXiv
    2401.15077, section 4). Positions are those of the slots, in one dimension, whatever the target's are.

    A subclass says how features become states (`absorb`), what the layer reads (`mix`), what goes on to the next step
    (`recur`) and what the vocabulary head reads (`read_out`, `logits`).

    Args:
        target: the model to draft for.
        head: sizes and switches of the layer that differ from the target's, see `HEAD_SETTINGS`.
        visual: True if the embedding of an image token is the target's visual embedding, False if it is that of the
            placeholder token.
        draft_vocab_size: how many tokens the drafter can propose; None for all. Which ones: `choose_vocabulary`.
        tree: how to grow trees; EAGLE-2's dynamic tree by default.

    Raises:
        MMSpecError: for settings that are unknown or do not fit the target.
    """

    guesses_features = True
    """Whether the layer's output stands for a state of the target, with which a loss can compare it."""

    def __init__(
        self,
        target: Target,
        head: dict[str, Any] | None = None,
        visual: bool = True,
        draft_vocab_size: int | None = None,
        tree: TreeBuilder | None = None,
    ):
        super().__init__(target, tree or DynamicTree())
        self.head = head_config(target, head or {})
        self.visual = visual
        self.rotary = LlamaRotaryEmbedding(self.head)
        self.draft_vocab_size = draft_vocab_size
        if draft_vocab_size is not None:
            if not 0 < draft_vocab_size <= target.vocab_size:
                raise MMSpecError(
                    f"draft_vocab_size={draft_vocab_size} must lie between 1 and the target's {target.vocab_size}"
                )
            # As in the published checkpoints: draft token i is target token i + d2t[i].
            self.register_buffer("d2t", torch.zeros(draft_vocab_size, dtype=torch.long))
            self.register_buffer("t2d", torch.arange(target.vocab_size) < draft_vocab_size)

    # What a method is.

    def absorb(self, features: dict[int, Tensor]) -> Tensor:
        """True features `[..., target hidden]` by layer to the states `[..., hidden]` that stand in the slots."""
        raise NotImplementedError

    def mix(self, embeds: Tensor, states: Tensor) -> tuple[Tensor, Tensor]:
        """Token embeddings and states to what the layer's attention reads, and its residual stream."""
        raise NotImplementedError

    def recur(self, output: Tensor) -> Tensor:
        """The layer's output to the state of the next draft step."""
        return output

    def read_out(self, output: Tensor) -> Tensor:
        """The layer's output to what the vocabulary head reads."""
        return output

    def logits(self, hidden: Tensor) -> Tensor:
        """`[..., draft_vocab]` from `read_out`. By default the target's own head, on the draft vocabulary."""
        return self.target.family.head(hidden, self._head_rows)

    @property
    def layer(self) -> DraftLayer:
        raise NotImplementedError

    # The vocabulary.

    @property
    def draft_vocabulary(self) -> Tensor | None:
        if self.draft_vocab_size is None:
            return None
        return torch.arange(self.draft_vocab_size, device=self.d2t.device) + self.d2t

    def choose_vocabulary(self, tokens: Tensor) -> None:
        """Set which `[draft_vocab_size]` target tokens can be drafted, usually the most frequent ones (FR-Spec)."""
        vocab = self.target.vocab_size
        if len(tokens.unique()) != self.draft_vocab_size or not 0 <= tokens.min() <= tokens.max() < vocab:
            raise MMSpecError(
                f"choose_vocabulary takes {self.draft_vocab_size or 'no'} different tokens, as draft_vocab_size says, "
                f"all in the target's vocabulary; it was given {len(tokens)}, {len(tokens.unique())} of them different"
            )
        tokens = tokens.sort().values.to(self.d2t.device)
        self.d2t.copy_(tokens - torch.arange(len(tokens), device=tokens.device))
        self.t2d.zero_()[tokens] = True

    # Drafting.

    def start(self, context: Context) -> None:
        super().start(context)
        lengths = context.request.lengths
        attention = self.layer.self_attn
        parameter = attention.k_proj.weight
        slot = SlotShape(self.head.num_key_value_heads, self.head.head_dim, parameter.dtype, parameter.device)
        cache = TreeCache([(slot, slot)], context.batch_size, context.request.max_length + context.room)
        self.blocks = Blocks(cache, {"full_attention": None}, additive=False, dtype=parameter.dtype)
        self._head_rows = self._rows()
        states = self.absorb(context.features)
        if len(states[0]) > 1:
            # Nothing is asked of the prompt's slots but what later ones see of them: keys and values.
            embeds = self._prompt_embeds(context.request.inputs["input_ids"], context.embeds)
            mixed, _ = self.mix(embeds[:, 1:], states[:, :-1])
            slots = torch.arange(mixed.shape[1], device=mixed.device).expand(mixed.shape[:2])
            cache.begin(mixed.shape[1])
            cache.layers[0].update(*attention.keys_values(mixed, self._rope(mixed, slots)))
            cache.end()
            cache.commit([length - 1 for length in lengths])
        # What has a true feature but is not in the cache yet, because the token behind it came later: per row, the
        # number of such features, and the features, `[batch, pending, hidden]`.
        last = torch.tensor(lengths, device=states.device) - 1
        self._pending = [1] * context.batch_size
        self._states = states[torch.arange(len(last), device=last.device), last][:, None]

    def expand_root(self, root: Tensor) -> Tensor:
        """Enter what the target has confirmed, with true features; the last of it is the root."""
        counts, width = self._pending, max(self._pending)
        if width == 1:
            tokens = root[:, None]
        else:
            rows = [history[len(history) - n :] for history, n in zip(self.context.history, counts, strict=True)]
            tokens = torch.tensor([row + [0] * (width - len(row)) for row in rows], device=root.device)
        depth = torch.arange(width, device=root.device).expand_as(tokens)
        causal = torch.ones(width, width, dtype=torch.bool, device=root.device).tril().expand(len(root), -1, -1)
        output = self._run(tokens, self._states[:, :width], causal, depth)
        self.blocks.commit([n if on else 0 for n, on in zip(counts, self.context.active, strict=True)])
        if width > 1:
            last = (torch.tensor(counts, device=root.device) - 1).clamp(min=0)
            output = output[torch.arange(len(root), device=root.device), last][:, None]
        self._drafted = self.recur(output)
        return self.logits(self.read_out(output))[:, 0]

    def expand(self, block: Block) -> Tensor:
        output = self._run(block.tokens, _pick(self._drafted, block.parents), block.visible, block.depth)
        self._drafted = torch.cat([self._drafted, self.recur(output)], dim=1)
        return self.logits(self.read_out(output))

    def observe(self, tree: DraftTree, scores: Scores, verdict: Verdict) -> None:
        super().observe(tree, scores, verdict)
        self.blocks.commit([0] * len(self._pending))
        self._pending = verdict.length.tolist()
        path = verdict.path[:, : max(self._pending)].clamp(min=0)
        self._states = self.absorb({layer: _pick(states, path) for layer, states in scores.features.items()})

    def _run(self, tokens: Tensor, states: Tensor, visible: Tensor, depth: Tensor) -> Tensor:
        """One pass of the layer: `[batch, new]` tokens with their states to `[batch, new, hidden]` outputs."""
        attention, cache = self.layer.self_attn, self.blocks.cache
        mixed, residual = self.mix(self._token_embeds(tokens), states)
        mask, slots = self.blocks.open(visible, depth)
        rope = self._rope(mixed, slots)
        keys, values = cache.layers[0].update(*attention.keys_values(mixed, rope))
        cache.end()
        return self.layer.finish(residual, attend(attention.queries(mixed, rope), keys, values, mask))

    # Training.

    def unroll(self, lesson: Lesson, steps: int = 1, detach: bool = False) -> Iterator[Guess]:
        """See `Drafter.unroll`. Step i continues every draft of step i - 1 by one token, feeding its own states back
        (training-time test; HASS, arXiv 2408.15766, with `detach`).

        All queries that matter stand in the answers, so the layer's queries and its MLP run on those slots only; the
        prompt contributes keys and values.
        """
        from ..training.lesson import Guess

        self._head_rows = self._rows()
        embeds = self._prompt_embeds(lesson.request.inputs["input_ids"], lesson.embeds)
        states = self.absorb(lesson.features)
        attention, slots = self.layer.self_attn, lesson.root_slots
        mixed, residual = self.mix(embeds[:, 1:], states[:, :-1])
        columns = torch.arange(mixed.shape[1], device=mixed.device)
        prefix = attention.keys_values(mixed, self._rope(mixed, columns.expand(mixed.shape[:2])))
        visible = columns <= slots[:, None, :, None]
        mixed, residual = _pick(mixed, slots), _pick(residual, slots)
        own: list[tuple[Tensor, Tensor]] = []
        for step in range(steps):
            valid, places = lesson.drafted(step)
            if not valid.any():
                return
            rope = self._rope(mixed, slots + step)
            if step:
                own.append(attention.keys_values(mixed, rope))
            attended = attend_unrolled(attention.queries(mixed, rope), prefix, own, visible)
            output = self.layer.finish(residual, attended)
            chosen = output[valid]
            features = chosen if self.guesses_features else None
            yield Guess(self.logits(self.read_out(chosen)), features, places, valid.flatten().nonzero()[:, 0])
            state = self.recur(output)
            # The token that a right guess would have been; beyond the end of an answer anything will do.
            following = _pick(embeds, (slots + step + 2).clamp(max=embeds.shape[1] - 1))
            mixed, residual = self.mix(following, state.detach() if detach else state)

    # Small parts.

    @property
    def _dtype(self) -> torch.dtype:
        return self.layer.self_attn.q_proj.weight.dtype

    def _rope(self, like: Tensor, slots: Tensor) -> Rope:
        return self.rotary(like, slots)

    def _rows(self) -> tuple[Tensor, Tensor | None] | None:
        return self.target.family.head_rows(self.draft_vocabulary)

    def _token_embeds(self, tokens: Tensor) -> Tensor:
        return self.target.family.embed(tokens, None).to(self._dtype)

    def _prompt_embeds(self, ids: Tensor, merged: Tensor) -> Tensor:
        """`[batch, length, hidden]` embeddings of a prompt, with or without its pictures."""
        if self.visual:
            return merged.to(self._dtype)
        image, size = self.target.family.image_token_id, self.target.model.get_input_embeddings().num_embeddings
        if image is not None and image >= size:  # the placeholder has no row of its own in the table
            ids = ids.masked_fill(ids == image, 0)
        return self._token_embeds(ids)

    def config(self) -> dict[str, Any]:
        return {
            "head": {name: getattr(self.head, name) for name in HEAD_SETTINGS},
            "visual": self.visual,
            "draft_vocab_size": self.draft_vocab_size,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any], target: Target) -> FeatureDrafter:
        names = ("head", "visual", "draft_vocab_size", *cls.switches)
        drafter = cls(target, **{name: config[name] for name in names})
        for parameter in drafter.parameters():  # not the rotary frequencies, which stay in float32
            parameter.data = parameter.data.to(target.dtype)
        return drafter.to(target.device)

    switches: tuple[str, ...] = ()
    """Names of further constructor arguments, which `config` gives too."""


def _pick(states: Tensor, slots: Tensor) -> Tensor:
    """`[batch, length, hidden]` at `[batch, count]` slots."""
    return states.gather(1, slots[..., None].expand(-1, -1, states.shape[-1]))
