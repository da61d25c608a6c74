"""From bundles to methods: which runs belong together, and which of the baseline's each of them is measured against."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import MMSpecError, did_you_mean
from .bundle import COMPLETE, Bundle

PLAIN = "plain"

# What has to agree for figures to stand in one table, in the order in which a difference is reported.
CONDITIONS = ("target", "fingerprint", "dtype", "device", "sampling", "batch", "max_new_tokens")


@dataclass
class TimedAnswer:
    """One timed answer: the method's record, the baseline's of the same bundle and repeat, and the method's rounds."""

    record: Mapping[str, Any]
    plain: Mapping[str, Any]
    rounds: Sequence[Mapping[str, Any]]


@dataclass
class MergedAnswer:
    """One request as one method answered it, once per repeat. The tokens are the same in all of them.

    What is not of time (tokens, texts, how right they are) is in the records of the first repeat alone, and of that in
    every bundle.

    Args:
        ids: ids of the prompts in the request, one per row.
        task: that the request belongs to.
        turn: number of the turn in its conversation, 0 for the first.
        engine: that gave the answer, `"mmspec"` or `"transformers"`.
        plain_engine: the baseline's.
        runs: the repeats, in order; a request that occurs in several bundles has the repeats of all.
    """

    ids: tuple[str, ...]
    task: str
    turn: int
    engine: str
    plain_engine: str
    runs: list[TimedAnswer] = field(default_factory=list)

    def judged(self, name: str) -> list:
        """Return `accuracy` or `similarity` of every row by the first record that has it; nothing if none has."""
        return next((found for run in self.runs if (found := run.record.get(name)) is not None), [])

    @property
    def metrics(self) -> set[str]:
        """The metrics by which it was judged."""
        return {run.record["metric"] for run in self.runs if run.record.get("metric") is not None}


@dataclass
class MergedMethod:
    """One side of the comparison, from all bundles that have it with the same settings.

    Args:
        label: unique within the group.
        side: the manifest's entry.
        baseline: whether the others are measured against it.
        answers: by what makes a request the same one, in the order in which they were given.
        failures: why it failed, of the bundles in which it did, whose answers of it are left out.
    """

    label: str
    side: Mapping[str, Any]
    baseline: bool
    answers: dict[tuple, MergedAnswer] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)

    def of_task(self, task: str) -> list[MergedAnswer]:
        """Return the answers to a task."""
        return [answer for answer in self.answers.values() if answer.task == task]


@dataclass
class BundleGroup:
    """The bundles measured under the same conditions.

    Args:
        conditions: name to value, for every name in `CONDITIONS`.
        tasks: in the order in which they first occur.
        methods: the baseline first.
    """

    conditions: dict[str, Any]
    bundles: list[Bundle]
    tasks: list[str]
    methods: list[MergedMethod]


def find_bundles(folders: Sequence[str | Path]) -> list[Path]:
    """Return the bundle folders that `folders` stand for: themselves, or all that lie below them.

    Raises:
        MMSpecError: for a folder that does not exist or holds no bundle.
    """
    found: dict[Path, Path] = {}
    for folder in map(Path, folders):
        if not folder.is_dir():
            raise MMSpecError(f"bundle {folder}: there is no such folder; mmspec bench writes one")
        inside = sorted(file.parent for file in folder.rglob("manifest.json"))
        if not inside:
            raise MMSpecError(f"{folder} holds no bundle (no manifest.json in it or below); mmspec bench writes one")
        found |= {path.resolve(): path for path in ([folder] if folder in inside else inside)}
    return list(found.values())


def open_groups(
    folders: Sequence[str | Path], baseline: str = PLAIN, mixed: bool = False, partial: bool = False
) -> list[BundleGroup]:
    """Open bundles and merge them into groups that were measured under the same conditions.

    Args:
        folders: folders of bundles, or folders that hold some.
        baseline: the label of the side that the others are measured against.
        mixed: whether bundles of different conditions may come together.
        partial: whether to use what there is of a bundle that is not complete.
    """
    bundles = [Bundle.open(folder) for folder in find_bundles(folders)]
    if not bundles:
        raise MMSpecError("no bundles were given; name the folders that mmspec bench wrote")
    for bundle in bundles:
        if not partial:
            _refuse_incomplete(bundle)
        labels = [side["label"] for side in bundle.manifest["sides"]]
        if baseline not in labels:
            hint = did_you_mean(baseline, labels)
            raise MMSpecError(f"{bundle.folder} has no method {baseline!r} to compare with.{hint}")
        if baseline in bundle.failures:
            raise MMSpecError(
                f"{bundle.folder} cannot be compared with {baseline!r}, which failed: {bundle.failures[baseline]}"
            )
    grouped: dict[str, list[Bundle]] = {}
    for bundle in bundles:
        conditions = conditions_of(bundle)
        if grouped and not mixed:
            _refuse_difference(bundles[0], bundle)
        # The name is for reading: the fingerprint says whether two targets are the same.
        key = json.dumps({name: value for name, value in conditions.items() if name != "target"}, sort_keys=True)
        grouped.setdefault(key, []).append(bundle)
    return [_merge(members, baseline, partial) for members in grouped.values()]


def conditions_of(bundle: Bundle) -> dict[str, Any]:
    """Return the conditions under which a bundle was measured, by the names in `CONDITIONS`."""
    manifest = bundle.manifest
    target = manifest["target"]
    where = target["name"], target["fingerprint"], target["dtype"], manifest["machine"]["device"]
    how = manifest["sampling"], manifest["batch"], manifest["max_new_tokens"]
    return dict(zip(CONDITIONS, (*where, *how), strict=True))


def _refuse_incomplete(bundle: Bundle) -> None:
    if bundle.complete:
        return
    status, error = bundle.manifest["status"], bundle.manifest.get("error")
    reasons = ([status] if status != COMPLETE else []) + [reason for reason in (error, bundle.lost) if reason]
    raise MMSpecError(
        f"{bundle.folder} is not complete ({'; '.join(reasons)}): go on with `mmspec bench --resume {bundle.folder}`, "
        "or use what there is with --partial"
    )


def _refuse_difference(first: Bundle, other: Bundle) -> None:
    ours, theirs = conditions_of(first), conditions_of(other)
    for name in CONDITIONS[1:]:
        if ours[name] != theirs[name]:
            a, b = ours[name], theirs[name]
            if name == "fingerprint":
                name, a, b = "target", f"{ours['target']} [{a}]", f"{theirs['target']} [{b}]"
            raise MMSpecError(
                f"{first.folder} and {other.folder} differ in {name}: {_plain(a)} and {_plain(b)}; report them apart, "
                "or together with --mixed"
            )


def _plain(value: Any) -> str:
    return json.dumps(value) if isinstance(value, dict) else str(value)


def _merge(bundles: list[Bundle], baseline: str, partial: bool) -> BundleGroup:
    """Merge bundles of the same conditions: sides of one label and the same settings become one method."""
    methods: dict[tuple[str, str], MergedMethod] = {}
    tasks: dict[str, None] = {}
    for bundle in bundles:
        runs = _runs(bundle)
        tasks |= {record["task"]: None for record in bundle.requests}
        for side in bundle.manifest["sides"]:
            key = side["label"], json.dumps([side["engine"], side["settings"]], sort_keys=True)
            method = methods.setdefault(key, MergedMethod(side["label"], side, side["label"] == baseline))
            if (reason := bundle.failures.get(side["label"])) is not None:
                method.failures.append(reason)
            elif method.side.get("failed"):
                method.side = side
            if reason is None or partial:
                _collect(method, bundle, runs, baseline)
    _distinguish(list(methods.values()))
    ordered = sorted(methods.values(), key=lambda method: not method.baseline)
    # The name of the first bundle's target stands for all: their fingerprints agree.
    return BundleGroup(conditions_of(bundles[0]), bundles, list(tasks), ordered)


Runs = dict[str, dict[tuple[int, int, int], tuple[Mapping[str, Any], list]]]


def _runs(bundle: Bundle) -> Runs:
    """Return `{label: {(request, turn, repeat): (record, rounds)}}`."""
    found: Runs = {side["label"]: {} for side in bundle.manifest["sides"]}
    for record in bundle.requests:
        found[record["side"]][record["request"], record["turn"], record["repeat"]] = (record, [])
    for record in bundle.rounds:
        found[record["side"]][record["request"], record["turn"], record["repeat"]][1].append(record)
    return found


def _collect(method: MergedMethod, bundle: Bundle, runs: Runs, baseline: str) -> None:
    """Add a bundle's answers to a method, each beside the baseline's of the same request and repeat."""
    sampled = bundle.manifest["sampling"].get("temperature", 0) > 0
    ours, theirs = runs[method.side["label"]], runs[baseline]
    (plain_engine,) = (side["engine"] for side in bundle.manifest["sides"] if side["label"] == baseline)
    for place in sorted(ours):
        (record, rounds), (plain, _) = ours[place], theirs[place]
        # Another seed samples other tokens: that is another answer, not a repeat of this one.
        key = (record["task"], tuple(record["ids"]), record["turn"], bundle.manifest["seed"] if sampled else None)
        if key not in method.answers:
            engines = method.side["engine"], plain_engine
            method.answers[key] = MergedAnswer(tuple(record["ids"]), record["task"], record["turn"], *engines)
        method.answers[key].runs.append(TimedAnswer(record, plain, rounds))


def _distinguish(methods: list[MergedMethod]) -> None:
    """Append the settings that differ to labels that occur more than once."""
    for label in {method.label for method in methods}:
        same = [method for method in methods if method.label == label]
        if len(same) == 1:
            continue
        flat = [{"engine": m.side["engine"], **dict(flatten(m.side["settings"]))} for m in same]
        names = sorted({name for settings in flat for name in settings})
        differing = [name for name in names if len({repr(settings.get(name)) for settings in flat}) > 1]
        for method, settings in zip(same, flat, strict=True):
            shown = ", ".join(f"{name}={settings[name]}" for name in differing if name in settings)
            method.label = f"{label} ({shown})" if shown else label


def flatten(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield nested settings as `("tree.total", 16)`."""
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
