"""MSD: text and pictures enter the drafter by different doors."""

from __future__ import annotations

import torch
from torch import Tensor

from ..compressors import DraftPrompt
from .eagle import EagleDrafter


class MsdDrafter(EagleDrafter):
    """The head of MSD (arXiv 2505.14260): EAGLE's, with text and visual tokens decoupled.

    A text slot is EAGLE's `z_t = W [E(x_{t+1}); h_t] + b`. A slot whose next token is visual is that token's embedding
    itself, `z_t = v_{t+1}`: neither the fusion nor the target's state touches it.

    Faithful: decoupling, fusion, layer, names of the weights; all visual tokens stay, with one-dimensional positions
    also where the target has several axes. For Qwen2-VL the released layer has an `input_norm`. With a compressor,
    which is ours to allow, the entries that are left enter like visual tokens.

    Lossless with every lossless verifier. Trained: everything but the embedding and the vocabulary head, on text first
    and then on more and more pictures (recipe `msd`). Arguments and settings are those of `EagleDrafter`.
    """

    def prompt_input(self, prompt: DraftPrompt) -> tuple[Tensor, Tensor]:
        """Return the fusion at text slots, and the bare embedding at visual ones."""
        fused = self.fc(torch.cat([prompt.embeds[:, 1:], prompt.states[:, :-1]], dim=-1))
        return self.enter(torch.where(prompt.visual[:, 1:, None], prompt.embeds[:, 1:].to(fused), fused))
