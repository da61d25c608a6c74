"""`mmspec report`, from the command line to the files."""

from __future__ import annotations

import json

import pytest
from bundles import eagle3, lookup, plain, write_bundle

from mmspec import cli
from mmspec.evaluation.reporting import marks

pytestmark = pytest.mark.product

BEGIN, END = marks()


def run(*argv) -> int:
    return cli.main(["report", *map(str, argv)])


@pytest.fixture
def bundle(tmp_path):
    # as hydra names the folders of a sweep
    return write_bundle(
        tmp_path / "sweep" / "drafter=eagle3,tree=chain", [plain(), eagle3(), lookup()], {"scenes": [9, 17]}
    )


def test_it_prints_the_table_and_writes_nothing(bundle, tmp_path, capsys):
    before = sorted(tmp_path.rglob("*"))
    assert run(bundle) == 0
    shown = capsys.readouterr().out
    assert "eagle3 chain" in shown and "1.75" in shown and "NOT equal" not in shown
    assert sorted(tmp_path.rglob("*")) == before


def test_a_folder_stands_for_the_bundles_in_it_and_flags_may_be_anywhere(bundle, tmp_path, capsys):
    write_bundle(tmp_path / "more", [plain(), eagle3(label="other")], {"scenes": [9]})
    assert run(tmp_path / "sweep", "--baseline", "plain", tmp_path / "more") == 0
    shown = capsys.readouterr().out
    assert "eagle3 chain" in shown and "other" in shown


def test_output(bundle, tmp_path, capsys):
    out = tmp_path / "out"
    assert run(bundle, "--output", out) == 0
    names = {path.name for path in out.iterdir()}
    plots = {"speedup.png", "acceptance.png", "positions.png", "rounds.png", "budget.png", "pareto.png"}
    assert names == {"table.md", "table.csv", "report.json"} | plots
    read = json.loads((out / "report.json").read_text())
    assert [row["method"] for row in read["rows"]] == ["plain", "eagle3 chain", "transformers lookup"]
    assert read["rows"][1]["mean"]["speedup"]["value"] == 1.75
    assert read["bundles"][0]["command"] == "mmspec bench"
    assert f"wrote {out / 'table.csv'}" in capsys.readouterr().out


def test_into_replaces_only_what_it_wrote_before(bundle, tmp_path):
    file = tmp_path / "docs" / "my results.md"
    file.parent.mkdir()
    file.write_text("# Results\n\nby hand\n")
    assert run(bundle, "--into", file) == 0
    once = file.read_text()
    assert once.startswith(f"# Results\n\nby hand\n\n{BEGIN}\n") and once.endswith(f"{END}\n")
    assert "](my%20results/speedup.png)" in once and (file.parent / "my results" / "speedup.png").stat().st_size > 1000
    file.write_text(once.replace("eagle3 chain", "old") + "\nafter\n")
    assert run(bundle, "--into", file) == 0
    assert file.read_text() == once + "\nafter\n"


def test_into_makes_the_file(bundle, tmp_path):
    assert run(bundle, "--into", tmp_path / "new.md") == 0
    assert (tmp_path / "new.md").read_text().startswith(f"{BEGIN}\n\n| method ")


@pytest.mark.parametrize("text", [BEGIN, END, f"{END}{BEGIN}", f"{BEGIN}{END}{BEGIN}{END}"])
def test_into_does_not_guess(bundle, tmp_path, text, capsys):
    file = tmp_path / "results.md"
    file.write_text(text)
    assert run(bundle, "--into", file) == 2
    assert "once" in capsys.readouterr().err
    assert file.read_text() == text and not (tmp_path / "results").exists()


def test_units(bundle, capsys):
    assert run(bundle, "--units", "mmspec") == 0
    assert "MAT (paper)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "name the bundles"),
        (["gone"], "gone: there is no such folder"),
        (["--outptu", "x"], "Did you mean '--output'"),
        (["{bundle}", "--units", "eagel"], "units=eagel is unknown. Did you mean 'eagle'"),
        (["{bundle}", "--baseline", "none"], "no method 'none'"),
        (["{bundle}", "--output", "{bundle}/manifest.json"], "cannot be written"),
        (["{bundle}", "--into", "{bundle}/manifest.json/results.md"], "cannot be put"),
    ],
)
def test_mistakes_are_one_line(bundle, argv, message, capsys):
    assert run(*(argument.replace("{bundle}", str(bundle)) for argument in argv)) == 2
    _, error = capsys.readouterr()
    assert message in error and error.count("\n") == 1 and error.startswith("mmspec: ")


def test_help_says_what_it_takes(capsys):
    assert run("--help") == 0
    shown = capsys.readouterr().out
    assert shown.startswith("usage: mmspec report [flags] BUNDLE [BUNDLE ...]")
    assert "--into FILE" in shown and "group=option" not in shown and "--config-dir" not in shown


def test_other_commands_still_show_their_configuration(capsys):
    assert cli.main(["generate", "--help"]) == 0
    shown = capsys.readouterr().out
    assert "group=option" in shown and "--config-dir" in shown and "groups, set with" in shown
