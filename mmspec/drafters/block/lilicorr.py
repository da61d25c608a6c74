"""LiLiCorr: DFlash's block, and a head that looks at the likeliest tokens of all its slots before one is chosen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from ...errors import MMSpecError
from ...settings.arguments import positive, whole_number
from .drafter import BlockDrafter
from .lattice import Lattice
from .settings import BlockSettings

if TYPE_CHECKING:
    from ...target import Target


@dataclass(frozen=True, kw_only=True)
class LiLiCorrSettings(BlockSettings):
    """The settings of a `LiLiCorrDrafter`, beside those of `BlockSettings`.

    Args:
        candidates: likeliest tokens of each slot, among which one is chosen.
        lattice_layers: number of layers over the candidates of all slots.
        lattice_size: width of a candidate in these layers; null for the width of the block's states.
        lattice_heads: heads of their attention.
        lattice_ratio: width inside their MLPs, in widths of a candidate.
        factor_size: width of the two vectors of a candidate whose cosines are scores.
        score_scale: factor of these cosines.
        vector_eps: least length by which such a vector is divided.
        residual: whether the block's own logits are added to the scores.
    """

    causal_windows: bool = False
    candidates: int = 8
    lattice_layers: int = 2
    lattice_size: int | None = 256
    lattice_heads: int = 4
    lattice_ratio: float = 2.0
    factor_size: int = 128
    score_scale: float = 8.0
    vector_eps: float = 1e-4
    residual: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        positive(
            self,
            lattice_layers=self.lattice_layers,
            lattice_heads=self.lattice_heads,
            factor_size=self.factor_size,
        )
        if self.lattice_size is not None:
            positive(self, lattice_size=self.lattice_size)
        whole_number(self, lowest=2, candidates=self.candidates)
        for name in ("lattice_ratio", "score_scale", "vector_eps"):
            if not getattr(self, name) > 0:
                raise MMSpecError(f"{name}={getattr(self, name)} must be a positive number")

    def fit(self, target: Target) -> Self:
        """Refuse more candidates than there are tokens to guess, besides what blocks refuse."""
        fitted = super().fit(target)
        tokens = fitted.draft_vocab_size or target.vocab_size
        if fitted.candidates > tokens:
            raise MMSpecError(
                f"candidates={fitted.candidates} are more than the {tokens} tokens that can be drafted: use fewer"
            )
        return fitted


class LiLiCorrDrafter(BlockDrafter):
    """The drafter of LiLiCorr (arXiv 2608.20530).

    The block is DFlash's. Of each slot the k likeliest tokens stand in a lattice; a small transformer sees all of them
    at once, and scores every candidate below every candidate of the slot above. Drafting walks down these scores: q is
    their softmax, with k tokens that are possible, so that a level of a chain or tree is a look-up in a table that a
    pass makes once.

    Faithful: the head and its scores, as ModelOpt trains it and engines serve it, and the names of its weights; its
    attention sees both ways, also in layers with a window. Our own: trees, in which every node goes on from its own
    scores, where the paper walks greedily; `residual`, which adds the block's logits to the scores, so that training
    begins with DFlash's guesses; that below a token which is no candidate (it is never proposed) all scores are zero;
    what `DFlashDrafter` lists.

    Lossless with every lossless verifier. Trained: everything but the embedding and the vocabulary head (recipe
    `lilicorr`).

    The arguments are those of `BlockDrafter`, and its settings those of `LiLiCorrSettings`.
    """

    Settings = LiLiCorrSettings
    settings: LiLiCorrSettings

    def build(self) -> None:
        """Make the block and the lattice.

        Raises:
            MMSpecError: if the heads do not divide the width of a candidate.
        """
        super().build()
        settings, hidden = self.settings, self.head.hidden_size
        size = settings.lattice_size or hidden
        if size % settings.lattice_heads:
            raise MMSpecError(
                f"{type(self).__name__}: lattice_heads={settings.lattice_heads} does not divide lattice_size={size}"
            )
        self.lilicorr = Lattice(
            hidden=hidden,
            drafts=settings.drafts,
            candidates=settings.candidates,
            layers=settings.lattice_layers,
            size=size,
            heads=settings.lattice_heads,
            ratio=settings.lattice_ratio,
            factors=settings.factor_size,
            scale=settings.score_scale,
            vector_eps=settings.vector_eps,
            residual=settings.residual,
            eps=self.head.rms_norm_eps,
        )

    @property
    def correction(self) -> Lattice:
        """The lattice."""
        return self.lilicorr
