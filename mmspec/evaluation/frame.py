"""A tidy data frame of all that was measured: one row per method, request and repeat."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from .bootstrap import Measured, timings
from .grouping import CONDITIONS, BundleGroup, MergedMethod

if TYPE_CHECKING:
    import pandas


def frame_of(groups: Sequence[BundleGroup]) -> pandas.DataFrame:
    """Return one row per method, request and repeat, in the order of the report.

    The columns, in this order:

    - conditions (`target`, `fingerprint`, `dtype`, `device`, `batch`, `max_new_tokens`, and those of sampling under
      their own names), `method`, `baseline`, `engine`, `drafter`, `tree`, `lossless`;
    - `task`, `request` (the ids of its prompts, joined by spaces), `turn` and `repeat` (from 0);
    - seconds of this repeat: `seconds`, `decode_seconds`, `ttft`, `draft_seconds`, and of the baseline beside it
      `plain_seconds` and `plain_decode_seconds`;
    - counts, which are those of the first repeat: `tokens`, `decode_tokens`, `steps` (target passes), `emitted`,
      `accepted`, `drafted`, `levels`, `rounds`, the baseline's `plain_tokens`, `plain_decode_tokens` and
      `plain_passes`, and what was judged: `points` of `points_of` by `metric`, `similarity` of `similarity_of`;
    - `same` and `near_tie`: how the text compares with plain decoding's; None where it is not compared.

    The table shows ratios of sums over requests: the speed-up of a task is the sum of `tokens` over that of `seconds`,
    divided by the sum of `plain_tokens` over that of `plain_seconds`. Of the seconds of a request it takes the median
    over repeats first.
    """
    import pandas

    return pandas.DataFrame([line for group in groups for method in group.methods for line in _lines(group, method)])


def _lines(group: BundleGroup, method: MergedMethod) -> Iterator[dict[str, Any]]:
    conditions = {name: group.conditions[name] for name in CONDITIONS if name != "sampling"}
    conditions |= {name: value for name, value in group.conditions["sampling"].items() if value is not None}
    of_side = {name: method.side.get(name) for name in ("engine", "drafter", "tree", "lossless")}
    for answer in method.answers.values():
        measured = Measured(answer)
        what = {"task": answer.task, "request": " ".join(answer.ids), "turn": answer.turn}
        judged = {"metric": " ".join(sorted(answer.metrics)) or None}
        for repeat, run in enumerate(answer.runs):
            same, divergences = run.record["same"], run.record["divergence"] or []
            near_tie = None if same is None else bool(divergences) and all(one["tie"] for one in divergences)
            yield {
                **conditions,
                "method": method.label,
                "baseline": method.baseline,
                **of_side,
                **what,
                "repeat": repeat,
                **timings(run),
                **measured.counts,
                **judged,
                "same": same,
                "near_tie": near_tie,
            }
