"""All figures: their names in code and in words, and which sums each ratio is made of; `docs/metrics.md` defines them.

One figure has one name in code (`out.stats`, `table.csv`, `report.json`, `json=true`) and one in words (tables, plots,
the demo, the line under an answer). Two figures never share a name: the name says whether a figure is timed end to end
or without the prompt.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Metric:
    """One figure.

    Args:
        title: its name in words; empty for one that is in files only.
        over, under: columns of `mmspec.evaluation.frame`; the figure is the product of the sums of `over` divided by
            the product of the sums of `under`. Empty for a figure that is no ratio of sums.
        nothing: its value where there is nothing to divide by; None if it is unknown there.
    """

    title: str
    over: tuple[str, ...] = ()
    under: tuple[str, ...] = ()
    nothing: float | None = 0.0


METRICS = {
    "mean_acceptance_length": Metric("tokens per pass", ("emitted",), ("steps",), nothing=1.0),
    "mean_accepted_draft_tokens": Metric("accepted drafts per pass", ("accepted",), ("steps",)),
    "pooled_acceptance_length": Metric("tokens per pass, pooled"),
    "num_spec_steps": Metric("passes"),
    "num_unverified_tokens": Metric("tokens without verification"),
    "unusable_guesses": Metric("unusable guesses"),
    "new_tokens": Metric("tokens"),
    "nodes": Metric("drafted nodes per pass", ("drafted",), ("known_steps",), nothing=None),
    "levels": Metric("levels per pass", ("levels",), ("known_steps",), nothing=None),
    "acceptance_rate_per_position": Metric("acceptance by position"),
    "speedup": Metric("speed-up, end to end", ("tokens", "plain_seconds"), ("seconds", "plain_tokens")),
    "speedup_geometric": Metric("speed-up, geometric mean"),
    "speedup_decode": Metric(
        "speed-up, decoding",
        ("decode_tokens", "plain_decode_seconds"),
        ("decode_seconds", "plain_decode_tokens"),
        nothing=1.0,
    ),
    "speedup_projected": Metric(
        "speed-up, decoding, projected",
        ("decode_tokens", "plain_decode_seconds"),
        ("projected_seconds", "plain_decode_tokens"),
        nothing=1.0,
    ),
    "tokens_per_second": Metric("tokens/s, decoding", ("decode_tokens",), ("decode_seconds",)),
    "tokens_per_second_end_to_end": Metric("tokens/s, end to end", ("tokens",), ("seconds",)),
    "ttft": Metric("time to first token"),
    "draft_cost": Metric(
        "draft cost", ("draft_seconds", "plain_passes"), ("rounds", "plain_decode_seconds"), nothing=None
    ),
    "accuracy": Metric("accuracy", ("points",), ("points_of",), nothing=None),
    "similarity": Metric("similarity to plain", ("similarity",), ("similarity_of",), nothing=None),
    "limit": Metric("limit"),
    "share": Metric("share of limit"),
    "no_overhead": Metric("without overhead"),
    "cheap_scoring": Metric("scoring as cheap as a step"),
    "free_drafting": Metric("free drafting"),
    "perfect_acceptance": Metric("perfect acceptance"),
}
"""All figures that are shown, by their names in code."""

SHOWN = {name: metric.title for name, metric in METRICS.items()}
"""Names in code with their names in words."""

SPEEDUPS = {"tokens_per_second": "speedup_decode", "tokens_per_second_end_to_end": "speedup"}
"""Names in code of each speed, with the name of its ratio to plain decoding."""
