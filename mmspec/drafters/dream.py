"""DREAM: token embeddings that look up the target's states by cross-attention."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import LlamaConfig

from ..compressors import DraftPrompt, FeatureGuided
from ..errors import MMSpecError
from ..lesson import Guess, Lesson
from ..models.slots import pick
from ..models.states import LAST
from .feature import FeatureDrafter
from .feature_settings import FeatureSettings
from .head_config import initialise
from .layer import DraftAttention, DraftLayer, GatedMLP, Rope, attend, attend_causally, attend_unrolled, first_heads
from .layer_pass import LayerPass
from .reading import TargetView, view_of

Entries = tuple[Tensor, Tensor]
"""Keys and values, each `[batch, key_value_heads, length, head_dim]`."""


@dataclass(frozen=True, kw_only=True)
class DreamSettings(FeatureSettings):
    """The settings of a `DreamDrafter`, beside those of `FeatureSettings`.

    Args:
        cross_attention: whether there is a middle layer; without it, for the ablation, no state of the target is read.
        first_token: `nothing` or `mean`: the first token attends to nothing, or to all states alike.
        tree_masked: whether a node sees of the memory the stand-ins of its own ancestors alone. No weight depends on
            it.
        head_share: share of the last layer's heads that run, the first ones, above 0 and at most 1: a sub-network of
            an elastic drafter (DREAM-S). The weights of the others stay where they are.
    """

    cross_attention: bool = True
    first_token: Literal["nothing", "mean"] = "nothing"
    tree_masked: bool = True
    head_share: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.head_share <= 1:
            raise MMSpecError(f"head_share={self.head_share} must be above 0 and at most 1")


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

    DREAM-S (arXiv 2606.00535) trains the same layers so that fewer heads of the last one, and fewer visual tokens, do
    too: `sub_network`. Its release keeps the first heads whenever it drafts, because it ranks them by gradients, and
    those are not there then; so does this, also for drafters of our own.

    Lossless with every lossless verifier. Trained: everything but the embedding and the vocabulary head.

    The arguments are those of `FeatureDrafter`, and its settings those of `DreamSettings`. The paper's compressor is
    `FeatureGuided(keep=0.75)`.
    """

    Settings = DreamSettings
    settings: DreamSettings
    feature_layers = (LAST,)
    first_slot = 1

    _short: tuple[DraftLayer, ...] = ()  # the last layer with its first heads alone, where it has no more

    def build(self) -> None:
        """Make the three layers and the norm."""
        hidden, eps = self.head.hidden_size, self.head.rms_norm_eps
        middle = CrossLayer(self.head) if self.settings.cross_attention else nn.Identity()
        self.layers = nn.ModuleList([DraftLayer(self.head, hidden), middle, DraftLayer(self.head, hidden)])
        self._three[2].input_layernorm = nn.RMSNorm(hidden, eps=eps)
        self.norm = nn.RMSNorm(hidden, eps=eps)
        initialise(self)

    @property
    def layer(self) -> DraftLayer:
        """The first layer."""
        return self._three[0]

    @property
    def _three(self) -> tuple[DraftLayer, CrossLayer, DraftLayer]:
        """The layers; the middle one does nothing without cross-attention, and the last one may have fewer heads."""
        first, middle, last = self.layers
        return cast(DraftLayer, first), cast(CrossLayer, middle), (self._short or (cast(DraftLayer, last),))[0]

    def _prepare(self) -> None:
        """Look up what stays the same for a request, or for a batch of lessons: the last layer's heads among it."""
        super()._prepare()
        share, last = self.settings.head_share, cast(DraftLayer, self.layers[2])
        self._short = () if share == 1 else (first_heads(last, share),)  # in a tuple, as it is no module of this one

    def sub_network(self, head_share: float = 1.0, keep: float | None = None) -> DreamDrafter:
        """Return a sub-network of this drafter that shares its weights (DREAM-S, arXiv 2606.00535).

        Args:
            head_share: share of the last layer's heads that run.
            keep: share of a picture's tokens that it reads, those that the target attends to most; None for what it
                reads as it is.

        Raises:
            MMSpecError: for a share out of range, or a compressor other than `FeatureGuided` in place of which `keep`
                would have to stand.
        """
        drafter = cast(DreamDrafter, self.fork())
        drafter.settings = replace(self.settings, head_share=head_share)
        if keep is not None:
            if not isinstance(self.compressor, FeatureGuided | None):
                raise MMSpecError(
                    f"keep={keep} chooses among a picture's tokens, but this {type(self).__name__} reads them through "
                    f"{type(self.compressor).__name__}: leave it out"
                )
            drafter.take_compressor(FeatureGuided(keep))
        return drafter

    def fuse_features(self, features: dict[int, Tensor]) -> Tensor:
        """Return the target's last states."""
        return features[LAST].to(self._dtype)

    def slot_positions(self, prompt: DraftPrompt) -> Tensor:
        """Return `[batch, entries]` positions: every token has a slot, the first one too."""
        return prompt.positions

    def read(self, view: TargetView) -> DraftPrompt:
        """Return the request as this drafter reads it, and count its entries."""
        read = super().read(view)
        self._entries = torch.tensor(view.prompt.lengths, device=read.removed.device) - read.removed
        return read

    # Drafting.

    def passes(self) -> tuple[LayerPass, ...]:
        """Return the passes of the first and of the last layer."""
        return LayerPass(self._three[0]), LayerPass(self._three[2])

    def prefill_kv(self, prompt: DraftPrompt) -> list[Entries]:
        """Return keys and values of all slots of a prompt, for the three layers."""
        _, _, first, memory, last = self._read_all(prompt)
        if memory is None:
            return [first, last]
        # The first token's entry is of no state: nobody reads it.
        keys, values = (functional.pad(part, (0, 0, 1, 0)) for part in memory)
        return [first, (keys, values), last]

    def layer_input(self, embeds: Tensor, states: Tensor, step: int | Tensor = 0) -> tuple[Tensor, Tensor]:
        """Return embeddings and states as they are: different layers read them."""
        return embeds, states

    def _layers(self, mixed: Tensor, residual: Tensor, mask: Tensor | None, rope: Rope) -> Tensor:
        """Run the three layers and the norm inside an open block: from `[rows, new, hidden]` embeddings of tokens and
        states to outputs."""
        (first, last), (_, middle, third) = self._passes, self._three
        embeds, states, entries = mixed, residual, self.session.cache.tree_layers
        hidden = first.finish(embeds, self._attended(0, embeds, mask, rope))
        if self.settings.cross_attention:
            # An entry is the state before a token: who sees the token sees it, and nobody else does.
            keys, values = (part[:, :, 1:] for part in entries[1].update(*middle.keys_values(states)))
            seen = mask if self.settings.tree_masked or mask is None else self._by_slot(mask)
            seen = None if seen is None else seen[..., 1:]
            hidden = middle.finish(hidden, attend(middle.queries(hidden), keys, values, seen))
        return self.norm(last.finish(hidden, self._attended(-1, third.input_layernorm(hidden), mask, rope)))

    def _by_slot(self, mask: Tensor) -> Tensor:
        """Return a mask like this one by which every node of the open block sees all slots before it, and its own."""
        cache, (new, slots) = self.session.cache, mask.shape[2:]
        columns, own = torch.arange(slots, device=mask.device), torch.arange(new, device=mask.device)
        own = own + cache.present(cache.lengths)[:, None] + cache.speculative
        return (columns <= own[..., None])[:, None]

    # Training.

    def unroll(self, lesson: Lesson, steps: int = 1, detach: bool = False) -> Iterator[Guess]:
        """Yield the guesses of every step, see `Drafter.unroll`. The first step is taught with true states; a later one
        remembers the outputs of the steps before it, as a draft does.

        The first layer reads tokens only, and a chain of right guesses is the answer itself: its output at every depth
        of every chain is that of the answer's own slots.
        """
        self._prepare()
        prompt = self.read(view_of(lesson))
        blocks, crossed, _, memory, prefix = self._read_all(prompt)
        slots = lesson.root_slots - prompt.removed[:, None] + 1
        columns = torch.arange(blocks.shape[1], device=slots.device)
        visible = columns <= slots[:, None, :, None]
        positions = self.slot_positions(prompt).gather(1, slots)
        _, middle, last = self._three
        remembered: list[Entries] = []
        own: list[Entries] = []
        for step in range(steps):
            valid, places = lesson.drafted(step)
            if not valid.any():
                return
            block = pick(blocks, (slots + step).clamp(max=blocks.shape[1] - 1))
            if not self.settings.cross_attention:
                hidden = block
            elif not step:
                hidden = pick(crossed, slots)
            else:
                assert memory is not None  # there is cross-attention
                asked = attend_unrolled(middle.queries(block), memory, remembered, visible[..., 1:])
                hidden = middle.finish(block, asked)
            mixed = last.input_layernorm(hidden)
            rope = self._rope(mixed, positions + step)
            if step:
                own.append(last.self_attn.keys_values(mixed, rope))
            attended = attend_unrolled(last.self_attn.queries(mixed, rope), prefix, own, visible)
            output = self.norm(last.finish(hidden, attended))
            chosen = self.corrected(output, step)[valid]
            yield Guess(self.logits(chosen), chosen, places, valid.flatten().nonzero()[:, 0], block[valid])
            if self.settings.cross_attention:
                state = self.next_state(output)
                remembered.append(middle.keys_values(state.detach() if detach else state))

    def _read_all(self, prompt: DraftPrompt) -> tuple[Tensor, Tensor, Entries, Entries | None, Entries]:
        """Read all tokens with the true states before them.

        Returns:
            The outputs of the first and of the cross-attention layer, `[batch, entries, hidden]`; then keys and values
            of the first layer, of the memory (one entry fewer; None without it), and of the last layer.
        """
        embeds, (first, middle, last) = prompt.embeds.to(self._dtype), self._three
        rope = self._rope(embeds, self.slot_positions(prompt))
        entries = first.self_attn.keys_values(embeds, rope)
        block = first.finish(embeds, attend_causally(first.self_attn.queries(embeds, rope), *entries))
        hidden, memory = block, None
        if self.settings.cross_attention:
            memory = middle.keys_values(prompt.states[:, :-1])
            queries = middle.queries(block)
            # The first token has no state before it: its attention is 0 [OUR], or the mean of all values.
            attended = [torch.zeros_like(queries[:, :, :1])]
            if self.settings.first_token == "mean":
                attended = [self._mean_value(prompt.states)]
            if queries.shape[2] > 1:
                attended.append(attend_causally(queries[:, :, 1:], *memory))
            hidden = middle.finish(block, torch.cat(attended, dim=2))
        return block, hidden, entries, memory, last.self_attn.keys_values(last.input_layernorm(hidden), rope)

    def _mean_value(self, states: Tensor) -> Tensor:
        """Return `[batch, heads, 1, head_dim]` the mean of the memory's values over the prompt's `[batch, entries,
        hidden]` states. Values are linear in states, so it is the value of their mean."""
        columns = torch.arange(states.shape[1], device=states.device)
        share = (columns < self._entries[:, None]) / self._entries[:, None]
        mean = (states * share[..., None].to(states)).sum(1, keepdim=True)
        _, value = self._three[1].keys_values(mean)
        return value.repeat_interleave(self.head.num_attention_heads // value.shape[1], dim=1)


class CrossLayer(nn.Module):
    """Gated cross-attention and a gated MLP around a residual stream. With gates at 0, as at first, it does nothing.

    Args:
        config: sizes and biases of the layer.
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
        """Return queries `[batch, heads, length, head_dim]` of `[batch, length, hidden]` states of the drafter."""
        return self.cross_attn.queries(self.input_layernorm(states))

    def keys_values(self, states: Tensor) -> Entries:
        """Return keys and values of `[batch, length, hidden]` states of the target, or what stands for them. They are
        normed already."""
        return self.cross_attn.keys_values(states)

    def finish(self, residual: Tensor, attended: Tensor) -> Tensor:
        """Return the layer's output, from its input `[batch, length, hidden]` and what was attended to, `[batch, heads,
        length, head_dim]`."""
        states = residual + self.cross_attn_attn_gate.tanh() * self.cross_attn.merge(attended)
        return states + self.cross_attn_mlp_gate.tanh() * self.mlp(self.post_attention_layernorm(states))


class CrossAttention(DraftAttention):
    """Attention over a memory without order: queries and keys are normed per head instead of rotated."""

    def __init__(self, config: LlamaConfig):
        super().__init__(config, config.hidden_size)
        self.q_norm = nn.RMSNorm(config.head_dim, eps=config.rms_norm_eps)
        self.k_norm = nn.RMSNorm(config.head_dim, eps=config.rms_norm_eps)

    def queries(self, states: Tensor, rope: Rope | None = None) -> Tensor:
        """Return normed queries `[batch, heads, length, head_dim]`."""
        return self.q_norm(self._heads(self.q_proj(states)))

    def keys_values(self, states: Tensor, rope: Rope | None = None) -> Entries:
        """Return normed keys, and values, `[batch, key_value_heads, length, head_dim]`."""
        return self.k_norm(self._heads(self.k_proj(states))), self._heads(self.v_proj(states))
