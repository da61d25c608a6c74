"""Videos are read in every form, only what was chosen is kept, and what is none is refused in one line."""

from __future__ import annotations

import base64
import io
import struct
import sys
import types

import av
import numpy as np
import pytest
import torch
from media_files import brightness, pictures, write_video
from PIL import Image
from refusals import refused

from mmspec.media import Video, load_video
from mmspec.media.video_files import _WithPyAV


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    path = tmp_path_factory.mktemp("videos") / "clip.mp4"
    write_video(path, pictures(20))
    return path


def test_a_file_is_the_same_video_through_every_door(clip):
    content = clip.read_bytes()
    url = "data:video/mp4;base64," + base64.b64encode(content).decode()
    for source in (clip, str(clip), clip.as_uri(), content, url):
        video = load_video(source, frames=4)
        assert video.frames.shape == (4, 48, 64, 3) and video.frames.dtype == np.uint8
        assert video.indices == brightness(video.frames) == [2, 7, 12, 17]
        assert video.fps == 10 and video.total == 20 and video.timestamps == [0.2, 0.7, 1.2, 1.7]
        assert video.frames[:, :, :24].max() < 12, "the left half is black"
    facts = {"total_num_frames": 20, "fps": 10.0, "height": 48, "width": 64, "duration": 2.0}
    assert video.metadata() == facts | {"frames_indices": [2, 7, 12, 17]}


@pytest.mark.parametrize(
    ("how", "indices"),
    [
        ({}, list(range(20))),
        ({"frames": 1}, [10]),
        ({"frames": 50}, list(range(20))),
        ({"fps": 2}, [0, 5, 10, 15]),
        ({"fps": 4}, [0, 2, 5, 7, 10, 12, 15, 17]),
        ({"fps": 30}, list(range(20))),
        ({"fps": 4, "frames": 2}, [5, 15]),
        ({"choose": lambda facts: [0, facts["total_num_frames"] - 1]}, [0, 19]),
        ({"choose": lambda facts: np.array([3, 3, 4])}, [3, 3, 4]),
    ],
)
def test_what_is_chosen(clip, how, indices):
    assert load_video(clip, **how).indices == indices
    assert brightness(load_video(clip, **how).frames) == indices
    known = load_video(Video(pictures(20), fps=10), **how)
    assert known.indices == brightness(known.frames) == indices


def test_frames_of_a_video_that_was_sampled_before_keep_their_numbers(clip):
    again = load_video(load_video(clip, frames=4), frames=2)
    assert again.indices == brightness(again.frames) == [7, 17] and (again.total, again.fps) == (20, 10)


@pytest.mark.parametrize("form", [np.asarray, torch.from_numpy, list, lambda a: [Image.fromarray(f) for f in a]])
def test_frames_in_memory(form):
    video = load_video(form(pictures(5)))
    assert np.array_equal(video.frames, pictures(5)) and video.fps is None and video.timestamps is None
    assert np.array_equal(load_video(torch.from_numpy(pictures(5) / 255).float()).frames, pictures(5))


def test_frames_in_any_form_may_have_a_rate():
    video = load_video(Video([Image.fromarray(frame) for frame in pictures(5)], fps=5), fps=2.5)
    assert video.indices == brightness(video.frames) == [0, 2, 4] and video.timestamps == [0, 0.4, 0.8]


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({"fps": 0}, "fps=0 must be above 0; None says that nobody knows it"),
        ({"fps": float("nan")}, "fps=nan must be above 0"),
        ({"indices": [0, 1]}, "indices has 2 numbers for 3 frames"),
    ],
)
def test_facts_that_cannot_be(facts, message):
    refused(lambda: Video(pictures(3), **facts), message)


def test_frames_may_be_files(tmp_path):
    for number, frame in enumerate(pictures(3)):
        Image.fromarray(frame).save(tmp_path / f"{number}.png")
    assert brightness(load_video(sorted(tmp_path.iterdir())).frames) == [0, 1, 2]


def test_only_what_was_chosen_is_kept(clip, monkeypatch):
    converted = []
    monkeypatch.setattr("mmspec.media.video_files.np.rot90", lambda frame, turns: converted.append(1) or frame)
    assert load_video(clip, frames=2).indices == [5, 15] and len(converted) == 2


def test_a_file_that_does_not_say_how_many_frames_it_has(tmp_path):
    path = tmp_path / "clip.mkv"
    write_video(path, pictures(7))
    with av.open(str(path)) as container:
        assert container.streams.video[0].frames == 0
    assert load_video(path, frames=3).indices == [1, 3, 5]


def test_a_file_with_fewer_frames_than_it_says(clip, monkeypatch):
    real = _WithPyAV.__init__

    def exaggerating(self, *arguments):
        real(self, *arguments)
        self.total += 7

    monkeypatch.setattr(_WithPyAV, "__init__", exaggerating)
    video = load_video(clip, frames=4)
    assert video.indices == brightness(video.frames) == [2, 7, 12, 17] and video.total == 20


def test_without_pyav_torchcodec_reads(clip, monkeypatch):
    """A stand-in with what torchcodec documents of its decoder."""
    asked = []

    class VideoDecoder:
        def __init__(self, source, dimension_order):
            assert source == str(clip) and dimension_order == "NHWC"
            self.metadata = types.SimpleNamespace(num_frames=20, average_fps=10.0, height=48, width=64)

        def get_frames_at(self, indices):
            asked.append(indices)
            return types.SimpleNamespace(data=torch.from_numpy(pictures(20)[indices]))

    monkeypatch.setitem(sys.modules, "av", None)
    monkeypatch.setitem(sys.modules, "torchcodec", types.ModuleType("torchcodec"))
    monkeypatch.setitem(sys.modules, "torchcodec.decoders", types.SimpleNamespace(VideoDecoder=VideoDecoder))
    video = load_video(clip, frames=2)
    assert asked == [[5, 15]] and video.indices == brightness(video.frames) == [5, 15] and video.fps == 10


def test_without_a_reader_the_error_says_which_to_install(clip, monkeypatch):
    for package in ("av", "torchcodec"):
        monkeypatch.setitem(sys.modules, package, None)
    refused(lambda: load_video(clip), "takes PyAV or torchcodec, and neither is ... [video]")
    assert len(load_video(pictures(2))) == 2, "frames need no reader"


def damaged(size: int) -> bytes:
    buffer = io.BytesIO()
    write_video(buffer, pictures(20), format="mp4")
    return buffer.getvalue()[:size]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("missing.mp4", "video 'missing.mp4' does not exist"),
        (".", "it is a folder"),
        (b"no video", "video in bytes cannot be read"),
        (damaged(2000), "video in bytes cannot be read"),
        ("data:video/mp4;base64,*", "video in a data: URL is not base64"),
        ([], "has no frames"),
        (np.zeros((4, 4, 3), np.uint8), "shape (4, 4, 3) ... arrays are read as [frames"),
        (np.zeros((2, 3, 4, 5), np.uint8), "shape (3, 4, 5); arrays are read as"),
        ([np.zeros((4, 4), np.uint8), np.zeros((4, 6), np.uint8)], "has 6 x 4 pixels but another 4 x 4"),
        (3, "a video is a int; pass a path"),
        (np.zeros((1025, 1, 1, 3), np.uint8), "has 1025 frames, and more than 1024 are read only when"),
    ],
)
def test_what_is_no_video_is_refused_in_one_line(source, message):
    refused(lambda: load_video(source), message)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"frames": 0}, "frames=0 of a video: read at least one"),
        ({"fps": 0}, "fps=0 of a video must be above 0"),
        ({"fps": 2}, "has no known frame rate, so fps=2 says nothing"),
        ({"choose": lambda facts: [5]}, "of its 4 frames [5]"),
        ({"choose": lambda facts: [facts["gone"]]}, "no frames were chosen: KeyError: 'gone'"),
        ({"choose": lambda facts: [2, 1]}, "in order"),
    ],
)
def test_choices_that_cannot_be_made(how, message):
    refused(lambda: load_video(pictures(4), **how), message)


def test_a_video_of_a_phone_held_upright_is_turned(clip, tmp_path):
    """The header of an MP4 file has a matrix: here right becomes down, as in what a phone on its side records."""
    unit, one, minus_one = struct.pack(">i", 0x40000000), struct.pack(">i", 0x10000), struct.pack(">i", -0x10000)
    zero = bytes(4)
    as_stored = one + zero * 3 + one + zero * 3 + unit
    turned = zero + one + zero + minus_one + zero * 4 + unit
    head, track, rest = clip.read_bytes().partition(b"tkhd")
    assert rest.count(as_stored) == 1
    (tmp_path / "turned.mp4").write_bytes(head + track + rest.replace(as_stored, turned))
    frames = load_video(tmp_path / "turned.mp4", frames=1).frames
    assert frames.shape == (1, 64, 48, 3) and frames[:, :24].max() < 12 and frames[:, 40:].min() > 100


def test_a_file_of_sound_alone_is_no_video(tmp_path):
    from media_files import write_wave

    write_wave(tmp_path / "a.wav", np.zeros(100))
    refused(lambda: load_video(tmp_path / "a.wav"), "no pictures in it, only sound")
