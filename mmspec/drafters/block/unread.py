"""Tokens that were emitted although the target has not read them: a block begins with them, and guesses behind."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ...models.slots import pick
from .correction import Correction, Embed


@dataclass
class Unread:
    """The last tokens of every row that the target has no states of, the root among them, where a row has several.

    There is nothing to make keys and values of, so that they stand in the block themselves, before its masks: the
    oldest of them is the anchor. The block is longer by so many slots, and guesses as many tokens as ever [OUR].

    Args:
        tokens: `[rows, most]` these tokens, right-padded.
        before: `[rows]` number of them before the root.
    """

    tokens: Tensor
    before: Tensor

    @property
    def most(self) -> int:
        """The largest number of slots that a row's block is longer than usual."""
        return self.tokens.shape[1] - 1

    def inputs(self, embeds: Tensor, mask: Tensor, size: int) -> Tensor:
        """Return the inputs of the blocks, `[rows, most + size, hidden]`.

        Args:
            embeds: `[rows, 1 + most, hidden]` embeddings of the tokens.
            mask: `[hidden]` what stands in the other slots.
            size: slots of a usual block.
        """
        masks = mask.expand(len(embeds), size - 1, -1)
        padding = torch.arange(self.most + 1, device=embeds.device) > self.before[:, None]
        return torch.cat([torch.where(padding[..., None], mask, embeds), masks], dim=1)

    def sizes(self, size: int) -> Tensor:
        """Return `[rows]` the slots of each row's block, of which a usual one has `size`; further ones are padding."""
        return self.before + size

    def guesses(self, slots: Tensor, count: int) -> Tensor:
        """Return the guesses behind the root, `[rows, count, size]`, of all that a pass has guessed."""
        return pick(slots, self.before[:, None] + torch.arange(count, device=slots.device))

    def read(self, correction: Correction, slots: Tensor, embed: Embed) -> Tensor:
        """Return a correction's states of the roots, `[rows, 1, size]`: it reads the tokens from the anchor on.

        Args:
            correction: the correction.
            slots: `[rows, guesses, hidden]` normed states of all slots that guess.
            embed: the embedding of tokens.
        """
        state = correction.begin(self.tokens[:, :1], embed)
        for place in range(1, self.most + 1):
            further = correction.advance(state, self.tokens[:, place, None], slots[:, place - 1, None], embed)
            state = torch.where((self.before >= place)[:, None, None], further, state)
        return state
