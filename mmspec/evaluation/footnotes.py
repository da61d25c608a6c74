"""The lines under the table: what its columns mean, where it was measured, and what to know before quoting it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from .bundle import COMPLETE
from .figures import RESAMPLES, Figures, Row
from .grouping import BundleGroup, sampling_shown

COLUMNS = (
    "Speed-ups are tokens per second over {baseline} in the same process on the same prompts. Of the tasks and of the "
    "mean they are end to end: from the prepared picture to the last token; those called decoding leave out vision, "
    "prefill and the first token. Every figure over several tasks is their mean, each counting the same; the 95 % "
    "interval is from {resamples} resamples of the prompts{repeats}. Tokens per pass: what one pass of the target "
    "yields on average, its own (bonus) token included. Same text: answers that equal those of plain decoding token "
    "for token; at a near-tie the target itself is undecided."
)
REPEATS = "; single repeats: the lowest and the highest mean that one repeat alone gave"


def notes(groups: Sequence[BundleGroup], rows: Sequence[Row]) -> list[str]:
    """Return the lines for a table with these rows."""
    baseline = _joined(row.side["label"] for row in rows if row.baseline)
    lines = [COLUMNS.format(baseline=baseline, resamples=RESAMPLES, repeats=REPEATS if repeated(rows) else "")]
    lines += [_measured(group, [row for row in rows if row.conditions is group.conditions]) for group in groups]
    lines += [
        f"FAILED, so without figures: {row.method}: {row.failed}" for row in rows if row.failed and not row.overall
    ]
    lines += [
        f"{row.method} failed in one run, and its figures are from elsewhere or from before: {row.failed}"
        for row in rows
        if row.failed and row.overall
    ]
    rows = [row for row in rows if row.overall is not None]
    for group in groups:
        lines += _apart([row for row in rows if row.conditions is group.conditions])
    lines += [
        _numerics(row.method, one.exact) for row in rows if row.control and (one := row.overall) and one.exact.compared
    ]
    lines.append(_budgets(rows))
    lines += [line for group in groups for line in _warnings(group)]
    loose = [row.method for row in rows if not row.side.get("lossless", True)]
    if loose:
        lines.append(f"Not lossless, so its text may differ by design: {_joined(loose)}.{_judged(rows)}")
    changed = [
        f"{row.method} ({row.overall.exact.changed})" for row in rows if row.overall and row.overall.exact.changed
    ]
    if changed:
        lines.append(f"Answers that were not the same in every repeat: {_joined(changed)}; counts are of the first.")
    return lines


def _apart(rows: Sequence[Row]) -> list[str]:
    """Say which methods of a group are as fast as its fastest, as far as its prompts can tell."""
    close, compared = [], False
    for row in rows:
        one = row.behind
        if one is None or one.low is None or one.high is None:
            continue
        compared = True
        if one.low <= 0 <= one.high:
            close.append(f"{row.method} (behind by {one.value:.2f}, {one.low:.2f} to {one.high:.2f})")
    if not compared:
        return []
    fastest = next(row.method for row in rows if row.competes)
    if not close:
        return [f"{fastest} is faster than every other method at 95 %, by a paired bootstrap of the prompts."]
    how = "at 95 % (paired bootstrap of the prompts)"
    return [f"Cannot be told apart from the fastest, {fastest}, {how}: {_joined(close)}."]


def _numerics(name: str, exact: Figures) -> str:
    return (
        f"{name}: plain decoding run against itself gave the same text in {exact.same} of {exact.compared} "
        "answers; the rest is what numerics alone change, and where it differs from 1 in speed, what the machine does."
    )


def _judged(rows: Sequence[Row]) -> str:
    """Say how right such texts are."""
    text = ""
    if any(row.overall is not None and row.overall.alike is not None for row in rows):
        text += " Similarity: 1 - edit distance to plain decoding's tokens over the longer length."
    figures = [(task or "(no task)", one) for row in rows for task, one in row.tasks.items() if one is not None]
    without = [task for task, one in figures if one.accuracy is None]
    if len(without) == len(figures):
        text += " Accuracy is not measured: the task has no right answers, or names no metric (task.metric=)."
    elif without:
        text += f" Accuracy is without {_joined(without)}: no right answers, no metric, or another one in each run."
    return text


def _measured(group: BundleGroup, rows: Sequence[Row]) -> str:
    manifests = [bundle.manifest for bundle in group.bundles]
    versions = _joined(
        f"mmspec {m['mmspec']}{_revision(m['git'])}, torch {m['versions'].get('torch')}, "
        f"transformers {m['versions'].get('transformers')}"
        for m in manifests
    )
    machines = _joined(
        f"{machine['cpu']} ({machine['threads']} of {machine['cpus']} threads)"
        if machine["device"] == "cpu"
        else machine["device"].removeprefix("cuda: ")
        for machine in (m["machine"] for m in manifests)
    )
    counted = next((row.overall for row in rows if row.baseline), None)
    batch = f", batches of {group.conditions['batch']}" if group.conditions["batch"] > 1 else ""
    what = "nothing" if counted is None else f"{_count(counted.prompts, 'prompt')} x {_repeats(rows)}"
    days = _joined(m["started"][:10] for m in manifests)
    return (
        f"Measured on {machines}: target {group.conditions['target']} in {group.conditions['dtype']}, {what}{batch}, "
        f"{sampling_shown(group.conditions['sampling'])}, at most {group.conditions['max_new_tokens']} new tokens; "
        f"{versions}; {days}."
    )


def repeated(rows: Sequence[Row]) -> bool:
    """Return True if any method was measured more than once, plain decoding left aside, which every bundle has."""
    return any(row.overall is not None and row.overall.repeats > 1 for row in _methods(rows))


def _methods(rows: Sequence[Row]) -> Sequence[Row]:
    """Return the rows of the methods; of the baseline, where it is alone."""
    measured = [row for row in rows if row.overall is not None]
    return [row for row in measured if not row.baseline] or measured


def _repeats(rows: Sequence[Row]) -> str:
    """Say how often the methods were measured, and the baseline if more often, once more in every bundle."""
    counts = sorted({one.repeats for row in _methods(rows) if (one := row.overall)})
    most = next(one.repeats for row in rows if row.baseline and (one := row.overall))
    text = _count(counts[-1], "repeat") if len(counts) == 1 else f"{counts[0]} to {counts[-1]} repeats"
    return text if most <= counts[-1] else f"{text} ({most} of the baseline)"


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}" + ("" if number == 1 else "s")


def _revision(git: dict[str, Any]) -> str:
    if not git.get("revision"):
        return ""
    return f" ({git['revision'][:7]}{', changed' if git.get('dirty') else ''})"


def _budgets(rows: Sequence[Row]) -> str:
    drafting = [row for row in rows if row.side.get("drafter") is not None]
    budgets = [row.side.get("budget") for row in drafting]
    known = sorted({budget for budget in budgets if budget is not None})
    unknown = f" The limit of {_joined(row.method for row in drafting if row.side.get('budget') is None)} is unknown."
    unknown = unknown if None in budgets else ""
    if len(known) > 1:
        return f"Budgets are NOT equal: the methods may draft from {known[0]} to {known[-1]} nodes per pass.{unknown}"
    if known:
        return f"All methods may draft up to {known[0]} nodes per pass.{unknown}"
    return f"No method has a known limit of drafted nodes.{unknown}"


def _warnings(group: BundleGroup) -> list[str]:
    lines = []
    skipped = {skip["id"]: skip["reason"] for bundle in group.bundles for skip in bundle.manifest["skipped"]}
    if skipped:
        name, reason = next(iter(skipped.items()))
        count = "1 prompt was left out" if len(skipped) == 1 else f"{len(skipped)} prompts were left out"
        lines.append(f"{count} for failing to load; the first, {name}: {reason}.")
    for bundle in group.bundles:
        manifest = bundle.manifest
        if not bundle.complete:
            reasons = [reason for reason in (manifest.get("error"), bundle.lost) if reason]
            because = f" ({'; '.join(reasons)})" if reasons else ""
            done = len({record["request"] for record in bundle.requests})
            of = f"{done} of {manifest['requests']} requests"
            status = manifest["status"] if manifest["status"] != COMPLETE else "damaged"
            lines.append(f"PARTIAL: {bundle.folder} is {status}{because}, with {of}.")
    return lines


def _joined(words: Iterable[str]) -> str:
    return "; ".join(dict.fromkeys(words))  # names of methods may have commas in them
