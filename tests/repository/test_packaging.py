"""A wheel, built and installed without a network into an empty environment, works from another folder."""

from __future__ import annotations

import os
import site
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

pytestmark = [pytest.mark.product, pytest.mark.skipif(not (ROOT / "pyproject.toml").exists(), reason="not a checkout")]


def call(*command: object, **options) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {"PIP_NO_INDEX": "1"}
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, env=environment, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    call(sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", folder, ROOT)
    (wheel,) = folder.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """The bin folder of an environment that has the wheel, and sees the packages of this one but not this checkout.

    A .pth file adds the folders of packages to the path without reading the .pth files in them, and it is such a file
    through which an editable install of this checkout would come in.
    """
    folder = tmp_path_factory.mktemp("environment")
    call(sys.executable, "-m", "venv", "--without-pip", folder)
    python = folder / "bin" / "python"
    packages = Path(call(python, "-c", "import site; print(site.getsitepackages()[0])").strip())
    (packages / "outside.pth").write_text("\n".join(site.getsitepackages()))
    call(sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", wheel)
    return folder / "bin"


def test_the_wheel_holds_the_package_and_the_configurations_only(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    configs = {f"mmspec/configs/{path.relative_to(ROOT / 'configs')}" for path in (ROOT / "configs").rglob("*.yaml")}
    package = {str(path.relative_to(ROOT)) for path in (ROOT / "mmspec").rglob("*.py")}
    assets = {
        str(path.relative_to(ROOT))
        for folder in ("weights", "assets")
        for path in (ROOT / "mmspec" / "zoo" / folder).rglob("*")
        if path.is_file()
    }
    assert configs and configs | package | assets <= names
    assert {name.split("/")[0].split("-")[0] for name in names} == {"mmspec"}


def test_the_installed_package_finds_its_configurations(installed, tmp_path):
    code = (
        "import mmspec.settings.configuration as c; print(c.__file__); print(c.shipped_folder());"
        "print(c.compose('generate', ['drafter=ngram', 'tree=chain']).tree.length)"
    )
    file, folder, length = call(installed / "python", "-c", code, cwd=tmp_path).split()
    assert Path(file).is_relative_to(installed.parent) and Path(folder) == Path(file).parents[1] / "configs"
    assert length == "5"


def test_the_installed_command_runs_from_another_folder(installed, tmp_path):
    assert "eagle3 *" in call(installed / "mmspec", "generate", "--help", cwd=tmp_path)


def test_the_installed_command_generates_from_another_folder(installed, tmp_path):
    shown = call(installed / "mmspec", "generate", "max_new_tokens=8", cwd=tmp_path)
    assert "tokens per pass" in shown
