"""Broken folders: a drafter that leaves the target's text as it is, or one line that says what is wrong."""

from __future__ import annotations

import logging
import random
import shutil
from functools import cache

import models
import mutations
import pytest
from helpers import target_of

import mmspec
from mmspec import MMSpecError

NAMES = [*mutations.originals(), *mutations.OWN]


@cache
def asked(family: str) -> tuple[dict, list]:
    """A prompt with a picture, and what the target alone says to it."""
    inputs = models.inputs_for(family, [1])
    return inputs, mmspec.generate(target_of(family, "sdpa"), inputs=inputs, max_new_tokens=8).token_ids


def outcome(folder, family: str) -> str | None:
    """What is said of a folder; None if its drafter works."""
    inputs, expected = asked(family)
    target = target_of(family, "sdpa")
    try:
        drafter = mmspec.load_drafter(str(folder), target)
        written = mmspec.generate(target, drafter, inputs=inputs, max_new_tokens=8).token_ids
    except MMSpecError as error:
        return str(error)
    assert written == expected
    return None


def broken(folder, name: str, seed: int) -> tuple[str, str]:
    """A sound folder with one or two faults; returns its target's family, and the faults in words."""
    draw = random.Random(f"{name} {seed}")
    family = mutations.write(folder, name)
    return family, "; ".join(mutations.mutate(folder, draw) for _ in range(1))


def survives(folder, name: str, seed: int) -> str | None:
    family, fault = broken(folder, name, seed)
    try:
        said = outcome(folder, family)
    except Exception as error:
        raise AssertionError(f"{name}, seed {seed}: {fault}") from error
    finally:
        shutil.rmtree(folder)
    if said is not None:
        assert said.isprintable() and len(said) <= 2000, (name, seed, fault, said)
    return said


@pytest.mark.parametrize("name", NAMES)
def test_a_broken_folder_is_refused_in_one_line_or_works(tmp_path, caplog, name):
    caplog.set_level(logging.CRITICAL)
    assert outcome(tmp_path / "sound", mutations.write(tmp_path / "sound", name)) is None
    said = [survives(tmp_path / "broken", name, seed) for seed in range(8)]
    assert any(said)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_many_broken_folders(tmp_path, caplog, name):
    caplog.set_level(logging.CRITICAL)
    for seed in range(8, 400):
        survives(tmp_path / "broken", name, seed)
