"""The tokens and pictures of a prompt as a head reads them: its own embedding of tokens, and a compressor's view of
pictures."""

from __future__ import annotations

from torch import Tensor, nn

from ..compressors import DraftPrompt, TargetView, VisualCompressor, compressed_prompt, layout_of
from ..context import Context
from ..lesson import Lesson
from ..models.states import LAST
from ..target import Target


class OwnEmbedding(nn.Embedding):
    """A frozen embedding of the target's tokens, as some published checkpoints have one. Tokens beyond its rows are
    padding of the target's table, and are read as token 0."""

    def forward(self, tokens: Tensor) -> Tensor:
        """Return `[..., hidden]` embeddings of `[...]` tokens."""
        return super().forward(tokens.masked_fill(tokens >= self.num_embeddings, 0))


def layers_for(compressor: VisualCompressor, target: Target) -> list[int]:
    """Return the layers of the target whose entering states a compressor looks at."""
    return [LAST, *compressor.layers_seen(target)]


def view_of(source: Context | Lesson) -> TargetView:
    """Return what the target knows of a prompt that it has just read, or of the answers of a lesson."""
    taught = isinstance(source, Lesson)
    prompt, clock = (source.prompt, None) if isinstance(source, Lesson) else (source.request, source.clock)
    return TargetView(source.request, prompt, source.embeds, source.features, source.vision, taught, clock)


def compress(compressor: VisualCompressor | None, target: Target, whole: DraftPrompt, view: TargetView) -> DraftPrompt:
    """Compress the pictures of a prompt, if there are any and there is a compressor.

    Raises:
        MMSpecError: for a prompt without text, or a picture that lacks what the compressor needs.
    """
    if compressor is None or view.vision is None:
        return whole
    view.lap("draft_prefill")
    layout, scores = layout_of(target.family, view.request, view.prompt, view.vision), None
    if compressor.needs_attention:
        scores = compressor.token_scores(target, view, layout)
    left = compressed_prompt(compressor, whole, layout, view.features[LAST], scores)
    view.lap("prune")
    return left
