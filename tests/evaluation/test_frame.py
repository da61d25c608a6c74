"""The data frame of a report, against what the table says and numbers worked out by hand."""

from __future__ import annotations

import json

import pytest
from bundles import eagle3, lookup, plain, write_bundle

from mmspec.evaluation import report

PROMPTS = {"scenes": [9, 17], "charts": [5]}


@pytest.fixture
def made(tmp_path):
    tie = {"row": 0, "position": 7, "margin": 0.001, "tie": True, "token": 1, "plain": 2}
    sides = [plain(), eagle3(repeat_factors=[1.0, 2.0, 0.5], divergences={"charts/test/0": [tie]}), lookup()]
    return report(write_bundle(tmp_path / "bundle", sides, PROMPTS, repeats=3))


def test_a_row_is_a_method_a_request_and_a_repeat(made):
    frame = made.frame()
    names = ["method", "task", "request", "turn", "repeat"]
    first = [
        "method",
        "baseline",
        "engine",
        "drafter",
        "tree",
        "lossless",
        "task",
        "request",
        "turn",
        "repeat",
        "seconds",
    ]
    assert list(frame.columns[7:18]) == first and {"side", "answer", "ids"}.isdisjoint(frame.columns)
    assert len(frame) == 3 * 3 * 3 and not frame.duplicated(names).any()
    row = frame.set_index(names).loc["eagle3 chain", "scenes", "scenes/test/0", 0, 1]
    # 9 tokens: one of the prompt's second, eight in four rounds of half a second, twice as slow in this repeat.
    assert (row.seconds, row.decode_seconds, row.ttft, row.plain_seconds) == (5, 4, 1, 5)
    assert (row.tokens, row.decode_tokens, row.steps, row.accepted, row.drafted) == (9, 8, 4, 4, 16)
    assert (row["dtype"], row.temperature, row.drafter, row.same) == ("float32", 0, "eagle3", True)
    assert (row.round_score_seconds, row.known_steps, row.plain_passes) == (2, 4, 8)
    ties = frame[frame.near_ties > 0]
    assert set(ties.request) == {"charts/test/0"} and set(ties.method) == {"eagle3 chain"} and not ties.same.any()


def test_the_tables_figures_follow_from_it(made):
    keys = ["method", "task", "request", "turn"]
    medians = made.frame().groupby(keys).median(numeric_only=True)
    sums = medians.groupby(["method", "task"]).sum()
    speedups = (sums.tokens / sums.seconds) / (sums.plain_tokens / sums.plain_seconds)
    lengths = sums.emitted / sums.steps
    for row in made.rows:
        for task, figures in row.tasks.items():
            assert speedups[row.method, task] == pytest.approx(figures.speedup.value)
            assert lengths[row.method, task] == pytest.approx(figures.mean_acceptance_length.value)


def test_a_row_of_a_batch_that_had_finished_has_no_passes(tmp_path):
    folder = write_bundle(tmp_path / "bundle", [plain(), eagle3()], {"scenes": [9]}, batch=2)
    for name, doubled in (
        ("requests.jsonl", ("ids", "prompt_tokens", "new_tokens", "first_tokens")),
        ("rounds.jsonl", ("drafted", "accepted", "emitted")),
    ):
        records = [json.loads(line) for line in (folder / name).read_text().splitlines()]
        for record in records:
            late = record.get("round", 0) > 1
            record |= {key: record[key] + ([0] if late else record[key]) for key in doubled}
        (folder / name).write_text("".join(json.dumps(record) + "\n" for record in records))
    made = report(folder)
    row = made.frame().set_index("method").loc["eagle3 chain"]
    assert (row["rounds"], row.steps, row.accepted, row.drafted) == (4, 6, 6, 24)
    assert made.rows[1].overall.acceptance_histogram == {0: 3, 2: 3} and made.rows[1].overall.prompts == 2
