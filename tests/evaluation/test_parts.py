"""An experiment of several runs: what becomes of it, and what is typed beside it."""

from __future__ import annotations

import pytest
from running import QUICK

from mmspec.cli import main
from mmspec.errors import MMSpecError
from mmspec.evaluation.bench import benchmark
from mmspec.evaluation.bundle import Bundle
from mmspec.evaluation.sweep import Sweep, parts_of


@pytest.fixture
def configs(tmp_path):
    folder = tmp_path / "own" / "experiment"
    folder.mkdir(parents=True)
    for name, parts in (
        ("twice", "{greedy: sampling=greedy, drawn: sampling=sampled sampling.temperature=0.5}"),
        ("wrong", "{greedy: 3}"),
        ("other", "{one: experiment=twice, two: sampling=sampled}"),
    ):
        methods = "methods:\n  short: drafter=ngram drafter.length=2\n"
        (folder / f"{name}.yaml").write_text(f"# @package _global_\n# several runs\nparts: {parts}\n{methods}")
    return str(folder.parent)


def test_each_part_is_a_run_with_what_was_typed():
    parts = parts_of(["experiment=design_card", "task=scenes", "repeats=1"])
    assert list(parts) == ["greedy", "sampled"]
    assert parts["sampled"] == [
        "experiment=design_card", "sampling=sampled", "task=scenes", "repeats=1", "parts=null"
    ]  # fmt: skip


def test_parts_that_say_otherwise_are_left_out():
    assert list(parts_of(["experiment=full", "dtype=bfloat16"])) == ["bfloat16"]
    assert list(parts_of(["experiment=full", "sampling=sampled"])) == ["sampled", "design_card_sampled"]
    assert parts_of(["experiment=full", "dtype=bfloat16"])["bfloat16"][0] == "experiment=embedded"


def test_a_single_run_has_no_parts():
    assert parts_of([]) == parts_of(["drafter=eagle"]) == parts_of(["experiment=design_card", "parts=null"]) == {}


def test_nothing_left_and_no_overrides_are_refused(configs):
    with pytest.raises(MMSpecError, match=r"no part goes with .*dtype=float16.* The parts are float32: experiment="):
        parts_of(["experiment=full", "dtype=float16"])
    with pytest.raises(MMSpecError, match=r"part 'greedy' is '3': it must be overrides, such as"):
        parts_of(["experiment=wrong"], configs)
    with pytest.raises(MMSpecError, match=r"several runs \(greedy, sampled\), and here there can be one"):
        benchmark(["experiment=design_card"])


@pytest.mark.slow
def test_the_command_runs_all_parts_and_reports_each(tmp_path, configs, capsys):
    folder, page = tmp_path / "b", tmp_path / "page.md"
    typed = ["bench", "experiment=twice", "--config-dir", configs, "task=scenes", *QUICK, "--output", str(folder)]
    assert main(typed) == 0
    shown = capsys.readouterr().out
    assert shown.count("bundle: ") == 2 and "temperature 0.5" in shown
    bundles = Sweep.open(folder).bundles
    assert [bundle.name for bundle in bundles] == ["greedy", "drawn"]
    assert [Bundle.open(bundle).manifest["sampling"]["temperature"] for bundle in bundles] == [0.0, 0.5]
    assert main(typed) == 0, "the same command again has nothing left to do"
    page.write_text("before\n\n<!-- mmspec report drawn: begin --><!-- mmspec report drawn: end -->\n\nafter\n")
    assert main(["report", str(folder), "--into", str(page)]) == 0
    text = page.read_text()
    assert text.index("before") < text.index("report drawn: begin") < text.index("after")
    assert text.index("after") < text.index("report greedy: begin"), "a section that was not there goes to the end"
    assert (tmp_path / "page" / "drawn" / "speedup.png").exists()
    assert main(["report", str(folder), "--output", str(tmp_path / "out")]) == 0
    assert (tmp_path / "out" / "greedy" / "table.md").exists()


def test_parts_may_be_other_experiments_but_have_no_parts_of_their_own(configs):
    parts = parts_of(["experiment=other", "limit=2"], configs)
    assert parts["one"] == ["experiment=twice", "limit=2", "parts=null"]
    assert parts["two"] == ["experiment=other", "sampling=sampled", "limit=2", "parts=null"]
