"""Figures of synthetic bundles, against numbers worked out by hand."""

from __future__ import annotations

import pandas as pd
import pytest
from bundles import PLAIN_PASS, eagle3, lookup, plain, write_bundle

from mmspec.evaluation import report
from mmspec.evaluation.figures import RESAMPLES, conditional_acceptance_rate, draws, geometric_mean

pytestmark = pytest.mark.product

# An answer of n tokens takes plain decoding 1 + (n - 1) / 2 seconds. eagle3 emits 3, 1, 3, 1, ... tokens in rounds of
# PLAIN_PASS, so 9 tokens are 1 + 8, in four rounds: 3 seconds instead of 5.
PROMPTS = {"scenes": [9, 17], "charts": [5, 5]}


@pytest.fixture
def rows(tmp_path):
    folder = write_bundle(tmp_path / "bundle", [plain(), eagle3(), lookup()], PROMPTS)
    return {row.method: row for row in report(folder).rows}


def test_plain_decoding_is_one(rows):
    row = rows["plain"]
    assert row.baseline
    for figures in (*row.tasks.values(), row.overall, row.mean):
        assert figures.speedup.value == figures.speedup_decode.value == figures.speedup_per_prompt == 1
        assert figures.mean_acceptance_length.value == 1
        assert figures.mean_accepted_draft_tokens.value == 0
    assert row.overall.tokens_per_second == 1 / PLAIN_PASS
    assert row.overall.nodes == row.overall.draft_cost == 0
    assert row.overall.exact.compared == 0  # it is what the others are compared with


def test_speedups_are_pooled_and_per_prompt(rows):
    scenes = rows["eagle3 chain"].tasks["scenes"]
    # 5 + 9 seconds against 3 + 5
    assert scenes.speedup.value == 14 / 8
    assert scenes.speedup_per_prompt == pytest.approx((5 / 3 + 9 / 5) / 2)
    assert scenes.speedup_decode.value == scenes.speedup_decode_per_prompt == 2
    assert scenes.tokens_per_second_end_to_end == 26 / 8
    assert scenes.tokens_per_second == 24 / 6
    assert scenes.ttft == 1
    assert (scenes.requests, scenes.prompts, scenes.repeats, scenes.tokens) == (2, 2, 1, 26)


def test_over_tasks_there_is_a_mean_and_a_pool(rows):
    row = rows["eagle3 chain"]
    assert row.tasks["charts"].speedup.value == 3 / 2  # 3 seconds against 2, twice
    assert row.mean.speedup.value == (14 / 8 + 3 / 2) / 2
    assert row.overall.speedup.value == (14 + 6) / (8 + 4)
    assert row.mean.speedup_per_prompt == pytest.approx(((5 / 3 + 9 / 5) / 2 + 3 / 2) / 2)
    assert row.overall.speedup_per_prompt == pytest.approx((5 / 3 + 9 / 5 + 3 / 2 + 3 / 2) / 4)


def test_geometric_means_are_of_tasks_and_of_requests(rows):
    row = rows["eagle3 chain"]
    scenes = row.tasks["scenes"]
    assert scenes.speedup_geometric == scenes.speedup and row.overall.speedup_geometric == row.overall.speedup
    assert scenes.speedup_per_prompt_geometric == pytest.approx((5 / 3 * 9 / 5) ** 0.5)
    assert row.mean.speedup_geometric.value == pytest.approx((14 / 8 * 3 / 2) ** 0.5)
    assert row.mean.speedup_per_prompt_geometric == pytest.approx(((5 / 3 * 9 / 5) ** 0.5 * 3 / 2) ** 0.5)
    mean = row.mean.speedup_geometric
    assert (mean.low, mean.high) == pytest.approx(((5 / 3 * 1.5) ** 0.5, (9 / 5 * 1.5) ** 0.5))
    assert geometric_mean([4.0, 9.0]) == 6 and geometric_mean([4.0, 0.0]) == 0


def test_pooled_acceptance_counts_every_round_alike(tmp_path):
    folder = write_bundle(tmp_path / "bundle", [plain(), eagle3(accepted=[2])], {"scenes": [10, 10], "charts": [2]})
    row = report(folder).rows[1]
    # 9 tokens in 3 rounds, twice, and 1 token in 1
    assert row.mean.pooled_acceptance_length.value == 19 / 7
    assert row.mean.mean_acceptance_length.value == (3 + 1) / 2


def test_methods_are_compared_on_the_same_draws(tmp_path):
    # 4 tokens: 2.5 seconds against 1.5 and 1.9375; 33 tokens: 17 against 9 and 8.5.
    first, second = eagle3(), eagle3(label="other", accepted=[0, 2], pass_seconds=0.46875)
    best, other = report(write_bundle(tmp_path / "close", [plain(), first, second], {"scenes": [4, 33]})).rows[1:]
    assert (best.method, best.behind, other.method) == ("other", None, "eagle3 chain")
    assert other.behind.value == 19.5 / 10.4375 - 19.5 / 10.5
    assert (other.behind.low, other.behind.high) == (2.5 / 1.9375 - 2.5 / 1.5, 17 / 8.5 - 17 / 9)


def test_a_method_that_is_always_slower_is_told_apart_though_the_intervals_overlap(tmp_path):
    slower = eagle3(label="slower", pass_seconds=0.53125)
    made = report(write_bundle(tmp_path / "apart", [plain(), eagle3(), slower], {"scenes": [4, 9, 33, 65]}))
    fast, slow = (row.mean.speedup for row in made.rows[1:])
    assert fast.low < slow.high, "an unpaired comparison would see nothing"
    assert made.rows[2].behind.low > 0
    assert "eagle3 chain is faster than every other method at 95 %" in "\n".join(made.table().notes)


def test_only_shared_requests_are_compared(tmp_path):
    write_bundle(tmp_path / "a", [plain(), eagle3()], {"scenes": [4, 33]})
    write_bundle(tmp_path / "b", [plain(), eagle3(label="other", pass_seconds=1.0)], {"scenes": [4]})
    behind = report(tmp_path).rows[2].behind
    assert (behind.value, behind.low) == (2.5 / 1.5 - 2.5 / 2, None)
    write_bundle(tmp_path / "c", [plain(), eagle3(label="third", pass_seconds=2.0)], {"charts": [4]})
    assert [row.behind for row in report(tmp_path).rows] == [None] * 4, "no method answered every task"


def test_the_control_stands_behind_plain_decoding_and_is_no_method(tmp_path):
    tie = {"row": 0, "position": 7, "margin": 0.001, "tie": True, "token": 1, "plain": 2}
    again = plain(label="plain again", control=True, divergences={"scenes/test/0": [tie]}, pass_seconds=0.25)
    made = report(write_bundle(tmp_path / "bundle", [plain(), eagle3(), again], {"scenes": [9, 9, 9]}))
    assert [row.method for row in made.rows] == ["plain", "plain again", "eagle3 chain"]
    assert made.rows[2].behind is None, "it is the fastest: the control does not compete"
    notes = "\n".join(made.table().notes)
    assert "plain again: plain decoding run against itself gave the same text in 2 of 3 answers" in notes
    assert made.table().cells()[1][1][-1] == "2/3, 1 near-tie"
    assert [row.method for row, _ in made.limits().limits] == ["eagle3 chain"]


def test_counts_of_drafts(rows):
    scenes = rows["eagle3 chain"].tasks["scenes"]
    # 4 + 8 rounds with 2, 0, 2, 0, ... accepted of four nodes
    assert scenes.mean_acceptance_length.value == 2
    assert scenes.mean_accepted_draft_tokens.value == 1
    assert scenes.draft_acceptance_rate == 12 / 48
    assert scenes.acceptance_rate_per_position == [0.5, 0.5, 0]
    assert scenes.conditional_acceptance_rate == [0.5, 1, 0]
    assert scenes.acceptance_histogram == {0: 6, 2: 6}
    assert (scenes.nodes, scenes.nodes_max, scenes.budget) == (4, 4, 4)


def test_time_of_a_round_and_cost_of_drafting(rows):
    scenes = rows["eagle3 chain"].tasks["scenes"]
    assert scenes.round_seconds == {"draft": PLAIN_PASS / 4, "score": PLAIN_PASS / 2, "observe": PLAIN_PASS / 4}
    assert scenes.draft_cost == 0.5
    assert scenes.unaccounted == 0


def test_what_transformers_reports_is_enough_for_lengths(rows):
    scenes = rows["transformers lookup"].tasks["scenes"]
    # 9 tokens in 5 passes and 17 in 9, the prompt's among them
    assert scenes.mean_acceptance_length.value == 26 / 14
    assert scenes.mean_accepted_draft_tokens.value == 12 / 14
    # The prompt's pass gives two tokens, which are not decoding's: 7 in 2.5 seconds and 15 in 4.5.
    assert scenes.speedup_decode.value == (22 / 7) / (24 / 12)
    assert scenes.nodes is None and scenes.draft_cost is None and scenes.round_seconds == {}


def test_baseline_of_transformers_does_not_count_the_prompts_pass(tmp_path):
    base = plain(label="generate", engine="transformers")
    folder = write_bundle(tmp_path / "bundle", [base, plain(), eagle3()], {"scenes": [9]})
    (row,) = [row for row in report(folder, baseline="generate").rows if row.method == "eagle3 chain"]
    # 9 passes in 4.5 seconds after a second for the prompt; of the passes 8 are decoding's.
    assert row.overall.draft_cost == PLAIN_PASS / 2 / (4.5 / 8)


def test_times_are_medians_over_repeats_and_the_spread_is_of_single_ones(tmp_path):
    slow = eagle3(repeat_factors=[1.0, 2.0, 0.5])
    folder = write_bundle(tmp_path / "bundle", [plain(), slow], PROMPTS, repeats=3)
    row = report(folder).rows[1]
    scenes = row.tasks["scenes"]
    assert scenes.speedup.value == 14 / 8 and scenes.repeats == 3
    assert scenes.spread == (14 / 14, 14 / 5)
    assert scenes.spread_decode == (1, 4)
    assert row.mean.spread == ((1 + 6 / 6) / 2, (14 / 5 + 6 / 3) / 2)
    assert row.overall.spread == (20 / 20, 20 / 8)


def test_intervals_come_from_the_prompts(rows):
    scenes = rows["eagle3 chain"].tasks["scenes"].speedup
    # Two prompts: a resample is the first twice (1/4), the second twice (1/4) or both.
    assert (scenes.low, scenes.high) == (5 / 3, 9 / 5)
    charts = rows["eagle3 chain"].tasks["charts"].speedup
    assert (charts.low, charts.high) == (1.5, 1.5)
    mean = rows["eagle3 chain"].mean.speedup
    assert (mean.low, mean.high) == pytest.approx(((5 / 3 + 1.5) / 2, (9 / 5 + 1.5) / 2))


def test_resamples_draw_as_many_prompts_and_every_task_for_itself():
    scenes, charts = (draws(3, task) for task in ("scenes", "charts"))
    assert scenes.shape == (1 + RESAMPLES, 3)
    assert scenes[0].tolist() == [1, 1, 1] and (scenes.sum(1) == 3).all()
    # Tasks drawn alike would go wrong together, and the interval of their mean would be too wide.
    assert (scenes != charts).any()


@pytest.mark.parametrize("turns", [1, 3])
def test_a_single_prompt_has_no_interval_and_its_turns_are_drawn_together(tmp_path, turns):
    row = report(write_bundle(tmp_path / "bundle", [plain(), eagle3()], {"scenes": [9]}, turns=turns)).rows[1]
    assert (row.mean.speedup.low, row.mean.speedup.high, row.mean.spread) == (None, None, None)
    assert row.overall.requests == turns and row.overall.speedup.low is None


def test_the_same_bundle_gives_the_same_intervals(tmp_path):
    folder = write_bundle(tmp_path / "bundle", [plain(), eagle3()], {"scenes": [9, 30, 31, 64, 5]})
    assert report(folder).rows == report(folder).rows


def test_time_that_no_phase_explains(tmp_path):
    folder = write_bundle(tmp_path / "bundle", [plain(), eagle3()], {"scenes": [9]})
    path = folder / "requests.jsonl"
    path.write_text(path.read_text().replace('"wall": 3.0', '"wall": 4.0'))
    row = report(folder).rows[1]
    assert row.overall.unaccounted == 0.25
    assert row.overall.speedup.value == 5 / 4


def test_an_answer_of_one_token_has_nothing_to_decode(tmp_path):
    row = report(write_bundle(tmp_path / "bundle", [plain(), eagle3()], {"scenes": [1]})).rows[1]
    assert row.overall.speedup.value == row.overall.speedup_decode.value == row.overall.speedup_decode_per_prompt == 1
    assert row.overall.mean_acceptance_length.value == 1
    assert row.overall.nodes is None


def test_exactness(tmp_path):
    tie = {"row": 0, "position": 7, "margin": 0.001, "tie": True, "token": 1, "plain": 2}
    wrong = {"row": 0, "position": 3, "margin": 2.5, "tie": False, "token": 1, "plain": 2}
    side = eagle3(divergences={"scenes/test/0": [tie], "scenes/test/2": [wrong]})
    folder = write_bundle(tmp_path / "bundle", [plain(), side], {"scenes": [9, 9, 9, 9]})
    exact = report(folder).rows[1].overall.exact
    assert (exact.compared, exact.same, exact.near_ties, exact.changed) == (4, 2, 1, 0)
    assert exact.first == {"ids": ["scenes/test/2"]} | wrong


def test_conditional_rate_only_asks_passes_whose_tree_was_deep_enough():
    passes = pd.DataFrame({"accepted": [1, 2, 0], "depth": [1, 2, 2]})
    assert conditional_acceptance_rate(passes) == [2 / 3, 1]
