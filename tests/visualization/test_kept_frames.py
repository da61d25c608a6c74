"""What drafters keep of a clip, step by step."""

from __future__ import annotations

from functools import cache

import numpy
import pytest
import tiny_processors
import torch
from refusals import refused
from tiny_requests import target_of

import mmspec
from mmspec import visualization
from mmspec.compressors import Frames, Hide, Pool, Prune, UVPrune
from mmspec.drafters import EagleDrafter

QUESTION = "what is it?"
CLIP = numpy.random.default_rng(0).integers(0, 255, (5, 16, 24, 3), dtype=numpy.uint8)
"""Five frames of 2 x 3 tokens, which are three steps."""


@cache
def eagle() -> EagleDrafter:
    torch.manual_seed(0)
    return EagleDrafter(mmspec.Target(target_of("qwen2_5_vl").model, tiny_processors.Patches())).eval()


def kept(compressor) -> list[visualization.Kept]:
    drafter = eagle() if compressor is None else eagle().with_compressor(compressor)
    steps = visualization.kept_frames(drafter, QUESTION, CLIP)
    assert [step.weights.shape for step in steps] == [(2, 3)] * 3
    return steps


@pytest.mark.parametrize(
    ("compressor", "entries"),
    [(None, [6, 6, 6]), (Hide(), [0, 0, 0]), (Pool(2), [2, 2, 2]), (Frames(0.4), [0, 6, 0]), (Prune(0.5), [3, 3, 3])],
)
def test_entries_are_counted_by_step(compressor, entries):
    steps = kept(compressor)
    assert [step.entries for step in steps] == entries
    if not isinstance(compressor, Pool):
        assert [int(step.weights.sum()) for step in steps] == entries
    else:
        assert all(step.weights.max() == 1 and step.weights.min() == 0.5 for step in steps), "windows at the edge"


def test_a_pruner_by_frame_keeps_some_of_every_step():
    assert [step.entries for step in kept(UVPrune(0.5, budget="even"))] == [3, 3, 3]


def test_a_row_for_every_drafter_and_a_column_for_every_step():
    drafters = {"all": eagle(), "one frame": eagle().with_compressor(Frames(0.4))}
    plot = visualization.draw_kept_frames(drafters, QUESTION, CLIP, most=2)
    assert [axes.get_title() for axes in plot.axes] == ["6 of 6", "6 of 6", "0 of 6", "0 of 6"]
    assert [axes.get_ylabel() for axes in plot.axes[::2]] == ["all\n18 of 18", "one frame\n6 of 18"]
    assert [axes.get_xlabel() for axes in plot.axes[2:]] == ["step 0", "step 2"]
    for axes, number in zip(plot.axes[:2], (0, 3), strict=True):
        picture, veil = (image.get_array() for image in axes.images)
        assert (picture == CLIP[number]).all() and (veil[..., 3] == 0).all()


def test_what_cannot_be_drawn_is_refused(monkeypatch):
    refused(lambda: visualization.draw_kept_frames({}, QUESTION, CLIP, most=0), "most=0 must be a positive integer")
    monkeypatch.setattr(type(eagle().target.family), "grids", lambda self, inputs, vision: [None])
    refused(lambda: visualization.kept_frames(eagle(), QUESTION, CLIP), "do not form a rectangle")
