"""The options of the group `task`, and what importing the package costs."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from omegaconf import OmegaConf
from PIL import Image

from mmspec import zoo
from mmspec.data import Source, open_media
from mmspec.settings import configuration

FOLDER = configuration.shipped_folder() / "task"
OPTIONS = sorted(file.stem for file in FOLDER.glob("*.yaml"))
GIVEN = {"images": "folder", "folder": "folder", "mmspec": "folder", "conversations": "path"}
"""Options that need to know where the data is, with the setting that says it."""


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A folder that every option can read."""
    folder = tmp_path_factory.mktemp("data")
    (folder / "test").mkdir()
    Image.new("RGB", (4, 4)).save(folder / "a.png")
    (folder / "a.txt").write_text("What is this?")
    rows = {"id": "1", "image": "../a.png", "turns": ["What is this?"], "topic": "t", "question": "What is this?"}
    (folder / "test" / "mmspec.jsonl").write_text(json.dumps(rows))
    return folder


@pytest.mark.parametrize("option", OPTIONS)
def test_every_task_gives_examples_with_a_medium(option, data):
    config = OmegaConf.load(FOLDER / f"{option}.yaml")
    if option in GIVEN:
        assert OmegaConf.missing_keys(config) == {GIVEN[option]}
        config[GIVEN[option]] = str(data / "test" / "mmspec.jsonl" if option == "conversations" else data)
    source = configuration.build(config)
    assert isinstance(source, Source) and len(source) and source.describe()
    assert all(example.prompt and len(example.images + example.videos) == 1 for example in source)
    for example in list(source)[:3]:
        media = open_media(example, source.folder)
        assert [one.mode for one in media.get("images", [])] == ["RGB"] * len(example.images)
        assert all(len(clip.frames) > 1 for clip in media.get("videos", []))


def test_drawn_tasks_are_the_parts_of_tiny():
    drawn = {name: configuration.build(OmegaConf.load(FOLDER / f"{name}.yaml")) for name in ("tiny", *zoo.TASKS)}
    assert drawn["tiny"].split == "test" and len(drawn["tiny"]) == 16
    assert {e.id for e in drawn["tiny"]} == {e.id for name in zoo.TASKS for e in drawn[name]}


def test_importing_the_package_loads_nothing_heavy():
    code = (
        "import sys, mmspec.data;"
        "print([m for m in ('torch', 'transformers', 'datasets', 'pyarrow') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
