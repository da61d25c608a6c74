"""Positions behind videos and pictures: `generate` goes on from the last one of every axis, and so does every pass.

The models are tiny and random: a position that is off by one changes their logits, if not always their text.
"""

from __future__ import annotations

import models
import pytest
import torch
from qwen_prompts import inputs_of, video
from tiny_requests import target_of

import mmspec
from mmspec.check import check_target
from mmspec.drafters import Eagle3Drafter, OwnEncoderDrafter
from mmspec.inputs import prepare
from mmspec.training.teacher import Teacher
from mmspec.tree import DraftTree
from mmspec.trees import Chain

NEW = 12
QWEN = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")
PICTURE = ("image", 1, 4, 8)


# What a row shows, and the text tokens behind the last of it.
ROWS = {
    "a video of one step": ([video(1)], 4),
    "of two": ([video(2)], 4),
    "of eight": ([video(8)], 4),
    "of sixty, text beyond its half": ([video(60)], 30),
    "the last thing in the prompt": ([video(8)], 0),
    "several, and a picture": ([video(3), video(5, 8, 4), PICTURE], 2),
    "a picture at the end": ([PICTURE], 0),
    "a picture behind a video at the end": ([video(8), PICTURE], 0),
}


# The models share the code, so most rows are for one of them in every run of the tests.
OF_ALL = ("of eight", "the last thing in the prompt", "a picture behind a video at the end")
CASES = [
    pytest.param(name, what, marks=() if name == "qwen2_5_vl" or what in OF_ALL else pytest.mark.slow)
    for name in QWEN
    for what in ROWS
]


def written(name: str, rows: list[tuple[list, int]]) -> tuple[list[list[int]], torch.Tensor]:
    """What `generate` writes to every row by itself, and its logits, `[rows, NEW, vocab]`."""
    texts, logits = [], []
    for number, row in enumerate(rows):
        single = inputs_of(name, [row], number)
        options = {"do_sample": False, "return_dict_in_generate": True, "output_logits": True}
        out = target_of(name).model.generate(**single, max_new_tokens=NEW, **options)
        texts.append(out.sequences[0, single["input_ids"].shape[1] :].tolist())
        logits.append(torch.cat(out.logits))
    return texts, torch.stack(logits)


@pytest.mark.parametrize(("name", "what"), CASES)
def test_text_behind_a_video_is_that_of_generate(name, what):
    """Alone, and beside a row of text and a row with another video."""
    target, rows = target_of(name), [ROWS[what], ([], 11), ([video(6)], 3)]
    texts, logits = written(name, rows)
    for shown in (rows[:1], rows):
        request, count = prepare(target, inputs=inputs_of(name, shown)), len(shown)
        context = target.prefill(request, target.encode(request))
        scores = context.score(DraftTree.chain(torch.tensor(texts[:count])))
        ours = torch.cat([context.logits[:, None], scores.logits[:, :-1]], dim=1)
        assert (ours - logits[:count]).abs().max() < 1e-3
    drafter = OwnEncoderDrafter(target, target.model)
    out = mmspec.generate(target, drafter, inputs=request, max_new_tokens=NEW - 1, tree=Chain(4))
    assert out.token_ids == [ids[: NEW - 1] for ids in texts]
    assert [record.accepted for record in out.stats.rounds] == [[4] * 3] * 2, "the target itself is right every time"


def test_trees_behind_a_video_pass_the_self_check():
    report = check_target(target_of("qwen2_vl"), inputs_of("qwen2_vl", [([video(8), PICTURE], 0)]))
    assert report.ok, f"\n{report}"


def test_every_axis_goes_on_from_its_own_last_position():
    """Three words and a mark, then eight steps of 2 x 2 tokens at 50 clock ticks a step: the last token of the video
    stands at time 4 + 7 * 50 and at row and column 5, and what follows at one more on each."""
    target = target_of("qwen2_5_vl")
    inputs = inputs_of("qwen2_5_vl", [([video(8)], 0)])
    clock = target.model.config.vision_config.tokens_per_second
    request = prepare(target, inputs=inputs)
    position_ids, position_offset = target.family.positions(request.inputs)
    assert position_ids[:, 0, -1].tolist() == [4 + 7 * clock, 5, 5]
    assert (position_offset[:, 0] + request.max_length).tolist() == [5 + 7 * clock, 6, 6]
    longer, _ = target.family.positions_until(request.inputs, request.max_length + 3)
    assert longer[:, 0, -1].tolist() == [7 + 7 * clock, 8, 8]


def test_positions_that_a_caller_gives_are_gone_by():
    """`generate` reads them as they are and counts on from the last one."""
    target = target_of("llama")
    ids = torch.tensor([[3, 4, 5, 6, 7, 8]])
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    texts = []
    for places in ([0, 1, 2, 3, 4, 5], [9, 9, 9, 2, 30, 31]):
        given = inputs | {"position_ids": torch.tensor([places])}
        expected = target.model.generate(**given, max_new_tokens=NEW, do_sample=False)[0, 6:].tolist()
        assert mmspec.generate(target, inputs=given, max_new_tokens=NEW).token_ids == [expected]
        texts.append(expected)
    assert texts[0] != texts[1]


@pytest.mark.parametrize("what", ["of eight", "a picture behind a video at the end"])
def test_states_in_training_are_those_of_decoding(what):
    """Of the target, and of a head that goes by its positions."""
    target = target_of("qwen2_5_vl")
    request = prepare(target, inputs=inputs_of("qwen2_5_vl", [ROWS[what], ([], 11)]))
    answers = [[5, 9, 13, 21, 30]] * 2
    lesson = Teacher(target).study(request, answers)
    context = target.prefill(request, target.encode(request))
    for history in context.history:
        history.append(5)
    logits = context.score(DraftTree.chain(torch.tensor(answers))).logits
    taught = torch.stack([lesson.features[-1][row, n : n + 5] for row, n in enumerate(request.lengths)])
    assert (target.family.head(taught) - logits).abs().max() < 1e-3


def test_a_head_of_three_axes_is_trained_where_it_drafts():
    """Its guesses in training are those of its drafts, also where the axes stay apart behind the prompt."""
    target = target_of("qwen2_5_vl")
    settings = {"head_dim": 8, "rope_parameters": target.family.text_config.rope_parameters}
    drafter = models.redraw(Eagle3Drafter(target, head=settings, rope="mrope"), seed=3).eval()
    request = prepare(target, inputs=inputs_of("qwen2_5_vl", [ROWS["the last thing in the prompt"]]))
    answer = [5, 9, 13]
    with torch.no_grad():
        lesson = Teacher(target, drafter.feature_layers).study(request, [answer])
        taught = next(drafter.unroll(lesson)).logits[0]
    context = target.prefill(request, target.encode(request), feature_layers=drafter.feature_layers)
    context.history[0].append(answer[0])
    with torch.inference_mode():
        drafter.start(context)
        drafted = drafter.expand_root(torch.tensor(answer[:1]))
    assert (drafted[0] - taught).abs().max() < 1e-4
