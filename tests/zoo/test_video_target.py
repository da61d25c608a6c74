"""The video target before it has weights: its batches are its processor's, its loss is its model's, its training
resumes, and mmspec decodes it exactly."""

import dataclasses
import random
import re

import pytest
import torch
from transformers import Qwen2VLImageProcessorPil

import mmspec
from mmspec.drafters import NGramDrafter
from mmspec.media import Video
from mmspec.zoo.batches import IGNORE
from mmspec.zoo.losses import losses_of
from mmspec.zoo.pretraining import MasterWeights, PretrainingSettings, train
from mmspec.zoo.video import architecture
from mmspec.zoo.video.architecture import build_clip_config, build_clip_model
from mmspec.zoo.video.batches import EASY_CLIPS, MOST_WORDS, WatchingConversations, encode_clip, patches, shape_of
from mmspec.zoo.video.course import CLIPS
from mmspec.zoo.video.data import CLIP_TASKS, clip_conversation, watch
from mmspec.zoo.video.evaluation import clip_inputs, evaluate_clips
from mmspec.zoo.video.export import export_clips, load_clips, read_clip_model
from mmspec.zoo.video.processing import SIZES, FrameProcessor, build_clip_processor
from mmspec.zoo.video.reading import positions, read_clips
from mmspec.zoo.video.vocabulary import build_clip_tokenizer

pytestmark = pytest.mark.product


@pytest.fixture(scope="module", autouse=True)
def small():
    """Two layers instead of twelve."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(architecture, "LAYERS", 2)
        yield


@pytest.fixture(scope="module")
def tokenizer():
    return build_clip_tokenizer(examples=60)


@pytest.fixture(scope="module")
def processor(tokenizer):
    return build_clip_processor(tokenizer)


@pytest.fixture(scope="module")
def model(tokenizer):
    """The branches of a fresh model start at zero; here they are awake."""
    model = build_clip_model(build_clip_config(tokenizer)).eval()
    torch.manual_seed(1)
    for parameter in model.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    return model


def test_rows_are_what_the_processor_makes(tokenizer, processor):
    example = clip_conversation(5, steps=4, edge=1)
    inputs = clip_inputs(processor, [example.frames], [example.turns[0][0]])
    ids, labels = encode_clip(example, tokenizer)
    length = inputs["input_ids"].shape[1]
    assert ids[:length] == inputs["input_ids"][0].tolist()
    assert torch.equal(inputs["pixel_values_videos"], patches(example.frames).flatten(0, 1))
    assert inputs["video_grid_thw"].tolist() == [[4, 8, 6]]
    answered = [i for i, label in zip(ids, labels, strict=True) if label != IGNORE]
    assert tokenizer.decode(answered) == "".join(reference + "</s>" for _, reference in example.turns)


def test_rows_of_pictures_are_what_the_processor_makes(tokenizer, processor):
    example = clip_conversation(7, steps=1, edge=2, picture=True)
    inputs = clip_inputs(processor, [example.frames[:1]], [example.turns[0][0]])
    ids, _ = encode_clip(example, tokenizer)
    assert ids[: inputs["input_ids"].shape[1]] == inputs["input_ids"][0].tolist()
    assert torch.equal(inputs["pixel_values"], patches(example.frames).flatten(0, 1))
    assert inputs["image_grid_thw"].tolist() == [[1, 14, 12]]
    assert any(re.fullmatch(r"The number is \d+\. There is an? .*\.", reference) for _, reference in example.turns)


def test_every_word_of_the_answers_and_every_number_is_one_token(tokenizer):
    texts = [watch(task, "test", index, "short").reference for task in CLIP_TASKS for index in range(30)]
    words = {word for text in texts for word in re.findall(r" [a-z]+|[0-9]+", text)}
    assert len(words) > 40
    assert [word for word in words if len(tokenizer.encode(word)) != 1] == []


def test_frames_are_read_as_stock_pictures_are():
    settings = {"patch_size": 8, "merge_size": 2, "temporal_patch_size": 2, "size": SIZES}
    film = watch("accounts", "test", 0, "short").frames
    stock = Qwen2VLImageProcessorPil(**settings)
    for clip in (film[:1], film[:1].repeat(2, 0)):  # an odd frame is shown twice, as a picture is
        read = FrameProcessor(**settings)([clip])
        assert torch.equal(read["pixel_values_videos"], stock([clip[0]], return_tensors="pt")["pixel_values"])
    with pytest.raises(ValueError, match="do_sample_frames"):
        FrameProcessor(**settings)([film], do_sample_frames=True)


def test_the_processor_is_stock_and_saves_stock_names(processor, tmp_path):
    processor.save_pretrained(tmp_path)
    saved = (tmp_path / "processor_config.json").read_text()
    assert '"Qwen2VLVideoProcessor"' in saved and '"Qwen2_5_VLProcessor"' in saved


@pytest.mark.parametrize("attention", ["mmspec_dense", "sdpa"])
def test_the_loss_and_the_positions_are_those_of_the_model(tokenizer, model, attention):
    batch = WatchingConversations(tokenizer, clips=3, rows=3).step(0)[0]
    mask = (batch.input_ids != tokenizer.pad_token_id).long()
    grids = torch.tensor([batch.grid] * len(mask))
    seen = {
        "input_ids": batch.input_ids,
        "attention_mask": torch.ones_like(mask),
        "mm_token_type_ids": 2 * (batch.input_ids == model.config.video_token_id).int(),
        "video_grid_thw": grids,
        "second_per_grid_ts": torch.ones(len(mask)),
    }
    assert torch.equal(positions(batch), model.model.get_rope_index(**seen)[0])
    pixels = batch.pixel_values.flatten(0, 2)
    expected = model(**seen | {"attention_mask": mask}, pixel_values_videos=pixels, labels=batch.labels).loss
    model.set_attn_implementation(attention)
    losses = losses_of(model, batch, read_clips)
    model.set_attn_implementation("sdpa")
    assert losses.patches.shape == (len(mask),)
    torch.testing.assert_close(losses.answers.mean(), expected, atol=1e-4, rtol=1e-4)
    alone = losses_of(model, batch, read_clips, towers_alone=True)
    assert len(alone.answers) == len(alone.rows) == 0
    torch.testing.assert_close(alone.patches, losses.patches)


def test_batches_have_one_shape_and_grow(tokenizer):
    stream = WatchingConversations(tokenizer, clips=16, rows=8)
    for number in (0, EASY_CLIPS // 16 + 3):
        batches = stream.step(number)
        assert sum(len(batch.input_ids) for batch in batches) == 16
        for batch in batches:
            steps, height, width = batch.grid
            tokens = steps * height * width // 4
            assert batch.patch_labels.shape == (len(batch.input_ids), tokens, MOST_WORDS)
            shown = [(batch.input_ids == placeholder(tokenizer, kind)).sum(dim=1) for kind in ("image", "video")]
            assert (sum(shown) == tokens).all() and (shown[0][0] == 0 or steps == 1)
            assert (batch.patch_labels[:, :, 0] != IGNORE).sum(dim=1).min() >= steps
    early, late = ([shape_of(clip, random.Random(seed)) for seed in range(400)] for clip in (0, EASY_CLIPS))
    assert max(shape.steps for shape in early) == 4 and max(shape.steps for shape in late) == 16
    assert {shape.edge for shape in early if not shape.picture} == {1}
    assert {shape.edge for shape in late if not shape.picture and shape.steps > 8} == {1, 2, 3, 4}
    for shapes in early, late:
        assert 0.06 < sum(shape.picture for shape in shapes) / len(shapes) < 0.2
        assert {shape.edge for shape in shapes if shape.picture} == {1, 2, 3, 4}


def placeholder(tokenizer, kind):
    return tokenizer.convert_tokens_to_ids(f"<{kind}>")


def test_steps_reduce_the_loss_of_a_batch(tokenizer, tmp_path):
    fresh = build_clip_model(build_clip_config(tokenizer))
    fresh.set_attn_implementation("mmspec_dense")
    weights = MasterWeights(fresh, PretrainingSettings(output=tmp_path, processes=1))
    batch = WatchingConversations(tokenizer, clips=4, rows=4).step(0)[0]
    values = []
    for _ in range(6):
        losses = losses_of(weights.model, batch, read_clips)
        (losses.answers.mean() + losses.patches.mean()).backward()
        values.append((losses.answers.mean().item(), losses.patches.mean().item()))
        weights.average_gradients(0.5)
        weights.step(0.5)
    assert all(last < 0.8 * first for first, last in zip(values[0], values[-1], strict=True))


def test_train_resume_export_and_evaluate(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    settings = PretrainingSettings(output=tmp_path, steps=1, pictures=2, rows=2, processes=1, validate_minutes=0)
    checkpoint = train(settings, spawn=False, course=CLIPS)
    assert train(dataclasses.replace(settings, steps=2), spawn=False, course=CLIPS) == checkpoint  # resumed
    folder = export_clips(checkpoint, tmp_path / "export")
    model = load_clips(folder)
    assert model.dtype == torch.float32
    report = evaluate_clips(model, tokenizer, "test", examples=2, length="short", longest=4)
    assert report["accounts"]["events_in_order"] == 0.0 and report["moments"]["answer_accuracy"] == 0.0
    assert report["pictures"]["right_captions"] == 0.0


def test_the_tower_begins_alone(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    settings = PretrainingSettings(
        output=tmp_path, steps=2, pictures=2, rows=2, processes=1, validate_minutes=0, tower_steps=2, weight_decay=0.0
    )
    fresh = build_clip_model(build_clip_config(tokenizer), settings.seed)
    trained, _ = read_clip_model(train(settings, spawn=False, course=CLIPS))
    changed = {
        name.split(".")[1]
        for (name, before), after in zip(fresh.named_parameters(), trained.parameters(), strict=True)
        if not torch.equal(before, after) and "embed_tokens" not in name
    }
    assert changed == {"visual"}


def test_mmspec_decodes_clips_as_the_model_does(model, processor):
    target = mmspec.Target(model, processor)
    samples = [watch("moments", "test", index, "short") for index in range(2)]
    prompts = [sample.prompt for sample in samples]
    clips = [sample.frames for sample in samples]
    expected = []
    for clip, prompt in zip(clips, prompts, strict=True):
        inputs = clip_inputs(processor, [clip], [prompt])
        ids = model.generate(**inputs, max_new_tokens=12, do_sample=False, eos_token_id=None)
        expected.append(ids[0, inputs["input_ids"].shape[1] :].tolist())
    assert expected[0] != expected[1]  # another clip, another answer
    videos = [[Video(clip, fps=2.0)] for clip in clips]
    out = mmspec.generate(target, NGramDrafter(target), prompts, videos=videos, max_new_tokens=12, eos_token_id=[])
    assert [ids[:12] for ids in out.token_ids] == expected
