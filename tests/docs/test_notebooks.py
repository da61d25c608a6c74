"""The notebooks of `examples/` and the scripts made from them: they run, their committed outputs are presentable, and
they are in step.

The default tests need no Jupyter: they execute the scripts, which have the same cells in the same order, with small
values in the cell of parameters. The slow tests run everything as a user would: `python examples/NAME.py`, and the
notebooks from top to bottom in Jupyter's own kernel, where the extra `notebooks` is installed.
"""

from __future__ import annotations

import ast
import base64
import importlib.util
import json
import re
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted((ROOT / "examples").glob("*.ipynb"))
BYTES, ALL_BYTES = 400_000, 2_000_000
SMALL = {
    "03_compare_drafters": {"LENGTH": 12, "PICTURES": 1},
    "05_what_the_drafter_sees": {"LENGTH": 8, "PICTURES": 1},
    "06_train_your_own_eagle": {"PICTURES": 2, "STEPS": 2, "LENGTH": 32, "HELD_OUT": 4},
    "07_write_your_own_drafter": {"LENGTH": 40},
    "08_sampling_and_losslessness": {"ROWS": 6, "SEEDS": 1},
    "10_a_block_in_one_pass": {"QUESTIONS": 1},
    "11_what_a_pruner_keeps": {"SHARES": (0.1,)},
}
"""Values of parameters with which a notebook runs through in seconds and shows nothing of interest."""

pytestmark = [pytest.mark.product, pytest.mark.skipif(not (ROOT / "examples").exists(), reason="not a checkout")]


def load_export():
    spec = importlib.util.spec_from_file_location("export_notebooks", ROOT / "scripts" / "export_notebooks.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def names(path: Path) -> str:
    return path.stem


@pytest.fixture
def alone(tmp_path, monkeypatch):
    """An empty folder, no figures and no setting of torch left behind."""
    import torch

    from mmspec.visualization import figures

    monkeypatch.chdir(tmp_path)
    yield tmp_path
    torch.set_grad_enabled(True)
    if (pyplot := sys.modules.get("matplotlib.pyplot")) is not None:
        pyplot.close("all")
    assert figures.DPI == 80


@pytest.fixture
def shown(monkeypatch) -> dict[int, object]:
    """What a script shows, by the number of the cell."""
    from mmspec.visualization import saving

    values, real = {}, saving.show

    def show(value, name):
        values[int(Path(name).name)] = value
        return real(value, name)

    monkeypatch.setattr(saving, "show", show)
    return values


def outputs_of(path: Path) -> list[tuple[int, dict]]:
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return [(number, one) for number, cell in enumerate(cells, start=1) for one in cell.get("outputs", [])]


def results_of(path: Path) -> set[int]:
    """The cells whose value a notebook is committed with."""
    return {number for number, one in outputs_of(path) if one["output_type"] == "execute_result"}


def test_there_are_eleven_and_a_readme_with_a_line_for_each():
    text = (ROOT / "examples" / "README.md").read_text(encoding="utf-8")
    assert [path.name[:2] for path in NOTEBOOKS] == [f"{number:02d}" for number in range(1, 12)]
    assert re.findall(r"^\| \[\w+\]\((\w+\.ipynb)\)", text, re.M) == [path.name for path in NOTEBOOKS]


LONG = ("03", "04", "05", "07", "08")


@pytest.mark.parametrize(
    "path",
    [pytest.param(path, marks=[pytest.mark.slow] if path.name[:2] in LONG else []) for path in NOTEBOOKS],
    ids=names,
)
def test_a_script_runs_and_shows_what_its_notebook_is_committed_with(path, alone, shown, capfd):
    script = load_export().script_of(path, SMALL.get(path.stem))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        exec(compile(script, path.with_suffix(".py").name, "exec"), {"__name__": "__main__"})
    said = capfd.readouterr()
    assert said.err == ""
    assert {number for number, value in shown.items() if value is not None} == results_of(path)
    assert not [value for value in shown.values() if value is False], "a comparison that should be true is not"
    saved = sorted(file.relative_to(alone).as_posix() for file in (alone / "outputs").rglob("*.*"))
    assert sorted(re.findall(r"^saved (.+)$", said.out, re.M)) == saved
    assert all(file.startswith(f"outputs/{path.stem}/") for file in saved)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=names)
def test_small_parameters_are_some_that_the_notebook_has(path):
    export = load_export()
    texts = [text for _, tags, text in export.cells(path) if export.PARAMETERS in tags]
    had = {statement.targets[0].id for text in texts for statement in ast.parse(text).body}
    assert len(texts) <= 1 and set(SMALL.get(path.stem, ())) <= had


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=names)
def test_a_script_runs_at_full_length(path, alone):
    command = [sys.executable, str(path.with_suffix(".py"))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=3600)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=names)
def test_a_notebook_runs_from_top_to_bottom_in_jupyter(path, alone):
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    notebook = nbformat.read(path, as_version=4)
    nbclient.NotebookClient(notebook, timeout=3600, resources={"metadata": {"path": str(alone)}}).execute()
    nbformat.write(notebook, alone / path.name)
    assert results_of(alone / path.name) == results_of(path)
    assert not [one for _, one in outputs_of(alone / path.name) if one.get("name") == "stderr"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=names)
def test_a_script_is_in_step_with_its_notebook(path):
    committed = path.with_suffix(".py").read_text(encoding="utf-8")
    assert committed == load_export().script_of(path), "run scripts/export_notebooks.py"


def test_no_script_is_left_over():
    assert sorted((ROOT / "examples").glob("*.py")) == [path.with_suffix(".py") for path in NOTEBOOKS]


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
        counts.append(cell["execution_count"])
        assert len("".join(cell["source"]).splitlines()) <= 45, "a wall of code"
    assert counts == list(range(1, len(counts) + 1)), "run from top to bottom, once"
    for _, one in outputs_of(path):
        assert one["output_type"] in ("execute_result", "stream") and one.get("name") != "stderr"
        for kind, data in one.get("data", {}).items():
            assert kind in ("text/plain", "text/html", "image/png", "image/jpeg", "image/svg+xml")
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


def test_what_a_cell_shows_is_one_argument():
    last = load_export().last_expression
    assert last("a, b") == ("", "(a, b)") and last("(a, b)") == ("", "(a, b)") and last("*a, b") == ("", "(*a, b)")
    assert last("(a), (b)") == ("", "((a), (b))") and last("[a, b]") == ("", "[a, b]")
    assert last("é = 'é'; é") == ("é = 'é'; ", "é")  # two statements on a line
