"""`mmspec bench` as it is typed: runs, resuming, and what is refused before anything runs."""

from __future__ import annotations

import json
import signal

import pytest
from running import QUICK

from mmspec.cli import main
from mmspec.commands.progress import Display
from mmspec.errors import MMSpecError
from mmspec.evaluation.bench import benchmark, complete, prepare_run
from mmspec.evaluation.bundle import Bundle

pytestmark = pytest.mark.product

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


@pytest.mark.usefixtures("no_plots")
def test_everything_embedded_and_its_rivals_run(tmp_path):
    bundle = Bundle.open(benchmark(["task=charts", *QUICK], tmp_path / "b"))
    assert not bundle.failures and all(record["same"] for record in bundle.requests)
    budgets = {side["label"]: side["budget"] for side in bundle.manifest["sides"]}
    assert {f"transformers {name}" for name in ("generate", "prompt lookup", "assisted")} <= set(budgets)
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


def test_an_experiment_of_ones_own(own_configs):
    _, _, methods = prepare_run(["experiment=mine"], str(own_configs))
    assert [(method.label, (method.config.drafter or {}).get("length")) for method in methods] == [
        ("plain", None), ("short", 2), ("long", 6)
    ]  # fmt: skip


@pytest.mark.usefixtures("no_plots")
def test_sampling_and_batches(tmp_path):
    overrides = [
        "sampling=sampled",
        "drafter=text_only",
        "tree=chain",
        "batch_size=2",
        "task=tiny",
        *QUICK,
        "task.count=2",
    ]
    bundle = Bundle.open(benchmark(overrides, tmp_path / "b"))
    assert bundle.manifest["sampling"]["temperature"] == 1.0
    assert {len(record["ids"]) for record in bundle.requests} == {2}
    assert all(record["same"] for record in bundle.requests)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["drafter=eagel3"], "drafter 'eagel3' is unknown. Did you mean 'eagle3'?"),
        (
            ["drafter=eagle3", "tree=dynamic", "budget=8"],
            "method 'eagle3 dynamic': it drafts up to 23 nodes a round, but budget=8",
        ),
        (["engine=transformers", "drafter=ngram", "tree=chain"], "knows no tree=chain for drafter drafter=ngram"),
        (["engine=transformers", "drafter=ngram", "batch_size=2"], "takes one prompt at a time, but batch_size=2"),
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
def test_an_interrupt_keeps_what_was_measured(tmp_path, capsys, monkeypatch):
    """As a user does it: Ctrl-C, another command by mistake, then the one that the message names."""

    def interrupt(display, done, *_):
        if done == 2:
            signal.raise_signal(signal.SIGINT)

    folder = tmp_path / "b"
    command = ["bench", "drafter=ngram", "task=scenes", *QUICK, "task.count=3", "--output", str(folder)]
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # background jobs inherit an ignored one
    try:
        with monkeypatch.context() as patch:
            patch.setattr(Display, "show", interrupt)
            assert main(command) == 130
    finally:
        signal.signal(signal.SIGINT, before)
    assert f"mmspec bench --resume {folder} goes on" in capsys.readouterr().err
    bundle = Bundle.open(folder)
    assert bundle.manifest["status"] == "interrupted" and len(bundle.requests) == 4
    assert main([*command, "seed=1"]) == 2
    assert "begun with another configuration (seed: 0 then, seed: 1 now)" in capsys.readouterr().err
    measured = (folder / "requests.jsonl").read_bytes()
    assert main(["bench", "--resume", str(folder)]) == 0
    assert len(Bundle.open(folder).requests) == 6 and (folder / "requests.jsonl").read_bytes().startswith(measured)


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
