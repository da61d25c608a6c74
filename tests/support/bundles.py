"""Writes bundles with known numbers, as `mmspec bench` would have measured them."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmspec.evaluation.bundle import FORMAT

PREFILL, VISION = 0.25, 0.75  # seconds; all times are sums of powers of two, so that tests can ask for equality
PLAIN_PASS = 0.5


@dataclass
class Side:
    """What a side does: in every round the next number of `accepted`, from the start again when they are used up.

    Args:
        label: of the side.
        accepted: per round; none for plain decoding.
        pass_seconds: of a round; with a drafter, a quarter of it drafting and a quarter observing.
        repeat_factors: what the decoding time of each repeat is multiplied by.
    """

    label: str
    accepted: list[int] = field(default_factory=lambda: [0])
    drafted: int = 0
    depth: int = 0
    pass_seconds: float = PLAIN_PASS
    repeat_factors: list[float] = field(default_factory=lambda: [1.0])
    engine: str = "mmspec"
    drafter: str | None = None
    tree: str | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    budget: int | None = None
    lossless: bool = True
    control: bool = False
    divergences: dict[str, list[dict]] = field(default_factory=dict)  # by id of the prompt
    failed: str | None = None  # why it has not answered

    def manifest(self, baseline: str) -> dict[str, Any]:
        names = ("label", "engine", "control", "settings", "drafter", "tree", "budget", "lossless")
        failed = None if self.failed is None else {"reason": self.failed, "traceback": None}
        own = {"baseline": self.label == baseline, "exact": self.lossless, "failed": failed}
        return {name: getattr(self, name) for name in names} | own


def plain(**changes: Any) -> Side:
    return Side(**({"label": "plain", "budget": 0} | changes))


def eagle3(**changes: Any) -> Side:
    """Three drafted tokens a round of four nodes, two of them accepted and then none: two tokens per pass."""
    values = {"label": "eagle3 chain", "accepted": [2, 0], "drafted": 4, "depth": 3, "drafter": "eagle3"}
    return Side(**(values | {"tree": "chain", "budget": 4, "settings": {"tree": {"length": 3}}} | changes))


def lookup(**changes: Any) -> Side:
    """transformers' own drafts: two tokens per pass."""
    values = {"label": "transformers lookup", "accepted": [1], "engine": "transformers", "drafter": "prompt_lookup"}
    return Side(**(values | {"settings": {"prompt_lookup_num_tokens": 5}} | changes))


def write_bundle(
    folder: Path, sides: list[Side], prompts: dict[str, list[int]], repeats: int = 1, turns: int = 1, **changes: Any
) -> Path:
    """Write a bundle.

    Args:
        folder: to write it to.
        sides: the first is the baseline.
        prompts: by task, the number of new tokens of each answer.
        repeats: of every answer.
        turns: of every conversation, all alike.
        changes: entries of the manifest that are to be others.
    """
    folder.mkdir(parents=True)
    manifest = {
        "format": FORMAT,
        "status": "complete",
        "error": None,
        "started": "2026-11-22T10:00:00",
        "finished": "2026-11-22T10:05:00",
        "mmspec": "0.1.0",
        "git": {"revision": "0123456789abcdef", "dirty": False},
        "versions": {"python": "3.11.9", "torch": "2.13.0", "transformers": "5.23.0"},
        "machine": {"system": "Linux", "cpu": "a processor", "cpus": 2, "threads": 2, "device": "cpu"},
        "target": {"name": "tiny", "class": "Llava", "dtype": "float32", "fingerprint": "0123456789abcdef"},
        "sampling": {"temperature": 0.0},
        "max_new_tokens": 128,
        "batch": 1,
        "repeats": repeats,
        "seed": 0,
        "requests": sum(map(len, prompts.values())),
        "skipped": [],
        "sides": [side.manifest(sides[0].label) for side in sides],
        "command": "mmspec bench",
    } | changes
    (folder / "config.yaml").write_text("{}\n")
    requests, rounds = [], []
    number = 0
    for task, lengths in prompts.items():
        for i, tokens in enumerate(lengths):
            for turn in range(turns):
                for repeat in range(repeats):
                    for order, side in enumerate(side for side in sides if side.failed is None):
                        place = {"request": number, "turn": turn, "side": side.label, "repeat": repeat}
                        record, its_rounds = answer(side, tokens, repeat, f"{task}/test/{i}")
                        requests.append(place | {"task": task, "order": order} | record)
                        rounds += [place | one for one in its_rounds]
            number += 1
    places = {(record["request"], record["turn"], record["repeat"]) for record in requests}
    manifest = {"written": {"blocks": len(places), "requests": len(requests), "rounds": len(rounds)}} | manifest
    (folder / "manifest.json").write_text(json.dumps(manifest))
    for name, records in (("requests.jsonl", requests), ("rounds.jsonl", rounds)):
        (folder / name).write_text("".join(json.dumps(record) + "\n" for record in records))
    return folder


def answer(side: Side, tokens: int, repeat: int, name: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return the record of one answer and those of its rounds."""
    factor = side.repeat_factors[repeat % len(side.repeat_factors)]
    ours = side.engine == "mmspec"
    emitted, rounds = int(ours), []
    while emitted < tokens:
        accepted = side.accepted[len(rounds) % len(side.accepted)]
        new = min(accepted + 1, tokens - emitted)
        seconds = side.pass_seconds * factor
        phases = _phases(side, seconds)
        record = {"drafted": [side.drafted], "accepted": [min(accepted, new)], "emitted": [new], "depth": side.depth}
        rounds.append({"round": len(rounds), **record, "seconds": phases})
        emitted += new
    decoding = len(rounds) * side.pass_seconds * factor
    if ours:
        phases = {"vision": VISION, "prefill": PREFILL} | _phases(side, decoding)
    else:
        phases = {"prefill": VISION + PREFILL, "transformers": decoding}
    divergence = side.divergences.get(name)
    first = repeat == 0
    record = {
        "ids": [name],
        "seconds": phases,
        "wall": VISION + PREFILL + decoding,
        "prompt_tokens": [10],
        "new_tokens": [tokens],
        "first_tokens": [1 if ours else side.accepted[0] + 1],
        "passes": len(rounds),
        "finish": ["eos"],
        "same": divergence is None,
        "divergence": divergence,
        **({"token_ids": [list(range(tokens))], "text": ["a text"], "retokenized": [tokens + 1]} if first else {}),
    }
    return record, rounds if ours else []


def _phases(side: Side, seconds: float) -> dict[str, float]:
    if side.drafter is None:
        return {"score": seconds}
    return {"draft": seconds / 4, "score": seconds / 2, "observe": seconds / 4}
