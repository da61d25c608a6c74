"""Questions that come with documents, from the embedded generator."""

from __future__ import annotations

from typing import Any

from .. import zoo
from ..errors import MMSpecError
from ..settings.arguments import whole_number
from ..zoo.facts import MOST, fact
from .accuracy import MetricSetting, metrics_of
from .examples import DRAWN_PICTURE, Example, Source
from .sources import check_drawn


class FactSource(Source):
    """Questions about drawn scenes, each with documents of which one has the answer, see `mmspec.zoo.facts`.

    Args:
        split: `train`, `validation` or `test`.
        count: number of questions.
        start: index of the first one.
        documents: number of documents of each question.
        metric: metric that compares answers with the right one, see `mmspec.data.accuracy`; None computes no accuracy.
    """

    def __init__(
        self, split: str = "test", count: int = 8, start: int = 0, documents: int = 6, metric: MetricSetting = None
    ):
        check_drawn(["scenes"], zoo.TASKS, split, count, start)
        self.split, self.count, self.start = split, count, start
        self.documents = whole_number(self, lowest=1, documents=documents)
        if documents > MOST:
            raise MMSpecError(f"FactSource: documents={documents} must be at most {MOST}")
        self.metric = metrics_of(metric)

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Example:
        number = self.start + range(self.count)[index]
        asked = fact(self.split, number, self.documents)
        return Example(
            f"facts/{self.split}/{number}",
            asked.prompt,
            (f"{DRAWN_PICTURE}scenes/{self.split}/{number}",),
            "facts",
            references=(asked.answer,),
            documents=asked.documents,
        )

    def describe(self) -> dict[str, Any]:
        """Return plain JSON values that change when other examples stand at the same places."""
        return {"source": "facts", "split": self.split, "start": self.start, "documents": self.documents}
