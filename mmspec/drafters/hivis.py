"""HiViS: pictures are hidden from the drafter, which sees them through the target's states."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..compressors import Hide
from ..errors import MMSpecError
from ..trees import TreeBuilder
from .eagle import EagleDrafter

if TYPE_CHECKING:
    from ..target import Target


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

    Args:
        target, head, draft_vocab_size, tree, bias, input_norm, own_embedding: see `EagleDrafter`.
        steps: rows of the residual.
        packed: see `Hide`.
        compressor: a `Hide` in place of `Hide(packed)`, for one with a margin.

    Raises:
        MMSpecError: when a request's pictures are not among its tokens, so that hiding them hides nothing, or nothing
            is left beside them.
    """

    fused = 3
    switches = ("bias", "input_norm", "steps", "packed")

    def __init__(
        self,
        target: Target,
        head: dict[str, Any] | None = None,
        visual: bool = True,
        draft_vocab_size: int | None = None,
        tree: TreeBuilder | None = None,
        bias: bool = True,
        input_norm: bool = False,
        steps: int = 4,
        packed: bool = False,
        compressor: Hide | None = None,
        own_embedding: int | None = None,
    ):
        compressor = compressor or Hide(packed)
        if not isinstance(compressor, Hide):
            raise MMSpecError(
                f"HiVisDrafter hides pictures, so compressor={type(compressor).__name__} does not fit; use EagleDrafter"
            )
        super().__init__(target, head, visual, draft_vocab_size, tree, bias, input_norm, compressor, own_embedding)
        if steps < 1:
            raise MMSpecError(f"HiVisDrafter: steps={steps} must be at least 1")
        self.steps, self.packed = steps, compressor.packed
        self.residual = nn.Parameter(torch.empty(steps, self.head.hidden_size))
        nn.init.xavier_uniform_(self.residual)

    def read(self, request, prompt, embeds, features, vision):
        """Return the request without its pictures; refuse one in which that hides nothing, or all."""
        read = super().read(request, prompt, embeds, features, vision)
        if vision is not None and vision.sizes and not read.removed.any():
            raise MMSpecError(
                "HiVisDrafter: the prompt has pictures, but hiding them removed no token: none of the target's "
                f"placeholder tokens {sorted(self.target.family.placeholders)} is in it"
            )
        if (torch.tensor(request.lengths, device=read.removed.device) <= read.removed).any():
            raise MMSpecError("HiVisDrafter: with its pictures hidden nothing is left of a prompt; ask a question")
        return read

    def layer_input(self, embeds: Tensor, states: Tensor, step: int | Tensor = 0) -> tuple[Tensor, Tensor]:
        """Return the fusion of embeddings, states and the residual of the step."""
        row = torch.as_tensor(step, device=states.device).clamp(max=self.steps - 1)
        residual = self.residual[row].squeeze(-2) if row.ndim else self.residual[row]
        return self.enter(self.fc(torch.cat([embeds, states, residual.expand_as(states).to(states)], dim=-1)))

    def config(self) -> dict[str, Any]:
        """Return the settings, see `Drafter.config`."""
        return super().config() | {"steps": self.steps, "packed": self.packed}
