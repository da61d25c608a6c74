"""`mmspec bench` as it is typed: runs, sweeps, resuming, and what is refused before anything runs."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time

import pytest
from running import QUICK, lines

from mmspec.cli import main
from mmspec.errors import MMSpecError
from mmspec.evaluation.bench import benchmark, complete, prepare_run
from mmspec.evaluation.bundle import Bundle
from mmspec.evaluation.sweep import Sweep, expand

LONGER = (*QUICK, "max_new_tokens=30")


@pytest.fixture
def own_configs(tmp_path):
    """A user's folder with a wrong verifier and an experiment."""
    folder = tmp_path / "own"
    (folder / "verifier").mkdir(parents=True)
    (folder / "experiment").mkdir()
    (folder / "verifier" / "wrong.yaml").write_text("# accepts everything\n_target_: running.AcceptsAll\n")
    (folder / "experiment" / "mine.yaml").write_text(
        "# @package _global_\n# two of a kind\nmethods:\n"
        "  short: drafter=ngram drafter.length=2\n  long: drafter=ngram drafter.length=6\n"
    )
    return folder


def test_one_method_is_compared_with_plain_decoding(tmp_path, capsys):
    code = main(["bench", "drafter=ngram", "task=scenes", *QUICK, "--output", str(tmp_path / "b"), "json=true"])
    out = capsys.readouterr().out
    assert code == 0 and "ngram" in out and "plain" in out and str(tmp_path / "b") in out
    bundle = Bundle.open(tmp_path / "b")
    assert [side["label"] for side in bundle.manifest["sides"]] == ["plain", "ngram"]
    assert bundle.manifest["overrides"][:2] == ["drafter=ngram", "task=scenes"]
    assert {record["task"] for record in bundle.requests} == {"scenes"}
    figures = json.loads(out.splitlines()[-1])
    assert figures
    for name in ("table.md", "table.csv", "config.yaml", "speedup.png"):
        assert (tmp_path / "b" / name).stat().st_size


def test_everything_embedded_and_its_rivals_run(tmp_path):
    folder = benchmark(["task=charts", *QUICK], tmp_path / "b")
    bundle = Bundle.open(folder)
    labels = [side["label"] for side in bundle.manifest["sides"]]
    assert {
        "plain",
        "transformers generate",
        "transformers prompt lookup",
        "transformers assisted",
        "eagle3 chain",
    } <= set(labels)
    assert all(record["same"] for record in bundle.requests)
    budgets = {side["label"]: side["budget"] for side in bundle.manifest["sides"]}
    assert budgets["plain"] == 0 and budgets["eagle3 chain"] == 5 and budgets["eagle3 dynamic"] == 16
    for entry in bundle.rounds:
        assert entry["drafted"][0] <= budgets[entry["side"]]


@pytest.mark.usefixtures("no_plots")
def test_a_wrong_verifier_fails_the_command(tmp_path, own_configs, capsys):
    wrong = ["--config-dir", str(own_configs), "drafter=text_only", "verifier=wrong", "task=documents"]
    code = main(["bench", *wrong, *LONGER, "--output", str(tmp_path / "b")])
    err = capsys.readouterr().err
    assert code == 1 and "method 'text_only wrong' is not lossless: on prompt 'documents/test/100'" in err
    assert Bundle.open(tmp_path / "b").manifest["status"] == "failed"


def test_an_experiment_of_ones_own(tmp_path, own_configs):
    folder = benchmark(["experiment=mine", "task=scenes", *QUICK], tmp_path / "b", str(own_configs))
    sides = Bundle.open(folder).manifest["sides"]
    assert [(side["label"], side["budget"]) for side in sides] == [("plain", 0), ("short", 8), ("long", 24)]


def test_sampling_and_batches(tmp_path):
    overrides = ["sampling=sampled", "drafter=text_only", "tree=chain", "batch=2", "task=tiny", *QUICK, "task.count=2"]
    bundle = Bundle.open(benchmark(overrides, tmp_path / "b"))
    assert bundle.manifest["sampling"]["temperature"] == 1.0
    assert {len(record["ids"]) for record in bundle.requests} == {2}
    assert all(record["same"] for record in bundle.requests)


@pytest.mark.slow
def test_a_sweep_runs_resumes_and_makes_one_table(tmp_path, capsys):
    folder = tmp_path / "sweep"
    arguments = ["-m", "drafter=ngram,text_only", "task=scenes,charts", *QUICK, "--output", str(folder)]
    assert main(["bench", *arguments]) == 0
    out = capsys.readouterr().out
    assert all(word in out for word in ("ngram", "text_only", "scenes", "charts"))
    bundles = Sweep.open(folder).bundles
    assert [path.name for path in bundles] == [
        "0,drafter=ngram,task=scenes",
        "1,drafter=ngram,task=charts",
        "2,drafter=text_only,task=scenes",
        "3,drafter=text_only,task=charts",
    ]
    # One job is undone, another half done.
    for path in bundles[1].iterdir():
        path.unlink()
    manifest = json.loads((bundles[2] / "manifest.json").read_text())
    (bundles[2] / "manifest.json").write_text(json.dumps(manifest | {"status": "running"}))
    untouched = (bundles[0] / "requests.jsonl").stat().st_mtime_ns
    assert main(["bench", "--resume", str(folder)]) == 0
    assert len(Sweep.open(folder).bundles) == 4
    assert (bundles[0] / "requests.jsonl").stat().st_mtime_ns == untouched


@pytest.mark.usefixtures("no_plots")
def test_a_sweep_with_a_failing_job_reports_it_and_keeps_the_rest(tmp_path, own_configs, capsys):
    folder = tmp_path / "sweep"
    jobs = ["--config-dir", str(own_configs), "drafter=text_only", "verifier=wrong,greedy", "task=documents"]
    code = main(["bench", "-m", *jobs, *LONGER, "--output", str(folder)])
    captured = capsys.readouterr()
    assert code == 1 and "1 of 2 jobs are not complete" in captured.err and "is not lossless" in captured.err
    assert "text_only" in captured.out and [path.name for path in Sweep.open(folder).bundles] == ["1,verifier=greedy"]


@pytest.mark.slow
def test_a_sweep_goes_through_the_submitit_launcher(tmp_path, capsys):
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    folder = tmp_path / "sweep"
    arguments = ["-m", "drafter=ngram,text_only", "task=scenes", *QUICK, "hydra/launcher=submitit_local"]
    assert main(["bench", *arguments, "hydra.launcher.timeout_min=5", "--output", str(folder)]) == 0
    assert len(Sweep.open(folder).bundles) == 2 and (folder / ".submitit").is_dir()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["drafter=eagel3"], "drafter 'eagel3' is unknown. Did you mean 'eagle3'?"),
        (["task=scene"], "Did you mean 'scenes'?"),
        (["experiment=nothing"], "experiment 'nothing' is unknown."),
        (["-m", "drafter=ngram,eagel3"], "job drafter=eagel3: drafter 'eagel3' is unknown. Did you mean 'eagle3'?"),
        (["-m", "drafter=ngram", "tree.lenght=1,2"], "setting 'tree.lenght' is unknown"),
        (["-m", "drafter=ngram,"], "the sweep cannot be read"),
        (
            ["drafter=eagle3", "tree=dynamic", "budget=8"],
            "method 'eagle3 dynamic': it drafts up to 23 nodes a round, but budget=8",
        ),
        (["engine=transformers", "drafter=eagle3"], "engine=transformers has no counterpart of Eagle3Drafter"),
        (["engine=transformers", "drafter=ngram", "tree=chain"], "knows no tree=chain for drafter drafter=ngram"),
        (["engine=transformers", "drafter=text_only"], "cannot take them"),
        (["engine=transformers", "drafter=ngram", "batch=2"], "takes one prompt at a time, but batch=2"),
        (["engine=transformers", "verifier=greedy"], "leave verifier=auto"),
        (["methods={plain:'drafter=ngram'}"], "a method cannot be called 'plain'"),
        (["methods={a:'task=scenes'}"], "method 'a' sets 'task=scenes', but a method is made of drafter, tree"),
        (["methods={a:'drafter=x'}"], "method 'a': drafter 'x' is unknown"),
        (["methods=[a]"], "must map names"),
        (["repeats=0", "drafter=none"], "repeats=0 must be at least 1"),
        (["repeats=often"], "repeats=often is not valid"),
        (["sampling.temperature=-1", "drafter=ngram"], "temperature=-1"),
        (["hydra/launcher=basic"], "is about sweeps: add --multirun"),
        (["--resume", "nowhere"], "'nowhere' does not exist"),
        (["--resume", "nowhere", "drafter=ngram"], "continues with the settings of the beginning"),
        (["task=folder", "task.folder=nowhere", "drafter=ngram"], "nowhere"),
        (["task=tiny", "task.count=0", "drafter=ngram"], "count=0"),
    ],
)
def test_mistakes_are_one_line(arguments, message, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["bench", *arguments]) == 2
    err = capsys.readouterr().err
    assert message in err and err.startswith("mmspec: ") and len(err.splitlines()) == 1


@pytest.mark.usefixtures("no_plots")
def test_another_run_in_the_same_folder_is_refused(tmp_path, capsys):
    folder = str(tmp_path / "b")
    base = ["bench", "task=scenes", *QUICK, "--output", folder]
    assert main([*base, "drafter=ngram"]) == 0
    manifest = json.loads((tmp_path / "b" / "manifest.json").read_text())
    (tmp_path / "b" / "manifest.json").write_text(json.dumps(manifest | {"status": "interrupted"}))
    capsys.readouterr()
    assert main([*base, "drafter=ngram", "seed=1"]) == 2
    assert "begun with another configuration (seed: 0 then, seed: 1 now)" in capsys.readouterr().err
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("x")
    assert main([*base[:-1], str(tmp_path / "full"), "drafter=ngram"]) == 2
    assert "holds 'thesis.tex' and no bundle" in capsys.readouterr().err


@pytest.mark.slow
def test_an_interrupt_keeps_what_was_measured(tmp_path):
    """As a user does it: Ctrl-C, then the command that the message names."""
    folder = tmp_path / "b"
    overrides = ["drafter=ngram", "task=scenes", "task.count=16", "repeats=1", "warmup=0", "threads=1"]
    command = [sys.executable, "-m", "mmspec", "bench", *overrides, "max_new_tokens=20", "--output", str(folder)]
    process = subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        # Background jobs inherit an ignored SIGINT, and the tests may run in one.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    deadline = time.monotonic() + 120
    while not (folder / "requests.jsonl").exists() or len(lines(folder / "requests.jsonl")) < 4:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 130 and f"mmspec bench --resume {folder}" in err.replace("\n", " ")
    measured = len(Bundle.open(folder).requests)
    assert Bundle.open(folder).manifest["status"] == "interrupted" and measured >= 4
    before = (folder / "requests.jsonl").read_bytes()
    assert main(["bench", "--resume", str(folder)]) == 0
    assert len(Bundle.open(folder).requests) == 32 and (folder / "requests.jsonl").read_bytes().startswith(before)


def test_sweeps_expand_as_hydra_does():
    assert expand(["drafter=a,b", "tree.total=range(4,9,4)"]) == [
        ["drafter=a", "tree.total=4"],
        ["drafter=a", "tree.total=8"],
        ["drafter=b", "tree.total=4"],
        ["drafter=b", "tree.total=8"],
    ]


def test_choosing_a_drafter_means_that_one_method():
    assert complete([])[-1:] == [] and complete(["task=scenes"]) == ["task=scenes"]
    assert complete(["tree=chain"])[-1] == "experiment=one"
    assert complete(["engine=transformers"])[-1] == "experiment=one"
    assert complete(["target=org/model"])[-1] == "experiment=untrained"
    assert complete(["experiment=embedded", "drafter=ngram"])[-1] == "drafter=ngram"
    _, _, methods = prepare_run(["drafter=eagle3", "tree=dynamic", "tree.total=9", "verifier=greedy"])
    assert [method.label for method in methods] == ["plain", "eagle3 dynamic total=9 greedy"]
    with pytest.raises(MMSpecError, match="is not a line of overrides"):
        prepare_run(["methods={a:3}"])
