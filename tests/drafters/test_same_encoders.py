"""Encoders that are copies of the target's do not run a second time, nor do those whose work nobody would see."""

from __future__ import annotations

import copy

import models
import pytest
import torch
from tiny_drafters import blurred_drafter, record_drafts
from tiny_requests import RAGGED, case, target_of

import mmspec
from mmspec.compressors import Hide, Prune
from mmspec.drafters import DraftModelDrafter
from mmspec.drafters.draft_model.same_encoders import SameEncoders, encoder_weights
from mmspec.training.beginnings import cut_own_encoder
from mmspec.trees import DynamicTree

NEW = 12


def decoded(drafter, name: str, monkeypatch) -> tuple[list[list[float]], int]:
    """The probabilities of everything that was drafted, and how often the draft model's encoders ran."""
    inputs, expected = case(name, "sdpa", *RAGGED, NEW)
    drafts, family, runs = record_drafts(monkeypatch, DraftModelDrafter), drafter.draft_target.family, []
    whole = type(family).encode
    monkeypatch.setattr(family, "encode", lambda inputs: runs.append(1) or whole(family, inputs), raising=False)
    out = mmspec.generate(drafter.target, drafter, inputs=inputs, max_new_tokens=NEW, tree=DynamicTree(2, 3, 5))
    assert out.token_ids == expected
    return [draft.tree.log_probs.tolist() for draft in drafts], len(runs)


def close(ours: list, theirs: list) -> bool:
    return len(ours) == len(theirs) and all(
        torch.allclose(torch.tensor(a), torch.tensor(b), atol=1e-5) for a, b in zip(ours, theirs, strict=True)
    )


@pytest.mark.parametrize("compressor", [None, Prune(0.5)], ids=["everything", "pruned"])
@pytest.mark.parametrize("name", models.VISUAL)
def test_copies_take_what_the_target_saw(name, compressor, monkeypatch):
    """And draft the same as when they look themselves."""
    drafter = cut_own_encoder(target_of(name, "sdpa"), 1)
    drafter = drafter if compressor is None else drafter.with_compressor(compressor)
    drafts, runs = decoded(drafter, name, monkeypatch)
    assert runs == 0
    monkeypatch.setattr(SameEncoders, "between", lambda *_: False)
    looked, runs = decoded(drafter, name, monkeypatch)
    assert runs == 1
    assert close(drafts, looked)


@pytest.mark.parametrize("name", models.VISUAL)
def test_a_blind_model_looks_at_nothing(name, monkeypatch):
    drafter = blurred_drafter(name, "sdpa").with_compressor(Hide())
    drafts, runs = decoded(drafter, name, monkeypatch)
    assert runs == 0
    monkeypatch.setattr(Hide, "blind", False)
    looked, runs = decoded(drafter, name, monkeypatch)
    assert runs == 1
    assert close(drafts, looked)


def test_another_weight_or_setting_is_another_encoder(monkeypatch):
    """However late it is written, and on whichever side; a change of the language model is none."""
    target = mmspec.Target(copy.deepcopy(target_of("llava", "sdpa").model))
    drafter = cut_own_encoder(target, 1)
    same, families = SameEncoders(), (drafter.draft_target.family, target.family)
    assert same.between(*families)
    with torch.no_grad():
        drafter.model.get_input_embeddings().weight.add_(1)
        assert same.between(*families)
        for family in families:
            weight = next(weight for weight in encoder_weights(family).values() if weight.is_floating_point())
            before = weight.clone()
            weight.add_(1)
            assert not same.between(*families)
            weight.copy_(before)
            assert same.between(*families)
    drafter.model.config.vision_feature_layer = -2
    assert not SameEncoders().between(*families)


def test_pictures_that_the_caller_encoded_will_do_for_copies():
    target = target_of("llava", "sdpa")
    inputs, expected = case("llava", "sdpa", *RAGGED, NEW)
    encoded = {"image": target.model.model.get_image_features(inputs["pixel_values"], return_dict=True)}
    inputs = {name: value for name, value in inputs.items() if name != "pixel_values"}
    custom = mmspec.hf.custom_generate(cut_own_encoder(target, 1))
    options = {"max_new_tokens": NEW, "do_sample": False, "custom_generate": custom}
    assert target.model.generate(**inputs, mm_encoder_outputs=encoded, **options)[:, -NEW:].tolist() == expected


def test_models_that_are_no_copies_look_for_themselves(monkeypatch):
    target = target_of("llava", "sdpa")
    assert not SameEncoders().between(mmspec.Target(models.MODELS["qwen_vl"](seed=4)).family, target.family)
    assert decoded(blurred_drafter("llava", "sdpa"), "llava", monkeypatch)[1] == 1


def test_weights_are_compared_once_for_all_requests(monkeypatch):
    """Every request drafts with a fork."""
    drafter, compared, whole = cut_own_encoder(target_of("llava", "sdpa"), 1), [], torch.equal
    monkeypatch.setattr(torch, "equal", lambda a, b: compared.append(1) or whole(a, b))
    decoded(drafter, "llava", monkeypatch)
    once = len(compared)
    assert once > 0
    decoded(drafter, "llava", monkeypatch)
    assert len(compared) == once
