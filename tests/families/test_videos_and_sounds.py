"""Videos and sounds from files, through prompts: greedy text is that of `model.generate`, token for token."""

from __future__ import annotations

import sys

import av
import blocks
import numpy as np
import pytest
import tiny_processors
import torch
from media_files import pictures, write_video, write_wave
from refusals import refused
from tiny_requests import target_of

import mmspec
from mmspec.compressors import Frames, Pool
from mmspec.drafters import EagleDrafter, NGramDrafter
from mmspec.inputs import prepare
from mmspec.media import Video
from mmspec.target import Target
from mmspec.training.beginnings import cut_own_encoder
from mmspec.trees import Chain, DynamicTree

NEW = 12


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """Eleven frames of 32 x 16 pixels."""
    path = tmp_path_factory.mktemp("clips") / "clip.mp4"
    write_video(path, pictures(11, 32, 16))
    return path


def decoded(path, numbers) -> np.ndarray:
    with av.open(str(path)) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    return np.stack([frames[number] for number in numbers])


def qwen(processor=None) -> Target:
    return Target(target_of("qwen2_5_vl").model, processor or tiny_processors.Patches())


def by_itself(target: Target, text: str, videos: list[np.ndarray]) -> list[int]:
    """What `generate` writes about videos whose frames were read without mmspec."""
    places = "[<|video_pad|>]" * len(videos)
    text = f"user: {places}{text} "
    inputs = target.processor([text], [videos], [[None] * len(videos)], False, return_tensors="pt")
    ids = inputs["input_ids"]
    types = 2 * (ids == target.model.config.video_token_id).int()
    out = target.model.generate(**inputs, mm_token_type_ids=types, max_new_tokens=NEW, do_sample=False)
    return out[0, ids.shape[1] :].tolist()


def test_a_video_file_is_read_as_generate_reads_its_frames(clip):
    target = qwen()
    whole, said = decoded(clip, range(11)), by_itself(target, "what?", [decoded(clip, range(11))])
    eagle = EagleDrafter(target)
    for drafter, tree in ((None, None), (NGramDrafter(target), None), (eagle, DynamicTree(6, 2, 3))):
        out = mmspec.generate(target, drafter, prompt="what?", videos=[str(clip)], max_new_tokens=NEW, tree=tree)
        assert out.token_ids == [said]
    assert by_itself(target, "what?", [whole[::-1]]) != said, "what is seen is written about"
    rope = {"rope_type": "default", "rope_theta": 100.0, "mrope_section": [1, 1, 2]}
    block = blocks.build(target, "dspark")
    sections = blocks.build(target, "dflash", rope="mrope", head={"rope_parameters": rope})
    for drafter in (eagle, block):
        for compressor in (Frames(0.4), Frames(0.4, "change"), Pool(2)):
            shortened = drafter.with_compressor(compressor)
            out = mmspec.generate(target, shortened, prompt="what?", videos=[str(clip)], max_new_tokens=NEW)
            assert out.token_ids == [said]
    for drafter in (block, sections):
        out = mmspec.generate(target, drafter, prompt="what?", videos=[str(clip)], max_new_tokens=NEW)
        assert out.token_ids == [said] and out.stats.num_draft_tokens


def test_a_ragged_batch_with_videos_in_every_form(clip):
    """A file, an array, a list of pictures twice, none."""
    target = qwen()
    frames = decoded(clip, range(11))
    rows = [[str(clip)], [frames[:4]], [list(frames[:3]), Video(frames[5:9], fps=2)], []]
    prompts = ["what?", "who?", "which one?", "why?"]
    shown = [[frames], [frames[:4]], [frames[:3], frames[5:9]], []]
    expected = [by_itself(target, text, videos) for text, videos in zip(prompts, shown, strict=True)]
    out = mmspec.generate(target, NGramDrafter(target), prompt=prompts, videos=rows, max_new_tokens=NEW)
    assert out.token_ids == expected and len(set(map(tuple, expected))) == 4


@pytest.mark.parametrize(
    ("sampling", "numbers"),
    [
        ({"num_frames": 4}, [0, 2, 5, 8]),
        ({"fps": 5}, [0, 1, 3, 5, 7, 9]),
        ({"num_frames": 16}, list(range(11))),
        ({}, list(range(11))),
    ],
)
def test_frames_are_those_that_the_processor_would_choose(clip, sampling, numbers):
    processor = tiny_processors.Patches(num_frames=sampling.get("num_frames"), fps=sampling.get("fps"))

    def sample_frames(metadata, num_frames=None, fps=None, **kwargs):
        count = num_frames or int(np.ceil(metadata.total_num_frames * fps / metadata.fps))
        return torch.arange(0, metadata.total_num_frames, metadata.total_num_frames / count).int()

    processor.video_processor.sample_frames = sample_frames
    request = prepare(qwen(processor), "what?", videos=[clip])
    (video,) = request.media["video"][0]
    assert video.indices == numbers and (video.total, video.fps) == (11, 10)
    expected, _ = tiny_processors.Patches.patches(decoded(clip, numbers))
    assert torch.equal(request.inputs["pixel_values_videos"], expected)


def test_a_long_file_is_read_in_32_frames_where_nobody_says(tmp_path):
    write_video(tmp_path / "long.mp4", pictures(70, 16, 16))
    (video,) = prepare(qwen(), "what?", videos=[tmp_path / "long.mp4"]).media["video"][0]
    assert len(video) == 32 and video.indices[:3] == [1, 3, 5] and video.indices[-1] == 68


def test_what_takes_no_videos_says_so(clip, monkeypatch):
    llama = Target(target_of("llama").model, tiny_processors.tokenizer())
    refused(lambda: prepare(llama, "what?", videos=[clip]), "1 videos were given but LlamaForCausalLM takes none")
    for package in ("av", "torchcodec"):
        monkeypatch.setitem(sys.modules, package, None)
    refused(lambda: prepare(qwen(), "what?", videos=[clip]), "takes PyAV or torchcodec, and neither is installed")


# Sounds, through the real processor of Qwen2-Audio.


def tone(pitch: float, seconds: float) -> np.ndarray:
    return (0.5 * np.sin(np.arange(int(seconds * tiny_processors.RATE)) * pitch)).astype(np.float32)


@pytest.fixture(scope="module")
def listener():
    return Target(target_of("qwen2_audio").model, tiny_processors.qwen2_audio())


def heard(target: Target, text: str, sounds: list[np.ndarray]) -> list[int]:
    text = f"user: {'[<|AUDIO|>]' * len(sounds)}{text} "
    inputs = target.processor(
        text=[text], audio=sounds or None, sampling_rate=tiny_processors.RATE, return_tensors="pt"
    )
    out = target.model.generate(**inputs, max_new_tokens=NEW, do_sample=False)
    return out[0, inputs["input_ids"].shape[1] :].tolist()


def test_a_sound_file_is_read_as_generate_reads_its_samples(listener, tmp_path):
    sounds = [tone(0.3, 0.8), tone(0.9, 0.5)]
    write_wave(tmp_path / "one.wav", sounds[0], tiny_processors.RATE, 4)
    rows = [[tmp_path / "one.wav"], [(sounds[0], tiny_processors.RATE), (sounds[1], tiny_processors.RATE)], []]
    prompts = ["what?", "who?", "why?"]
    expected = [heard(listener, text, own) for text, own in zip(prompts, ([sounds[0]], sounds, []), strict=True)]
    for drafter, tree in ((NGramDrafter(listener), None), (EagleDrafter(listener), DynamicTree(6, 2, 3))):
        out = mmspec.generate(listener, drafter, prompt=prompts, audio=rows, max_new_tokens=NEW, tree=tree)
        assert out.token_ids == expected
    assert heard(listener, "what?", [sounds[1]]) != expected[0]


def test_a_model_that_hears_is_loaded_from_a_folder(listener, tmp_path):
    listener.model.save_pretrained(tmp_path)
    listener.processor.save_pretrained(tmp_path)
    loaded = mmspec.load_target(tmp_path, dtype="float32", device="cpu")
    assert type(loaded.model) is type(listener.model) and loaded.family.kinds == {"audio"}
    for own in (None, NGramDrafter(loaded)):
        asked = {"prompt": "what?", "audio": [(tone(0.3, 0.4), tiny_processors.RATE)], "max_new_tokens": NEW}
        assert mmspec.generate(loaded, own, **asked).token_ids == mmspec.generate(listener, None, **asked).token_ids


def test_a_sound_of_another_rate_is_refused(listener):
    refused(lambda: prepare(listener, "what?", audio=[(tone(0.3, 0.1), 8000)]), "has 8000 samples a second, but the")


def test_a_listener_checks_itself_with_noise(listener):
    report = listener.check()
    assert report.ok and report.kinds == {"audio"} and any(f.what.startswith("sounds") for f in report.findings)


# The real processors of models that see videos, where torchvision is there.


@pytest.mark.parametrize("name", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl", "llava_onevision", "internvl", "smolvlm"])
def test_real_processors(name, clip):
    pytest.importorskip("torchvision")
    if name == "smolvlm":
        pytest.importorskip("num2words")
    target = Target(target_of(name).model, tiny_processors.real(name))
    (video,) = prepare(target, "what?", videos=[clip]).media["video"][0]
    parts = [{"type": "video"}, {"type": "text", "text": "what?"}]
    asked = [{"role": "user", "content": parts}]
    inputs = target.processor(
        text=[target.processor.apply_chat_template(asked, add_generation_prompt=True, tokenize=False)],
        videos=[[decoded(clip, video.indices)]],
        video_metadata=[[video.metadata()]],
        do_sample_frames=False,
        return_tensors="pt",
    )
    out = target.model.generate(**inputs, max_new_tokens=NEW, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    drafter, shape = EagleDrafter(target), {"max_new_tokens": NEW, "tree": DynamicTree(6, 2, 3)}
    ours = mmspec.generate(target, drafter, prompt="what?", videos=[clip], **shape)
    assert ours.token_ids == [out.tolist()]
    backwards = Video(video.frames[::-1].copy(), video.fps)
    batch = prepare(target, ["what?", "what?"], videos=[[clip], [backwards]])
    first, second = target.prefill(batch, target.encode(batch)).logits
    assert (first - second).abs().max() > 1e-2, "what is seen matters"


def test_a_small_copy_of_the_target_watches_what_its_target_watches(clip):
    """With all layers it is the target, and guesses every token; with one it guesses, and the text stays. Trained, its
    encoders stay what they are."""
    target = qwen()
    said = by_itself(target, "what?", [decoded(clip, range(11))])
    layers = len(target.family.layers)
    whole, small = (cut_own_encoder(target, count, tree=Chain(3)) for count in (layers, 1))
    for drafter in whole, small:
        out = mmspec.generate(target, drafter, "what?", videos=[clip], max_new_tokens=NEW, eos_token_id=[])
        assert out.token_ids == [said]
        if drafter is whole:
            assert out.stats.num_spec_steps == -(-(NEW - 1) // 4), "chains of three, all of them accepted"
    assert type(small.model) is type(target.model)
    learning, all_of_it = (
        sum(map(torch.Tensor.numel, ones)) for ones in (small.trainable_parameters(), small.parameters())
    )
    assert 0 < learning < all_of_it
    weight = small.model.get_input_embeddings().weight
    assert torch.equal(weight, target.model.get_input_embeddings().weight)
    assert weight.data_ptr() != target.model.get_input_embeddings().weight.data_ptr()
    refused(lambda: cut_own_encoder(target, layers + 1), f"layers={layers + 1} must lie between 1 and the target's")
