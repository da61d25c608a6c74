"""LatentQueries: learned queries that condense what the target knows at the tokens of a picture."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from ..errors import MMSpecError, shown
from ..settings.arguments import positive
from .base import Compressed, VisualCompressor, VisualSpan
from .token_assignment import Sources


class LatentQueries(VisualCompressor):
    """`F' = softmax(A F^T) F`, with learned queries A and the target's features F at the tokens of a picture: the
    compressor of SpecFLASH (arXiv 2505.12728).

    Keys and values are the features themselves: nothing is scaled or projected. An entry is a mean of the picture's
    tokens by the weights of its query, in its state, and, which is our own, in its embedding with the same weights.
    Where it stands is our own as well: at the last places of the picture, in the order of the queries. A picture of
    fewer tokens than queries is condensed by the first so many.

    Args:
        queries: number of entries that are left of a picture; 64 in the release.
        by: the features that the queries ask: `states`, those after the target's final norm, or `embeds`, what the
            drafter would read without a compressor, for drafters without states.

    Raises:
        MMSpecError: without a positive number of queries, for other features, or for a drafter that has no states to
            ask.
    """

    positions = "gap"
    settings = ("queries", "by")

    def __init__(self, queries: int = 64, by: Literal["states", "embeds"] = "states"):
        super().__init__()
        positive(self, queries=queries)
        if by not in ("states", "embeds"):
            raise MMSpecError(f"LatentQueries: by={shown(by)} must be 'states' or 'embeds'")
        self.queries, self.by = queries, by

    def attach(self, hidden: int, state: int) -> None:
        """Create the queries. On states of unit size, as norms leave them, their products begin at unit size too."""
        width = state if self.by == "states" else hidden
        self.q = nn.Parameter(torch.randn(self.queries, width) * width**-0.5)

    def forward(self, span: VisualSpan) -> Compressed:
        """Return the means of the picture's tokens by the weights of every query."""
        sources = Sources.everywhere(self.weights(span))
        return Compressed(sources.mean(span.embeds), sources)

    def weights(self, span: VisualSpan) -> Tensor:
        """Return the weight of each token of a picture in every entry, `[entries, tokens]`."""
        features = span.features if self.by == "states" else span.embeds
        if features is None:
            raise MMSpecError(
                "LatentQueries asks the target's states at a picture, and this drafter reads none: use by='embeds'"
            )
        queries = self.q[: min(self.queries, len(span))].float()
        return (queries @ features.float().T).softmax(-1)
