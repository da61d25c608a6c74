"""Versions of transformers: what is said to be tested, and what is said of one that is newer."""

import logging
import tomllib
from pathlib import Path

import models
import pytest
import transformers
from packaging.requirements import Requirement
from packaging.version import Version

import mmspec
from mmspec import compat

ROOT = Path(__file__).parents[2]


@pytest.fixture
def newer(monkeypatch):
    monkeypatch.setattr(compat.transformers, "__version__", "5.99.0")
    compat.warn_if_untested.cache_clear()
    yield
    compat.warn_if_untested.cache_clear()


def test_the_tested_versions_stand_in_the_changelog_and_in_the_requirements():
    (row,) = [line for line in (ROOT / "docs/changelog.md").read_text().splitlines() if "| transformers |" in line]
    assert [cell.strip() for cell in row.strip("|").split("|")] == ["transformers", compat.OLDEST, compat.NEWEST]
    requirements = map(Requirement, tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"])
    (required,) = (one.specifier for one in requirements if one.name == "transformers")
    (bound,) = (one.version for one in required if one.operator == ">=")
    assert Version(bound) == Version(compat.OLDEST) and compat.NEWEST in required


def test_a_newer_transformers_is_one_line_once(newer, caplog):
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            mmspec.Target(models.llama())
    (record,) = caplog.records
    assert "5.99.0" in record.getMessage() and compat.NEWEST in record.getMessage()
    assert "\n" not in record.getMessage()


def test_a_tested_transformers_is_not_mentioned(caplog, monkeypatch):
    monkeypatch.setattr(compat.transformers, "__version__", compat.NEWEST)
    compat.warn_if_untested.cache_clear()
    mmspec.Target(models.llama())
    assert not caplog.records


def test_the_cache_goes_by_one_name_without_a_warning(recwarn):
    target = mmspec.Target(models.llama())
    out = mmspec.generate(target, mmspec.drafters.NGramDrafter(target), inputs={"input_ids": [[5, 6, 7, 5, 6]]})
    assert out.token_ids[0] and not [w for w in recwarn if "past_key_values" in str(w.message)]
    newer = Version(transformers.__version__) >= Version("5.24.0")
    assert ("cache" if newer else "past_key_values") == compat.CACHE
