"""The answers in the files of the MMSpec benchmark, for the scripts that read those.

One file per method, `<method>-temperature-<t>.jsonl`, one line per question, lists with an entry per turn. Their loop
opens its first round with the token of the prompt's pass and never emits the last bonus token, so an answer that ends
in a bonus token has one round more in their files, with nothing accepted: `new_tokens` is the sum of
`acceptance_length` and the number of rounds.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from datetime import datetime
from hashlib import sha256
from pathlib import Path
from typing import Any

from ..errors import MMSpecError
from ..storage import atomic_write_text
from .bootstrap import Measured
from .conventions import need_single_prompts
from .grouping import Group, Method

BASELINE = "baseline"  # what the readers of these files call plain decoding


def export_mmspec(groups: Sequence[Group], folder: str | Path) -> list[Path]:
    """Write the answers of all methods; return the files.

    The times are medians over the repeats. What transformers does not report, the rounds of its own drafting, is left
    out, as the readers allow.

    Args:
        groups: a single one, because a file's name says no more than method and temperature.
        folder: to write to; made if it does not exist.

    Raises:
        MMSpecError: for several groups, a batch above 1, or two methods whose names make the same file name.
    """
    if len(groups) > 1:
        raise MMSpecError("--export mmspec writes one file a method: export bundles of different conditions apart")
    need_single_prompts(groups, "--export mmspec")
    group, folder = groups[0], Path(folder)
    files: dict[Path, Method] = {}
    for method in group.methods:
        if not method.answers:  # it failed
            continue
        path = folder / f"{file_stem(method)}-temperature-{group.conditions['sampling'].get('temperature', 0):g}.jsonl"
        if path in files:
            raise MMSpecError(
                f"methods {files[path].label!r} and {method.label!r} would both be {path.name}: export apart"
            )
        files[path] = method
    folder.mkdir(parents=True, exist_ok=True)
    for path, method in files.items():
        lines = sorted(_lines(method, group), key=lambda line: line["question_id"])
        atomic_write_text(path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    return list(files)


def file_stem(method: Method) -> str:
    """Return the method's part of its file name."""
    return BASELINE if method.baseline else re.sub(r"[^\w.=]+", "_", method.label).strip("_")


def _lines(method: Method, group: Group) -> list[dict[str, Any]]:
    questions: dict[str, list[Measured]] = {}
    for answer in method.answers.values():
        questions.setdefault(answer.ids[0], []).append(Measured(answer))
    stamp = _time(group.bundles[0].manifest)
    lines = []
    for name, turns in questions.items():
        turns.sort(key=lambda one: one.answer.turn)
        topic = turns[0].answer.task
        # The category is the source's own label, which a bundle does not know.
        line = {"question_id": name, "topic": topic, "category": topic}
        line |= {"answer_id": sha256(f"{method.label}\n{name}".encode()).hexdigest()[:22], "model_id": method.label}
        lines.append(line | {"choices": [{"index": 0, **_choice(method, turns)}], "tstamp": stamp})
    return lines


def _choice(method: Method, turns: Sequence[Measured]) -> dict[str, list]:
    def per_turn(value: Callable[[Measured], Any]) -> list:
        return [value(one) for one in turns]

    choice = {
        "turns": per_turn(lambda one: (one.record.get("text") or [None])[0]),
        "idxs": per_turn(lambda one: int(one.counts["tokens"] - one.counts["accepted"]) - 1),
        "new_tokens": per_turn(lambda one: one.record["new_tokens"][0]),
        "wall_time": per_turn(lambda one: one.columns["seconds"]),
        "draft_time": per_turn(lambda one: one.columns["draft_seconds"]),
    }
    if method.baseline:
        return choice | {"decode_time": choice["wall_time"]}
    if method.side["engine"] != "transformers":
        choice["acceptance_length"] = per_turn(accepted_by_round)
        choice["target_time"] = per_turn(_target_seconds)
    return choice


def accepted_by_round(one: Measured) -> list[int]:
    """Return the accepted drafted tokens of every round as their loop would have counted them."""
    accepted = [record.accepted[0] for record in one.stats.rounds]
    return accepted + [0] * int(one.counts["tokens"] - one.counts["accepted"] - len(accepted))


def _target_seconds(one: Measured) -> float:
    seconds = one.record["seconds"]
    return sum(seconds.get(phase, 0.0) for phase in ("vision", "prefill", "score"))


def _time(manifest: dict[str, Any]) -> float:
    try:
        return datetime.fromisoformat(manifest["started"]).timestamp()
    except (ValueError, OverflowError):
        raise MMSpecError(f"the bundle began at {manifest['started']!r}, which is no time") from None
