"""Where the pictures and videos of every family stand, and that what the tower saw lines up with what they become."""

from __future__ import annotations

import math

import models
import pytest
import torch
from tiny_families import FAMILIES
from tiny_requests import HEARING, LENGTHS, VISUAL, batch_of, rows_of, target_of

import mmspec
from mmspec.compressors import Pool
from mmspec.drafters import OwnEncoderDrafter
from mmspec.errors import MMSpecError
from mmspec.families import FAMILIES as CLASSES
from mmspec.families.vision import Vision, in_order
from mmspec.inputs import append, prepare
from mmspec.target import Target
from mmspec.trees import Chain


def request_of(name: str, target: Target | None = None):
    inputs = FAMILIES[name].inputs(rows_of(FAMILIES[name]), list(LENGTHS))
    return prepare(target or target_of(name), inputs=inputs)


def projected(name: str, model, features: torch.Tensor) -> torch.Tensor:
    """What a model itself makes of the features of one picture."""
    if name.startswith("qwen"):
        # The merger takes patches; the features of a token are those of its four side by side.
        return model.visual.merger(features.reshape(-1, features.shape[-1] // 4))
    if name == "smolvlm":
        return model.connector.modality_projection(features)
    if name == "gemma4":
        return model.embed_vision.embedding_projection(model.embed_vision.embedding_pre_projection_norm(features))
    projector = model.multi_modal_projector
    if name == "gemma3":
        return projector.mm_soft_emb_norm(features) @ projector.mm_input_projection_weight
    if name == "mistral3":
        return projector.linear_2(projector.act(projector.linear_1(features)))
    return projector(features)


@torch.no_grad()
@pytest.mark.parametrize("name", VISUAL)
def test_features_line_up_with_the_tokens_they_become(name):
    target = target_of(name)
    vision = target.encode(request_of(name))
    assert len(vision.embeds) == len(vision.features) == len(vision.kinds)
    compared = 0
    for embeds, features, kind in zip(vision.embeds, vision.features, vision.kinds, strict=True):
        assert len(embeds) == len(features)
        if name == "llava_onevision" and kind == "video":
            continue  # pooled after the projection, so not a function of what the pooled features are
        breaks = (features == 0).all(-1)
        assert breaks.any() == (name in ("llava_next", "llava_onevision"))
        errors = (projected(name, target.model.model, features) - embeds).abs().amax(-1)
        assert errors[~breaks].max() < 1e-4
        assert (projected(name, target.model.model, features.flip(0)) - embeds).abs().max() > 1e-2, "order counts"
        compared += 1
    assert compared > 2


@pytest.mark.parametrize("name", VISUAL)
def test_spans_kinds_and_grids(name):
    target, request = target_of(name), request_of(name)
    vision = target.encode(request)
    context = target.prefill(request, vision)
    kinds = iter(vision.kinds)
    for ids, spans in zip(request.token_ids(), context.visual_spans(), strict=True):
        inside = {index for start, end in spans for index in range(start, end)}
        shown = {index for index, token in enumerate(ids) if token in target.family.placeholders}
        assert shown <= inside
        for start, end in spans:
            assert target.family.placeholders[ids[start]] == next(kinds)
            assert ids[start] in target.family.placeholders and ids[end - 1] in target.family.placeholders
    assert next(kinds, None) is None
    for grid, size in zip(target.family.grids(request.inputs, vision), vision.sizes, strict=True):
        line_break = name == "llava_onevision" and grid is not None and grid[0] > 1  # behind the frames of a video
        assert grid is None or math.prod(grid) + line_break == size


@pytest.mark.parametrize("name", VISUAL)
def test_states_of_an_appended_answer_are_those_of_its_steps(name):
    """What drafters learn from is what they will meet: one pass over prompt and answer gives the states of decoding."""
    from mmspec.models.states import LAST
    from mmspec.training.teacher import Teacher
    from mmspec.tree import DraftTree

    target, request = target_of(name), request_of(name)
    answers = [[5, 9, 13, 21]] * request.batch_size
    taught = Teacher(target).study(request, answers).features[LAST]
    context = target.prefill(request, target.encode(request))
    for history in context.history:
        history.append(answers[0][0])
    states = context.score(DraftTree.chain(torch.tensor(answers))).logits
    ours = torch.stack([taught[row, n : n + 4] for row, n in enumerate(request.lengths)])
    assert (target.family.head(ours) - states).abs().max() < 1e-3


# LLaVA's tiles are no rectangle; with Mistral's pictures their row separators are dropped, and what stands between the
# frames of a video moves Gemma 4's window: its pictures are in tests/families/test_gemma4.py.
@pytest.mark.parametrize(
    "name", [name for name in VISUAL if not name.startswith("llava_") and name not in ("mistral3", "gemma4")]
)
def test_a_draft_model_of_the_family_sees_what_a_compressor_left(name):
    """One that leaves everything changes nothing: the target, as its own draft model, is right every time."""
    target = target_of(name)
    drafter = OwnEncoderDrafter(target, target.model, compressor=Pool(1))
    inputs, expected = batch_of(name)
    out = mmspec.generate(target, drafter, inputs=inputs, max_new_tokens=11, tree=Chain(4))
    assert out.token_ids == [row[:11] for row in expected]
    assert [record.accepted for record in out.stats.rounds] == [[4] * 4] * 2


def test_appended_tokens_have_the_type_of_answers():
    request = request_of("paligemma")
    longer = append(request, [[5, 6]] * request.batch_size)
    for row, start in enumerate(request.lengths):
        types = longer.inputs["token_type_ids"][row]
        assert not types[:start].any() and types[start : start + 2].all()


def test_pictures_and_videos_are_put_in_order():
    def vision(kind: str, *sizes: int) -> Vision:
        return Vision([torch.full((size, 1), size) for size in sizes], None, [kind] * len(sizes))

    parts = {"image": vision("image", 1, 3), "video": vision("video", 2, 4)}
    merged = in_order(parts, [[9, 8, 8, 5, 9, 9, 9], [8, 5, 8, 8, 8]], {9: "image", 8: "video"})
    assert merged.kinds == ["image", "video", "image", "video"] and merged.sizes == [1, 2, 3, 4]
    assert merged.features is None and merged.deep is None
    # Side by side, only the sizes tell where one ends.
    merged = in_order(
        {"image": vision("image", 1, 3), "video": vision("video", 2)}, [[9, 9, 9, 9, 8, 8]], {9: "image", 8: "video"}
    )
    assert merged.kinds == ["image", "image", "video"]


@pytest.mark.parametrize(
    ("name", "kind", "argument"),
    [(name, "video", "videos") for name in VISUAL if "video" in FAMILIES[name].kinds]
    + [(name, "audio", "audio") for name in HEARING],
)
def test_media_and_placeholders_must_agree(name, kind, argument):
    target, samples = target_of(name), target_of(name).family.encoders[kind].samples
    inputs = FAMILIES[name].inputs([[kind]])
    theirs = [key for key in inputs if key in target.family.encoders[kind].inputs]
    without = {key: value for key, value in inputs.items() if key not in theirs}
    with pytest.raises(
        MMSpecError, match=rf"has \d+ {kind} placeholder tokens but no {kind} .* {argument}=.* {samples}"
    ):
        target.encode(prepare(target, inputs=without))
    twice = FAMILIES[name].inputs([[kind, kind]])
    wrong = (
        rf"{kind} placeholder tokens but the \d {kind}s given fill \d+|does not read this prompt and its {kind}: .*\d"
    )
    with pytest.raises(MMSpecError, match=wrong):
        target.encode(prepare(target, inputs=inputs | {key: twice[key] for key in theirs}))


def test_a_sound_of_one_placeholder_is_refused():
    """As the first processors of Qwen2-Audio wrote it, which the model expands itself."""
    inputs = FAMILIES["qwen2_audio"].inputs([["audio"]])
    at = (inputs["input_ids"] == models.IMAGE).cumsum(1) < 2
    short = {key: inputs[key][at][None] for key in ("input_ids", "attention_mask")}
    with pytest.raises(MMSpecError, match="fewer audio placeholder tokens than its sounds fill"):
        target_of("qwen2_audio").encode(prepare(target_of("qwen2_audio"), inputs=inputs | short))


@pytest.mark.parametrize("name", HEARING)
def test_spans_and_grids_of_sounds(name):
    target, request = target_of(name), request_of(name)
    vision = target.encode(request)
    spans = [span for row in target.prefill(request, vision).visual_spans() for span in row]
    assert vision.kinds == ["audio"] * 4 and vision.features is None
    assert vision.sizes == [end - start for start, end in spans] and len(set(vision.sizes)) == 2
    assert target.family.grids(request.inputs, vision) == [(size, 1, 1) for size in vision.sizes]


def test_another_picture_video_or_sound_gives_other_logits():
    for name in VISUAL + HEARING:
        target, tiny = target_of(name), FAMILIES[name]
        for kind in tiny.kinds:
            inputs, pixels = tiny.inputs([[kind]]), target.family.encoders[kind].samples
            logits = [
                target.prefill(request, target.encode(request)).logits
                for shown in (inputs, inputs | {pixels: -inputs[pixels]})
                for request in [prepare(target, inputs=shown)]
            ]
            assert (logits[0] - logits[1]).abs().max() > 1e-2, (name, kind)


def test_every_family_has_a_tiny_model():
    tested = {tiny.build(tiny.attention).config.model_type for tiny in FAMILIES.values()}
    listed = {kind for family in CLASSES for kind in family.model_types}
    # The same code as the one tested, but for experts in the language model, or for a name.
    alike = {"qwen3_vl_moe", "idefics3"}
    elsewhere = {"whisper", "janus"}  # in tests/families/test_whisper.py and tests/families/test_janus.py
    elsewhere |= {"gemma4_text"}  # in tests/drafters/test_gemma4_assistant.py
    elsewhere |= {"gemma4_unified", "gemma4_unified_text"}  # in tests/families/test_gemma4.py
    assert listed - alike - elsewhere <= tested


def test_a_request_changes_nothing_for_the_next():
    """All requests of a family in turns, and every one once more."""
    for name in VISUAL:
        target, tiny = target_of(name), FAMILIES[name]
        before = {key: value.clone() for key, value in target.model.state_dict().items()}
        settings = target.model.generation_config.to_dict()
        requests = [prepare(target, inputs=tiny.inputs([row], seed=seed)) for seed, row in enumerate(rows_of(tiny))]
        first = [target.prefill(request, target.encode(request)).logits for request in requests]
        again = [target.prefill(request, target.encode(request)).logits for request in requests[::-1]][::-1]
        assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True))
        assert all(torch.equal(value, before[key]) for key, value in target.model.state_dict().items())
        assert target.model.generation_config.to_dict() == settings
        assert getattr(target.model.model, "rope_deltas", None) is None or name.startswith("qwen")
