"""The table of docs/methods/index.md says what is there."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

from mmspec import compressors, drafters

PAGE = Path(__file__).parents[2] / "docs" / "methods" / "index.md"
ROWS = [
    line.split("|")[1:-1]
    for line in PAGE.read_text().splitlines()
    if re.match(r"\| (\[|EAGLE|a small model|early exit|Jacobi)", line)
]


def test_every_method_has_a_row():
    named = set(re.findall(r"`(\w+)`", "".join(row[1] for row in ROWS)))
    made = {name for name in drafters.__all__ if name.endswith("Drafter")}
    interfaces = {"Drafter", "DraftModelDrafter", "FeatureDrafter", "HeadDrafter", "LayerDrafter", "BlockDrafter"}
    interfaces |= {"StepDrafter", "SessionDrafter"}
    assert made - interfaces - {"NGramDrafter", "NoDrafter"} <= named
    assert {name for name in compressors.__all__ if issubclass_of(name)} <= named


def issubclass_of(name: str) -> bool:
    cls = getattr(compressors, name)
    return inspect.isclass(cls) and issubclass(cls, compressors.VisualCompressor) and name != "VisualCompressor"
