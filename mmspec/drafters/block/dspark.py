"""DSpark: DFlash's block, corrected by the token above, and a head that says how sure it is."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal

import torch
from torch import Tensor, nn

from ...settings.arguments import positive
from ..head_config import initialise
from .correction import MARKOV, Correction, Markov
from .dflash import DFlashDrafter
from .drafter import BlockDrafter
from .settings import BlockSettings


@dataclass(frozen=True, kw_only=True)
class DSparkSettings(BlockSettings):
    """The settings of a `DSparkDrafter`, beside those of `BlockSettings`.

    Args:
        markov: `vanilla`, `gated` or `rnn`: how a guess depends on the tokens above it in its block.
        markov_rank: width of the vectors in between.
        confidence: whether there is a head that says how sure a guess is.
        confidence_markov: whether that head hears of the token above.
    """

    block_size: int = 8
    layout: Literal["same", "shifted"] = "shifted"
    markov: Literal["vanilla", "gated", "rnn"] = "vanilla"
    markov_rank: int = 256
    confidence: bool = True
    confidence_markov: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        positive(self, markov_rank=self.markov_rank)


class DSparkDrafter(BlockDrafter):
    """The drafter of DSpark (arXiv 2607.05147).

    The block is DFlash's, and every slot speaks of the token behind it. What it says is corrected by the token above,
    `softmax(U_k + W2 W1[x_{k-1}])` in the plainest of three forms, so that a chain or a tree is a chain of Markov: its
    levels cost a small product each, and no pass. A further head estimates `sigmoid(w [h_k; W1[x_{k-1}]] + b)`, the
    chance that a token drawn there is accepted, `1 - TV(q, p)`; it knows the tokens above, and not the one it is about.

    Faithful: the three forms, the head, the names of the weights. Our own: what `DFlashDrafter` lists, and that W2
    begins at zero, so that training begins with DFlash.

    Lossless with every lossless verifier. Trained: everything but the embedding and the vocabulary head (recipe
    `dspark`).

    The arguments are those of `BlockDrafter`, and its settings those of `DSparkSettings`.
    """

    Settings = DSparkSettings
    settings: DSparkSettings
    markov_head: Markov

    def build(self) -> None:
        """Make the block, the head of Markov and the one of confidence."""
        super().build()
        settings, hidden, tokens = self.settings, self.head.hidden_size, self.target.vocab_size
        vocab = self.draft_vocab_size or tokens
        self.markov_head = MARKOV[settings.markov](hidden, tokens, vocab, settings.markov_rank)
        self.confidence_head = None
        if settings.confidence:
            self.confidence_head = Confidence(hidden + settings.confidence_markov * settings.markov_rank)

    @property
    def correction(self) -> Correction:
        """The head of Markov."""
        return self.markov_head

    def plain(self) -> DFlashDrafter:
        """Return a DFlash drafter with a copy of this one's block: its guesses before they are corrected."""
        names = [field.name for field in fields(BlockSettings)]
        keywords = self._keywords(self.config())  # of which the compressor is not shared either
        kept = {name: value for name, value in keywords.items() if name in (*names, "compressor")}
        drafter = DFlashDrafter(self.target, **kept).to(device=self.norm.weight.device, dtype=self._dtype)
        own = self.state_dict()
        drafter.load_state_dict({name: own[name] for name in drafter.state_dict()})
        return drafter.train(self.training)

    def sureness(self, hidden: Tensor, state: Tensor) -> Tensor | None:
        """Return the logits of the head of confidence."""
        if self.confidence_head is None:
            return None
        if self.settings.confidence_markov:
            hidden = torch.cat([hidden, self.markov_head.token_above(state)], dim=-1)
        return self.confidence_head.proj(hidden)[..., 0]


class Confidence(nn.Module):
    """A linear map to one number.

    Args:
        width: width of what it reads.
    """

    def __init__(self, width: int):
        super().__init__()
        self.proj = nn.Linear(width, 1)
        initialise(self)
