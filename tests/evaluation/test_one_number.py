"""One figure, one number, one name: in table, plots, limits and projection, and on the page that defines them."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from bundles import eagle3, lookup, plain, write_bundle

from mmspec import cli
from mmspec.commands.simulate import HEADINGS
from mmspec.decoding.stats import Stats
from mmspec.demo.rendering import FIGURES
from mmspec.errors import MMSpecError
from mmspec.evaluation import report
from mmspec.evaluation.bench import benchmark, prepare_run
from mmspec.evaluation.plots import looks_of, plot_pareto
from mmspec.evaluation.sweep import Sweep
from mmspec.evaluation.table import csv_lines
from mmspec.metrics import METRICS, SHOWN
from mmspec.speed.projection import methods_of

pytestmark = pytest.mark.product

PAGE = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text()
# Two tasks of which the longer answers are the better ones, so that a pool and a mean differ.
PROMPTS = {"scenes": [17, 17, 17], "charts": [4]}
STRUCTURE = {"settings": {"tree": {"length": 3}}}


@pytest.fixture
def made(tmp_path):
    sides = [plain(), eagle3(accepted=[3, 2, 1]), lookup()]
    folder = write_bundle(tmp_path / "b", sides, PROMPTS)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["sides"][1]["drafter_structure"] = {"kind": "head", "layers": 1.0}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return report(folder)


def test_every_figure_over_tasks_is_the_mean_of_the_tasks(made, capsys):
    row = made.rows[1]
    lengths = [figures.mean_acceptance_length.value for figures in row.tasks.values()]
    mean = sum(lengths) / 2
    assert row.mean.mean_acceptance_length.value == mean != row.overall.mean_acceptance_length.value
    headings, rows = made.table().cells()
    assert rows[1][headings.index(SHOWN["mean_acceptance_length"])] == f"{mean:.2f}"
    # The projection, the limits and the plots have the same number.
    (method,) = methods_of(made.rows, {})
    assert (method.tokens, method.nodes, method.passes) == (mean, row.mean.nodes, row.mean.levels)
    folder = made.groups[0].bundles[0].folder
    assert cli.main(["bench", "simulate", str(folder), "models=[7b]", "json=true"]) == 0
    out = capsys.readouterr().out
    assert json.loads(out.splitlines()[-1])["models"]["7b"]["eagle3 chain"]["tokens"] == mean
    headings, rows = made.limits().cells()
    assert rows[0][1] == f"{row.mean.speedup_decode.value:.2f}"
    limits = dict((row.method, one) for row, one in made.limits().limits)["eagle3 chain"]
    assert limits.limit == sum(one.limit for one in limits.tasks.values()) / 2
    points = [line for line in plot_pareto(made.rows, looks_of(made.rows)).axes[0].lines if line.get_marker() == "o"]
    assert points[0].get_ydata()[0] == mean and points[0].get_xdata()[0] == row.mean.draft_cost


def test_repeats_are_those_of_the_methods(tmp_path):
    for number in range(4):  # a sweep: plain decoding is in every bundle, each method in one
        write_bundle(tmp_path / str(number), [plain(), eagle3(label=f"tree {number}")], {"scenes": [9]})
    table = report(tmp_path).table()
    assert "1 prompt x 1 repeat (4 of the baseline)," in table.notes[1] and "repeats" not in table.cells()[0]
    assert "single repeats" not in table.cells()[0] and "single repeats" not in table.notes[0]
    again = write_bundle(tmp_path / "again", [plain(), eagle3()], {"scenes": [9, 9]}, repeats=2)
    assert "2 prompts x 2 repeats," in report(again).table().notes[1]


def test_every_name_that_is_shown_is_defined(made):
    defined = PAGE[: PAGE.index("## Theirs")]
    in_code = set(re.findall(r"`(\w+)(?:\[i\])?`", defined))
    names = set(Stats().summary()) | set(made.rows[1].overall) | set(METRICS)
    assert names - in_code == set()
    for name, words in SHOWN.items():
        assert re.search(rf"\|[^|\n]*`{name}[`\[][^|\n]*\|[^|\n]*{re.escape(words)}[^|\n]*\|", defined), name
    words = {*made.table().cells()[0], *made.limits().cells()[0], *HEADINGS, *FIGURES}
    for heading in words - {"method", "measured on", "scenes", "charts", "mean (95 % interval)"}:
        assert heading.removesuffix(" (limit)") in defined, heading
    columns = {name for row in made.rows for line in csv_lines(row) for name in line}
    stems = {re.sub(r"_(low|high|per_prompt|max)$", "", name) for name in columns}
    stems -= {"method", "task", "baseline", *made.groups[0].conditions, "temperature", "engine", "drafter", "tree"}
    assert {stem for stem in stems if stem not in in_code} == set()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["units=eagel"], "units=eagel is unknown. Did you mean 'eagle'?"),
        (["units=eagle", "batch_size=2"], "units=eagle needs one prompt at a time, and batch_size=2"),
        (["max_new_tokens=0"], "max_new_tokens=0 must be at least 1"),
        (["threads=0"], "threads=0 must be at least 1"),
        (["budget=-1"], "budget=-1 must be at least 0"),
        (["tie=nan"], "tie=nan must be at least 0"),
        (["warmup=-1"], "warmup=-1 must be at least 0"),
        ([f"seed={10**20}"], "seed="),
        (["sampling=sampled", "sampling.top_p=2"], "top_p=2"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_measured(tmp_path, overrides, message):
    with pytest.raises(MMSpecError) as caught:
        prepare_run(["drafter=ngram", *overrides])
    assert message in str(caught.value)
    with pytest.raises(MMSpecError, match=re.escape(message)):
        Sweep.begin(tmp_path / "sweep", ["drafter=ngram", *overrides])
    assert not (tmp_path / "sweep").exists()


def test_a_task_and_a_place_are_looked_at_before_a_model_is_loaded(tmp_path, monkeypatch):
    monkeypatch.setattr("mmspec.loading.load_target", lambda *_, **__: pytest.fail("the target was loaded"))
    (tmp_path / "file").write_text("x")
    (tmp_path / "empty.jsonl").write_text("")
    for overrides, output in (
        (["drafter=ngram", "task=conversations", f"task.path={tmp_path}/empty.jsonl"], "a"),
        (["drafter=ngram", "task=conversations", f"task.path={tmp_path}/none.jsonl"], "b"),
        (["drafter=ngram"], "file"),
    ):
        with pytest.raises(MMSpecError):
            benchmark(overrides, tmp_path / output)
