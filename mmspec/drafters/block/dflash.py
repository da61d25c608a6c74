"""DFlash: the target's fused states in the attention of every layer, and a block of masks that sees itself."""

from __future__ import annotations

from dataclasses import dataclass

from ...settings.arguments import positive
from .correction import Correction
from .drafter import BlockDrafter
from .selector import Selector
from .settings import BlockSettings


@dataclass(frozen=True, kw_only=True)
class DFlashSettings(BlockSettings):
    """The settings of a `DFlashDrafter`, beside those of `BlockSettings`.

    Args:
        selector_rank: width of the vectors by which a candidate is chosen that fits the token above (DFlash 2); null
            for no such choice.
        selector_top_k: candidates of each slot.
    """

    selector_rank: int | None = None
    selector_top_k: int = 16

    def __post_init__(self) -> None:
        super().__post_init__()
        positive(self, selector_top_k=self.selector_top_k)
        if self.selector_rank is not None:
            positive(self, selector_rank=self.selector_rank)


class DFlashDrafter(BlockDrafter):
    """The drafter of DFlash (arXiv 2602.06036); of JetSpec (arXiv 2606.18394) with `causal`, and of DFlash 2 with
    `conv_kernel` and `selector_rank`.

    `c_i = RMSNorm(W [h_i; ...])` fuses the states of some layers of the target at every token i. Each layer makes keys
    and values of c, as it is, with the same maps that make those of the block, whose states are normed before. The
    block, `[E(anchor), E(mask), ..., E(mask)]`, sees all of c and itself in both directions; its last states go through
    a norm and the target's own vocabulary head.

    Faithful: the released code, and the names of the weights. Our own: any target with pictures in any batch, a
    compressor of pictures, a trained vector in place of the embedding of a mask token (`mask_token_id` null), and that
    the mask token is never proposed. How DFlash 2 was trained is not known: recipes can only guess.

    Lossless with every lossless verifier. Trained: everything but the embedding and the vocabulary head (recipe
    `dflash`).

    The arguments are those of `BlockDrafter`, and its settings those of `DFlashSettings`.
    """

    Settings = DFlashSettings
    settings: DFlashSettings

    def build(self) -> None:
        """Make the block, and the choice among candidates."""
        super().build()
        settings, tokens = self.settings, self.target.vocab_size
        self.candidate_selector = None
        if settings.selector_rank is not None:
            self.candidate_selector = Selector(
                self.head.hidden_size,
                tokens,
                self.draft_vocab_size or tokens,
                settings.selector_rank,
                settings.selector_top_k,
            )

    @property
    def correction(self) -> Correction | None:
        """The choice among candidates."""
        return self.candidate_selector
