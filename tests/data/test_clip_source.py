"""The embedded generator of clips as a source of prompts."""

from __future__ import annotations

import numpy as np
import pytest
from refusals import refused

from mmspec.data import METRICS, ClipSource, from_record, open_image, open_media, to_record
from mmspec.zoo.video.data import LENGTHS, clip_of, watch


def test_tasks_take_turns_and_so_do_lengths():
    source = ClipSource(tasks=["moments", "pictures"], split="validation", count=3, start=5, length=["short", "500"])
    assert [example.id for example in source] == [
        "moments/validation/short/5",
        "pictures/validation/short/5",
        "moments/validation/500/6",
        "pictures/validation/500/6",
        "moments/validation/short/7",
        "pictures/validation/short/7",
    ]
    assert [(len(example.images), len(example.videos)) for example in source] == [(0, 1), (1, 0)] * 3
    assert ClipSource(count=1, length=500).describe() == ClipSource(count=9, length=["500"]).describe()


def test_a_record_draws_the_same_clip_again():
    source = ClipSource(split="test", count=2, length="short")
    for example in source:
        again = from_record(to_record(example))
        assert again == example
        task, split, length, index = example.id.split("/")
        sample = watch(task, split, int(index), length)
        assert example.prompt == sample.prompt and example.references == (sample.reference,)
        media = open_media(again)
        if task == "pictures":
            assert np.array_equal(np.asarray(media["images"][0]), sample.frames[0])
        else:
            assert np.array_equal(media["videos"][0].frames, sample.frames) and media["videos"][0].fps == 2.0


@pytest.mark.parametrize(("name", "tokens"), [("500", 504), ("2k", 2028), ("8k", 8112), ("25k", 24336)])
def test_lengths_cost_what_their_names_say(name, tokens):
    clip, frames = clip_of("accounts", "test", 0, name), watch("accounts", "test", 0, name).frames
    assert clip.visual_tokens * LENGTHS[name].repeat == tokens
    assert tokens == len(frames) // 2 * frames.shape[1] * frames.shape[2] // 256
    shown = frames.reshape(-1, 2, *frames.shape[1:])
    steps = shown[:: LENGTHS[name].repeat]
    assert len(steps) == len(clip.events)
    assert np.array_equal(shown, steps.repeat(LENGTHS[name].repeat, axis=0))


def test_what_is_not_there_is_refused():
    refused(lambda: ClipSource(tasks=["scenes"]), "task 'scenes' is unknown. Available: accounts, moments, pictures.")
    refused(lambda: ClipSource(length="shrot"), "length 'shrot' is unknown. Did you mean 'short'?")
    refused(lambda: ClipSource(length=[]), "length=[] must name at least one of short, long")
    refused(lambda: ClipSource(length=None), "length=None must be one of short, long, 500, 2k, 8k, 25k, or a list")
    refused(lambda: ClipSource(count=0), "count=0 must be at least 1")
    refused(lambda: open_image("tiny-video:pictures/test/short"), "is not of the form tiny-video:TASK/SPLIT/LENGTH/IN")
    refused(lambda: open_image("tiny-video:pictures/test/tall/1"), "unknown length 'tall'")


def test_accounts_are_judged_by_their_events():
    metric, truth = METRICS["clip_events"], "At first: a red star.\n10: the red star turns.\n11: nothing changes."
    assert metric.points(truth, truth) == (1.0, 1.0)
    assert metric.points(truth, truth.replace("turns", "vanishes")) == (0.0, 1.0)
