"""The lines under the table: what its columns mean, where it was measured, and what to know before quoting it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from .bundle import COMPLETE
from .figures import RESAMPLES, Figures, Row
from .grouping import BundleGroup, conditions_shown, sampling_shown, sizes_of

COLUMNS = (
    "Speed-ups are tokens per second over {baseline} in the same process on the same prompts. Of the tasks and of the "
    "mean they are end to end: from the prepared picture to the last token; those called decoding leave out vision, "
    "prefill and the first token. Every figure over several tasks is their mean, each counting the same; the 95 % "
    "interval is from {resamples} resamples of the prompts{repeats}. Tokens per pass: what one pass of the target "
    "yields on average, its own (bonus) token included. Same text: answers that equal those of plain decoding token "
    "for token; at a near-tie the target itself is undecided."
)
BATCHES = (
    "Every speed-up is over {baseline} at the same batch size. Same text compares with plain decoding in the same batch"
)
MATCHES = (
    "; the exact match with single prompts is the share of the answers that are, token for token, what plain decoding "
    "writes when it answers that prompt alone (arXiv 2510.22876): plain decoding's own says what the batch changes"
)
PROJECTED = (
    "Projected: no measurement, but what the clock says of a drafter and a target that took turns here, had each a "
    "device of its own: every round counts as the longer of both."
)
REPEATS = "; single repeats: the lowest and the highest mean that one repeat alone gave"


def notes(groups: Sequence[BundleGroup], rows: Sequence[Row]) -> Iterator[str]:
    """Yield the lines for a table with these rows."""
    baseline = _joined(row.side["label"] for row in rows if row.baseline)
    yield COLUMNS.format(baseline=baseline, resamples=RESAMPLES, repeats=REPEATS if repeated(rows) else "")
    answered = [row for row in rows if row.overall is not None]
    of_group = [[row for row in answered if row.conditions is group.conditions] for group in groups]
    sizes = sizes_of(groups)
    where = {id(group.conditions): f" ({conditions_shown(group.conditions, groups)})" for group in groups}
    if len(groups) == 1:
        where = dict.fromkeys(where, "")
    for group, members in zip(groups[:1] if sizes else groups, of_group, strict=False):
        yield _measured(group, members, sizes or [group.conditions["batch"]])
    if sizes:
        yield f"{BATCHES.format(baseline=baseline)}{MATCHES if 1 in sizes else ''}."
    yield from dict.fromkeys(line for group in groups for line in _unfilled(group))
    for text in dict.fromkeys(f"{row.method}: {row.failed}" for row in rows if row.failed and row not in answered):
        yield f"FAILED, so without figures: {text}"
    for row in answered:
        if row.failed:
            name = f"{row.method}{where[id(row.conditions)]}"
            yield f"{name} failed in one run, and its figures are from elsewhere or from before: {row.failed}"
    for members, group in zip(of_group, groups, strict=True):
        yield from (f"{line}{where[id(group.conditions)]}." for line in _apart(members))
    exact = [(row, row.overall.exact) for row in answered if row.overall]
    for row, one in exact:
        if row.control and one.compared:
            yield (
                f"{row.method}{where[id(row.conditions)]}: plain decoding run against itself gave the same text in "
                f"{one.same} of {one.compared} answers; the rest is what numerics alone change, and where it differs "
                "from 1 in speed, what the machine does."
            )
    for row, one in exact:
        if one.same < one.compared and not row.control:
            yield _differing(f"{row.method}{where[id(row.conditions)]}", one)
    if single := [row.method for row in rows if row.side.get("one_row") and len(sizes) > 1]:
        yield f"One prompt at a time, so at no other batch size: {_joined(single)}."
    yield _budgets(answered)
    yield from _elsewhere(answered)
    yield from dict.fromkeys(line for group in groups for line in _warnings(group))
    if any(row.projected for row in answered):
        yield PROJECTED
    if loose := [row for row in answered if not row.side.get("lossless", True)]:
        names = _joined(row.method for row in loose)
        yield f"Not lossless, so its text may differ by design: {names}.{_judged(answered)}"
    if changed := [f"{row.method} ({one.changed})" for row, one in exact if one.changed]:
        yield f"Answers that were not the same in every repeat: {_joined(changed)}; counts are of the first."
    if reshaped := [row.method for row, one in exact if one.reshaped and not one.changed]:
        yield f"The same text by other rounds in some repeats: {_joined(reshaped)}; counts are of the first."


def _differing(method: str, exact: Figures) -> str:
    """Say of a method how many of its answers are not plain decoding's, and why, as far as that was looked for."""
    other = exact.compared - exact.same
    text = f"{method}: {other} of {exact.compared} answers differ from plain decoding's"
    if exact.faults:
        return f"{text}, {exact.faults} by a FAULT: {next(one for one in exact.causes if 'WRONG' in one)}."
    if exact.rounding:
        looked = "all" if exact.rounding == other else f"the {exact.rounding} whose cause was looked for"
        return f"{text}, {looked} by rounding: {exact.causes[0]}."
    return f"{text}; their cause was not looked for."


def _unfilled(group: BundleGroup) -> Iterator[str]:
    """Say which batches hold fewer prompts than they might."""
    batch = group.conditions["batch"]
    rows = group.answers["ids"].map(len) if batch > 1 and len(group.answers) else None
    if rows is not None and (short := group.answers[rows < batch]["answer"].nunique()):
        count = group.answers["answer"].nunique()
        yield (
            f"Batches of {batch}: {short} of {count} hold fewer prompts, because their task has no more; the largest "
            f"holds {rows.max()}."
        )


def _measured(group: BundleGroup, rows: Sequence[Row], sizes: Sequence[int]) -> str:
    """Say where a group was measured, on what, and how often, at these batch sizes."""
    manifests, conditions = [bundle.manifest for bundle in group.bundles], group.conditions
    versions = _joined(
        f"mmspec {one['mmspec']}{_revision(one['git'])}, torch {one['versions'].get('torch')}, "
        f"transformers {one['versions'].get('transformers')}"
        for one in manifests
    )
    machines = _joined(
        f"{machine['cpu']} ({machine['threads']} of {machine['cpus']} threads)"
        if machine["device"] == "cpu"
        else machine["device"].removeprefix("cuda: ")
        for machine in (one["machine"] for one in manifests)
    )
    counted = next((row.overall for row in rows if row.baseline), None)
    what = "nothing" if counted is None else f"{_count(counted.prompts, 'prompt')} x {_repeats(rows, counted.repeats)}"
    batch = f", batches of {', '.join(map(str, sizes))}" if sizes[-1] > 1 else ""
    return (
        f"Measured on {machines}: target {conditions['target']} in {conditions['dtype']}, {what}{batch}, "
        f"{sampling_shown(conditions['sampling'])}, at most {conditions['max_new_tokens']} new tokens; "
        f"{versions}; {_joined(one['started'][:10] for one in manifests)}."
    )


def repeats_of(rows: Sequence[Row]) -> list[int]:
    """Return how often the methods were measured, plain decoding left aside, which every bundle has, but where it is
    alone."""
    measured = [(row, row.overall.repeats) for row in rows if row.overall is not None]
    return sorted({number for row, number in measured if not row.baseline} or {number for _, number in measured})


def repeated(rows: Sequence[Row]) -> bool:
    """Return True if any method was measured more than once."""
    return any(number > 1 for number in repeats_of(rows))


def _repeats(rows: Sequence[Row], of_baseline: int) -> str:
    counts = repeats_of(rows)
    text = _count(counts[-1], "repeat") if len(counts) == 1 else f"{counts[0]} to {counts[-1]} repeats"
    return text if of_baseline <= counts[-1] else f"{text} ({of_baseline} of the baseline)"


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}" + ("" if number == 1 else "s")


def _revision(git: dict[str, Any]) -> str:
    return f" ({git['revision'][:7]}{', changed' if git.get('dirty') else ''})" if git.get("revision") else ""


def _apart(rows: Sequence[Row]) -> Iterator[str]:
    """Say which methods of a group are as fast as its fastest, as far as its prompts can tell."""
    behind = [(row.method, one.value, one.low, one.high) for row in rows if (one := row.behind) is not None]
    told = [(name, value, low, high) for name, value, low, high in behind if low is not None and high is not None]
    if not told:
        return
    fastest = next(row.method for row in rows if row.competes)
    near = [one for one in told if one[2] <= 0 <= one[3]]
    close = [f"{name} (behind by {value:.2f}, {low:.2f} to {high:.2f})" for name, value, low, high in near]
    if close:
        how = "at 95 % (paired bootstrap of the prompts)"
        yield f"Cannot be told apart from the fastest, {fastest}, {how}: {_joined(close)}"
    else:
        yield f"{fastest} is faster than every other method at 95 %, by a paired bootstrap of the prompts"


def _budgets(rows: Sequence[Row]) -> str:
    """Say how many nodes the methods may draft."""
    budgets = [(row.method, row.side.get("budget")) for row in rows if row.side.get("drafter") is not None]
    known = sorted({budget for _, budget in budgets if budget is not None})
    missing = [name for name, budget in budgets if budget is None]
    unknown = f" The limit of {_joined(missing)} is unknown." if missing else ""
    if len(known) > 1:
        return f"Budgets are NOT equal: the methods may draft from {known[0]} to {known[-1]} nodes per pass.{unknown}"
    if known:
        return f"All methods may draft up to {known[0]} nodes per pass.{unknown}"
    return f"No method has a known limit of drafted nodes.{unknown}"


def _elsewhere(rows: Sequence[Row]) -> Iterator[str]:
    """Say which methods were decoded in processes of their own, and by what."""
    found: dict[str, list[str]] = {}
    for row in rows:
        if versions := row.side.get("versions"):
            found.setdefault(", ".join(f"{name} {version}" for name, version in versions.items()), []).append(
                row.method
            )
    for versions, names in found.items():
        yield f"In a process of its own, with {versions}: {_joined(names)}."


def _warnings(group: BundleGroup) -> Iterator[str]:
    """Say what is missing in the bundles of a group."""
    skipped = {skip["id"]: skip["reason"] for bundle in group.bundles for skip in bundle.manifest["skipped"]}
    for name, reason in list(skipped.items())[:1]:
        count = "1 prompt was left out" if len(skipped) == 1 else f"{len(skipped)} prompts were left out"
        yield f"{count} for failing to load; the first, {name}: {reason}."
    for bundle in group.bundles:
        manifest = bundle.manifest
        if not bundle.complete:
            reasons = "; ".join(reason for reason in (manifest.get("error"), bundle.lost) if reason)
            status = manifest["status"] if manifest["status"] != COMPLETE else "damaged"
            done = len({record["request"] for record in bundle.requests})
            yield (
                f"PARTIAL: {bundle.folder} is {status}{f' ({reasons})' if reasons else ''}, with {done} of "
                f"{manifest['requests']} requests."
            )


def _judged(rows: Sequence[Row]) -> str:
    """Say how right the texts of methods are that are not lossless."""
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


def _joined(words: Iterable[str]) -> str:
    return "; ".join(dict.fromkeys(words))  # names of methods may have commas in them
