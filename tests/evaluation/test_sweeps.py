"""Sweeps and experiments of several parts: what becomes of a command, how hydra launches the jobs, and what fails."""

from __future__ import annotations

import json

import pytest
from bundles import plain, write_bundle
from running import QUICK

from mmspec.cli import main
from mmspec.commands import bench
from mmspec.errors import MMSpecError
from mmspec.evaluation.bench import benchmark
from mmspec.evaluation.bundle import MANIFEST, Bundle
from mmspec.evaluation.sweep import SWEEP, UNSTARTED, Sweep, expand, parts_of

pytestmark = pytest.mark.product


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


def quick_job(overrides, folder, config_dir):
    """Stands for a measurement: leaves a bundle, or fails as the override says."""
    if "seed=13" in overrides:
        raise MMSpecError("unlucky")
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.iterdir():
        old.unlink()
    folder.rmdir()
    write_bundle(folder, [plain()], {"scenes": [9]}, overrides=list(overrides), config_dir=config_dir)


def test_sweeps_expand_as_hydra_does():
    assert expand(["drafter=a,b", "tree.total=range(4,9,4)"]) == [
        ["drafter=a", "tree.total=4"],
        ["drafter=a", "tree.total=8"],
        ["drafter=b", "tree.total=4"],
        ["drafter=b", "tree.total=8"],
    ]


def test_a_sweep_runs_what_is_missing_and_says_what_failed(tmp_path, capsys):
    folder = tmp_path / "it's a sweep, $x"
    sweep = Sweep.begin(folder, ["drafter=ngram", "seed=1,13,2", "task=scenes"])
    sweep.run(quick_job)
    names = ["0,seed=1", "1,seed=13", "2,seed=2"]
    assert list(sweep.jobs) == names and [path.name for path in sweep.bundles] == [names[0], names[2]]
    assert sweep.failures() == {"1,seed=13": "unlucky"} and "1,seed=13: unlucky" in capsys.readouterr().err
    assert Bundle.open(folder / names[2]).manifest["overrides"] == ["drafter=ngram", "seed=2", "task=scenes"]
    # One job is undone and another half done; what is complete is not touched.
    (folder / names[0] / MANIFEST).unlink()
    before = (folder / names[2] / MANIFEST).stat().st_mtime_ns
    seen = []
    Sweep.resume(folder).run(lambda job, place, own: seen.append((job[1], place.name, own)))
    assert seen == [("seed=1", names[0], None), ("seed=13", names[1], None)]
    assert (folder / names[2] / MANIFEST).stat().st_mtime_ns == before
    with pytest.raises(MMSpecError, match="holds another sweep"):
        Sweep.begin(folder, ["drafter=ngram", "seed=1,2", "task=scenes"])


def test_a_launcher_that_fails_is_said(tmp_path, capsys, monkeypatch):
    def launch(*_, **__):
        raise RuntimeError("the queue\nis closed")

    monkeypatch.setattr("hydra._internal.hydra.Hydra.multirun", launch)
    sweep = Sweep.begin(tmp_path / "sweep", ["drafter=ngram", "task=scenes"])
    sweep.run(quick_job)
    assert capsys.readouterr().err == "the launcher failed: the queue\n" and sweep.failures() == {"0": UNSTARTED}


@pytest.mark.usefixtures("no_plots")
def test_the_command_prints_one_table_of_a_sweep_and_one_per_part(tmp_path, configs, capsys, monkeypatch):
    monkeypatch.setattr(bench, "measure", quick_job)
    folder = str(tmp_path / "sweep")
    assert main(["bench", "-m", "drafter=ngram", "seed=1,13", "task=scenes", "--output", folder]) == 1
    out, err = capsys.readouterr()
    assert out.count("bundle: ") == 1 and "1 of 2 jobs are not complete" in err and "--resume" in err
    assert main(["bench", "--resume", folder]) == 1 and "unlucky" in capsys.readouterr().err
    parts = str(tmp_path / "parts")
    typed = ["bench", "experiment=twice", "--config-dir", configs, "task=scenes", "--output", parts]
    assert main(typed) == 0 and capsys.readouterr().out.count("bundle: ") == 2
    bundles = [Bundle.open(bundle).manifest for bundle in Sweep.open(parts).bundles]
    assert [one["overrides"][1] for one in bundles] == ["sampling=greedy", "sampling=sampled"]
    assert {one["config_dir"] for one in bundles} == {configs}
    monkeypatch.setattr(bench, "measure", None)
    assert main(typed) == 0, "the same command again has nothing left to do"


@pytest.mark.usefixtures("no_plots")
def test_a_sweep_of_the_command_measures(tmp_path, capsys):
    folder = tmp_path / "sweep"
    arguments = ["-m", "drafter=ngram", "verifier=auto,greedy", "task=scenes", *QUICK, "--output", str(folder)]
    assert main(["bench", *arguments]) == 0
    out = capsys.readouterr().out
    assert "ngram" in out and "ngram greedy" in out
    bundles = [Bundle.open(path) for path in Sweep.open(folder).bundles]
    assert [bundle.manifest["sides"][1]["label"] for bundle in bundles] == ["ngram", "ngram greedy"]


@pytest.mark.slow
def test_a_sweep_goes_through_the_submitit_launcher(tmp_path):
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")

    def run_one(job, folder, config_dir):
        folder.mkdir()
        (folder / "ran").write_text(" ".join(job))

    launcher = ["hydra/launcher=submitit_local", "hydra.launcher.timeout_min=5"]
    sweep = Sweep.begin(tmp_path / "sweep", ["drafter=ngram", "seed=1,2", "task=scenes", *launcher])
    sweep.run(run_one)
    ran = [(tmp_path / "sweep" / name / "ran").read_text() for name in sweep.jobs]
    assert ran == [f"drafter=ngram seed={seed} task=scenes" for seed in (1, 2)]
    assert (tmp_path / "sweep" / ".submitit").is_dir()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["drafter=ngram,eagel3"], "job drafter=eagel3: drafter 'eagel3' is unknown. Did you mean 'eagle3'?"),
        (["drafter=ngram,"], "the sweep cannot be read"),
        (["drafter=ngram", "hydra/launcher=nothing"], "hydra refuses hydra/launcher=nothing: .*submitit_local"),
        (["drafter=ngram", "hydra.launcher.x=3"], "hydra refuses hydra.launcher.x=3: Could not override"),
    ],
)
def test_mistakes_are_refused_before_a_folder_is_made(tmp_path, overrides, message):
    with pytest.raises(MMSpecError, match=message):
        Sweep.begin(tmp_path / "sweep", overrides)
    assert not (tmp_path / "sweep").exists()


def test_each_part_is_a_run_with_what_was_typed():
    parts = parts_of(["experiment=design_card", "task=scenes", "repeats=1"])
    assert list(parts) == ["greedy", "sampled"]
    assert parts["sampled"] == [
        "experiment=design_card", "sampling=sampled", "task=scenes", "repeats=1", "parts=null"
    ]  # fmt: skip
    assert parts_of([]) == parts_of(["drafter=eagle"]) == parts_of(["experiment=design_card", "parts=null"]) == {}


def test_parts_that_say_otherwise_are_left_out():
    assert list(parts_of(["experiment=full", "dtype=bfloat16"])) == ["bfloat16"]
    assert list(parts_of(["experiment=full", "sampling=sampled"])) == ["sampled", "design_card_sampled"]
    assert parts_of(["experiment=full", "dtype=bfloat16"])["bfloat16"][0] == "experiment=embedded"


def test_nothing_left_and_no_overrides_are_refused(configs):
    with pytest.raises(MMSpecError, match=r"no part goes with .*dtype=float16.* The parts are float32: experiment="):
        parts_of(["experiment=full", "dtype=float16"])
    with pytest.raises(MMSpecError, match=r"part 'greedy' is '3': it must be overrides, such as"):
        parts_of(["experiment=wrong"], configs)
    with pytest.raises(MMSpecError, match=r"several runs \(greedy, sampled\), and here there can be one"):
        benchmark(["experiment=design_card"])


def test_parts_may_be_other_experiments_but_have_no_parts_of_their_own(configs):
    parts = parts_of(["experiment=other", "limit=2"], configs)
    assert parts["one"] == ["experiment=twice", "limit=2", "parts=null"]
    assert parts["two"] == ["experiment=other", "sampling=sampled", "limit=2", "parts=null"]


@pytest.mark.usefixtures("no_plots")
def test_a_report_has_a_section_and_a_folder_for_each_part(tmp_path):
    folder, page = tmp_path / "b", tmp_path / "page.md"
    names = ["greedy", "drawn"]
    for name in names:
        write_bundle(folder / name, [plain()], {"scenes": [9]})
    plan = {"jobs": [["seed=1"], ["seed=2"]], "config_dir": None, "hydra": [], "names": names}
    (folder / SWEEP).write_text(json.dumps(plan))
    page.write_text("before\n\n<!-- mmspec report drawn: begin --><!-- mmspec report drawn: end -->\n\nafter\n")
    assert main(["report", str(folder), "--into", str(page), "--output", str(tmp_path / "out")]) == 0
    text = page.read_text()
    assert text.index("before") < text.index("report drawn: begin") < text.index("after")
    assert text.index("after") < text.index("report greedy: begin"), "a section that was not there goes to the end"
    assert (tmp_path / "out" / "greedy" / "table.md").exists()
