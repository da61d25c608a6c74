"""The notebooks of `examples/`: they run, their committed outputs are presentable, and the scripts are in step.

No Jupyter is needed: the cells are executed in order in one namespace. What Jupyter would do beside that is done by
`shown`: the value of a cell's last line is asked for what a notebook would display. Nothing else of IPython is used.
"""

from __future__ import annotations

import base64
import importlib.util
import json
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT / "examples").glob("*.ipynb"))
BYTES, ALL_BYTES = 400_000, 2_000_000
FORMS = ("_repr_svg_", "_repr_png_", "_repr_html_")

pytestmark = pytest.mark.skipif(not (ROOT / "examples").exists(), reason="not a checkout")


def load_export():
    spec = importlib.util.spec_from_file_location("export_notebooks", ROOT / "scripts" / "export_notebooks.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def names(path: Path) -> str:
    return path.stem


def shown(value: object) -> str | bytes:
    """What a notebook would display of a value."""
    for form in FORMS:
        if (method := getattr(value, form, None)) is not None and (data := method()) is not None:
            return data
    return repr(value)


def run(path: Path) -> list[tuple[int, object]]:
    """Execute the cells of a notebook; return what its cells show, by their numbers."""
    export = load_export()
    values, namespace = [], {"__name__": "__main__"}
    for number, (kind, tags, text) in enumerate(export.cells(path), start=1):
        if kind != "code" or export.NEEDS_WEIGHTS in tags:
            continue
        before, last = export.last_expression(text)
        exec(compile(before, f"{path.name}[{number}]", "exec"), namespace)
        if last is not None:
            values.append((number, eval(compile(last, f"{path.name}[{number}]", "eval"), namespace)))
    return values


@pytest.fixture
def alone(tmp_path, monkeypatch):
    """An empty folder, no figures and no setting of torch left behind."""
    import torch

    from mmspec.seeing import figures

    monkeypatch.chdir(tmp_path)
    yield tmp_path
    torch.set_grad_enabled(True)
    if (pyplot := sys.modules.get("matplotlib.pyplot")) is not None:
        pyplot.close("all")
    assert figures.DPI == 80


def outputs_of(path: Path) -> list[tuple[int, dict]]:
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return [(number, one) for number, cell in enumerate(cells, start=1) for one in cell.get("outputs", [])]


def test_there_are_nine_and_a_readme_with_a_line_for_each():
    text = (ROOT / "examples" / "README.md").read_text(encoding="utf-8")
    assert [path.name[:2] for path in NOTEBOOKS] == [f"{number:02d}" for number in range(1, 10)]
    assert re.findall(r"^\| \[\w+\]\((\w+\.ipynb)\)", text, re.M) == [path.name for path in NOTEBOOKS]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=names)
def test_a_notebook_runs_and_shows_what_it_is_committed_with(path, alone, monkeypatch):
    monkeypatch.setenv("MMSPEC_QUICK", "1")
    committed = {number for number, one in outputs_of(path) if one["output_type"] == "execute_result"}
    values = run(path)
    assert {number for number, value in values if value is not None} == committed
    assert all(shown(value) for _, value in values)
    assert not [value for _, value in values if value is False], "a comparison that should be true is not"


@pytest.mark.slow
@pytest.mark.parametrize("path", [p for p in NOTEBOOKS if "MMSPEC_QUICK" in p.read_text(encoding="utf-8")], ids=names)
def test_a_notebook_runs_at_full_length(path, alone, monkeypatch):
    monkeypatch.delenv("MMSPEC_QUICK", raising=False)
    assert run(path)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=names)
def test_a_script_is_in_step_with_its_notebook(path):
    committed = path.with_suffix(".py").read_text(encoding="utf-8")
    assert committed == load_export().script_of(path), "run scripts/export_notebooks.py"
    compile(committed, path.name, "exec")


def test_no_script_is_left_over():
    assert sorted((ROOT / "examples").glob("*.py")) == [path.with_suffix(".py") for path in NOTEBOOKS]


def test_a_script_runs_and_saves_its_pictures(alone, capsys):
    path = NOTEBOOKS[0].with_suffix(".py")
    exec(compile(path.read_text(encoding="utf-8"), path.name, "exec"), {"__name__": "__main__"})
    printed = capsys.readouterr().out
    saved = sorted(file.relative_to(alone).as_posix() for file in alone.rglob("*.*"))
    assert {file.rpartition(".")[2] for file in saved} == {"png", "html", "svg"}
    assert re.findall(r"^saved (.+)$", printed, re.M) == saved and all(f"/{path.stem}/" in file for file in saved)
    assert "tokens per pass" in printed and "\nTrue\n" in printed


@pytest.mark.parametrize("path", NOTEBOOKS, ids=names)
def test_committed_notebooks_are_whole_and_presentable(path):
    text = path.read_text(encoding="utf-8")
    content = json.loads(text)
    assert len(text.encode()) < BYTES and content["nbformat"] == 4
    assert content["metadata"]["kernelspec"]["name"] == "python3"
    assert not re.search(r"(?<![\w.~])/(?:home|root|work|tmp|usr|Users|opt|var)/", text), "a path of a machine"
    assert not re.search(r"[Ww]arning|Traceback|\\u001b|\d+%\|", text)
    assert content["cells"][0]["cell_type"] == "markdown"
    counts = []
    for cell in content["cells"]:
        if cell["cell_type"] != "code":
            continue
        waits = "needs-weights" in cell["metadata"].get("tags", [])
        assert (cell["execution_count"] is None) == waits and not (waits and cell["outputs"])
        counts += [] if waits else [cell["execution_count"]]
        assert len("".join(cell["source"]).splitlines()) <= 45, "a wall of code"
    assert counts == list(range(1, len(counts) + 1)), "run from top to bottom, once"
    for _, one in outputs_of(path):
        assert one["output_type"] in ("execute_result", "stream") and one.get("name") != "stderr"
        for kind, data in one.get("data", {}).items():
            assert kind in ("text/plain", "text/html", "image/png", "image/svg+xml")
            if kind == "image/png":
                assert base64.b64decode("".join(data)).startswith(b"\x89PNG")


def test_all_notebooks_together_are_small():
    assert sum(path.stat().st_size for path in NOTEBOOKS) < ALL_BYTES


@pytest.mark.parametrize("path", NOTEBOOKS, ids=names)
def test_links_lead_somewhere(path):
    text = "\n".join(text for kind, _, text in load_export().cells(path) if kind == "markdown")
    for link in re.findall(r"\]\(([^)]+)\)", text):
        assert (path.parent / link).exists(), link
    for page in re.findall(r"`(docs/[\w/.]+)`", text):
        assert (ROOT / page).exists(), page


def test_the_last_expression_of_a_cell_is_told_from_the_rest():
    last = load_export().last_expression
    assert last("a = 1\na + 1") == ("a = 1\n", "a + 1")
    assert last("print(1)") == ("print(1)", None) and last("a = 1") == ("a = 1", None) and last("") == ("", None)
    assert last("f(\n    1,\n    2,\n)") == ("", "f(\n    1,\n    2,\n)")
    assert last("for a in b:\n    a") == ("for a in b:\n    a", None)
