"""What a reader sees: Markdown, CSV, the terminal."""

from __future__ import annotations

import csv
import io
import re

import pytest
from bundles import eagle3, lookup, plain, write_bundle

from mmspec.evaluation import report
from mmspec.evaluation.sheets import as_text

pytestmark = pytest.mark.product

TASKS = ("scenes", "charts", "documents", "questions")


def made(tmp_path, sides=None, **changes):
    sides = sides or [plain(), eagle3(), lookup(budget=5)]
    return report(write_bundle(tmp_path / "bundle", sides, {task: [9, 17] for task in TASKS}, **changes))


def test_markdown_rows(tmp_path):
    lines = made(tmp_path).table().markdown().splitlines()
    head, rule, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[:5]]
    assert head[:7] == ["method", "drafted nodes per pass (limit)", *TASKS, "mean (95 % interval)"]
    assert [bool(re.fullmatch("-+:", cell)) for cell in rule] == [False, *[True] * (len(rule) - 2), False]
    assert rows[0] == ["plain", "0", *["1.00"] * 9, "0.00", "-"]
    assert rows[1][:7] == ["eagle3 chain", "4.0 (4)", "1.75", "1.75", "1.75", "1.75", "1.75 (1.69-1.79)"]
    assert rows[1][7:] == ["1.75", "2.00", "2.00", "2.00", "1.00", "8/8"]
    assert rows[2][:2] == ["transformers lookup", "(5)"] and lines[5] == "" and lines[6].startswith("- Speed-ups are")


def test_of_a_server_that_drafts_the_nodes_are_shown_though_no_drafter_is_here(tmp_path):
    served = eagle3(label="served", drafter=None, tree=None, budget=None)
    sides = [plain(), served, plain(label="a server that does not", budget=None)]
    assert [row[1] for row in made(tmp_path, sides).table().cells()[1]] == ["0", "4.0", "0"]


def test_what_is_shown_where_there_is_something_to_show(tmp_path):
    tie = {"row": 0, "position": 7, "margin": 0.001, "tie": True, "token": 1, "plain": 2}
    ties = {"charts/test/0": [tie], "scenes/test/0": [tie], "scenes/test/1": [tie | {"tie": False}]}
    sides = [plain(), eagle3(label="a|b", repeat_factors=[1.0, 2.0], divergences=ties)]
    table = made(tmp_path, sides, repeats=2).table()
    headings, rows = table.cells()
    assert rows[1][headings.index("single repeats")] == "1.00-1.75"
    assert rows[1][-1] == "5/8, 2 near-ties"
    assert r"| a\|b " in table.markdown(), "a pipe in a name stays in its cell"


def test_notes_say_where_and_how(tmp_path):
    skipped = [{"id": "charts/test/9", "reason": "the file is no picture"}]
    sides = [plain(), eagle3(), eagle3(label="wide", budget=16, lossless=False)]
    notes = "\n".join(made(tmp_path, sides, skipped=skipped, repeats=2).table().notes)
    for part in (
        "over plain in the same process",
        "a processor (2 of 2 threads)",
        "target tiny in float32, 8 prompts x 2 repeats, greedy, at most 128 new tokens",
        "mmspec 0.1.0 (0123456), torch 2.13.0, transformers 5.23.0",
        "Budgets are NOT equal: the methods may draft from 4 to 16 nodes per pass",
        "1 prompt was left out",
        "charts/test/9: the file is no picture",
        "Not lossless, so its text may differ by design: wide.",
    ):
        assert part in notes


def test_notes_of_equal_budgets_and_of_answers_that_changed(tmp_path):
    folder = write_bundle(tmp_path / "b", [plain(), eagle3()], {"scenes": [9]}, repeats=2)
    path = folder / "requests.jsonl"
    *lines, last = path.read_text().splitlines()
    path.write_text("\n".join([*lines, last.replace("{", '{"repeatable": false, ', 1)]) + "\n")
    notes = report(folder).table().notes
    assert "All methods may draft up to 4 nodes per pass." in notes
    assert "not the same in every repeat: eagle3 chain (1)" in "\n".join(notes)


def test_csv_has_a_line_per_method_and_task(tmp_path):
    read = list(csv.DictReader(io.StringIO(made(tmp_path).table().csv())))
    lines = {(line["method"], line["task"]): line for line in read}
    assert len(lines) == len(read) == 3 * (len(TASKS) + 2)
    mean, line = lines["transformers lookup", "mean"], lines["eagle3 chain", "charts"]
    assert float(mean["pooled_acceptance_length"]) == 26 / 14 and float(mean["behind"]) > 0 and mean["behind_low"]
    assert float(line["speedup"]) == 1.75 and float(line["round_draft_seconds"]) == 0.125
    assert line["acceptance_rate_per_position"] == "0.5 0.5 0"
    assert line["acceptance_histogram"] == "0:6 2:6"
    assert (line["dtype"], line["temperature"], line["exact_compared"]) == ("float32", "0.0", "2")


def test_the_terminal_cuts_no_name_and_keeps_to_its_width(tmp_path):
    long = "draft_model with a name of 漢字, dynamic tree"
    table = made(tmp_path, [plain(), eagle3(), eagle3(label=long)]).table()
    for width in (200, 120, 100):
        shown = as_text(table, width)
        assert all(len(line) <= width for line in shown.splitlines())
        assert all(part in shown for part in (long, "1.75 (1.69-1.79)", *TASKS))
    assert all(len(line) <= 40 for line in as_text(table, 40).splitlines())
    assert "by task" in as_text(table, 100) and "by task" not in as_text(table, 200), "tasks stand beside what fits"


def test_mixed_rows_say_what_sets_them_apart(tmp_path):
    write_bundle(tmp_path / "a", [plain(), eagle3()], {"scenes": [9]})
    target = {"name": "other", "class": "Llava", "dtype": "bfloat16", "fingerprint": "f" * 16}
    write_bundle(tmp_path / "b", [plain(), eagle3()], {"charts": [9]}, target=target)
    table = report(tmp_path, mixed=True).table()
    headings, rows = table.cells()
    assert headings[:2] == ["method", "measured on"]
    assert [row[:2] for row in rows[::2]] == [["plain", "tiny, float32"], ["plain", "other, bfloat16"]]
    # Each group has its own tasks; what it has not is a gap, and its mean is over what it has.
    assert rows[1][3:5] == ["1.67", "-"] and rows[1][5] == "1.67"
    assert "other, bfloat16" in str(table)
