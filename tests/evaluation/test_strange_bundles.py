"""Bundles and sweeps from elsewhere: nothing that they name is run, no path leads out, no text is more than a text."""

from __future__ import annotations

import copy
import json
import os
import random
import time

import pytest
from bundles import eagle3, lookup, plain, write_bundle

from mmspec.cli import main
from mmspec.errors import MMSpecError
from mmspec.evaluation import plots, report
from mmspec.evaluation.bundle import BundleWriter
from mmspec.evaluation.resuming import check
from mmspec.evaluation.sweep import SWEEP, Sweep

pytestmark = pytest.mark.product

PLAN = {"jobs": [["drafter=ngram"]], "config_dir": None, "hydra": [], "names": None}
STRANGE = "\x1b[31mred\x1b]0;title\x07"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["drafter=ngram", "drafter._target_=os.getcwd"], "asks for os.getcwd"),
        (["methods={a:'drafter=ngram +drafter.x._target_=os.getcwd'}"], "asks for os.getcwd"),
        (["hydra.searchpath=[file:///tmp]"], "is not taken from a file"),
        (["target.path=${oc.env:HOME}"], "is not taken from a file"),
        (["drafter=ngram", "+target.trust_remote_code=true"], "asks for trust_remote_code"),
    ],
)
def test_resuming_runs_nothing_that_the_bundle_names(tmp_path, capsys, overrides, message):
    folder = write_bundle(tmp_path / "b", [plain()], {"scenes": [9]}, status="running", overrides=overrides)
    before = sorted(path.name for path in folder.iterdir())
    assert main(["bench", "--resume", str(folder)]) == 2
    err = capsys.readouterr().err
    assert message in err and err.count("\n") == 1 and "--output" in err
    assert sorted(path.name for path in folder.iterdir()) == before
    # A sweep's jobs are overrides too.
    (tmp_path / SWEEP).write_text(json.dumps(PLAN | {"jobs": [overrides]}))
    with pytest.raises(MMSpecError, match=message):
        Sweep.resume(tmp_path)


def test_resuming_reads_the_callers_configurations_alone(tmp_path):
    (tmp_path / "own" / "verifier").mkdir(parents=True)
    (tmp_path / "own" / "verifier" / "mine.yaml").write_text("# mine\n_target_: running.AcceptsAll\n")
    own, overrides = str(tmp_path / "own"), ["drafter=ngram", "verifier=mine"]
    with pytest.raises(MMSpecError, match="go on with --config-dir"):
        check(overrides, own, None, tmp_path)
    check(overrides, own, own, tmp_path)
    with pytest.raises(MMSpecError, match=r"begun with hydra/launcher=basic.*say it again"):
        (tmp_path / SWEEP).write_text(json.dumps(PLAN | {"hydra": ["hydra/launcher=basic"]}))
        Sweep.resume(tmp_path)
    assert list(Sweep.resume(tmp_path, None, ["hydra/launcher=basic"]).jobs.values()) == PLAN["jobs"]


@pytest.mark.parametrize(
    "plan",
    [
        PLAN | {"names": ["../out"]},
        PLAN | {"names": ["/tmp/out"]},
        PLAN | {"names": [".."]},
        PLAN | {"names": ["a\\b"]},
        PLAN | {"names": ["a" * 300]},
        PLAN | {"names": ["a", "b"]},
        PLAN | {"jobs": "drafter=ngram"},
        PLAN | {"jobs": [["drafter=ngram", 3]]},
        {"jobs": []},
        [],
    ],
)
def test_a_sweep_does_not_lead_out_of_its_folder(tmp_path, capsys, plan):
    folder = tmp_path / "sweep"
    folder.mkdir()
    write_bundle(tmp_path / "out", [plain()], {"scenes": [9]})
    (folder / SWEEP).write_text(json.dumps(plan))
    assert main(["report", str(folder), "--output", str(tmp_path / "report")]) == 2
    err = capsys.readouterr().err
    assert SWEEP in err and err.count("\n") == 1 and len(err) < 1000
    assert not (tmp_path / "report").exists() and main(["bench", "--resume", str(folder)]) == 2


def test_links_pipes_and_devices_are_refused(tmp_path):
    out = write_bundle(tmp_path / "out", [plain()], {"scenes": [9]})
    (tmp_path / "sweep").mkdir()
    (tmp_path / "sweep" / SWEEP).write_text(json.dumps(PLAN | {"names": ["a"]}))
    (tmp_path / "sweep" / "a").symlink_to(out)
    with pytest.raises(MMSpecError, match="leads out of the sweep's folder"):
        Sweep.open(tmp_path / "sweep")
    started = time.monotonic()
    for name in ("manifest.json", "requests.jsonl", "rounds.jsonl"):
        folder = write_bundle(tmp_path / name, [plain(), eagle3()], {"scenes": [9]})
        (folder / name).unlink()
        os.mkfifo(folder / name)
        with pytest.raises(MMSpecError, match="is no regular file"):
            report(folder)
        (folder / name).unlink()
        (folder / name).symlink_to("/dev/zero")
        with pytest.raises(MMSpecError, match="is no regular file"):
            report(folder)
    assert time.monotonic() - started < 20
    # A report replaces a link by its file, and what the link led to stays as it was.
    precious = tmp_path / "precious"
    precious.write_text("mine")
    (out / "table.md").symlink_to(precious)
    (out / "table.csv.unfinished").symlink_to(precious)
    report(out).save(out)
    assert precious.read_text() == "mine" and not (out / "table.md").is_symlink()
    (out / ".lock").symlink_to(precious)
    with pytest.raises(MMSpecError, match="is a link"), BundleWriter(out, ""):
        pass
    assert precious.read_text() == "mine"


def test_names_are_read_and_do_nothing_else(tmp_path, monkeypatch):
    names = [STRANGE, "[red]x[/red]", "=1+1", "$\\frac$", "![](http://a/b.png)", "<!-- mmspec report: end -->"]
    sides = [plain(), *(eagle3(label=name, drafter=name) for name in names)]
    skipped = [{"id": STRANGE, "reason": STRANGE}]
    folder = write_bundle(tmp_path / "b", sides, {STRANGE: [9], "[b]": [5]}, skipped=skipped)
    made = report(folder)
    table = made.table()
    texts = [str(table), table.markdown(), table.csv(), str(made.limits()), str(made.units("vllm"))]
    for text in texts:
        assert "\x1b" not in text and "\x07" not in text and "\\x1b" in text
        assert "red" in text
    assert "[red]x[/red]" in texts[0] and "![](http" not in texts[1] and "<!--" not in texts[1]
    assert "'=1+1," in texts[2] and "\n=1+1" not in texts[2]
    monkeypatch.setattr(plots, "PLOTS", {"rounds": plots.PLOTS["rounds"]})  # a dollar sign begins no formula
    for _ in range(2):
        made.put_into(tmp_path / "page.md")
    assert (tmp_path / "page.md").read_text().count("<!-- mmspec report: end -->") == 1
    with pytest.raises(MMSpecError) as caught:
        report(folder, baseline="none")
    assert "\x1b" not in str(caught.value)


ODD = [
    None,
    True,
    -1,
    0,
    1.5,
    -2.5,
    10**30,
    1e308,
    "",
    "x" * 5000,
    STRANGE,
    [],
    [[]],
    {},
    {"a": {}},
    [None],
    ["x"],
    "NaN",
]


def test_whatever_is_changed_is_one_line_or_a_report(tmp_path):
    folder = write_bundle(tmp_path / "b", [plain(), eagle3(), lookup()], {"scenes": [9], "charts": [5]})
    files = {name: (folder / name).read_text() for name in ("manifest.json", "requests.jsonl", "rounds.jsonl")}
    rng, refused = random.Random(0), 0
    for number in range(100):
        name = rng.choice(["manifest.json", "manifest.json", "requests.jsonl", "rounds.jsonl"])
        lines = files[name].splitlines()
        line = rng.randrange(len(lines))
        lines[line] = json.dumps(mutated(json.loads(lines[line]), rng)).replace('"NaN"', "NaN")
        (folder / name).write_text("\n".join(lines) + "\n")
        try:
            made = report(folder, partial=number % 2 == 0)
            assert str(made.table()) and made.table().csv() and str(made.limits()) and made.as_json()
            assert made.groups[0].conditions["batch"] != 1 or str(made.units("mmspec"))
        except MMSpecError as error:
            refused += 1
            assert len(str(error)) <= 2000 and str(error).isprintable()
        (folder / name).write_text(files[name])
    assert 25 < refused < 100
    for text in ("[" * 100_000, '{"format": ' + "9" * 10_000 + "}", '{"format": 1}', "\xff", '"text"'):
        (folder / "manifest.json").write_text(text, encoding="latin-1")
        with pytest.raises(MMSpecError) as caught:
            report(folder)
        assert len(str(caught.value)) < 500


def mutated(value, rng):
    """The value with one thing at any depth replaced by something odd, left out, or doubled."""
    value = copy.deepcopy(value)
    places = []

    def visit(node):
        for key in node if isinstance(node, dict) else range(len(node)):
            places.append((node, key))
            if isinstance(node[key], dict | list):
                visit(node[key])

    visit(value)
    node, key = rng.choice(places)
    if rng.random() < 0.2:
        del node[key]
    else:
        node[key] = rng.choice(ODD)
    return value
