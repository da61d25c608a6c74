"""SpecFLASH: a head that guesses K features in a pass, and goes on from the last of them in blocks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import LlamaConfig

from ..lesson import Guess, Lesson
from ..models.slots import pick, pick_numbers
from ..settings.arguments import positive
from ..trees import Chain, TreeBuilder
from ..trees.growth import Block
from .eagle import EagleDrafter, EagleSettings
from .head_config import initialise
from .layer import DraftAttention, Rope, attend, attend_unrolled
from .layer_pass import LayerPass
from .reading import view_of


@dataclass(frozen=True, kw_only=True)
class SpecFlashSettings(EagleSettings):
    """The settings of a `SpecFlashDrafter`, beside those of `EagleSettings`, of which `input_norm` is about attention
    with or without a residual stream.

    Args:
        tokens: number of tokens that a pass guesses.
        chained: whether further blocks follow below the first one. Without them nothing is drafted deeper than a pass
            guesses.
        residual: whether the attention and the MLP are added to what enters them, the MLP behind a norm, as in other
            layers; the release has neither.
    """

    tokens: int = 5
    chained: bool = True
    residual: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        positive(self, tokens=self.tokens)


class FlashLayer(nn.Module):
    """Attention, and an MLP whose output is the features of several tokens.

    Args:
        config: sizes of the layer.
        tokens: number of features.
        residual: whether there is a residual stream, with a norm before the MLP.
    """

    input_layernorm: nn.Module  # of drafters that have one

    def __init__(self, config: LlamaConfig, tokens: int, residual: bool):
        super().__init__()
        hidden = config.hidden_size
        self.self_attn = DraftAttention(config, hidden)
        self.norm = nn.RMSNorm(hidden, eps=config.rms_norm_eps) if residual else None
        self.up_proj, self.down_proj = nn.Linear(hidden, 4 * hidden), nn.Linear(4 * hidden, tokens * hidden)
        self.tokens = tokens

    def finish(self, residual: Tensor, attended: Tensor) -> Tensor:
        """Return the features side by side, `[batch, length, tokens * hidden]`, from what entered, `[batch, length,
        hidden]`, and what was attended to, `[batch, heads, length, head_dim]`."""
        states = self.self_attn.merge(attended)
        if self.norm is None:
            return self.down_proj(functional.silu(self.up_proj(states)))
        states = residual + states
        features = self.down_proj(functional.silu(self.up_proj(self.norm(states))))
        return features + states.repeat(1, 1, self.tokens)


class SpecFlashDrafter(EagleDrafter):
    """The semi-autoregressive head of SpecFLASH (arXiv 2505.12728, first called FLASH).

    Slot t pairs the target's state h_t with the embedding of token t + 1, as in EAGLE: `u_t = W [E(x_{t+1}); h_t] + b`.
    Attention over the slots and an MLP of K times the width give K features in one pass, f_1 .. f_K, which stand for
    the states of the next K tokens; the target's own vocabulary head makes distributions of them. So K levels of a tree
    cost one pass, and all nodes of such a level have one distribution. Below, blocks are chained: the drafted tokens of
    a path enter with the features that stand before them, and the last of them brings K more.

    Faithful: fusion, attention without a norm or a residual, the MLP, K = 5, chained blocks as the paper's text has
    them, the losses (recipe `specflash`). Decoding with this head was never released, so that how blocks are chained in
    trees is our own: a pass reads all nodes above that no pass has read, at whose level a block ends. So are ordinary
    grouped queries (in the release every head sums over all groups), any number of pictures anywhere in any batch, and
    `residual`. The paper's compressor is `LatentQueries`.

    Lossless with every lossless verifier. Trained: everything but the embedding and the vocabulary head.

    The arguments are those of `FeatureDrafter`, and its settings those of `SpecFlashSettings`.

    Raises:
        MMSpecError: for a number of tokens that is not positive.
    """

    Settings = SpecFlashSettings
    settings: SpecFlashSettings

    def native_tree(self) -> TreeBuilder:
        """Return a chain: a block, and a second one if they are chained."""
        return Chain(self.settings.tokens * (1 + self.settings.chained))

    takes_corrector = False

    def build(self) -> None:
        """Make the fusion and the layer."""
        settings, hidden = self.settings, self.head.hidden_size
        self.fc = nn.Linear(2 * hidden, hidden, bias=settings.bias)
        self.layers = nn.ModuleList([FlashLayer(self.head, settings.tokens, settings.residual)])
        if settings.input_norm:
            self.layer.input_layernorm = nn.RMSNorm(hidden, eps=self.head.rms_norm_eps)
        self.independent = self.cheap_levels = not settings.chained
        self.max_depth = None if settings.chained else settings.tokens
        self.drafts_unread = settings.chained  # a tree of a single block leaves no states of its own to go on from
        initialise(self)

    @property
    def layer(self) -> Any:
        """The only layer, a `FlashLayer`."""
        return self.layers[0]

    def passes(self) -> tuple[LayerPass, ...]:
        """Return nothing: the layer is not made of what a `LayerPass` looks up."""
        return ()

    def head_input(self, output: Tensor) -> Tensor:
        """Return the first of the features."""
        return output[..., : self.head.hidden_size]

    def _feature(self, features: Tensor, number: int | Tensor) -> Tensor:
        """Return one of `[batch, nodes, tokens * hidden]` features: of a number, or of `[batch, nodes]` numbers."""
        parts = features.unflatten(-1, (self.settings.tokens, -1))
        if isinstance(number, int):
            return parts[:, :, number]
        return parts.take_along_dim(number[..., None, None], dim=2)[:, :, 0]

    # Drafting.

    def expand_root(self, root: Tensor) -> Tensor:
        """Enter what the target has confirmed, and guess a block behind the root; return the logits of its first
        token."""
        logits = super().expand_root(root)
        self._features = list(self._drafted)  # the block that a node stands in, by node
        self._drafted = [self.head_input(self._features[0])]
        self._unread: list[tuple[Block, Tensor]] = []
        return logits

    def expand(self, block: Block) -> Tensor:
        """Return the logits after the nodes of a block: from the pass that they stand below, or from a new one where
        its features end."""
        chain = block.extends_chain
        features = self._features[-1] if chain else pick(torch.cat(self._features, dim=1), block.parents)
        above = self._drafted[-1] if chain else pick(torch.cat(self._drafted, dim=1), block.parents)
        self._unread.append((block, above))
        number = (block.depth if block.level is None else block.level) + 1
        number = number % self.settings.tokens
        if isinstance(number, int):
            features = features if number else self._read_nodes()
        elif (ends := number == 0).any():  # a builder may mix depths; to ask the host costs less than a pass
            features = torch.where(ends[..., None], self._read_nodes(), features)
        self._features.append(features)
        self._drafted.append(self._feature(features, number))
        return self.logits(self._drafted[-1])

    def _read_nodes(self) -> Tensor:
        """Run the layer over all nodes that no pass has read, of which the last block's are to be expanded; return
        their features, `[batch, new, tokens * hidden]`."""
        blocks, states = zip(*self._unread, strict=True)
        self._unread = []
        total = blocks[-1].visible.shape[2]
        visible = torch.cat([functional.pad(one.visible, (0, total - one.visible.shape[2])) for one in blocks], dim=1)
        nodes = Block(
            tokens=torch.cat([one.tokens for one in blocks], dim=1),
            parents=torch.cat([one.parents for one in blocks], dim=1),
            visible=visible,
            depth=torch.cat([one.depth for one in blocks], dim=1),
        )
        entering = self.layer_input(self.token_embeds(nodes.tokens), torch.cat(states, dim=1))
        return self._run(nodes, entering)[:, -blocks[-1].tokens.shape[1] :]

    def _layers(self, mixed: Tensor, residual: Tensor, mask: Tensor | None, rope: Rope) -> Tensor:
        """Run the layer inside an open block: from what enters, see `layer_input`, to features side by side."""
        attention = cast(DraftAttention, self.layer.self_attn)
        queries, own = attention.queries(mixed, rope), attention.keys_values(mixed, rope)
        keys, values = self.session.cache.tree_layers[0].update(*own)
        return self.layer.finish(residual, attend(queries, keys, values, mask))

    def marginals(self, depth: int) -> Tensor:
        """Return the logits of the first `depth` tokens of a block."""
        return self.logits(self._features[0].unflatten(-1, (self.settings.tokens, -1))[:, 0, :depth])

    # Training.

    def unroll(self, lesson: Lesson, steps: int = 1, detach: bool = False) -> Iterator[Guess]:
        """Yield the guesses of every step, see `Drafter.unroll`: a block comes from one pass at every root, and the
        next one from a pass over the tokens that right guesses would have been, with the features that stand before
        them."""
        self._prepare()
        prompt = self.read(view_of(lesson))
        mixed, residual = self.prompt_input(prompt)
        attention, slots = cast(DraftAttention, self.layer.self_attn), lesson.root_slots - prompt.removed[:, None]
        positions = self.slot_positions(prompt)
        prefix = attention.keys_values(mixed, self._rope(mixed, positions))
        visible = torch.arange(mixed.shape[1], device=mixed.device) <= slots[:, None, :, None]
        positions, count = pick_numbers(positions, slots), self.settings.tokens
        mixed, residual = pick(mixed, slots), pick(residual, slots)
        own: list[tuple[Tensor, Tensor]] = []
        for step in range(steps if self.settings.chained else min(steps, count)):
            valid, places = lesson.drafted(step)
            if not valid.any():
                return
            if step % count == 0:
                rope = self._rope(mixed, positions + step)
                attended = attend_unrolled(attention.queries(mixed, rope), prefix, own, visible)
                features = self.layer.finish(residual, attended)
            feature = self._feature(features, step % count)
            chosen = feature[valid]
            yield Guess(self.logits(chosen), chosen, places, valid.flatten().nonzero()[:, 0])
            # The token that a right guess would have been; beyond the end of an answer anything will do.
            following = pick(prompt.embeds, (slots + step + 2).clamp(max=prompt.embeds.shape[1] - 1))
            mixed, residual = self.layer_input(following, feature.detach() if detach else feature, step + 1)
            own.append(attention.keys_values(mixed, self._rope(mixed, positions + step + 1)))
