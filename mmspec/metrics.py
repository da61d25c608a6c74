"""Names of all figures as people read them; `docs/metrics.md` defines each figure.

One figure has one name in code (`out.stats`, `table.csv`, `report.json`, `json=true`) and one in words (tables, plots,
the demo, the line under an answer). Two figures never share a name: the name says whether a figure is timed end to end
or without the prompt.
"""

from __future__ import annotations

SHOWN = {
    "mean_acceptance_length": "tokens per pass",
    "mean_accepted_draft_tokens": "accepted drafts per pass",
    "pooled_acceptance_length": "tokens per pass, pooled",
    "num_spec_steps": "passes",
    "num_unverified_tokens": "tokens without verification",
    "unusable_guesses": "unusable guesses",
    "new_tokens": "tokens",
    "nodes": "drafted nodes per pass",
    "levels": "levels per pass",
    "acceptance_rate_per_position": "acceptance by position",
    "speedup": "speed-up, end to end",
    "speedup_geometric": "speed-up, geometric mean",
    "speedup_decode": "speed-up, decoding",
    "tokens_per_second": "tokens/s, decoding",
    "tokens_per_second_end_to_end": "tokens/s, end to end",
    "ttft": "time to first token",
    "draft_cost": "draft cost",
    "accuracy": "accuracy",
    "similarity": "similarity to plain",
    "limit": "limit",
    "share": "share of limit",
    "no_overhead": "without overhead",
    "cheap_scoring": "scoring as cheap as a step",
    "free_drafting": "free drafting",
    "perfect_acceptance": "perfect acceptance",
}
"""Names in code with their names in words."""

SPEEDUPS = {"tokens_per_second": "speedup_decode", "tokens_per_second_end_to_end": "speedup"}
"""Names in code of each speed, with the name of its ratio to plain decoding."""
