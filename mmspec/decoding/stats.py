"""Records of what happened, round by round, and the metrics derived from them.

The names and meanings are vLLM's; where the literature has synonyms, the docstrings say which definition this is.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from .clock import PROMPT_PHASES


@dataclass
class Round:
    """One round of one batch. Lists have an entry per row; a row that had finished before has 0 in all of them.

    Args:
        drafted: nodes that the drafter proposed (the root not counted).
        accepted: drafted tokens that were emitted.
        emitted: tokens emitted: accepted ones and the bonus, cut at an end token or the length limit.
        depth: levels of the tree.
        seconds: time by phase.
        unusable: guesses that came from logits which are no distribution, see `DraftTree.unusable`.
        settled: True if the target was not asked, see `Verifier.skim`.
        anticipated: seconds for which the drafter worked on what was to come after this round's draft
            (`Drafter.anticipate`). Beside the target's pass they are part of no phase; in turn with it, of `draft`.
        in_turn: True if the two sides took turns, see `Drafter.in_turn`.
        drafted_ahead: per row, how many of the drafted nodes were there before the round began, see
            `DraftTree.drafted_ahead`; empty where none were.
    """

    drafted: list[int]
    accepted: list[int]
    emitted: list[int]
    depth: int
    seconds: dict[str, float] = field(default_factory=dict)
    unusable: list[int] = field(default_factory=list)
    settled: bool = False
    anticipated: float = 0.0
    in_turn: bool = False
    drafted_ahead: list[int] = field(default_factory=list)


@dataclass
class Stats:
    """The records of one call of `generate`.

    Without a round (the prompt's pass gives the first token, and `max_new_tokens=1` ends there) the metrics have the
    values that decoding without drafts has: an acceptance length of 1, rates and counts of 0.

    Args:
        rounds: one record per round.
        prompt_tokens: tokens of the prompt per row, visual tokens included.
        new_tokens: new tokens per row, the first token (which the prefill pass gives) and the end token included.
        seconds: time by phase over the whole call; its values add up to `total_seconds`. On a GPU they are complete
            when the call is, see `mmspec.decoding.clock`.
        lossless: True if the verifier keeps the target's distribution.
        cache_bytes: bytes of the keys and values of the prompt, as they are before the first round, of the `target` and
            of the `drafter`. A drafter that is a part of the target may read the target's own.
        prompt_anticipated: seconds for which the drafter worked while, or right after, the target read the prompt
            (`Drafter.anticipate_prompt`).
    """

    rounds: list[Round] = field(default_factory=list)
    prompt_tokens: list[int] = field(default_factory=list)
    new_tokens: list[int] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    lossless: bool = True
    cache_bytes: dict[str, int] = field(default_factory=dict)
    prompt_anticipated: float = 0.0

    def _per_row_rounds(self) -> list[tuple[int, int, int, int]]:
        """Return (drafted, accepted, emitted, depth) of every row in every round in which it was active and the target
        was asked."""
        return [
            (drafted, accepted, emitted, record.depth)
            for record in self.rounds
            if not record.settled
            for drafted, accepted, emitted in zip(record.drafted, record.accepted, record.emitted, strict=True)
            if emitted
        ]

    @property
    def num_spec_steps(self) -> int:
        """Verifications, counted per row: the target passes after the prefill."""
        return len(self._per_row_rounds())

    @property
    def num_draft_tokens(self) -> int:
        """Drafted nodes submitted to the target."""
        return sum(drafted for drafted, *_ in self._per_row_rounds())

    @property
    def num_accepted_draft_tokens(self) -> int:
        """Drafted tokens that were emitted."""
        return sum(accepted for _, accepted, *_ in self._per_row_rounds())

    @property
    def unusable_guesses(self) -> int:
        """Guesses made from logits that are no distribution (NaN, +inf, or nothing but -inf), or below such a guess.

        More than 0 says that the drafter is broken, or overflows in this dtype. It costs speed; the text stays the
        target's. Guesses that the builder then cut from the tree count too.
        """
        return sum(sum(record.unusable) for record in self.rounds)

    @property
    def mean_acceptance_length(self) -> float:
        """Tau: tokens emitted per target pass, bonus included: 1 without drafts, never less. The prefill is not one.
        Tokens of rounds that were settled without the target count, and their rounds are no passes."""
        return _ratio(sum(sum(record.emitted) for record in self.rounds), self.num_spec_steps, nothing=1.0)

    @property
    def num_unverified_tokens(self) -> int:
        """Tokens of rounds that were settled without the target (`Verifier.skim`)."""
        return sum(sum(record.emitted) for record in self.rounds if record.settled)

    @property
    def origin(self) -> str:
        """The number of tokens that came in each kind of pass, in words; see `tokens_by_origin`."""
        return tokens_by_origin(sum(self.new_tokens), self.num_spec_steps, len(self.new_tokens))

    @property
    def mean_accepted_draft_tokens(self) -> float:
        """Accepted drafted tokens per target pass, bonus excluded."""
        return _ratio(self.num_accepted_draft_tokens, self.num_spec_steps)

    @property
    def mean_levels(self) -> float:
        """Depth of the trees per target pass."""
        return _ratio(sum(depth for *_, depth in self._per_row_rounds()), self.num_spec_steps)

    @property
    def draft_acceptance_rate(self) -> float:
        """Accepted share of all drafted nodes; low by nature for trees, of which one path is kept."""
        return _ratio(self.num_accepted_draft_tokens, self.num_draft_tokens)

    @property
    def acceptance_rate_per_position(self) -> list[float]:
        """Entry i: share of the target passes that accepted at least i + 1 drafted tokens."""
        steps = self._per_row_rounds()
        deepest = max((depth for *_, depth in steps), default=0)
        return [_ratio(sum(accepted > i for _, accepted, *_ in steps), len(steps)) for i in range(deepest)]

    @property
    def acceptance_histogram(self) -> dict[int, int]:
        """Accepted drafted tokens to the number of target passes that accepted as many."""
        return dict(sorted(Counter(accepted for _, accepted, *_ in self._per_row_rounds()).items()))

    @property
    def total_seconds(self) -> float:
        """Seconds of the whole call."""
        return sum(self.seconds.values())

    @property
    def decode_seconds(self) -> float:
        """Time after the prompt was read."""
        return self.total_seconds - sum(self.seconds.get(phase, 0.0) for phase in PROMPT_PHASES)

    @property
    def tokens_per_second(self) -> float:
        """New tokens of all rows per second of decoding, the prompt's time and its token not counted: 0 if there was
        no other."""
        return _ratio(sum(self.new_tokens) - len(self.new_tokens), self.decode_seconds)

    @property
    def tokens_per_second_end_to_end(self) -> float:
        """New tokens of all rows per second, vision and prefill included."""
        return _ratio(sum(self.new_tokens), self.total_seconds)

    @property
    def windows_ahead(self) -> int:
        """Drafts that were there before their round began, counted per row: written while the target judged the draft
        before, or read the prompt."""
        return sum(count > 0 for record in self.rounds for count in record.drafted_ahead)

    @property
    def projected_decode_seconds(self) -> float | None:
        """`decode_seconds`, had the two sides worked side by side on devices of their own: in every round the longer
        of both counts, `max(draft, score)`. A projection, and None unless the sides have taken turns
        (`Drafter.in_turn`): beside each other they have worked as fast as they do."""
        turns = [record for record in self.rounds if record.in_turn and record.anticipated]
        if not turns:
            return None
        return self.decode_seconds - sum(min(one.anticipated, one.seconds.get("score", 0.0)) for one in turns)

    @property
    def projected_tokens_per_second(self) -> float | None:
        """`tokens_per_second`, had the two sides worked side by side, see `projected_decode_seconds`."""
        seconds = self.projected_decode_seconds
        return None if seconds is None else _ratio(sum(self.new_tokens) - len(self.new_tokens), seconds)

    def summary(self) -> dict:
        """Return the figures as plain JSON values. Those that are projected are there if they can be."""
        names = (
            "num_spec_steps",
            "num_draft_tokens",
            "num_accepted_draft_tokens",
            "num_unverified_tokens",
            "unusable_guesses",
            "mean_acceptance_length",
            "mean_accepted_draft_tokens",
            "draft_acceptance_rate",
            "acceptance_rate_per_position",
            "tokens_per_second",
            "tokens_per_second_end_to_end",
            "total_seconds",
            "decode_seconds",
        )
        return {
            "rounds": len(self.rounds),
            "prompt_tokens": self.prompt_tokens,
            "new_tokens": self.new_tokens,
            "lossless": self.lossless,
            **{name: getattr(self, name) for name in names},
            **self._of_both_sides(),
            "acceptance_histogram": {str(k): v for k, v in self.acceptance_histogram.items()},
            "seconds": dict(self.seconds),
        }

    def _of_both_sides(self) -> dict[str, float]:
        """Return the figures of a drafter that works beside its target; nothing of others."""
        if not any(record.anticipated for record in self.rounds):
            return {}
        names = "windows_ahead", "projected_decode_seconds", "projected_tokens_per_second"
        return {name: value for name in names if (value := getattr(self, name)) is not None}


def tokens_by_origin(tokens: int, rounds: int, rows: int = 1) -> str:
    """Say which tokens came in which passes, so that the numbers add up and multiply for a reader.

    `"127 tokens = 1 from the prompt + 5.73 tokens per pass x 22 passes"`: the words are those of `docs/metrics.md`.

    Args:
        tokens: number of new tokens of all rows, the first token of each among them.
        rounds: number of rounds, those of all rows added up; the prompt's pass is none.
        rows: number of rows that have begun; the prompt's pass gave each its first token.
    """
    said = f"{tokens} token{'' if tokens == 1 else 's'} = {rows} from the prompt"
    if not rounds:
        return said
    passes = f"{rounds} pass{'' if rounds == 1 else 'es'}"
    return f"{said} + {(tokens - rows) / rounds:.2f} tokens per pass x {passes}"


def speed_in_words(tokens_per_second: float) -> str:
    """Return `"48.2 tokens/s, decoding"`, or that there is none where 0 stands for one that could not be measured."""
    return f"{tokens_per_second:.1f} tokens/s, decoding" if tokens_per_second else "tokens/s, decoding: n/a"


def _ratio(a: float, b: float, nothing: float = 0.0) -> float:
    """Return the quotient, or `nothing` where there was nothing to divide by: JSON has no nan."""
    return a / b if b else nothing
