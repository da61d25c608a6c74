"""DREAM: token embeddings that look up the target's states by cross-attention."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import LlamaConfig

from ..compressors import DraftPrompt, VisualCompressor
from ..errors import MMSpecError, did_you_mean
from ..lesson import Guess, Lesson
from ..slots import pick
from ..states import LAST
from ..trees import TreeBuilder
from ..trees.growth import Block
from .feature import FeatureDrafter
from .head_config import initialise
from .layer import DraftAttention, DraftLayer, GatedMLP, Rope, attend, attend_unrolled

if TYPE_CHECKING:
    from ..target import Target

Entries = tuple[Tensor, Tensor]
"""Keys and values, each `[batch, key_value_heads, length, head_dim]`."""

FIRST_TOKEN = ("nothing", "mean")


class DreamDrafter(FeatureDrafter):
    """The drafter of DREAM (arXiv 2505.19201): three layers between the target's embedding and its vocabulary head.

    A Llama layer reads the embeddings of the tokens themselves, x_0 .. x_t, without a norm; a gated layer of
    cross-attention lets slot t ask the target's last states of strictly earlier tokens, h_0 .. h_{t-1}; another Llama
    layer follows, and a norm. What comes out of slot t stands for h_t: it goes into the target's vocabulary head, and
    below the root into the memory that the cross-attention reads.

    So slot t brings two things along, the embedding of x_t and the state h_{t-1}: the pairs of `FeatureDrafter`, whose
    caches and masks serve all three layers. A node of a tree sees of the memory what its mask shows of the tree: the
    true states, and the stand-ins of its own ancestors. They are thrown away once the target has spoken.

    Faithful: the layers, tanh gates that begin at 0, norms of queries and keys, no rotary positions in the memory, and
    the names of the weights. Ours: the first token, before which there is no state, attends to nothing, so its
    attention is 0; the tree mask, which the paper means; a compressor shortens tokens and memory alike. The release
    differs in the first two, and its checkpoint is loaded with both as they were: `first_token="mean"`, all states of
    the prompt with equal weights, the future included, because the mask that hides them all is added as one and the
    same large number; and `tree_masked=False`, because the mask never reaches that layer, so that a node sees the
    stand-ins of all earlier levels, and of its own level those up to itself, in the order of expansion.

    Lossless with every lossless verifier. Trained: everything but the embedding and the vocabulary head.

    Args:
        target, head, visual, draft_vocab_size, tree, compressor: see `FeatureDrafter`. The paper's compressor is
            `FeatureGuided(keep=0.75)`.
        cross_attention: False leaves the middle layer out, for the ablation: then no state of the target is read.
        first_token: `nothing` or `mean`, what the first token's cross-attention sees.
        tree_masked: whether a node sees of the memory the stand-ins of its own ancestors alone. May be changed on a
            drafter that is loaded: no weight depends on it.

    Raises:
        MMSpecError: for another `first_token`; see also `FeatureDrafter`.
    """

    feature_layers = (LAST,)
    switches = ("cross_attention",)
    late_switches = ("first_token", "tree_masked")
    first_slot = 1

    def __init__(
        self,
        target: Target,
        head: dict[str, Any] | None = None,
        visual: bool = True,
        draft_vocab_size: int | None = None,
        tree: TreeBuilder | None = None,
        compressor: VisualCompressor | None = None,
        cross_attention: bool = True,
        first_token: str = "nothing",
        tree_masked: bool = True,
    ):
        super().__init__(target, head, visual, draft_vocab_size, tree, compressor)
        if first_token not in FIRST_TOKEN:
            raise MMSpecError(f"first_token={first_token!r} is unknown.{did_you_mean(str(first_token), FIRST_TOKEN)}")
        self.first_token, self.tree_masked = first_token, tree_masked
        hidden, eps = self.head.hidden_size, self.head.rms_norm_eps
        self.cross_attention = cross_attention
        middle = CrossLayer(self.head) if cross_attention else nn.Identity()
        self.layers = nn.ModuleList([DraftLayer(self.head, hidden), middle, DraftLayer(self.head, hidden)])
        self.layers[2].input_layernorm = nn.RMSNorm(hidden, eps=eps)
        self.norm = nn.RMSNorm(hidden, eps=eps)
        initialise(self)

    @property
    def layer(self) -> DraftLayer:
        return self.layers[0]

    def fuse_features(self, features: dict[int, Tensor]) -> Tensor:
        return features[LAST].to(self._dtype)

    def slot_positions(self, prompt: DraftPrompt) -> Tensor:
        """`[batch, entries]`: every token has a slot, the first one too."""
        return prompt.positions

    def read(self, request, prompt, embeds, features, vision):
        read = super().read(request, prompt, embeds, features, vision)
        self._entries = torch.tensor(prompt.lengths, device=read.removed.device) - read.removed
        return read

    # Drafting.

    def prefill_kv(self, prompt: DraftPrompt) -> list[Entries]:
        _, _, first, memory, last = self._read_all(prompt)
        if memory is None:
            return [first, last]
        # The first token's entry is of no state: nobody reads it.
        return [first, tuple(functional.pad(part, (0, 0, 1, 0)) for part in memory), last]

    def _run(self, block: Block, states: Tensor, step: int | Tensor = 0) -> Tensor:
        embeds = self._token_embeds(block.tokens)
        with self.session.block(block.visible, block.depth, block.extends_chain) as (mask, positions):
            embeds, states = self.session.present(embeds), self.session.present(states)
            output = self.norm(self._layers(embeds, states, mask, self._rope(embeds, positions)))
        return self.session.whole(output)

    def _layers(self, embeds: Tensor, states: Tensor, mask: Tensor | None, rope: Rope) -> Tensor:
        """The three layers inside an open block: `[batch, new, hidden]` of tokens and of states to outputs."""
        entries = self.session.cache.layers
        first, middle, last = self.layers

        def attended(layer: DraftLayer, number: int, mixed: Tensor) -> Tensor:
            queries, *own = layer.self_attn.project(mixed, rope)
            return attend(queries, *entries[number].update(*own), mask)

        hidden = first.finish(embeds, attended(first, 0, embeds))
        if self.cross_attention:
            # An entry is the state before a token: who sees the token sees it, and nobody else does.
            keys, values = (part[:, :, 1:] for part in entries[1].update(*middle.keys_values(states)))
            seen = mask if self.tree_masked or mask is None else self._by_slot(mask)
            seen = None if seen is None else seen[..., 1:]
            hidden = middle.finish(hidden, attend(middle.queries(hidden), keys, values, seen))
        return last.finish(hidden, attended(last, -1, last.input_layernorm(hidden)))

    def _by_slot(self, mask: Tensor) -> Tensor:
        """A mask like this one by which every node of the open block sees all slots before it, and its own."""
        cache, (new, slots) = self.session.cache, mask.shape[2:]
        columns, own = torch.arange(slots, device=mask.device), torch.arange(new, device=mask.device)
        own = own + cache.present(cache.lengths)[:, None] + cache.speculative
        return (columns <= own[..., None])[:, None]

    # Training.

    def unroll(self, lesson: Lesson, steps: int = 1, detach: bool = False) -> Iterator[Guess]:
        """See `Drafter.unroll`. The first step is taught with true states; a later one remembers the outputs of the
        steps before it, as a draft does.

        The first layer reads tokens only, and a chain of right guesses is the answer itself: its output at every depth
        of every chain is that of the answer's own slots.
        """
        self._prepare()
        prompt = self.read(lesson.request, lesson.prompt, lesson.embeds, lesson.features, lesson.vision)
        blocks, crossed, _, memory, prefix = self._read_all(prompt)
        slots = lesson.root_slots - prompt.removed[:, None] + 1
        columns = torch.arange(blocks.shape[1], device=slots.device)
        visible = columns <= slots[:, None, :, None]
        positions = self.slot_positions(prompt).gather(1, slots)
        _, middle, last = self.layers
        remembered: list[Entries] = []
        own: list[Entries] = []
        for step in range(steps):
            valid, places = lesson.drafted(step)
            if not valid.any():
                return
            block = pick(blocks, (slots + step).clamp(max=blocks.shape[1] - 1))
            if not self.cross_attention:
                hidden = block
            elif not step:
                hidden = pick(crossed, slots)
            else:
                asked = attend_unrolled(middle.queries(block), memory, remembered, visible[..., 1:])
                hidden = middle.finish(block, asked)
            mixed = last.input_layernorm(hidden)
            rope = self._rope(mixed, positions + step)
            if step:
                own.append(last.self_attn.keys_values(mixed, rope))
            attended = attend_unrolled(last.self_attn.queries(mixed, rope), prefix, own, visible)
            output = self.norm(last.finish(hidden, attended))
            chosen = output[valid]
            yield Guess(self.logits(chosen), chosen, places, valid.flatten().nonzero()[:, 0], block[valid])
            if self.cross_attention:
                state = self.next_state(output)
                remembered.append(middle.keys_values(state.detach() if detach else state))

    def _read_all(self, prompt: DraftPrompt) -> tuple[Tensor, Tensor, Entries, Entries | None, Entries]:
        """All tokens with the true states before them.

        Returns:
            the outputs of the first and of the cross-attention layer, `[batch, entries, hidden]`; then keys and values
            of the first layer, of the memory (one entry fewer; None without it), and of the last layer.
        """
        embeds, (first, middle, last) = prompt.embeds.to(self._dtype), self.layers
        rope = self._rope(embeds, self.slot_positions(prompt))
        entries = first.self_attn.keys_values(embeds, rope)
        block = first.finish(embeds, _causal(first.self_attn.queries(embeds, rope), *entries))
        hidden, memory = block, None
        if self.cross_attention:
            memory = middle.keys_values(prompt.states[:, :-1])
            queries = middle.queries(block)
            # The first token has no state before it: its attention is 0 [OUR], or the mean of all values.
            attended = [torch.zeros_like(queries[:, :, :1])]
            if self.first_token == "mean":
                attended = [self._mean_value(prompt.states)]
            if queries.shape[2] > 1:
                attended.append(_causal(queries[:, :, 1:], *memory))
            hidden = middle.finish(block, torch.cat(attended, dim=2))
        return block, hidden, entries, memory, last.self_attn.keys_values(last.input_layernorm(hidden), rope)

    def _mean_value(self, states: Tensor) -> Tensor:
        """`[batch, heads, 1, head_dim]` the mean of the memory's values over the prompt's `[batch, entries, hidden]`
        states. Values are linear in states, so it is the value of their mean."""
        columns = torch.arange(states.shape[1], device=states.device)
        share = (columns < self._entries[:, None]) / self._entries[:, None]
        mean = (states * share[..., None].to(states)).sum(1, keepdim=True)
        _, value = self.layers[1].keys_values(mean)
        return value.repeat_interleave(self.head.num_attention_heads // self.head.num_key_value_heads, dim=1)

    def config(self) -> dict[str, Any]:
        return super().config() | {"cross_attention": self.cross_attention}


class CrossLayer(nn.Module):
    """Gated cross-attention and a gated MLP around a residual stream. With gates at 0, as at first, it does nothing.

    Args:
        config: sizes, and which biases there are.
    """

    def __init__(self, config: LlamaConfig):
        super().__init__()
        self.input_layernorm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.cross_attn = CrossAttention(config)
        self.cross_attn_attn_gate = nn.Parameter(torch.zeros(1))
        self.post_attention_layernorm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.mlp = GatedMLP(config)
        self.cross_attn_mlp_gate = nn.Parameter(torch.zeros(1))

    def queries(self, states: Tensor) -> Tensor:
        """`[batch, length, hidden]` of the drafter to `[batch, heads, length, head_dim]`."""
        return self.cross_attn.queries(self.input_layernorm(states))

    def keys_values(self, states: Tensor) -> Entries:
        """Of `[batch, length, hidden]` states of the target, or what stands for them. They are normed already."""
        return self.cross_attn.keys_values(states)

    def finish(self, residual: Tensor, attended: Tensor) -> Tensor:
        """The layer's output from `[batch, length, hidden]` and `[batch, heads, length, head_dim]`."""
        states = residual + self.cross_attn_attn_gate.tanh() * self.cross_attn.merge(attended)
        return states + self.cross_attn_mlp_gate.tanh() * self.mlp(self.post_attention_layernorm(states))


class CrossAttention(DraftAttention):
    """Attention over a memory without order: queries and keys are normed per head instead of rotated."""

    def __init__(self, config: LlamaConfig):
        super().__init__(config, config.hidden_size)
        self.q_norm = nn.RMSNorm(config.head_dim, eps=config.rms_norm_eps)
        self.k_norm = nn.RMSNorm(config.head_dim, eps=config.rms_norm_eps)

    def queries(self, states: Tensor, rope: Rope | None = None) -> Tensor:
        return self.q_norm(self._heads(self.q_proj(states)))

    def keys_values(self, states: Tensor, rope: Rope | None = None) -> Entries:
        return self.k_norm(self._heads(self.k_proj(states))), self._heads(self.v_proj(states))


def _causal(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Attention of every slot to itself and what is before it, all of one length."""
    grouped = queries.shape[1] != keys.shape[1]
    return functional.scaled_dot_product_attention(queries, keys, values, is_causal=True, enable_gqa=grouped)
