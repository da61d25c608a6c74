"""DFlash: the target's fused states in the attention of every layer, and a block of masks that sees itself."""

from __future__ import annotations

from torch import Tensor, nn

from .drafter import BlockDrafter


class DFlashDrafter(BlockDrafter):
    """The drafter of DFlash (arXiv 2602.06036), and of JetSpec (arXiv 2606.18394) with `causal`.

    `c_i = RMSNorm(W [h_i; ...])` fuses the states of some layers of the target at every token i. Each layer makes keys
    and values of c, as it is, with the same maps that make those of the block, whose states are normed before. The
    block, `[E(anchor), E(mask), ..., E(mask)]`, sees all of c and itself in both directions; its last states go through
    a norm and the target's own vocabulary head.

    Faithful: the released code, and the names of the weights. Our own: any target with pictures in any batch, a
    compressor of pictures, a trained vector in place of the embedding of a mask token (`mask_token_id` null), and that
    the mask token is never proposed.

    Lossless with every lossless verifier. Trained: everything but the embedding and the vocabulary head (recipe
    `dflash`).

    The arguments are those of `BlockDrafter`, and its settings those of `BlockSettings`.
    """

    def make_fusion(self) -> None:
        """Make the map of all states to one, and its norm."""
        self.fc = nn.Linear(len(self.taps) * self.target.hidden_size, self.head.hidden_size, bias=False)
        self.hidden_norm = nn.RMSNorm(self.head.hidden_size, eps=self.head.rms_norm_eps)

    def fuse(self, states: Tensor) -> Tensor:
        """Return a normed linear map of the states, `[1, batch, length, hidden]`."""
        return self.hidden_norm(self.fc(states))[None]
