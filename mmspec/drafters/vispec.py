"""ViSpec: one compressed token per picture, and a vector of the whole picture beside every state."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Self

import torch
from torch import Tensor, nn

from ..compressors import DraftPrompt, Resampler, VisualCompressor
from ..errors import MMSpecError
from .eagle import EagleDrafter, EagleSettings

if TYPE_CHECKING:
    from ..target import Target


@dataclass(frozen=True, kw_only=True)
class ViSpecSettings(EagleSettings):
    """The settings of a `ViSpecDrafter`, beside those of `EagleSettings`.

    Args:
        queries: number of queries of the adaptor, the one for the global vector included: at least 2.
        heads: number of heads in the adaptor's attention; null for as many as the target has.
        use_summary: whether the global vector is injected.
    """

    queries: int = 2
    heads: int | None = None
    use_summary: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.queries < 2:
            raise MMSpecError(f"queries={self.queries} must be at least 2, one of them for the global vector")

    def fit(self, target: Target) -> Self:
        """Choose the number of heads."""
        heads = self.heads or target.family.text_config.num_attention_heads
        return replace(super().fit(target), heads=heads)


class ViSpecDrafter(EagleDrafter):
    """The head of ViSpec (arXiv 2509.15235).

    A picture's adaptor (`Resampler` with a summary) leaves `queries - 1` compressed tokens and a global vector g. The
    compressed tokens stand at the last places of the picture and enter the layer as they are. g joins the state of
    every later text token: `h' = W_g [h; g] + b`, then EAGLE's `z = W [E(x_{t+1}); h'] + b`; before the first picture g
    is zero, and after several it is the latest one's.

    Faithful: adaptor, injection (which begins as the identity on h), places, names of the weights but for the
    adaptor's prefix. Ours: any number of pictures and rows, where the release reads one of each; `use_summary=False`
    leaves g out, for the ablation.

    Lossless with every lossless verifier. Trained: everything but the embedding and the vocabulary head, in a second
    stage on long answers that the target wrote itself (recipe `vispec`).

    The arguments are those of `FeatureDrafter`, and its settings those of `ViSpecSettings`; the compressor is a
    `Resampler` with a summary.

    Raises:
        MMSpecError: for a compressor that makes no summary.
    """

    Settings = ViSpecSettings
    settings: ViSpecSettings

    def choose_compressor(self, given: VisualCompressor | None) -> VisualCompressor | None:
        """Return the adaptor."""
        assert self.settings.heads is not None  # chosen by `fit`
        adaptor = given or Resampler(self.settings.queries, self.settings.heads, summary=True)
        if not getattr(adaptor, "summary", False):
            name = type(adaptor).__name__
            raise MMSpecError(f"ViSpecDrafter: {name} makes no summary; use Resampler(summary=True)")
        return adaptor

    def build(self) -> None:
        """Make EAGLE's layers and the injection, which begins as the identity on states."""
        super().build()
        hidden = self.head.hidden_size
        self.img_fc = nn.Linear(2 * hidden, hidden)
        with torch.no_grad():
            self.img_fc.weight.copy_(torch.cat([torch.eye(hidden), torch.zeros(hidden, hidden)], dim=1))
            self.img_fc.bias.zero_()

    def prompt_input(self, prompt: DraftPrompt) -> tuple[Tensor, Tensor]:
        """Return the fusion with the summary at text slots, and the bare embedding at visual ones."""
        summary = prompt.summary
        if summary is None or not self.settings.use_summary:
            summary = prompt.states.new_zeros(*prompt.states.shape[:2], self.head.hidden_size)
        # What comes behind the prompt knows the last picture. A state is of the entry before its embedding's.
        self._summary = summary[:, -1:]
        fused = self._fuse(prompt.embeds[:, 1:], prompt.states[:, :-1], summary[:, :-1])
        return self.enter(torch.where(prompt.visual[:, 1:, None], prompt.embeds[:, 1:].to(fused), fused))

    def layer_input(self, embeds: Tensor, states: Tensor, step: int | Tensor = 0) -> tuple[Tensor, Tensor]:
        """Return the fusion of embeddings, states and the summary of the last picture."""
        return self.enter(self._fuse(embeds, states, self._summary.expand(-1, states.shape[1], -1)))

    def slot_positions(self, prompt: DraftPrompt) -> Tensor:
        """Return the positions of slots, one place before their embeddings, so that compressed tokens stand
        together."""
        return prompt.positions[:, 1:] - 1

    def _fuse(self, embeds: Tensor, states: Tensor, summary: Tensor) -> Tensor:
        states = self.img_fc(torch.cat([states, summary.to(states)], dim=-1))
        return self.fc(torch.cat([embeds, states], dim=-1))
