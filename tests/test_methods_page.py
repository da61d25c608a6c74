"""The table of docs/methods/index.md says what is there."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest

from mmspec import compressors, drafters, trees

PAGE = Path(__file__).parents[1] / "docs" / "methods" / "index.md"
ROWS = [
    line.split("|")[1:-1]
    for line in PAGE.read_text().splitlines()
    if re.match(r"\| (\[|EAGLE|early exit|Jacobi)", line)
]


def lines_of(name: str) -> int:
    cls = next(getattr(module, name) for module in (drafters, trees, compressors) if hasattr(module, name))
    return len(Path(inspect.getsourcefile(cls)).read_text().splitlines())


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0].strip())
def test_lines_of_code(row):
    """Of the class that is named behind the number, else of the first one (of a tree, the tree)."""
    names, cell = re.findall(r"`(\w+)`", row[1]), row[-1].strip()
    if match := re.fullmatch(r"(\d+) to (\d+)", cell):
        counts = [lines_of(name) for name in names]
        assert (min(counts), max(counts)) == tuple(map(int, match.groups()))
        return
    number, _, what = cell.partition(" ")
    name = names[-1] if what == "(tree)" else re.findall(r"\w+", what)[0] if what else names[0]
    assert int(number) == lines_of(name) <= 300


def test_every_method_has_a_row():
    named = set(re.findall(r"`(\w+)`", "".join(row[1] for row in ROWS)))
    heads = {name for name in drafters.__all__ if name.endswith("Drafter")} - {"Drafter", "FeatureDrafter"}
    assert heads - {"StepDrafter", "SessionDrafter", "NGramDrafter", "NoDrafter"} <= named
    assert {name for name in compressors.__all__ if issubclass_of(name)} <= named


def issubclass_of(name: str) -> bool:
    cls = getattr(compressors, name)
    return inspect.isclass(cls) and issubclass(cls, compressors.VisualCompressor) and name != "VisualCompressor"
