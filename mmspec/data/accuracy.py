"""How right an answer is, next to the answers that a task knows to be right.

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
"""Points that an answer got, and how many there were to get; the sums over answers make the accuracy."""


class Metric:
    """A way to judge answers. A subclass has a `name` and writes `points`; higher is better."""

    name: str

    def points(self, reference: str, answer: str) -> Points:
        """Compare an answer with one reference."""
        raise NotImplementedError

    def best(self, references: Sequence[str], answer: str) -> Points:
        """Compare an answer with all references; the one that it meets best counts."""
        found = [self.points(reference, answer) for reference in references]
        return max(found, key=lambda one: one[0] / one[1] if one[1] else 0.0)


class ExactMatch(Metric):
    """One point for the reference and nothing else; case, spaces and signs at the ends do not count."""

    name = "exact_match"

    def points(self, reference: str, answer: str) -> Points:
        return float(bare(reference) == bare(answer)), 1.0


class Contains(Metric):
    """One point if the reference stands somewhere in the answer, as whole words; case and spaces do not count."""

    name = "contains"

    def points(self, reference: str, answer: str) -> Points:
        return float(re.search(rf"(?<!\w){re.escape(bare(reference))}(?!\w)", bare(answer)) is not None), 1.0


class EditSimilarity(Metric):
    """1 - edit distance in characters / length of the longer text; for texts that are to be written out as they are."""

    name = "edit_similarity"

    def points(self, reference: str, answer: str) -> Points:
        return similarity(reference.strip(), answer.strip()), 1.0


class ANLS(Metric):
    """Average normalised Levenshtein similarity (arXiv 1907.00490), as DocVQA and ST-VQA are judged.

    The edit similarity of both texts without case and outer spaces, if it is above one half, and else nothing.
    """

    name = "anls"

    def points(self, reference: str, answer: str) -> Points:
        found = similarity(spaced(reference), spaced(answer))
        return (found if found > 0.5 else 0.0), 1.0


class Drawn(Metric):
    """A count of the embedded generator's, which knows what is in its pictures; see `mmspec.zoo.metrics`."""

    def __init__(self, name: str, task: str, count: str):
        self.name, self.task, self.count = name, task, count

    def points(self, reference: str, answer: str) -> Points:
        from ..zoo.metrics import measure

        right, of = measure(self.task, reference, answer)[self.count]
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
    )
}
"""The metrics that a configuration may name."""


MetricSetting = str | Metric | Mapping[str, "str | Metric"] | None
"""What the setting `metric` of a task may be."""


def metrics_of(metric: MetricSetting) -> Metric | dict[str, Metric] | None:
    """Return what the setting `metric` stands for: one metric for all questions, one for each task, or None.

    Args:
        metric: a name from `METRICS`, a `Metric`, a mapping from tasks to either, or None.

    Raises:
        MMSpecError: for a name that is none, or a value of another kind.
    """
    if isinstance(metric, Mapping):
        return {str(task): metrics_of(one) for task, one in metric.items()}
    if metric is None or isinstance(metric, Metric):
        return metric
    if isinstance(metric, str) and metric in METRICS:
        return METRICS[metric]
    raise MMSpecError(f"metric={metric!r:.60} is unknown.{did_you_mean(str(metric), METRICS)}")


def spaced(text: str) -> str:
    """The text in lower case, with single spaces."""
    return " ".join(text.lower().split())


def bare(text: str) -> str:
    """The text in lower case, with single spaces, without the signs of a sentence at its ends."""
    return spaced(text).strip(" .,;:!?'\"") or spaced(text)
