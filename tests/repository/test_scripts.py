"""The programs of `scripts/` and `benchmarks/`: all of them start, and with small settings they run to their end."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PROGRAMS = sorted([*(ROOT / "scripts").glob("*.py"), *(ROOT / "benchmarks").glob("*.py")])
WITH_OPTIONS = [path for path in PROGRAMS if "argparse" in path.read_text(encoding="utf-8")]
SMALL = {
    "ablations": ["sage"],
    "accepted": ["blind=tiny/text_only", "--count", "1", "--tokens", "8"],
    "batch": ["--rows", "2", "--repeats", "1", "--dtypes", "float32"],
    "choose_dream_layer": ["--examples", "1"],
    "cost_model": ["--drafters", "eagle3", "--tokens", "8", "--repeats", "1"],
    "evaluate_tiny": ["--examples", "1"],
    "loop": ["--sections", "prefix", "--dtypes", "float32", "--prefixes", "64", "512"],
    "overhead": ["--pictures", "1", "--trees", "chain5", "--dtypes", "float32"],
    "prefill": ["--repeats", "1"],
}
"""Options with which a program takes seconds or a minute. `compile` takes many, `training` needs answers, and
`train_tiny_target`, `train_tiny_video_target` and `evaluate_tiny_video` are tested in tests/zoo."""

MEASURED = {"hsd.png"}
"""Figures beside the drawn ones that show what a program of `benchmarks/` has measured."""

pytestmark = pytest.mark.skipif(not (ROOT / "scripts").exists(), reason="not a checkout")


def names(path: Path) -> str:
    return path.stem


def start(path: Path, monkeypatch, *options: str) -> dict:
    """Run a program as Python would."""
    monkeypatch.setattr(sys, "argv", [str(path), *options])
    return runpy.run_path(str(path), run_name="__main__")


@pytest.mark.parametrize("path", WITH_OPTIONS, ids=names)
def test_a_program_says_what_it_takes(path, monkeypatch, capsys):
    with pytest.raises(SystemExit) as end:
        start(path, monkeypatch, "--help")
    assert end.value.code == 0 and "--" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("path", [path for path in PROGRAMS if path.stem in SMALL], ids=names)
def test_a_program_runs_to_its_end(path, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    try:
        start(path, monkeypatch, *SMALL[path.stem])
    except SystemExit as end:
        assert not end.code
    assert capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("name", ["draw_concepts", "draw_methods", "draw_pruners"])
def test_the_figures_of_the_pages_are_drawn_anew(name, monkeypatch, tmp_path):
    program = runpy.run_path(str(ROOT / "scripts" / f"{name}.py"), run_name=name)
    pages, main = program["OUTPUT"], program["main"]
    monkeypatch.setitem(main.__globals__, "OUTPUT", tmp_path)
    main()
    drawn = {path.name for path in tmp_path.iterdir()}
    shown = {path.name for path in pages.iterdir() if path.suffix in (".png", ".svg")}
    assert drawn and drawn == shown - MEASURED
