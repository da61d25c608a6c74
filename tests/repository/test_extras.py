"""What is missing because an extra is not installed is said in one line, in one wording that works in a checkout."""

from __future__ import annotations

import importlib.util
import re
import sys
import tomllib
from pathlib import Path

import models
import pytest

from mmspec import MMSpecError, extras, load_target
from mmspec.evaluation.sweep import SUBMITIT, Sweep
from mmspec.zoo import vocabulary

ROOT = Path(__file__).resolve().parents[2]
SAID = "pip install -e '.[vision]' in the checkout of mmspec"

pytestmark = pytest.mark.skipif(not (ROOT / "pyproject.toml").exists(), reason="not a checkout")


def test_every_package_is_in_the_extra_that_is_named_for_it():
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for extra, packages in extras.EXTRAS.items():
        wanted = {re.split(r"[<>=\[ ]", line)[0] for line in declared[extra]}
        assert wanted & set(packages), extra
        assert all(extras.extra_of(package) == extra for package in packages)
    assert extras.extra_of("sentencepiece") is None
    assert extras.missing("this", "sentencepiece").endswith("not installed: pip install sentencepiece")


def test_no_text_assumes_a_package_index_that_has_mmspec():
    files = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "pyproject.toml", ROOT / "mkdocs.yml"]
    files += [
        file for folder in ("docs", "mmspec", "examples", "scripts", "configs") for file in (ROOT / folder).rglob("*")
    ]
    texts = [file for file in files if file.suffix in (".md", ".py", ".yaml", ".yml", ".toml", ".ipynb")]
    assert [file.name for file in texts if re.search(r"pip install\s+['\"]?mmspec", file.read_text("utf-8"))] == []


@pytest.mark.parametrize(
    ("error", "package"),
    [
        (ModuleNotFoundError("No module named 'gradio.themes'", name="gradio.themes"), "gradio"),
        (
            ImportError("\nQwen2VLVideoProcessor requires the Torchvision library but it was not found in your"),
            "torchvision",
        ),
        (
            ImportError("Using `bitsandbytes` 4-bit quantization requires bitsandbytes: `pip install -U bitsandbytes`"),
            "bitsandbytes",
        ),
        (ValueError("torchvision says that the size is wrong"), None),
        (OSError("no such file"), None),
    ],
)
def test_what_an_error_misses(error, package):
    assert extras.wanted_by(error) == package


@pytest.mark.skipif(importlib.util.find_spec("torchvision") is not None, reason="torchvision is installed")
def test_a_qwen_without_torchvision_names_the_extra(tmp_path):
    models.qwen_vl().save_pretrained(tmp_path)
    vocabulary.build_tokenizer(examples=4).save_pretrained(tmp_path)
    (tmp_path / "processor_config.json").write_text('{"processor_class": "Qwen2VLProcessor"}')
    (tmp_path / "preprocessor_config.json").write_text('{"image_processor_type": "Qwen2VLImageProcessor"}')
    with pytest.raises(MMSpecError) as caught:
        load_target(str(tmp_path))
    assert str(caught.value) == f"target {str(tmp_path)!r} needs torchvision, which is not installed: {SAID}"


def test_a_launcher_that_is_not_installed_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, SUBMITIT, None)
    with pytest.raises(MMSpecError) as caught:
        Sweep.begin(tmp_path / "sweep", ["drafter=ngram,none", "task=scenes", "hydra/launcher=submitit_slurm"])
    wanted = "hydra/launcher=submitit_slurm needs hydra-submitit-launcher, which is not installed: "
    assert str(caught.value) == f"{wanted}pip install -e '.[cluster]' in the checkout of mmspec"
    assert not (tmp_path / "sweep").exists()
