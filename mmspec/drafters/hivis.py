"""HiViS: pictures are hidden from the drafter, which sees them through the target's states."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from ..compressors import DraftPrompt, Hide, VisualCompressor
from ..errors import MMSpecError
from .eagle import EagleDrafter, EagleSettings
from .reading import TargetView


@dataclass(frozen=True, kw_only=True)
class HiVisSettings(EagleSettings):
    """The settings of a `HiVisDrafter`, beside those of `EagleSettings`.

    Args:
        steps: rows of the residual, one for true states and one for every draft step that has its own.
        packed: whether the text behind a picture moves up to its place, see `Hide`.
    """

    steps: int = 4
    packed: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.steps < 1:
            raise MMSpecError(f"steps={self.steps} must be at least 1")


class HiVisDrafter(EagleDrafter):
    """The head of HiViS (arXiv 2509.23928): `z = W [E(x_{t+1}); h_t; r_s] + b`, then EAGLE's layer.

    Visual tokens are left out before states and embeddings are paired; the state at the text, which has seen them, is
    all that the drafter knows of a picture. The residual r has a row per draft step, because the drafter's own output
    takes the place of h from the first step on: row 0 stands beside true states, row n beside those of level n, and the
    last row beside all deeper ones.

    Faithful: fusion, residual and its rows, hiding before pairing, names of the weights. Text keeps its places, as
    released for Qwen2.5-VL; `packed=True` closes it up, as released for LLaVA. The Qwen release also hides the image's
    delimiters and one token of text after them, in training and in use alike: `Hide(margin=(1, 2))`, which is what its
    checkpoints are loaded with, and not the default. Not repeated: the second stage multiplied logits by its mask
    before the softmax, here what is masked takes no part (see `unroll` and `Objective(keep_within=5)`).

    Lossless with every lossless verifier. Trained: everything but the embedding and the vocabulary head.

    The arguments are those of `FeatureDrafter`, and its settings those of `HiVisSettings`; the compressor is a `Hide`,
    given for one with a margin.

    Raises:
        MMSpecError: when a request's pictures are not among its tokens, so that hiding them hides nothing, or nothing
            is left beside them.
    """

    Settings = HiVisSettings
    settings: HiVisSettings
    fused = 3

    def choose_compressor(self, given: VisualCompressor | None) -> VisualCompressor | None:
        """Return the compressor that hides pictures."""
        hide = given or Hide(self.settings.packed)
        if not isinstance(hide, Hide):
            raise MMSpecError(
                f"HiVisDrafter hides pictures, so compressor={type(hide).__name__} does not fit; use EagleDrafter"
            )
        self.settings = replace(self.settings, packed=hide.packed)
        return hide

    def build(self) -> None:
        """Make EAGLE's layers and the residual."""
        super().build()
        self.residual = nn.Parameter(torch.empty(self.settings.steps, self.head.hidden_size))
        nn.init.xavier_uniform_(self.residual)

    def read(self, view: TargetView) -> DraftPrompt:
        """Return the request without its pictures; refuse one in which that hides nothing, or all."""
        read, vision = super().read(view), view.vision
        if vision is not None and vision.sizes and not read.removed.any():
            raise MMSpecError(
                "HiVisDrafter: the prompt has pictures, but hiding them removed no token: none of the target's "
                f"placeholder tokens {sorted(self.target.family.placeholders)} is in it"
            )
        if (torch.tensor(view.request.lengths, device=read.removed.device) <= read.removed).any():
            raise MMSpecError("HiVisDrafter: with its pictures hidden nothing is left of a prompt; ask a question")
        return read

    def layer_input(self, embeds: Tensor, states: Tensor, step: int | Tensor = 0) -> tuple[Tensor, Tensor]:
        """Return the fusion of embeddings, states and the residual of the step."""
        row = torch.as_tensor(step, device=states.device).clamp(max=len(self.residual) - 1)
        residual = self.residual[row].squeeze(-2) if row.ndim else self.residual[row]
        return self.enter(self.fc(torch.cat([embeds, states, residual.expand_as(states).to(states)], dim=-1)))
