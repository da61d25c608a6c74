"""Domino: DFlash's block, corrected by a recurrent network over the tokens above."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, cast

import torch
from torch import Tensor, nn

from ...errors import MMSpecError
from ...settings.arguments import positive, whole_number
from ..head_config import initialise
from .correction import Correction, Embed, Head
from .drafter import BlockDrafter
from .settings import BlockSettings


@dataclass(frozen=True, kw_only=True)
class DominoSettings(BlockSettings):
    """The settings of a `DominoDrafter`, beside those of `BlockSettings`.

    Args:
        gru_hidden: width of the recurrent network's state.
        rank: width between it and the logits.
        uncorrected: guesses at the beginning of a block that are left as they are.
    """

    layout: Literal["same", "shifted"] = "shifted"
    gru_hidden: int = 1024
    rank: int = 256
    uncorrected: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        positive(self, gru_hidden=self.gru_hidden, rank=self.rank)
        whole_number(self, lowest=0, uncorrected=self.uncorrected)
        if self.uncorrected >= self.drafts:
            raise MMSpecError(
                f"uncorrected={self.uncorrected} leaves none of the {self.drafts} guesses of a block to be corrected: "
                "use a smaller number, or DFlashDrafter, which corrects none"
            )


class DominoDrafter(BlockDrafter):
    """The drafter of Domino (arXiv 2605.29707).

    The block is DFlash's. A GRU reads the embeddings of the tokens from the anchor down to the one above, and
    `U_k + W2 SiLU(W1 [h_k; g_k])` takes the place of what the slot says; the first token is left to the block.

    Faithful: the formulas. Our own: what `DFlashDrafter` lists, and trees, in which every
    node has a state of the GRU of its own.

    Lossless with every lossless verifier. Trained: everything but the embedding and the vocabulary head (recipe
    `domino`).

    The arguments are those of `BlockDrafter`, and its settings those of `DominoSettings`.
    """

    Settings = DominoSettings
    settings: DominoSettings

    def build(self) -> None:
        """Make the block and the recurrent correction."""
        super().build()
        settings, hidden = self.settings, self.head.hidden_size
        vocab = self.draft_vocab_size or self.target.vocab_size
        self.recurrent = Recurrent(hidden, vocab, settings.gru_hidden, settings.rank, settings.uncorrected)

    @property
    def correction(self) -> Correction:
        """The recurrent network."""
        return self.recurrent


class Recurrent(Correction):
    """A GRU over the embeddings of the tokens from the anchor on. The last number of its state counts the tokens behind
    the anchor.

    Args:
        hidden: width of the block's states and of embeddings.
        vocab: number of tokens that are guessed.
        memory: width of the GRU's state.
        rank: width between that and the logits.
        uncorrected: guesses at the beginning of a block that are left as they are.
    """

    def __init__(self, hidden: int, vocab: int, memory: int, rank: int, uncorrected: int):
        super().__init__()
        self.uncorrected = uncorrected
        self.prefix_gru = nn.GRU(hidden, memory, bias=False)
        self.embed_proj = nn.Sequential(
            nn.Linear(hidden + memory, rank, bias=False), nn.SiLU(), nn.Linear(rank, vocab, bias=False)
        )
        initialise(self)
        nn.init.zeros_(cast(nn.Linear, self.embed_proj[2]).weight)

    def begin(self, anchors: Tensor, embed: Embed) -> Tensor:
        """Return the states behind the anchors."""
        embeds = embed(anchors)
        return self._read(embeds.new_zeros(*anchors.shape, self.prefix_gru.hidden_size), embeds, 0)

    def advance(self, state: Tensor, tokens: Tensor, hidden: Tensor, embed: Embed) -> Tensor:
        """Return the states behind another token."""
        return self._read(state[..., :-1], embed(tokens), state[..., -1:] + 1)

    def _read(self, memory: Tensor, embeds: Tensor, count: Tensor | int) -> Tensor:
        gru, shape = self.prefix_gru, memory.shape
        inner, own = cast(Tensor, gru.weight_ih_l0), cast(Tensor, gru.weight_hh_l0)
        read = torch.gru_cell(embeds.reshape(-1, embeds.shape[-1]), memory.reshape(-1, shape[-1]), inner, own).view(
            shape
        )
        counts = count if isinstance(count, Tensor) else read.new_full((*shape[:-1], 1), count)
        return torch.cat([read, counts], dim=-1)

    def logits(self, base: Tensor, hidden: Tensor, state: Tensor, head: Head) -> Tensor:
        """Return the logits plus those of the tokens above, but for the first guesses of a block."""
        added = self.embed_proj(torch.cat([hidden, state[..., :-1]], dim=-1))
        return base + added * (state[..., -1:] >= self.uncorrected)
