"""Prompts with clips from the embedded generator."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..errors import MMSpecError, did_you_mean, shown
from ..zoo.video.data import CLIP_TASKS, LENGTHS, watch
from .accuracy import MetricSetting, metrics_of
from .examples import DRAWN_CLIP, Example, Source
from .sources import check_drawn


class ClipSource(Source):
    """The examples of the embedded generator of clips, with alternating tasks: account 0, moment 0, picture 0, account
    1, ...

    Args:
        tasks: `accounts`, `moments`, and `pictures`, which show the first frame of a clip.
        split: `train`, `validation` or `test`.
        count: number of examples of each task.
        start: index of the first example.
        length: length of the clips, a name from `mmspec.zoo.video.data.LENGTHS`: `short`, `long`, `500`, `2k`, `8k`,
            `25k`; or a list of names, of which every example takes the next one.
        by_length: whether the label of an example, by which reports group, is the length of its clip and not its task.
        metric: metric that compares answers with the generator's own, see `mmspec.data.accuracy`; None computes no
            accuracy.

    Raises:
        MMSpecError: for names that there are not, and a count below 1.
    """

    def __init__(
        self,
        tasks: Sequence[str] = CLIP_TASKS,
        split: str = "train",
        count: int = 64,
        start: int = 0,
        length: str | Sequence[str] = "long",
        by_length: bool = False,
        metric: MetricSetting = None,
    ):
        check_drawn(tasks, CLIP_TASKS, split, count, start)
        # A configuration may have read 500 as a number.
        given: Any = [length] if isinstance(length, str | int) else length
        if not isinstance(given, Sequence):
            raise MMSpecError(f"length={shown(length)} must be one of {', '.join(LENGTHS)}, or a list of them")
        self.lengths = [str(one) for one in given]
        for one in self.lengths:
            if one not in LENGTHS:
                raise MMSpecError(f"length {one!r} is unknown.{did_you_mean(one, LENGTHS)}")
        if not self.lengths:
            raise MMSpecError(f"length=[] must name at least one of {', '.join(LENGTHS)}")
        self.tasks, self.split, self.count, self.start = list(tasks), split, count, start
        self.by_length, self.metric = by_length, metrics_of(metric)

    def __len__(self) -> int:
        return len(self.tasks) * self.count

    def __getitem__(self, index: int) -> Example:
        number, which = divmod(range(len(self))[index], len(self.tasks))
        task, length = self.tasks[which], self.lengths[number % len(self.lengths)]
        place = f"{task}/{self.split}/{length}/{self.start + number}"
        _, prompt, reference = watch(task, self.split, self.start + number, length)
        shown: dict[str, Any] = {"images" if task == "pictures" else "videos": (f"{DRAWN_CLIP}{place}",)}
        label = length if self.by_length else task
        return Example(place, prompt, task=label, references=(reference,), **shown)

    def describe(self) -> dict[str, Any]:
        """Return plain JSON values that change when other examples stand at the same places."""
        labels = {"by_length": True} if self.by_length else {}
        plain = {"tasks": self.tasks, "split": self.split, "start": self.start, "length": self.lengths}
        return {"source": "tiny-video", **plain, **labels}
