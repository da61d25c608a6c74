"""Says what a prompt costs every method, task by task: `mmspec report --prompt`."""

from __future__ import annotations

from collections.abc import Sequence

from ..decoding.clock import PROMPT_PHASES
from ..metrics import SHOWN
from .figures import Figures, Row
from .grouping import BundleGroup, conditions_shown
from .sheets import DASH, Sheet, Shown

HEADINGS = {
    "vision": "vision ms",
    "prefill": "target's prefill ms",
    "prune": "pruning ms",
    "draft_prefill": "drafter's prefill ms",
}
MEBIBYTE = 2**20
NOTE = (
    "Medians over requests, of the medians over repeats. Pruning is the choice of what a drafter sees of the media; "
    "the drafter's prefill is all else that it does before the first round. Caches are the keys and values of "
    "the prompt, before the first round; a drafter that is a part of the target may read the target's own."
)


class PromptTable(Shown):
    """One line per task and method, for Markdown and the terminal: what comes before the first round, decoding, the
    whole, and the memory of the caches of keys and values.

    Args:
        rows: figures of every method in a report.
        groups: that they are from.
    """

    def __init__(self, rows: Sequence[Row], groups: Sequence[BundleGroup]):
        mixed = len(groups) > 1
        tasks = dict.fromkeys(task for row in rows for task in row.tasks)
        cells = []
        for task in tasks:
            for row in rows:
                if (one := row.tasks.get(task)) is not None:
                    where = [conditions_shown(row.conditions, groups)] if mixed else []
                    cells.append([row.method, *where, task, *self._figures(one)])
        names = ["method", *(["measured on"] if mixed else []), "task"]
        headings = [
            *names,
            "prompt tokens",
            *(HEADINGS[phase] for phase in PROMPT_PHASES),
            "decoding ms",
            "all ms",
            *(SHOWN[name] for name in ("mean_acceptance_length", "speedup_decode", "speedup")),
            "target's cache MiB",
            "drafter's cache MiB",
        ]
        super().__init__([Sheet("what the prompt costs", headings, cells, len(names))], [NOTE])

    @staticmethod
    def _figures(one: Figures) -> list[str]:
        times = [*(one.prompt_seconds[phase] for phase in PROMPT_PHASES), one.decode_seconds, one.seconds]
        ratios = [one.mean_acceptance_length, one.speedup_decode, one.speedup]
        return [
            f"{one.prompt_tokens:.0f}",
            *(f"{1e3 * seconds:.1f}" for seconds in times),
            *(DASH if ratio is None else f"{ratio.value:.2f}" for ratio in ratios),
            *(DASH if held is None else f"{held / MEBIBYTE:.1f}" for held in one.cache_bytes.values()),
        ]
