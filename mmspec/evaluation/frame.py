"""The tidy frames from which all figures are computed: a row per method, request and repeat, and a row per target pass.

`answers`, in this order of rows: methods, requests as they first occur, repeats. Its columns:

- `side` (number of the method) and `answer` (number of the request, the same for all methods);
- `task`, `ids` of the prompts in the request, `request` (the same joined by spaces), `turn`, and `repeat` from 0; a
  request that occurs in several bundles has the repeats of all;
- seconds of this repeat: `seconds`, `decode_seconds`, `ttft`, `draft_seconds`, `projected_seconds` (of decoding, had
  both sides worked side by side that took turns; `in_turn` is 0 where none did or a bundle is too old to say so, and
  None without rounds), of the baseline beside it `plain_seconds` and `plain_decode_seconds`, those before the first
  round by phase (`prompt_prune_seconds`, ...), and those of all rounds by phase (`round_draft_seconds`, ...);
- counts, which are those of the first repeat: `prompt_tokens`, `target_bytes` and `drafter_bytes` of their caches (None
  where nobody knows), `tokens`, `decode_tokens`, `steps` (target passes), `emitted`,
  `accepted`, `drafted`, `levels`, `rounds`, `known_steps` (passes of which there is a record), the baseline's
  `plain_tokens`, `plain_decode_tokens` and `plain_passes`, `retokenized` (tokens of the baseline's text when it is
  tokenized again), and what was judged: `points` of `points_of` by `metric`, `similarity` of `similarity_of`, `alike`
  (prompts with a similarity of 1);
- `same`: whether the text is plain decoding's, None where it is not compared; `divergence`: the earliest; `changed`
  and `reshaped`: whether the tokens, and the rounds, were others than in the first repeat; `unbooked`: seconds of no
  phase;
- of the first repeat, in prompts: `same_of` compared, `same_prompts` with plain decoding's text, `near_ties`,
  `rounding` and `faults` of the others (what `mmspec.exactness.attribute` says of their causes, as far as it was
  asked), and `single_same` of `single_of` with the text of plain decoding at a batch size of 1; `causes` in words.

`passes` has the first repeat's passes of each prompt: `side`, `answer`, `task`, `drafted`, `accepted`, `emitted` and
`depth` (levels of the tree).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import pandas as pd

from ..decoding.clock import PROMPT_PHASES
from .bundle import Block, Bundle

Record = Mapping[str, Any]
Runs = dict[str, dict[Block, tuple[Record, list[Record]]]]
Answers = dict[tuple[str, int], list[int]]
"""Token ids of answers, by the prompt's id and the turn."""
COUNTED = ("drafted", "accepted", "emitted", "depth")
PLAIN = "plain"


class Answer(NamedTuple):
    """One request as one method answered it: what stands in each of its rows, and what each repeat has of its own."""

    request: dict[str, Any]
    counts: dict[str, Any]
    repeats: list[dict[str, Any]]


class Collector:
    """Collects the answers of bundles of the same conditions, each beside the baseline's of the same block.

    Args:
        baseline: label of the side that the others are measured against.
        singles: what plain decoding answers to single prompts; nothing if it is not known.
    """

    def __init__(self, baseline: str, singles: Answers | None = None):
        self.baseline, self.singles = baseline, singles or {}
        self._runs: dict[Bundle, Runs] = {}
        self._requests: dict[tuple[Any, ...], int] = {}
        self._answers: dict[tuple[int, int], Answer] = {}
        self._passes: list[dict[str, Any]] = []

    def add(self, bundle: Bundle, side: Record, number: int) -> None:
        """Add what one side of a bundle answered, as the method of that number."""
        if bundle not in self._runs:
            self._runs[bundle] = _runs(bundle)
        runs = self._runs[bundle]
        sampled = bundle.manifest["sampling"].get("temperature", 0) > 0
        ours, theirs = runs[side["label"]], runs[self.baseline]
        (plain_engine,) = (one["engine"] for one in bundle.manifest["sides"] if one["label"] == self.baseline)
        for block in sorted(ours):
            (record, rounds), (plain, _) = ours[block], theirs[block]
            # Another seed samples other tokens: that is another answer, not a repeat of this one.
            seed = bundle.manifest["seed"] if sampled else None
            request = record["task"], tuple(record["ids"]), record["turn"], seed
            answer = self._requests.setdefault(request, len(self._requests))
            place = {"side": number, "answer": answer, "task": record["task"]}
            if (number, answer) not in self._answers:
                passes = [
                    dict(zip(COUNTED, (*row, one["depth"]), strict=True))
                    for one in rounds
                    for row in zip(one["drafted"], one["accepted"], one["emitted"], strict=True)
                    if row[2]
                ]
                self._passes += [place | one for one in passes]
                about = {"ids": request[1], "request": " ".join(request[1]), "turn": record["turn"]}
                counts = {"rounds": len(rounds)} | _counts(record, plain, passes, side["engine"], plain_engine)
                counts |= _equal(record, self.singles)
                self._answers[number, answer] = Answer(place | about, counts | {"metric": None}, [])
            _, counts, repeats = self._answers[number, answer]
            for name, value in _judged(record).items():  # of a request in several bundles, the first that was judged
                counts.setdefault(name, value)
            if record.get("metric") is not None:
                counts["metric"] = " ".join(sorted({record["metric"], *(counts["metric"] or "").split()}))
            repeats.append(_timings(record, plain, rounds) | _comparison(record))

    def answers(self) -> pd.DataFrame:
        """Return the frame of all that was added."""
        nothing = dict.fromkeys(("points", "points_of", "similarity", "similarity_of", "alike"), 0)
        rows = [
            one.request | {"repeat": repeat} | seconds | nothing | one.counts
            for one in self._answers.values()
            for repeat, seconds in enumerate(one.repeats)
        ]
        return pd.DataFrame(rows, columns=None if rows else ["side", "answer", "task", "ids"])

    def passes(self) -> pd.DataFrame:
        """Return the frame of the passes of all that was added."""
        return pd.DataFrame(self._passes, columns=["side", "answer", "task", *COUNTED])


def _runs(bundle: Bundle) -> Runs:
    """Return `{label: {(request, turn, repeat): (record, rounds)}}`."""
    found: Runs = {side["label"]: {} for side in bundle.manifest["sides"]}
    for record in bundle.requests:
        found[record["side"]][record["request"], record["turn"], record["repeat"]] = (record, [])
    for record in bundle.rounds:
        found[record["side"]][record["request"], record["turn"], record["repeat"]][1].append(record)
    return found


def _timings(record: Record, plain: Record, rounds: list[Record]) -> dict[str, float | None]:
    """Return the seconds of one answer and of the baseline's beside it.

    The whole is the wall time, which is measured alike for every engine; decoding is what remains of it after vision
    and prefill.
    """
    prompt, plain_prompt = (sum(one["seconds"].get(phase, 0.0) for phase in PROMPT_PHASES) for one in (record, plain))
    by_phase: dict[str, float] = {}
    for one in rounds:
        for phase, seconds in one["seconds"].items():
            if phase not in PROMPT_PHASES:
                by_phase[phase] = by_phase.get(phase, 0.0) + seconds
    decoding = record["wall"] - prompt
    return {
        "seconds": record["wall"],
        "decode_seconds": decoding,
        "projected_seconds": decoding - record.get("overlap_seconds", 0.0),
        "in_turn": int("overlap_seconds" in record) if rounds else None,
        "ttft": prompt,
        "draft_seconds": by_phase.get("draft", 0.0) + by_phase.get("observe", 0.0),
        "plain_seconds": plain["wall"],
        "plain_decode_seconds": plain["wall"] - plain_prompt,
        "unbooked": record["wall"] - math.fsum(record["seconds"].values()),
        **{f"prompt_{phase}_seconds": record["seconds"].get(phase, 0.0) for phase in PROMPT_PHASES},
        **{f"round_{phase}_seconds": seconds for phase, seconds in by_phase.items()},
    }


def _counts(
    record: Record, plain: Record, passes: list[dict[str, int]], engine: str, plain_engine: str
) -> dict[str, Any]:
    """Return the counts of an answer.

    transformers reports no rounds. Its passes verify drafts from the prompt's on and each adds one token of the
    target's own, so the other tokens were drafted; of a batch it only decodes without drafts.
    """
    tokens, first = sum(record["new_tokens"]), sum(record["first_tokens"])
    drafted, accepted, _, levels = (sum(one[name] for one in passes) for name in COUNTED)
    steps, emitted = len(passes), tokens - first
    if engine == "transformers":
        steps = record["passes"] if len(record["new_tokens"]) == 1 else tokens
        emitted, accepted = tokens, tokens - steps
    held = record.get("cache_bytes") or {}
    return {
        "prompt_tokens": sum(record["prompt_tokens"]),
        "target_bytes": held.get("target"),
        "drafter_bytes": held.get("drafter"),
        "tokens": tokens,
        "decode_tokens": tokens - first,
        "plain_tokens": sum(plain["new_tokens"]),
        "plain_decode_tokens": sum(plain["new_tokens"]) - sum(plain["first_tokens"]),
        "plain_passes": plain["passes"] - (plain_engine == "transformers"),
        "steps": steps,
        "emitted": emitted,
        "accepted": accepted,
        "drafted": drafted,
        "known_steps": len(passes),
        "levels": levels,
        "retokenized": (plain.get("retokenized") or [None])[0],
    }


def _judged(record: Record) -> dict[str, float]:
    """Return how right an answer is, as far as its record says."""
    found: dict[str, float] = {}
    if (accuracy := record.get("accuracy")) is not None:
        known = [one for one in accuracy if one is not None]
        found |= {"points": sum(one["points"] for one in known), "points_of": sum(one["of"] for one in known)}
    if (alike := record.get("similarity")) is not None:
        equal = sum(one == 1 for one in alike)
        found |= {"similarity": sum(alike), "similarity_of": len(alike), "alike": equal}
    return found


def _comparison(record: Record) -> dict[str, Any]:
    """Return how the text of an answer compares with plain decoding's."""
    same, found = record["same"], record["divergence"] or []
    first = min(found, key=lambda one: one["position"], default=None)
    return {
        "same": same,
        "divergence": None if same is None or same or first is None else {"ids": record["ids"], **first},
        "changed": record.get("repeatable") is False,
        "reshaped": record.get("same_rounds") is False,
    }


def _equal(record: Record, singles: Answers) -> dict[str, Any]:
    """Return how many of the answers in a record are plain decoding's of the same batch, and of single prompts."""
    found, rows = record["divergence"] or [], len(record["ids"])
    compared = 0 if record["same"] is None else rows
    other = 0 if record["same"] is not False else max(1, len(found))
    causes = [one.get("cause") for one in found]
    pairs = [
        (ids, singles[name, record["turn"]])
        for name, ids in zip(record["ids"], record.get("token_ids") or [], strict=False)
        if (name, record["turn"]) in singles
    ]
    return {
        "same_of": compared,
        "same_prompts": compared - min(compared, other),
        "near_ties": sum(one["tie"] for one in found),
        "rounding": causes.count("rounding"),
        "faults": causes.count("fault"),
        "causes": [text for one in found if (text := one.get("attribution"))],
        "single_of": len(pairs),
        "single_same": sum(ours == theirs for ours, theirs in pairs),
    }


def single_answers(bundle: Bundle) -> Answers:
    """Return what plain decoding answered to single prompts; nothing of drawn text, which depends on the place in the
    batch."""
    if bundle.manifest["batch"] != 1 or bundle.manifest["sampling"].get("temperature", 0) > 0:
        return {}
    return {
        (record["ids"][0], record["turn"]): record["token_ids"][0]
        for record in bundle.requests
        if record["side"] == PLAIN and record.get("token_ids")
    }
