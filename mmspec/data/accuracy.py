"""Accuracy of answers, compared with the answers that a task knows to be right.

# in the configuration of a task
metric: anls                                                     # a name from METRICS, for all of its questions
metric: {charts: chart_cells, questions: conclusion}             # or one for each kind
metric: {_target_: my_package.Mine}                              # or a class of one's own
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from ..errors import MMSpecError, did_you_mean
from ..similarity import similarity

Points = tuple[float, float]
"""Points that an answer got, and the most that it could get; the sums over answers make the accuracy."""


class Metric:
    """A way to judge answers. A subclass has a `name` and writes `points`; higher is better."""

    name: str

    def points(self, reference: str, answer: str) -> Points:
        """Compare an answer with one reference."""
        raise NotImplementedError

    def best(self, references: Sequence[str], answer: str) -> Points:
        """Compare an answer with all references, and return the points of the best match."""
        found = [self.points(reference, answer) for reference in references]
        return max(found, key=lambda one: one[0] / one[1] if one[1] else 0.0)


class ExactMatch(Metric):
    """One point if the answer is the reference and nothing else; case, spaces and punctuation at the ends do not
    count."""

    name = "exact_match"

    def points(self, reference: str, answer: str) -> Points:
        """Compare an answer with one reference."""
        return float(bare(reference) == bare(answer)), 1.0


class Contains(Metric):
    """One point if the reference stands somewhere in the answer, as whole words; case and spaces do not count."""

    name = "contains"

    def points(self, reference: str, answer: str) -> Points:
        """Compare an answer with one reference."""
        return float(re.search(rf"(?<!\w){re.escape(bare(reference))}(?!\w)", bare(answer)) is not None), 1.0


class EditSimilarity(Metric):
    """Edit similarity, 1 - edit distance in characters / length of the longer text, for texts to be written out as they
    are."""

    name = "edit_similarity"

    def points(self, reference: str, answer: str) -> Points:
        """Compare an answer with one reference."""
        return similarity(reference.strip(), answer.strip()), 1.0


class ANLS(Metric):
    """Average normalised Levenshtein similarity (arXiv 1907.00490), as DocVQA and ST-VQA are judged.

    It is the edit similarity of both texts without case and outer spaces if that is above one half, and 0 otherwise.
    """

    name = "anls"

    def points(self, reference: str, answer: str) -> Points:
        """Compare an answer with one reference."""
        found = similarity(spaced(reference), spaced(answer))
        return (found if found > 0.5 else 0.0), 1.0


class Drawn(Metric):
    """A metric of the embedded generator, which knows the content of its pictures; see `mmspec.zoo.metrics` and
    `mmspec.zoo.video.metrics`."""

    def __init__(self, name: str, task: str, count: str):
        self.name, self.task, self.count = name, task, count

    def points(self, reference: str, answer: str) -> Points:
        """Compare an answer with one reference."""
        from ..zoo.metrics import measure
        from ..zoo.video.data import CLIP_TASKS
        from ..zoo.video.metrics import measure_clip

        judge = measure_clip if self.task in CLIP_TASKS else measure
        right, of = judge(self.task, reference, answer)[self.count]
        return float(right), float(of)


METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        ExactMatch(),
        Contains(),
        EditSimilarity(),
        ANLS(),
        Drawn("scene_attributes", "scenes", "attribute_accuracy"),
        Drawn("chart_cells", "charts", "cell_accuracy"),
        Drawn("conclusion", "questions", "answer_accuracy"),
        Drawn("clip_events", "accounts", "events_in_order"),
    )
}
"""Metrics that a configuration may name."""


MetricSetting = str | Metric | Mapping[str, "str | Metric | None"] | None
"""Types that the setting `metric` of a task may have."""


def metrics_of(metric: MetricSetting) -> Metric | dict[str, Metric | None] | None:
    """Return the metric that a setting names: one metric for all questions, one for each task, or None.

    Args:
        metric: a name from `METRICS`, a `Metric`, a mapping from tasks to either, or None.

    Raises:
        MMSpecError: for a name that is none, or a value of another kind.
    """
    if isinstance(metric, Mapping):
        return {str(task): _metric_of(one) for task, one in metric.items()}
    return _metric_of(metric)


def _metric_of(metric: str | Metric | None) -> Metric | None:
    if metric is None or isinstance(metric, Metric):
        return metric
    if isinstance(metric, str) and metric in METRICS:
        return METRICS[metric]
    raise MMSpecError(f"metric={metric!r:.60} is unknown.{did_you_mean(str(metric), METRICS)}")


def spaced(text: str) -> str:
    """Return the text in lower case, with single spaces."""
    return " ".join(text.lower().split())


def bare(text: str) -> str:
    """Return the text in lower case, with single spaces, without the punctuation of a sentence at its ends."""
    return spaced(text).strip(" .,;:!?'\"") or spaced(text)
