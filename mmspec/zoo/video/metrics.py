"""Metrics of what is said of clips.

- accounts: `events_in_order`, the longest common subsequence of the lines about events, number and all, out of the
  lines of the reference, or of the answer if it has more; steps at which nothing changes are left out on both sides.
  `endings`: the two lines on what is there at first and at last.
- pictures: `right_captions`, word for word: the caption has one order.
- moments: `answer_accuracy`, on the words behind "So the answer is".
"""

from __future__ import annotations

import re

from mmspec.zoo.metrics import Counts, parse_conclusion
from mmspec.zoo.video.data import CLIP_TASKS

_EVENT = re.compile(r"^\d+: (?!nothing changes)")
_ENDING = re.compile(r"^At (first|last): ")


def parse_events(account: str) -> list[str]:
    """Return the lines of an account that tell of events, in order."""
    return [line for line in account.splitlines() if _EVENT.match(line)]


def parse_endings(account: str) -> dict[str, str]:
    """Return the lines on what is there at first and at last."""
    return {found[1]: line for line in account.splitlines() if (found := _ENDING.match(line))}


def common_subsequence(left: list[str], right: list[str]) -> int:
    """Return the length of the longest common subsequence."""
    row = [0] * (len(right) + 1)
    for one in left:
        before = row
        row = [0]
        for place, other in enumerate(right):
            row.append(before[place] + 1 if one == other else max(before[place + 1], row[place]))
    return row[-1]


def measure_clip(task: str, reference: str, answer: str) -> Counts:
    """Compare an answer with the reference of its task: name of the metric to (count, out of how many)."""
    if task == "accounts":
        truth, said = parse_events(reference), parse_events(answer)
        endings, told = parse_endings(reference), parse_endings(answer)
        return {
            "events_in_order": (common_subsequence(truth, said), max(len(truth), len(said))),
            "endings": (sum(told.get(where) == line for where, line in endings.items()), len(endings)),
        }
    if task == "moments":
        return {"answer_accuracy": (int(parse_conclusion(reference) == parse_conclusion(answer)), 1)}
    if task == "pictures":
        return {"right_captions": (int(reference == answer), 1)}
    raise ValueError(f"unknown task {task!r}: choose one of {', '.join(CLIP_TASKS)}")
