"""The embedded target that watches clips, and its drafters: they see, they are exact, and clips come from files too."""

from __future__ import annotations

import json
from functools import cache

import pytest

import mmspec
from mmspec import cli, zoo
from mmspec.drafters import NGramDrafter
from mmspec.embedded import EMBEDDED
from mmspec.media import Video
from mmspec.trees import Chain, DynamicTree
from mmspec.zoo.metrics import total
from mmspec.zoo.video.data import CLIP_TASKS, watch
from mmspec.zoo.video.evaluation import answer_clips, clip_inputs
from mmspec.zoo.video.metrics import measure_clip

pytestmark = pytest.mark.product

DRAFTERS = sorted(path.name for path in (EMBEDDED / "tiny-video").iterdir() if path.name != "target")
TOKENS = 48
ONE_EACH = [(task, length) for length in ("short", "500") for task in CLIP_TASKS]


@cache
def target():
    return mmspec.load_target("tiny-video")


@cache
def drafter(name):
    return NGramDrafter(target()) if name == "ngram" else mmspec.load_drafter(f"tiny-video/{name}", target())


def asked(samples) -> dict:
    """The arguments of `generate` for clips and single frames."""
    from PIL import Image

    still = [len(one.frames) == 1 for one in samples]
    return {
        "prompt": [one.prompt for one in samples],
        "images": [
            [Image.fromarray(one.frames[0])] if alone else [] for one, alone in zip(samples, still, strict=True)
        ],
        "videos": [[] if alone else [Video(one.frames, fps=2.0)] for one, alone in zip(samples, still, strict=True)],
        "max_new_tokens": TOKENS,
    }


@cache
def plain(task, length, index=3):
    """What the model's own `generate` writes about a clip of the test split."""
    sample = watch(task, "test", index, length)
    inputs = clip_inputs(target().processor, [sample.frames], [sample.prompt])
    ids = target().model.generate(**inputs, max_new_tokens=TOKENS, do_sample=False)
    return ids[0, inputs["input_ids"].shape[1] :].tolist()


def test_it_tells_what_happens():
    """Most events of short clips in order, and what single frames show; the figures are those of the test split."""
    for task, length, metric, least in (
        ("accounts", "short", "events_in_order", 0.8),
        ("pictures", "long", "right_captions", 0.8),
    ):
        samples = [watch(task, "test", index, length) for index in range(10)]
        clips, prompts = [one.frames for one in samples], [one.prompt for one in samples]
        said = answer_clips(target().model, target().processor, clips, prompts)
        counts = [measure_clip(task, one.reference, text) for one, (text, _) in zip(samples, said, strict=True)]
        assert total(counts)[metric] >= least


def test_another_clip_gives_another_answer():
    samples = [watch("accounts", "test", index, "short") for index in range(4)]
    out = mmspec.generate(target(), None, **asked([one._replace(prompt=samples[0].prompt) for one in samples]))
    assert len(set(out.text)) == 4


@pytest.mark.parametrize("name", ["ngram", *DRAFTERS])
def test_every_drafter_writes_what_the_model_writes(name):
    """In a ragged batch of clips and pictures, on a chain and on a tree."""
    request = asked([watch(task, "test", 3, length) for task, length in ONE_EACH])
    for tree in (None,) if name == "ngram" else (Chain(5), DynamicTree(4, 3, 12)):
        out = mmspec.generate(target(), drafter(name), tree=tree, **request)
        assert out.token_ids == [plain(task, length) for task, length in ONE_EACH]
    assert name == "ngram" or out.stats.mean_acceptance_length > 1.2


def test_the_clip_that_ships_is_told(capsys, tmp_path):
    arguments = ["generate", "target=tiny-video", "drafter=ngram", "max_new_tokens=200", "json=true"]
    assert cli.main(arguments) == 0
    first = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert first["text"].startswith("At first: ") and "At last: " in first["text"]
    copy = tmp_path / "clip.mp4"
    copy.write_bytes(zoo.demo_clip().read_bytes())
    assert cli.main([*arguments, "--video", str(copy)]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["token_ids"] == first["token_ids"]
    frame = tmp_path / "frame.png"
    from PIL import Image

    Image.fromarray(mmspec.media.load_video(str(copy)).frames[0]).save(frame)
    assert cli.main([*arguments, "--image", str(frame)]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["text"].startswith("The number is ")
