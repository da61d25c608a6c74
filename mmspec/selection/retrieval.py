"""Retrieval: the documents that are nearest to what a question shows. There is no database: embeddings are given."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from ..errors import MMSpecError, shown
from ..media import keyframes
from ..settings.arguments import number, whole_number

if TYPE_CHECKING:
    from PIL.Image import Image

Retriever = Callable[[str, "Sequence[Image]"], Sequence[str]]
"""From a question and all of its pictures and frames, in order, to documents, the best first."""


def nearest(queries: Any, embeddings: Any, documents: Sequence[str], count: int = 10) -> list[str]:
    """Return the documents whose embeddings are nearest to any of some queries by cosine, the nearest first.

    Documents with the same text, but for white space, are returned once.

    Args:
        queries: `[queries, width]`, such as the embeddings of keyframes.
        embeddings: `[documents, width]`; a document with several, such as of several pictures, stands there as often.
        documents: a text per embedding.
        count: number of documents to return at most.

    Raises:
        MMSpecError: for shapes that do not fit.
    """
    asked, known = _table("queries", queries), _table("embeddings", embeddings)
    if len(known) != len(documents) or known.shape[1] != asked.shape[1]:
        raise MMSpecError(
            f"nearest: embeddings has shape {tuple(known.shape)} for {len(documents)} documents and queries of width "
            f"{asked.shape[1]}: give a row per document, of the queries' width"
        )
    closeness = (normalize(asked, dim=-1) @ normalize(known, dim=-1).T).amax(0)
    found: dict[str, str] = {}
    for place in closeness.argsort(descending=True, stable=True).tolist():
        found.setdefault(" ".join(documents[place].split()), documents[place])
        if len(found) == count:
            break
    return list(found.values())


class CosineRetriever:
    """A retriever over embeddings that are in memory: the keyframes of what a question shows are embedded, and the
    documents nearest to any of them are taken (VideoSpeculateRAG, arXiv 2601.01513, with CLIP and ten documents).

    Args:
        documents: a text per embedding.
        embeddings: `[documents, width]`, such as `ClipScorer.of_pictures` of the documents' pictures, or `of_texts`.
        embed: function from pictures to their `[pictures, width]` embeddings, such as `ClipScorer.of_pictures`.
        count: number of documents to return at most.
        keyframe: a frame is embedded if its grey histogram correlates with that of the one before by less.

    Raises:
        MMSpecError: for a value out of range, or shapes that do not fit.
    """

    def __init__(
        self,
        documents: Sequence[str],
        embeddings: Any,
        embed: Callable[[Sequence[Image]], Any],
        count: int = 10,
        keyframe: float = 0.6,
    ):
        self.documents, self.embeddings, self.embed = list(documents), _table("embeddings", embeddings), embed
        self.count = whole_number(self, lowest=1, count=count)
        self.keyframe = number(self, lowest=-1, highest=1, keyframe=keyframe)
        if len(self.documents) != len(self.embeddings) or not self.documents:
            raise MMSpecError(
                f"CosineRetriever: {len(self.documents)} documents, and embeddings of {len(self.embeddings)}: give one "
                "for each, and one document at least"
            )

    def __call__(self, question: str, pictures: Sequence[Image]) -> list[str]:
        """Return the nearest documents; the question's words do not matter."""
        chosen = [pictures[place] for place in keyframes(pictures, self.keyframe)]
        return nearest(self.embed(chosen), self.embeddings, self.documents, self.count)


def _table(name: str, values: Any) -> Tensor:
    """Return numbers as `[rows, width]`."""
    try:
        found = torch.as_tensor(values, dtype=torch.float64, device="cpu")
    except (TypeError, ValueError, RuntimeError):
        raise MMSpecError(f"{name}={shown(values, 40)} must be a table of numbers, [rows, width]") from None
    if found.ndim != 2:
        raise MMSpecError(f"{name} has shape {tuple(found.shape)}, and must be a table of numbers, [rows, width]")
    return found
