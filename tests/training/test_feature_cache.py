"""What a stored lesson holds of pictures is what the target saw: draft models with copies of its encoders use it."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import tiny_families
import torch
from tiny_requests import LENGTHS, rows_of, target_of

from mmspec import MMSpecError
from mmspec.drafters.draft_model.same_encoders import SameEncoders
from mmspec.inputs import prepare
from mmspec.training.beginnings import cut_own_encoder
from mmspec.training.data import TrainingPass
from mmspec.training.feature_cache import CachedTeacher
from mmspec.training.teacher import Teacher

ANSWERS = [[5, 6, 7, 8], [9, 5, 6], [7, 7], [8, 6, 5, 9, 5]]


def stored(name: str, folder, monkeypatch) -> tuple[CachedTeacher, TrainingPass]:
    """A teacher that has read a ragged batch of all the media that a family takes, and the batch."""
    target, tiny = target_of(name), tiny_families.FAMILIES[name]
    prompt = prepare(target, inputs=tiny.inputs(rows_of(tiny), list(LENGTHS)))
    batch = TrainingPass(prompt, ANSWERS, ["any"] * 4, [*"abcd"], [0, 1, 2, 3])
    monkeypatch.setattr(CachedTeacher, "_identity", lambda _: {"layers": [-1]})
    loader = SimpleNamespace(examples=[None] * 4, prepare=lambda _: batch)
    cached = CachedTeacher(Teacher(target), loader, folder)
    cached.fill()
    return cached, batch


@pytest.mark.parametrize("name", [name for name, tiny in tiny_families.FAMILIES.items() if tiny.kinds])
def test_copies_learn_from_stored_pictures_what_they_would_see(name, tmp_path, monkeypatch):
    target = target_of(name)
    if not target.family.can_be_cut:
        pytest.skip("no smaller model is cut from it")
    cached, batch = stored(name, tmp_path / "cache", monkeypatch)
    drafter, runs = cut_own_encoder(target, 1), []
    family, lesson = drafter.draft_target.family, cached.lesson_of(batch)
    whole = type(family).encode
    monkeypatch.setattr(family, "encode", lambda inputs: runs.append(1) or whole(family, inputs), raising=False)
    with torch.no_grad():
        taken = drafter.states_of(lesson.prompt, lesson.vision, lesson.answers)[2]
        monkeypatch.setattr(SameEncoders, "between", lambda *_: False)
        looked = drafter.states_of(lesson.prompt, lesson.vision, lesson.answers)[2]
    assert len(runs) == 1
    assert torch.allclose(taken, looked, atol=1e-5)


def test_a_cache_that_was_made_without_deep_features_is_refused(tmp_path, monkeypatch):
    cached, batch = stored("qwen3_vl", tmp_path / "cache", monkeypatch)
    whole = CachedTeacher._read
    monkeypatch.setattr(
        CachedTeacher, "_read", lambda self, n: {key: part for key, part in whole(self, n).items() if key != "deep"}
    )
    with pytest.raises(MMSpecError, match="lacks what pictures add behind the first layers, of example 0: delete"):
        cached.lesson_of(batch)
