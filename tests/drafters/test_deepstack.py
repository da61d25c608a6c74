"""DeepStack: visual features join the states of Qwen3-VL between its first layers, and a drafter reads these before or
behind that. The two differ at image rows alone, and behind these layers alone."""

from __future__ import annotations

import json
import logging

import models
import pytest
import torch
from blocks import drafter_like
from safetensors.torch import load_file, save_file
from tiny_requests import target_of

import mmspec
from mmspec import MMSpecError
from mmspec.drafters import DFlashDrafter, DSparkDrafter, Eagle3Drafter
from mmspec.drafters.block.settings import usual_layers
from mmspec.inputs import prepare
from mmspec.models.states import LAST, before_joining, layer_entered, left
from mmspec.training.teacher import Teacher

NAME, JOINED = "qwen3_vl", 2
LAYERS = range(3)


def inputs_of(pictures=(1, 0, 2), lengths=(9, 12, 5)) -> dict:
    return models.inputs_for("qwen_vl", list(pictures), list(lengths))


def test_numbers_of_features():
    assert [left(layer) for layer in range(3)] == [-2, -3, -4] and LAST == -1
    assert [layer_entered(left(layer)) for layer in range(3)] == [1, 2, 3]
    assert [layer_entered(layer) for layer in (LAST, 0, 4)] == [LAST, 0, 4]
    assert before_joining([0, 1, 2, 3, LAST], joined=2) == (0, left(0), left(1), 3, LAST)
    assert before_joining([0, 1, LAST], joined=0) == (0, 1, LAST)
    assert target_of(NAME).family.joined_layers == JOINED and target_of("qwen2_5_vl").family.joined_layers == 0


def test_before_and_behind_differ_at_image_rows_of_the_first_layers_and_before_is_what_transformers_shows():
    target, inputs = target_of(NAME), inputs_of()
    request = prepare(target, inputs=inputs)
    before = [left(layer - 1) for layer in LAYERS if layer]
    features = target.prefill(request, target.encode(request), feature_layers=[*LAYERS, *before]).features
    shown = target.model(**inputs, output_hidden_states=True).hidden_states
    rows = inputs["attention_mask"].bool()  # padded on the other side than requests are
    visual = request.inputs["input_ids"] == models.IMAGE
    for layer in LAYERS:
        behind, early = features[layer], features[left(layer - 1)] if layer else features[0]
        for row, length in enumerate(request.lengths):
            differs = (behind - early)[row, :length].abs().amax(-1) > 1e-3
            assert differs.equal(visual[row, :length] & (0 < layer <= JOINED)), layer
            assert (early[row, :length] - shown[layer][row][rows[row]]).abs().max() < 1e-5, layer
    lesson = Teacher(target, [*LAYERS, *before]).study(request, [[5, 6], [7, 8, 9], [4, 5]])
    for row, length in enumerate(request.lengths):
        for layer in (*LAYERS, *before):
            assert (lesson.features[layer][row, :length] - features[layer][row, :length]).abs().max() < 1e-5


KINDS = [
    (DFlashDrafter, {"feature_layers": [0, 1, 2], "block_size": 4}),
    (DSparkDrafter, {"feature_layers": [1, 2], "block_size": 4, "markov_rank": 4}),
    (Eagle3Drafter, {"feature_layers": [1, 0, 2]}),
]


@pytest.mark.parametrize(("cls", "settings"), KINDS)
@pytest.mark.parametrize("before", [False, True])
def test_either_is_exact_and_drafts_what_it_was_shown(cls, settings, before, tmp_path):
    """In training as in a request: the unrolled guesses of an answer are those of its drafts."""
    target, inputs = target_of(NAME), inputs_of()
    drafter = drafter_like(cls, target, settings | {"before_deepstack": before}).eval()
    assert drafter.taps == (before_joining(settings["feature_layers"], JOINED) if before else drafter.taps)
    expected = models.reference(target.model, inputs, 8)
    assert mmspec.generate(target, drafter, inputs=inputs, max_new_tokens=8).token_ids == expected
    drafter.save_pretrained(tmp_path)
    loaded = mmspec.load_drafter(str(tmp_path), target)
    assert loaded.settings.before_deepstack is before and loaded.taps == drafter.taps
    assert mmspec.generate(target, loaded, inputs=inputs, max_new_tokens=8).token_ids == expected


@pytest.mark.parametrize(("cls", "settings"), KINDS)
def test_it_changes_guesses_behind_pictures_alone(cls, settings):
    target = target_of(NAME)
    guesses = {}
    for before in (False, True):
        drafter = drafter_like(cls, target, settings | {"before_deepstack": before}).eval()
        lesson = Teacher(target, drafter.feature_layers).study(
            prepare(target, inputs=inputs_of((1, 0), (9, 12))), [[5, 6, 7, 8], [9, 4, 5, 6]]
        )
        roots = lesson.root_slots.shape[1]
        with torch.no_grad():
            guess = next(iter(drafter.unroll(lesson, 1)))
        for root, logits in zip(guess.roots.tolist(), guess.logits, strict=True):
            guesses[before, root // roots, root % roots] = logits
    for (before, row, root), logits in guesses.items():
        if before:
            assert torch.allclose(logits, guesses[False, row, root], atol=1e-5) == (row == 1), (row, root)


def published(folder, said=None, taps=(0, 1), name=NAME, **more):
    """A checkpoint of z-lab's dialect."""
    target = target_of(name)
    settings = {"feature_layers": [tap + 1 for tap in taps], "mask_token_id": 3, "block_size": 4}
    drafter = drafter_like(DFlashDrafter, target, settings | more)
    config = {"architectures": ["DFlashDraftModel"], "block_size": 4, "head_dim": drafter.head.head_dim}
    config |= {"rope_theta": drafter.head.rope_parameters["rope_theta"], "rms_norm_eps": drafter.head.rms_norm_eps}
    config |= {"dflash_config": {"target_layer_ids": list(taps), "mask_token_id": 3}}
    if said is not None:
        config["before_deepstack"] = said
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    save_file(
        {key: value.detach().clone() for key, value in drafter.state_dict().items()}, folder / "model.safetensors"
    )
    return str(folder), target


def test_a_checkpoint_that_does_not_say_is_warned_about(tmp_path, caplog):
    cases = [({}, True), ({"said": False}, False), ({"said": True}, False), ({"name": "qwen2_5_vl"}, False)]
    for number, (changes, warned) in enumerate(cases):
        folder, target = published(tmp_path / str(number), **changes)
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            loaded = mmspec.load_drafter(folder, target)
        said = [record.getMessage() for record in caplog.records if "DeepStack" in record.getMessage()]
        assert len(said) == warned and all("\n" not in line and "enter layers [1, 2]" in line for line in said)
        assert loaded.settings.before_deepstack is bool(changes.get("said"))
    (folder := tmp_path / "eagle3").mkdir()
    drafter = drafter_like(Eagle3Drafter, target_of(NAME), {"feature_layers": [0, 1, 2]})
    mmspec.export_speculators(drafter, folder, "owner/target")
    config = json.loads((folder / "config.json").read_text())
    for said in (None, True):
        (folder / "config.json").write_text(json.dumps(config | ({} if said is None else {"before_deepstack": said})))
        caplog.clear()
        loaded = mmspec.load_drafter(str(folder), target_of(NAME))
        assert any("DeepStack" in record.getMessage() for record in caplog.records) == (said is None)
        assert loaded.settings.before_deepstack is bool(said)
    wrong = config | {"before_deepstack": "yes"}
    (folder / "config.json").write_text(json.dumps(wrong))
    with pytest.raises(MMSpecError, match="before_deepstack='yes'"):
        mmspec.load_drafter(str(folder), target_of(NAME))


@pytest.mark.parametrize(("cls", "settings"), [KINDS[1], KINDS[2]])
def test_what_is_read_before_is_not_exported(cls, settings, tmp_path):
    drafter = drafter_like(cls, target_of(NAME), settings | {"before_deepstack": True})
    with pytest.raises(MMSpecError, match="before visual features join them .before_deepstack=True."):
        mmspec.export_speculators(drafter, tmp_path / "out", "owner/target")
    harmless = DFlashDrafter(target_of("llava"), before_deepstack=True, mask_token_id=3)
    mmspec.export_speculators(harmless, tmp_path / "out", "owner/target")
    assert load_file(tmp_path / "out" / "model.safetensors")


def test_a_new_drafter_reads_behind_these_layers():
    assert usual_layers(36) == [2, 10, 18, 26, 34] and usual_layers(28) == [2, 8, 14, 20, 26]
    assert usual_layers(36, joined=3) == [4, 11, 19, 27, 34]
    assert min(usual_layers(28, joined=3)) == 4
    assert min(DFlashDrafter(target_of(NAME)).settings.feature_layers) >= JOINED
