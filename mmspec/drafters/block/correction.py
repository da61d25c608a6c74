"""Corrections: how the guesses of a block are changed by the tokens that stand above them, without another pass.

All of them have one interface (`Walk`), so that chains, trees and teacher forcing are the same three calls: `begin` at
the anchor, `logits` below a node, `advance` by one token. Each works on any number of nodes at once. A `Correction`
walks as it is; a `LookAhead` looks at all guesses of a pass before, and makes a walk of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

Embed = Callable[[Tensor], Tensor]
"""Function that gives `[batch, nodes, hidden]` embeddings of `[batch, nodes]` tokens."""

Head = Callable[[Tensor], Tensor]
"""Function that gives `[..., vocab]` logits of `[..., hidden]` normed states."""


class Walk:
    """A way down from anchors, token by token.

    Its state of a node is a vector, made of the tokens from the anchor down to the node.
    """

    asks_head = False
    """True if its logits are what the vocabulary head says of other states."""

    def begin(self, anchors: Tensor, embed: Embed) -> Tensor:
        """Return the states of `[batch, nodes]` anchors, `[batch, nodes, size]`."""
        raise NotImplementedError

    def logits(self, base: Tensor, hidden: Tensor, state: Tensor, head: Head) -> Tensor:
        """Return logits `[..., vocab]` of the tokens below some nodes.

        Args:
            base: `[..., vocab]` logits of the block, which know nothing of the tokens above.
            hidden: `[..., hidden]` normed states of the slots that they come from.
            state: `[..., size]` the states of the nodes.
            head: the way from hidden states to logits.
        """
        raise NotImplementedError

    def advance(self, state: Tensor, tokens: Tensor, hidden: Tensor, embed: Embed) -> Tensor:
        """Return the states of some nodes, `[batch, nodes, size]`.

        Args:
            state: `[batch, nodes, size]` the states of their parents.
            tokens: `[batch, nodes]` their tokens.
            hidden: `[batch, nodes, hidden]` normed states of the slots that guessed these tokens.
            embed: the embedding of tokens.
        """
        raise NotImplementedError


class Correction(nn.Module, Walk):
    """A small model of how a token depends on those above it in its block."""

    @property
    def run_twice(self) -> Sequence[nn.Module]:
        """The modules that run twice for every level: for what stands below a node, and on the way to it."""
        return ()


class LookAhead(nn.Module):
    """A small model of how the tokens of a block depend on one another, which looks at all guesses of a pass.

    Attributes:
        candidates: how many tokens of each slot it looks at.
    """

    candidates: int

    def walk(self, base: Tensor, hidden: Tensor, newest: Tensor, embed: Embed, vocabulary: Tensor | None) -> Walk:
        """Return the way down from the anchors of some blocks.

        Args:
            base: `[batch, blocks, drafts, vocab]` logits of the blocks, which know nothing of the tokens above.
            hidden: `[batch, blocks, drafts, hidden]` normed states of the slots that they come from.
            newest: `[batch, blocks, hidden]` the target's fused state of the newest token before each anchor.
            embed: the embedding of tokens.
            vocabulary: `[vocab]` the tokens that the logits are about; None for all.
        """
        raise NotImplementedError


class Markov(Correction):
    """The head of DSpark (arXiv 2607.05147): `W2 e` is added, with `e = W1[token above]`.

    Args:
        hidden: width of the block's states.
        tokens: number of the target's tokens.
        vocab: number of tokens that are guessed.
        rank: width of e.
    """

    def __init__(self, hidden: int, tokens: int, vocab: int, rank: int):
        super().__init__()
        self.rank = rank
        self.markov_w1 = nn.Embedding(tokens, rank)
        self.markov_w2 = nn.Linear(rank, vocab, bias=False)
        nn.init.normal_(self.markov_w1.weight, std=rank**-0.5)
        nn.init.zeros_(self.markov_w2.weight)

    def begin(self, anchors: Tensor, embed: Embed) -> Tensor:
        """Return the rows of the anchors."""
        return self.markov_w1(anchors)

    def advance(self, state: Tensor, tokens: Tensor, hidden: Tensor, embed: Embed) -> Tensor:
        """Return the rows of the tokens: those further above are forgotten."""
        return self.markov_w1(tokens)

    def logits(self, base: Tensor, hidden: Tensor, state: Tensor, head: Head) -> Tensor:
        """Return the logits plus those of the token above."""
        return base + self.markov_w2(state)

    def token_above(self, state: Tensor) -> Tensor:
        """Return the part of states that is `W1[token above]`, `[..., rank]`."""
        return state[..., -self.rank :]


class GatedMarkov(Markov):
    """The gated head of DSpark: `W2 (sigmoid(G [h; e]) * e)`, with the state h of the slot. Its arguments are those of
    `Markov`."""

    def __init__(self, hidden: int, tokens: int, vocab: int, rank: int):
        super().__init__(hidden, tokens, vocab, rank)
        self.gate_proj = nn.Linear(hidden + rank, rank)

    def logits(self, base: Tensor, hidden: Tensor, state: Tensor, head: Head) -> Tensor:
        """Return the logits plus those of the token above, as far as the gate lets them through."""
        gate = self.gate_proj(torch.cat([hidden, state], dim=-1)).sigmoid()
        return base + self.markov_w2(gate * state)


class RecurrentMarkov(Markov):
    """The recurrent head of DSpark: of `z = [s; e; h]` three vectors `g, c, o = J z`; `W2 tanh(o)` is added, and
    `s' = sigmoid(g) s + (1 - sigmoid(g)) tanh(c)` goes on, from s = 0 at the anchor. Its arguments are those of
    `Markov`."""

    def __init__(self, hidden: int, tokens: int, vocab: int, rank: int):
        super().__init__(hidden, tokens, vocab, rank)
        self.joint_proj = nn.Linear(2 * rank + hidden, 3 * rank)

    @property
    def run_twice(self) -> Sequence[nn.Module]:
        """The map to the three vectors."""
        return [self.joint_proj]

    def begin(self, anchors: Tensor, embed: Embed) -> Tensor:
        """Return zeros, beside the rows of the anchors."""
        rows = super().begin(anchors, embed)
        return torch.cat([torch.zeros_like(rows), rows], dim=-1)

    def _gates(self, state: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        gate, new, out = self.joint_proj(torch.cat([state, hidden], dim=-1)).chunk(3, dim=-1)
        return gate.sigmoid(), new.tanh(), out.tanh()

    def logits(self, base: Tensor, hidden: Tensor, state: Tensor, head: Head) -> Tensor:
        """Return the logits plus those of the tokens above."""
        return base + self.markov_w2(self._gates(state, hidden)[2])

    def advance(self, state: Tensor, tokens: Tensor, hidden: Tensor, embed: Embed) -> Tensor:
        """Return the states after another slot and its token."""
        gate, new, _ = self._gates(state, hidden)
        memory = gate * state[..., : self.rank] + (1 - gate) * new
        return torch.cat([memory, super().advance(state, tokens, hidden, embed)], dim=-1)


MARKOV: dict[Literal["vanilla", "gated", "rnn"], type[Markov]] = {
    "vanilla": Markov,
    "gated": GatedMarkov,
    "rnn": RecurrentMarkov,
}
"""The heads of DSpark by the names that its checkpoints have for them."""
