"""Broken folders: a drafter that leaves the target's text as it is, or one line that says what is wrong."""

from __future__ import annotations

import logging
import random
import shutil

import mutations
import pytest
from published_drafters import outcome

NAMES = [*mutations.originals(), *(f"saved {name}" for name in mutations.OWN), mutations.SMALL_MODEL]


def broken(folder, name: str, seed: int) -> tuple[str, str]:
    """A sound folder in which something is broken; returns its target's family, and what it is."""
    family = mutations.write(folder, name)
    return family, mutations.mutate(folder, random.Random(f"{name} {seed}"))


def said_of(folder, name: str, seed: int) -> str | None:
    """What is said of a broken folder, which must be one line of bounded length, its path left out; None if its drafter
    works."""
    family, fault = broken(folder, name, seed)
    try:
        said = outcome(folder, family)
    except Exception as error:
        raise AssertionError(f"{name}, seed {seed}: {fault}") from error
    shutil.rmtree(folder)
    assert said is None or (said.isprintable() and len(said.replace(str(folder), "")) < 1000), (name, seed, fault, said)
    return said


def test_a_broken_folder_is_refused_in_one_line_or_works(tmp_path, caplog):
    caplog.set_level(logging.CRITICAL)
    said = [said_of(tmp_path / "broken", name, seed=0) for name in NAMES]
    assert 0 < said.count(None) < len(said) / 2


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_many_broken_folders(tmp_path, caplog, name):
    caplog.set_level(logging.CRITICAL)
    for seed in range(1, 200):
        said_of(tmp_path / "broken", name, seed)
