"""A type checker knows what the public names are, although they are loaded on first use."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import mmspec

PROGRAM = """
import mmspec
from mmspec import zoo
from mmspec.trees import DynamicTree
from mmspec.verifiers import Greedy

target = mmspec.load_target("tiny")
drafter = mmspec.load_drafter("tiny/eagle3", target)
out = mmspec.generate(
    target, drafter, "What is this?", [zoo.demo_image()], tree=DynamicTree(5, 4, 24), verifier=Greedy(), trace=True
)
reveal_type(target)
reveal_type(drafter)
reveal_type(out)
reveal_type(out.text[0])
reveal_type(out.trace[1].svg())
reveal_type(out.stats.mean_acceptance_length)
for piece in mmspec.stream(target, drafter, prompt="What is this?"):
    reveal_type(piece.spans)
reveal_type(target.check().ok)
mmspec.generate(target, drafter, prompt=3)
out.txet
"""

REVEALED = [
    "mmspec.target.Target",
    "mmspec.drafters.base.Drafter",
    "mmspec.decoding.transcript.Output",
    "str | None",
    "str",
    "float",
    "list[tuple[str, bool]]",
    "bool",
]


def test_the_names_for_type_checkers_are_the_names_there_are():
    tree = ast.parse(Path(mmspec.__file__).read_text())
    (block,) = [node for node in tree.body if isinstance(node, ast.If)]
    named = {alias.name for line in block.body for alias in line.names}
    assert named == {*mmspec._LAZY, *mmspec._MODULES}
    for name in named:
        assert getattr(mmspec, name) is not None
    assert (Path(mmspec.__file__).parent / "py.typed").is_file()


@pytest.mark.slow  # half a minute, most of it for torch's own types
def test_mypy_understands_a_program(tmp_path):
    pytest.importorskip("mypy")
    file = tmp_path / "program.py"
    file.write_text(PROGRAM)
    options = ["--ignore-missing-imports", "--follow-imports=silent", f"--cache-dir={tmp_path}"]
    done = subprocess.run([sys.executable, "-m", "mypy", *options, str(file)], capture_output=True, text=True)
    notes = [line.partition('is "')[2][:-1] for line in done.stdout.splitlines() if "Revealed type" in line]
    assert notes == REVEALED
    errors = [line for line in done.stdout.splitlines() if "error:" in line]
    assert len(errors) == 2 and 'has no attribute "txet"' in errors[1]
