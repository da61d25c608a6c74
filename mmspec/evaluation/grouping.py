"""From bundles to groups: which of them belong together, and which of their sides are one method."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from ..errors import MMSpecError, did_you_mean
from .bundle import COMPLETE, Bundle
from .frame import PLAIN, Answers, Collector, single_answers

SHOWN = {"batch": "batch size", "max_new_tokens": "max_new_tokens"}

# What has to agree for figures to stand in one table, in the order in which a difference is reported.
CONDITIONS = ("target", "fingerprint", "dtype", "device", "sampling", "batch", "max_new_tokens")


@dataclass
class MergedMethod:
    """One side of the comparison, from all bundles that have it with the same settings.

    Args:
        label: unique within the group.
        side: the manifest's entry.
        baseline: whether the others are measured against it.
        bundles: those whose answers of it count.
        failures: why it failed, of the bundles in which it did, whose answers of it are left out.
    """

    label: str
    side: Mapping[str, Any]
    baseline: bool
    bundles: list[Bundle] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)


@dataclass
class BundleGroup:
    """The bundles measured under the same conditions.

    Args:
        conditions: name to value, for every name in `CONDITIONS`.
        bundles: bundles of one batch size, see `Bundle.by_batch`.
        tasks: in the order in which they first occur.
        methods: the baseline first.
        answers, passes: the frames of `mmspec.evaluation.frame`; `side` is the place of the method in `methods`.
    """

    conditions: dict[str, Any]
    bundles: list[Bundle]
    tasks: list[str]
    methods: list[MergedMethod]
    answers: pd.DataFrame
    passes: pd.DataFrame


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
    opened = [Bundle.open(folder) for folder in find_bundles(folders)]
    if not opened:
        raise MMSpecError("no bundles were given; name the folders that mmspec bench wrote")
    for bundle in opened:
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
        if not mixed:
            _refuse_difference(opened[0], bundle)
    parts = [bundle.by_batch() for bundle in opened]  # of a bundle that is not complete, some may be empty
    bundles = [one for some in parts for one in ([part for part in some if part.requests] or some[:1])]
    singles: dict[str, Answers] = {}
    for bundle in bundles:
        singles.setdefault(_key(bundle, "batch"), {}).update(single_answers(bundle))
    grouped: dict[str, list[Bundle]] = {}
    for bundle in bundles:
        grouped.setdefault(_key(bundle), []).append(bundle)
    return [_merge(members, baseline, partial, singles[_key(members[0], "batch")]) for members in grouped.values()]


def _key(bundle: Bundle, *leaving_out: str) -> str:
    """Return the conditions of a bundle as a text. The target's name is for reading, its fingerprint says which it
    is."""
    conditions = conditions_of(bundle)
    return json.dumps({name: conditions[name] for name in CONDITIONS[1:] if name not in leaving_out}, sort_keys=True)


def conditions_of(bundle: Bundle) -> dict[str, Any]:
    """Return the conditions under which a bundle was measured, by the names in `CONDITIONS`."""
    manifest = bundle.manifest
    target = manifest["target"]
    where = target["name"], target["fingerprint"], target["dtype"], manifest["machine"]["device"]
    how = manifest["sampling"], manifest["batch"], manifest["max_new_tokens"]
    return dict(zip(CONDITIONS, (*where, *how), strict=True))


def columns_of(conditions: Mapping[str, Any]) -> dict[str, Any]:
    """Return conditions as columns of a table: those of sampling under their own names."""
    given = {name: conditions[name] for name in CONDITIONS if name != "sampling"}
    return given | {name: value for name, value in conditions["sampling"].items() if value is not None}


def sizes_of(groups: Sequence[BundleGroup]) -> list[int]:
    """Return the batch sizes by which alone groups differ, from the smallest; none if there are other differences."""
    sizes = sorted({group.conditions["batch"] for group in groups})
    others = {json.dumps({**columns_of(group.conditions), "batch": None, "target": None}) for group in groups}
    return sizes if len(sizes) == len(groups) > 1 and len(others) == 1 else []


def conditions_shown(conditions: Mapping[str, Any], groups: Sequence[BundleGroup]) -> str:
    """Return what sets a group apart from the others in the table."""
    shown = []
    for name in CONDITIONS:
        values = {json.dumps(group.conditions[name], sort_keys=True) for group in groups}
        if name == "target" or len(values) == 1:
            continue
        value = conditions[name]
        if name == "fingerprint":
            # Two targets may well have the same name, such as that of a checkpoint before and after more training.
            names = {group.conditions["target"] for group in groups}
            value = conditions["target"] if len(names) == len(values) else f"{conditions['target']} [{value}]"
        elif name == "sampling":
            value = sampling_shown(value)
        elif name in ("batch", "max_new_tokens"):
            value = f"{SHOWN[name]} {value}"
        shown.append(str(value))
    return ", ".join(shown)


def sampling_shown(sampling: Mapping[str, Any]) -> str:
    """Return the settings of sampling in words; of greedy decoding only what matters there."""
    if not sampling.get("temperature"):
        penalty = sampling.get("repetition_penalty")
        return f"greedy, repetition_penalty {penalty}" if penalty else "greedy"
    return ", ".join(f"{name} {value}" for name, value in sampling.items() if value is not None)


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


def _merge(bundles: list[Bundle], baseline: str, partial: bool, singles: Answers) -> BundleGroup:
    """Merge bundles of the same conditions: sides of one label and the same settings become one method.

    Args:
        bundles, baseline, partial: see `open_groups`.
        singles: what plain decoding answers to single prompts.
    """
    found: dict[tuple[str, str], MergedMethod] = {}
    for bundle in bundles:
        for side in bundle.manifest["sides"]:
            key = side["label"], json.dumps([side["engine"], side["settings"]], sort_keys=True)
            method = found.setdefault(key, MergedMethod(side["label"], side, side["label"] == baseline))
            if (reason := bundle.failures.get(side["label"])) is not None:
                method.failures.append(reason)
            elif method.side.get("failed"):
                method.side = side
            if reason is None or partial:
                method.bundles.append(bundle)
    batch = conditions_of(bundles[0])["batch"]
    # One that takes single prompts only has nothing to show beside larger batches.
    methods = [one for one in found.values() if batch == 1 or not one.side.get("one_row") or one.failures]
    methods.sort(key=lambda method: not method.baseline)
    collector = Collector(baseline, singles)
    for number, method in enumerate(methods):
        for bundle in method.bundles:
            collector.add(bundle, method.side, number)
    _distinguish(methods)
    tasks = list(dict.fromkeys(record["task"] for bundle in bundles for record in bundle.requests))
    # The name of the first bundle's target stands for all: their fingerprints agree.
    return BundleGroup(conditions_of(bundles[0]), bundles, tasks, methods, collector.answers(), collector.passes())


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
