"""From vLLM's counters to the records of our rounds.

vLLM counts over all requests: drafts, drafted tokens, accepted tokens, and per position the drafts that were accepted
up to there. From these follows how many drafts had so many tokens accepted, which is all that our figures need; the
order of the rounds is not known, and none of our figures asks for it.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping
from typing import Any

from ..decoding.stats import Round


def rounds_of(counts: Mapping[str, Any], emitted: int) -> list[Round]:
    """Return the rounds in which tokens came, as one row.

    Args:
        counts: `drafts`, `drafted`, `accepted` and `per_position` (entry i: drafts of which at least i + 1 tokens were
            accepted); empty of an engine that does not draft.
        emitted: tokens that came after the prompt's pass. Those that no draft accounts for came one a pass. vLLM also
            counts what it accepted beyond an answer's end: such tokens are taken from the longest drafts, because the
            last one is not known.
    """
    drafts, drafted = int(counts.get("drafts") or 0), int(counts.get("drafted") or 0)
    reached = [int(count) for count in counts.get("per_position") or ()]
    accepted = [sum(count > number for count in reached) for number in range(drafts)]
    lengths = [drafted // drafts + (number < drafted % drafts) for number in range(drafts)]
    tokens = [count + 1 for count in accepted]
    longest = [(-count, number) for number, count in enumerate(tokens)]
    heapq.heapify(longest)  # of a batch there are tens of thousands
    for _ in range(sum(tokens) - emitted):
        _, number = longest[0]
        tokens[number] -= 1
        heapq.heapreplace(longest, (-tokens[number], number))
    rounds = [
        Round([length], [min(count, out)], [out], length)
        for length, count, out in zip(lengths, accepted, tokens, strict=True)
        if out
    ]
    return rounds + [Round([0], [0], [1], 0) for _ in range(emitted - sum(tokens))]
