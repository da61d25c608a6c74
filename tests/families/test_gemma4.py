"""What is particular to Gemma 4: sounds beside pictures, layers that read the keys of others, embeddings for layers."""

from __future__ import annotations

from functools import cache, partial

import models
import pytest
import torch
from full_recompute import recompute
from refusals import refused
from tiny_drafters import TINY_DRAFTERS
from tiny_families import FAMILIES, SEES_VIDEOS, Tiny, placed
from tiny_requests import NEW, batch_of, target_of

import mmspec
from mmspec.check import check_target
from mmspec.compressors import Pool
from mmspec.drafters import DFlashDrafter, EarlyExitDrafter, NGramDrafter, OwnEncoderDrafter
from mmspec.drafters.gemma4_assistant import new_assistant
from mmspec.families.gemma4 import Gemma4, Gemma4Unified
from mmspec.inputs import prepare
from mmspec.models.attention import attention_weights, entropy_of_layers, newest_attention
from mmspec.target import Target
from mmspec.training.beginnings import cut_text_only
from mmspec.training.teacher import Teacher
from mmspec.trees import Chain, DynamicTree

LARGE = {
    "num_kv_shared_layers": 0,
    "hidden_size_per_layer_input": 0,
    "attention_k_eq_v": True,
    "num_global_key_value_heads": 1,
}
"""As the 26B and the 31B: all layers have keys, full ones use them as values; no layer has an embedding."""
SMALL = {"use_bidirectional_attention": None}
"""As E2B and E4B: pictures are read in order."""
EARS = {
    "model_type": "gemma4_audio",
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "subsampling_conv_channels": [128, 2],
    "output_proj_dims": 12,
    "attention_chunk_size": 4,
    "attention_context_left": 3,
}


def pictures_of(row: list[str], seed: int = 0) -> dict:
    return FAMILIES["gemma4"].inputs([row], [7], seed=seed)


@cache
def hearing() -> tuple[Target, dict, list[int]]:
    """A target that sees and hears, a row with a picture between two sounds of eight and five tokens, and its text."""
    target = Target(models.gemma4(ears=EARS))
    generator = torch.Generator().manual_seed(1)
    ids = [3, 4, *[models.AUDIO] * 8, 5, 6, models.VISION_START, *[models.IMAGE] * 4, models.VISION_END]
    ids = torch.tensor([[*ids, 7, *[models.AUDIO] * 5, 8, 9, 10]])
    types = torch.zeros_like(ids)
    types[ids == models.IMAGE], types[ids == models.AUDIO] = 1, 3
    picture = {name: value for name, value in pictures_of(["image"]).items() if "pixel" in name or "position" in name}
    inputs = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "mm_token_type_ids": types,
        "input_features": torch.randn(2, 32, 128, generator=generator),
        "input_features_mask": torch.arange(32) < torch.tensor([[32], [20]]),
    } | picture
    written = target.model.generate(**inputs, max_new_tokens=NEW, do_sample=False)[0, ids.shape[1] :]
    return target, inputs, written.tolist()


def test_sounds_and_pictures_in_one_prompt():
    target, inputs, expected = hearing()
    vision = target.encode(prepare(target, inputs=inputs))
    assert vision.kinds == ["audio", "image", "audio"] and vision.sizes == [8, 4, 5]
    for drafter in (NGramDrafter(target), OwnEncoderDrafter(target, models.blurred(target.model))):
        assert mmspec.generate(target, drafter, inputs=inputs, max_new_tokens=NEW).token_ids == [expected]
    report = check_target(target, inputs)
    assert report.ok and report.kinds == {"image", "audio"}, f"\n{report}"
    without = {name: value for name, value in inputs.items() if name != "mm_token_type_ids"}
    assert torch.equal(prepare(target, inputs=without).inputs["mm_token_type_ids"], inputs["mm_token_type_ids"])


def test_videos_have_grids_whichever_way_their_frames_are_batched():
    """Behind one another, as in transformers 5.24, or one video beside the other, as in 5.17."""
    encoder = target_of("gemma4").family.encoders["video"]
    places = torch.stack([pictures_of(["image"])["image_position_ids"][0]] * 4)
    behind = {"video_position_ids": places, "num_frames_per_video": torch.tensor([2, 2])}
    beside = {"video_position_ids": places.view(2, 2, *places.shape[1:])}
    assert encoder.grids([8, 8], behind) == encoder.grids([8, 8], beside) == [(2, 2, 2)] * 2


@pytest.mark.parametrize("settings", [LARGE, SMALL], ids=["large", "small"])
def test_models_of_both_sizes_pass(settings):
    report = check_target(Target(models.gemma4(**settings)), pictures_of(["image", "video", "image"]))
    assert report.ok and report.kinds == {"image", "video"}, f"\n{report}"


@cache
def without_towers() -> tuple[Target, dict, list[list[int]], dict]:
    """A target like the 12B, a ragged batch, its texts row by row, and its last row alone, which hears too."""
    target = Target(models.gemma4_unified())
    tiny = Tiny(models.gemma4_unified, partial(placed, side=1), **SEES_VIDEOS)
    rows, lengths, written = [["image"], [], ["image", "video", "image"]], [9, 14, 5], []
    for number, (row, length) in enumerate(zip(rows, lengths, strict=True)):
        single = tiny.inputs([row], [length], seed=number)
        ids = target.model.generate(**single, max_new_tokens=NEW, do_sample=False)
        written.append(ids[0, single["input_ids"].shape[1] :].tolist())
    heard = torch.arange(6) < torch.tensor([[6], [4]])
    single["input_ids"] = torch.cat(
        [single["input_ids"], torch.tensor([[*[models.AUDIO] * 6, 8, *[models.AUDIO] * 4, 9]])], 1
    )
    types = torch.zeros_like(single["input_ids"])
    for kind, token in enumerate((models.IMAGE, models.VIDEO, models.AUDIO), 1):
        types[single["input_ids"] == token] = kind
    single |= {"attention_mask": torch.ones_like(types), "mm_token_type_ids": types, "input_features_mask": heard}
    single["input_features"] = torch.randn(2, 6, 8, generator=torch.Generator().manual_seed(3))
    return target, tiny.inputs(rows, lengths), written, single


def test_a_model_without_towers_passes():
    """As the 12B: tokens of a picture see each other in every layer."""
    target, inputs, _, single = without_towers()
    assert type(target.family) is Gemma4Unified
    report = check_target(target, single)
    assert report.ok and report.kinds == {"image", "video", "audio"}, f"\n{report}"
    request = prepare(target, inputs=inputs)
    vision = target.encode(request)
    assert target.family.grids(request.inputs, vision) == [(1, 2, 2), (1, 2, 2), (2, 2, 2), (1, 4, 2)]
    embedder = target.model.model.embed_vision.multimodal_embedder
    with torch.no_grad():
        assert all(
            torch.allclose(embedder(seen), tokens, atol=1e-5)
            for seen, tokens in zip(vision.features, vision.embeds, strict=True)
        )
    eager = models.gemma4_unified("eager")
    eager.load_state_dict(target.model.state_dict())
    wanted = recompute(eager, single, [[3, 4]], output_attentions=True).attentions
    lesson = Teacher(target, range(4)).study(prepare(target, inputs=single), [[3, 4]])
    length = lesson.request.lengths[0]
    for layer, expected in enumerate(wanted):
        weights = attention_weights(target, layer, lesson.features, lesson.request.inputs)
        assert (weights[0, :, :length, :length] - expected[0]).abs().max() < 1e-5, layer
    assert all(weights[0].triu(1).amax() > 1e-3 for weights in wanted)


def test_drafters_of_a_model_without_towers(tmp_path):
    target, inputs, expected, _ = without_towers()
    assistant = new_assistant(target, layers=2)
    assistant.model.save_pretrained(tmp_path / "theirs")
    published = mmspec.load_drafter(str(tmp_path / "theirs"), target)
    assert type(published.model).__name__ == "Gemma4UnifiedAssistantForCausalLM"
    published.save_pretrained(tmp_path / "ours")
    saved = mmspec.load_drafter(str(tmp_path / "ours"), target)
    own = OwnEncoderDrafter(target, models.blurred(target.model))
    for drafter in (own, DFlashDrafter(target), DFlashDrafter(target, compressor=Pool(2)), published, saved):
        out = mmspec.generate(target, drafter, inputs=inputs, max_new_tokens=NEW, tree=DynamicTree(3, 2, 6))
        assert out.token_ids == expected, type(drafter).__name__


def without_types(monkeypatch):
    """The tokens of a picture see those before them alone."""
    given = Gemma4.prefill_inputs

    def patch(self, *arguments):
        return given(self, *arguments) | {"mm_token_type_ids": None}

    monkeypatch.setattr(Gemma4, "prefill_inputs", patch)


def embedded_as_themselves(monkeypatch):
    """The embeddings for the layers are those of placeholders."""
    given = Gemma4.prefill_inputs

    def patch(self, inputs, *others):
        own = self.decoder.get_per_layer_inputs(inputs["input_ids"], None)
        return given(self, inputs, *others) | {"per_layer_inputs": own}

    monkeypatch.setattr(Gemma4, "prefill_inputs", patch)


@pytest.mark.parametrize("mistake", [without_types, embedded_as_themselves])
def test_a_mistake_is_seen(mistake, monkeypatch):
    mistake(monkeypatch)
    report = check_target(target_of("gemma4"), pictures_of(["image", "video"]))
    assert [f for f in report.findings if not f.ok and f.what.startswith("pictures")], f"\n{report}"


@torch.no_grad()
def test_attention_is_that_of_the_eager_model_in_every_layer():
    """Two of the four layers read the keys of the others, and only those with a window see pictures both ways."""
    target, inputs = target_of("gemma4"), pictures_of(["image", "video", "image"])
    eager = models.gemma4("eager")
    eager.load_state_dict(target.model.state_dict())
    wanted = recompute(eager, inputs, [[3, 4]], output_attentions=True).attentions
    request = prepare(target, inputs=inputs)
    lesson = Teacher(target, range(4)).study(request, [[3, 4]])
    length, queries = lesson.request.lengths[0], torch.tensor([[4, 20, 0, 30]])
    for layer, expected in enumerate(wanted):
        weights = attention_weights(target, layer, lesson.features, lesson.request.inputs)
        assert (weights[0, :, :length, :length] - expected[0]).abs().max() < 1e-5, layer
        some = attention_weights(target, layer, lesson.features, lesson.request.inputs, queries)
        assert (some - weights[:, :, queries[0]]).abs().max() < 1e-5, layer
    context = target.prefill(request, target.encode(request), feature_layers=range(4))
    recomputed = recompute(eager, inputs, [[]], output_attentions=True).attentions
    for layer, expected in enumerate(recomputed):
        newest = newest_attention(target, layer, context.features[layer][:, -1:], context)
        assert (newest[0] - expected[0, :, -1]).abs().max() < 1e-5, layer
    upper = wanted[0][0].triu(1).amax(), wanted[1][0].triu(1).amax()
    assert upper[0] > 1e-3 and upper[1] == 0, "pictures are read both ways in the first layer only"
    entropies = [torch.special.entr(part).sum(-1).mean() for part in recomputed]
    assert torch.tensor(entropy_of_layers(target, [request])).allclose(torch.stack(entropies), atol=1e-4)


def test_a_compressor_that_leaves_everything_changes_nothing():
    """The draft model, the target itself, is right every time: what is left of a picture has its tokens' embeddings."""
    target = target_of("gemma4")
    rows, lengths = [["image"], [], ["image", "image", "image"]], [9, 20, 5]
    inputs = FAMILIES["gemma4"].inputs(rows, lengths)
    expected = []
    for number, (row, length) in enumerate(zip(rows, lengths, strict=True)):
        single = FAMILIES["gemma4"].inputs([row], [length], seed=number)
        ids = target.model.generate(**single, max_new_tokens=11, do_sample=False)
        expected.append(ids[0, single["input_ids"].shape[1] :].tolist())
    drafter = OwnEncoderDrafter(target, target.model, compressor=Pool(1))
    out = mmspec.generate(target, drafter, inputs=inputs, max_new_tokens=11, tree=Chain(4))
    assert out.token_ids == expected
    assert [record.accepted for record in out.stats.rounds] == [[4] * 3] * 2


def test_first_layers_draft_where_all_have_keys_of_their_own():
    target, inputs = Target(models.gemma4(**LARGE)), pictures_of(["image", "video", "image"])
    ids = target.model.generate(**inputs, max_new_tokens=NEW, do_sample=False)[:, inputs["input_ids"].shape[1] :]
    drafter, tree = EarlyExitDrafter(target, layers=3), DynamicTree(6, 2, 3)
    out = mmspec.generate(target, drafter, inputs=inputs, max_new_tokens=NEW, tree=tree)
    assert out.token_ids == ids.tolist() and out.stats.mean_acceptance_length > 1


@torch.no_grad()
def test_guesses_in_training_are_those_of_one_pass():
    """Of a draft model of the family: it has the states of all tokens, although its last layers own no keys. A
    placeholder in an answer, of which nothing was encoded, is read as padding."""
    target, (inputs, expected) = target_of("gemma4"), batch_of("gemma4")
    drafter = TINY_DRAFTERS["own model"]("gemma4", "sdpa")
    answers = [*expected[:2], [*expected[2][:5], models.AUDIO, *expected[2][5:-1]], expected[3]]
    lesson = Teacher(target).study(prepare(target, inputs=inputs), answers)
    guess, width = next(iter(drafter.unroll(lesson, 1))), lesson.root_slots.shape[1]
    single = FAMILIES["gemma4"].inputs([["image", "video", "image"]], [5], seed=2)
    length = single["input_ids"].shape[1]
    wanted = recompute(drafter.model, single, [answers[2]]).logits[0]
    guesses = zip(guess.roots.tolist(), guess.logits, strict=True)
    own = [(root % width, logits) for root, logits in guesses if root // width == 2]
    assert len(own) == NEW - 1
    for place, logits in own:
        assert (logits - wanted[length + place]).abs().max() < 1e-3


def test_what_cannot_be_is_refused():
    target = target_of("gemma4")
    refused(lambda: cut_text_only(target), "no smaller model can be cut from this Gemma4 ... recipe=eagle3")
    both = models.gemma4(use_bidirectional_attention="all")
    refused(lambda: Target(both), "Gemma4 ... reads its text in both directions")
