"""The pruners of videos by their formulas, frame by frame, on demand and never by a matrix of all tokens."""

from __future__ import annotations

import math
from functools import cache

import models
import pytest
import torch
from full_recompute import recompute, start
from qwen_prompts import inputs_of, video
from refusals import refused
from tiny_drafters import TINY_DRAFTERS
from tiny_requests import target_of
from torch.utils._python_dispatch import TorchDispatchMode

import mmspec
from mmspec.compressors import Holistic, SinkAware, TopPUniform, UVPrune, VisualSpan
from mmspec.compressors.base import compressor_of
from mmspec.compressors.budgets import apportioned, even
from mmspec.inputs import prepare
from mmspec.models import attention
from mmspec.models.hooks import Ear, listening
from mmspec.trees import Chain

NEW = 10
PICTURE = ("image", 1, 4, 6)
ROWS = [([video(3, 8, 8), PICTURE, video(1)], 5), ([PICTURE], 9), ([], 7), ([video(5, 8, 4)], 4)]
"""Two videos and a picture, a picture, nothing, a video; an odd number of frames, and a single one."""
ALL = {
    "top_p": TopPUniform(0.3),
    "holistic": Holistic(0.3),
    "uv": UVPrune(0.3, depth=2),
    "sink_aware": SinkAware(0.3),
}


@cache
def clips() -> tuple[dict, list[list[int]]]:
    """The batch, and what `generate` writes to every row of it."""
    model, written = target_of("qwen_vl", "sdpa").model, []
    for row in range(len(ROWS)):
        model.model.rope_deltas, single = None, alone(row)
        ids = model.generate(**single, max_new_tokens=NEW, do_sample=False)
        written.append(ids[0, single["input_ids"].shape[1] :].tolist())
    return inputs_of("qwen2_5_vl", ROWS), written


def alone(row: int) -> dict:
    """A row without the others."""
    return inputs_of("qwen2_5_vl", [ROWS[row]], seed=row)


def seen_by(drafter, inputs: dict) -> list[tuple[VisualSpan, list[int]]]:
    """Every picture as a drafter's compressor gets it, and the numbers of the tokens that are left of it."""
    seen: list = []
    drafter = drafter.fork()

    def look(spans, left) -> None:
        seen.append((spans[0], left.source.tokens.tolist()))

    with torch.inference_mode(), listening([Ear(drafter.compressor, after=look)]):
        drafter.start(start(drafter.target, inputs, feature_layers=drafter.feature_layers))
    return seen


def places(row: int) -> list[tuple[list[int], int]]:
    """Of every picture of a row its tokens, and where the text behind it begins."""
    ids = alone(row)["input_ids"][0].tolist()
    found: list[list[int]] = []
    for place in (place for place, token in enumerate(ids) if token in (models.IMAGE, models.VIDEO)):
        if not found or found[-1][-1] != place - 1:
            found.append([])
        found[-1].append(place)
    return [(tokens, tokens[-1] + 1) for tokens in found]


def text_of(row: int, begin: int) -> list[int]:
    ids = alone(row)["input_ids"][0].tolist()
    return [n for n, token in enumerate(ids) if n >= begin and token not in (models.IMAGE, models.VIDEO)]


def expected_scores(of_row) -> list[torch.Tensor]:
    """What a formula says of every picture, from what the eager model returns for its row alone."""
    eager, found = models.eager_twin("qwen_vl", target_of("qwen_vl", "sdpa").model), []
    for row, (shown, _) in enumerate(ROWS):
        if not shown:
            continue
        given = {"output_attentions": True, "output_hidden_states": True}
        out = recompute(eager, alone(row), [[]], **given)
        for (tokens, begin), (_, steps, height, width) in zip(places(row), shown, strict=True):
            found.append(of_row(out, tokens, text_of(row, begin), (steps, height // 2, width // 2)))
    return found


# The formulas.


def scaled(frame: list[float]) -> list[float]:
    low, high = min(frame), max(frame)
    return [(value - low) / (high - low) if high > low else 0.0 for value in frame]


@pytest.mark.parametrize("layers", [None, [1]])
@pytest.mark.parametrize("crop", [4, 3])
def test_holistic_is_the_sum_of_its_three_scores(crop, layers):
    weights, first = (0.5, 0.2, 0.3), 0.7

    def formula(out, tokens, words, grid):
        frames, rows, columns = grid
        chosen = out.attentions if layers is None else [out.attentions[layer] for layer in layers]
        among = torch.stack([part[0][:, words][:, :, tokens] for part in chosen])
        heard = (among / among.sum(-1, keepdim=True)).mean((0, 1, 2)).tolist()
        assert sum(heard) == pytest.approx(1, abs=1e-5)
        seen = out.hidden_states[0][0, tokens]
        zero = torch.zeros_like(seen[0])

        def at(frame, row, column):
            inside = row < rows and column < columns
            return seen[(frame * rows + row) * columns + column] if inside else zero

        def cosine(one, other):
            return float(one @ other / (one.norm() * other.norm()).clamp(min=1e-12))

        found = []
        for f in range(frames):
            parts: list[list[float]] = [[], [], []]
            for row in range(rows):
                for column in range(columns):
                    me = at(f, row, column)
                    parts[0].append(heard[(f * rows + row) * columns + column])
                    parts[1].append(1 - cosine(me, at(f - 1, row, column)) if f else 0.0)
                    corner = row // crop * crop, column // crop * crop
                    square = [(corner[0] + down, corner[1] + across) for down in range(crop) for across in range(crop)]
                    likes = [cosine(me, at(f, *place)) for place in square]
                    mean = sum(likes) / len(likes)
                    parts[2].append(sum((like - mean) ** 2 for like in likes) / len(likes))
            parts = [scaled(part) for part in parts]
            if not f:
                parts[1] = [first] * len(parts[1])
            found += [float(torch.tensor(weights) @ torch.tensor(values)) for values in zip(*parts, strict=True)]
        return torch.tensor(found)

    compressor = Holistic(0.5, weights, crop=crop, first=first, layers=layers)
    drafter = TINY_DRAFTERS["eagle"]("qwen_vl", "sdpa").with_compressor(compressor)
    ours = seen_by(drafter, clips()[0])
    assert [span.kind for span, _ in ours] == ["video", "image", "video", "image", "video"]
    for (span, _), wanted in zip(ours, expected_scores(formula), strict=True):
        assert torch.allclose(span.attention, wanted, atol=2e-4), (span.grid, span.attention - wanted)


@pytest.mark.parametrize("words", [None, 2])
@pytest.mark.parametrize("depth", [1, 2, 3])
def test_the_double_sum_of_uv_prune_telescopes(depth, words):
    """Against all layers one by one. What leaves the last layer has no norm yet, so its layers are run by hand."""
    target = target_of("qwen_vl", "sdpa")

    def formula(out, tokens, text, grid):
        text = text if words is None else text[-words:]
        states = [*out.hidden_states[:depth]]
        states.append(out.hidden_states[depth] if depth < 3 else leaving[len(found)])
        found.append(tokens)
        change = torch.zeros(len(tokens))
        for layer in range(1, depth + 1):
            for j in text:
                for n, i in enumerate(tokens):
                    after, before = states[layer][0], states[layer - 1][0]
                    change[n] += torch.cosine_similarity(after[i], after[j], dim=0)
                    change[n] -= torch.cosine_similarity(before[i], before[j], dim=0)
        return change

    found: list = []
    leaving: list = []
    if depth == 3:
        eager = models.eager_twin("qwen_vl", target.model)
        last: list = []
        for row, (shown, _) in enumerate(ROWS):
            with listening([Ear(eager.model.language_model.norm, before=lambda args, kwargs: last.append(args[0]))]):
                recompute(eager, alone(row), [[]])
            leaving += [last[-1]] * len(shown)
    drafter = TINY_DRAFTERS["eagle"]("qwen_vl", "sdpa").with_compressor(UVPrune(0.5, depth=depth, words=words))
    ours = seen_by(drafter, clips()[0])
    for (span, left), wanted in zip(ours, expected_scores(formula), strict=True):
        assert torch.allclose(span.attention, wanted, atol=1e-4)
        best = span.attention.sort(descending=True, stable=True).indices[: max(1, round(len(span) / 2))]
        assert left == sorted(best.tolist())


def test_uv_prune_keeps_two_layers_of_states_and_looks_through_a_part_of_them():
    target = target_of("qwen_vl", "sdpa")
    assert UVPrune().deepest(target) == 2 and len(UVPrune().layers_seen(target)) == 2
    for total, wanted in ((12, 2), (20, 3), (28, 4), (80, 12)):
        assert max(2, round(0.15 * total)) == wanted


def planted(frames: int, places_: int, words: int = 6) -> torch.Tensor:
    """Attention without sinks: noise, and another event for every word."""
    generator = torch.Generator().manual_seed(3)
    attention = torch.rand(words, frames * places_, generator=generator).mul(0.8).exp()
    for word in range(words):
        attention[word, 7 * word + 3] *= 40
    return attention


def test_sinks_are_what_is_attended_to_whatever_is_asked():
    attention, grid = planted(12, 9), (12, 3, 3)
    compressor = SinkAware()
    assert not compressor.sinks(attention, grid).any(), "what some words look at is none"
    token = attention.clone()
    token[:, 50] *= 40  # for every word
    assert compressor.sinks(token, grid).nonzero()[:, 0].tolist() == [50]
    token[:2, 50] = attention[:2, 50]
    assert not compressor.sinks(token, grid).any() and SinkAware(always=0.6).sinks(token, grid)[50]
    frame = attention.clone().view(6, 12, 9)
    frame[:, 11] *= 3  # too little for any token to stand out
    assert compressor.sinks(frame.flatten(1), grid).nonzero()[:, 0].tolist() == list(range(99, 108))
    assert not compressor.sinks(frame.flatten(1)).any(), "without a grid frames are not looked at"
    event = attention.clone().view(6, 12, 9)
    event[:, 5, :4] *= 3  # less than half of a frame
    assert not compressor.sinks(event.flatten(1), grid).any()
    place = attention.clone().view(6, 12, 9)
    place[:, :, 8] *= 3
    assert compressor.sinks(place.flatten(1), grid).view(12, 9).nonzero()[:, 1].unique().tolist() == [8]
    assert compressor.sinks(place.flatten(1), grid).view(12, 9)[:, 8].all()
    assert not compressor.sinks(torch.ones(3, 108), grid).any(), "among equals there is no outlier"


def test_sink_aware_is_top_p_of_what_is_left():
    """And exactly top-p where there is no sink; from the attention that the eager model returns."""

    def formula(out, tokens, words, grid):
        by_word = torch.stack([part[0].mean(0)[words][:, tokens] for part in out.attentions]).mean(0)
        sinks = SinkAware(threshold=1.0, always=0.5).sinks(by_word, grid)
        return by_word.mean(0).masked_fill(sinks, 0)

    make = TINY_DRAFTERS["eagle"]("qwen_vl", "sdpa").with_compressor
    aware = seen_by(make(SinkAware(0.3, threshold=1.0, always=0.5)), clips()[0])
    hidden = 0
    for (span, left), wanted in zip(aware, expected_scores(formula), strict=True):
        assert torch.allclose(span.attention, wanted, rtol=1e-3, atol=1e-6)
        assert left == TopPUniform(0.3).choose(span.attention, max(1, round(0.3 * len(span)))).tolist()
        hidden += int((span.attention == 0).sum())
    assert hidden, "some are sinks by so low a threshold"
    plain, none = (seen_by(make(one), clips()[0]) for one in (TopPUniform(0.3), SinkAware(0.3, threshold=99)))
    assert [left for _, left in plain] == [left for _, left in none]


# Budgets of frames.


@pytest.mark.parametrize("seed", range(6))
def test_budgets_are_proportional_within_bounds_and_exact(seed):
    generator = torch.Generator().manual_seed(seed)
    frames, size = 3 + 4 * seed, 20
    worth = torch.rand(frames, generator=generator) ** (1 + seed)
    for count in (1, frames // 2, frames, 5 * frames + 1, 19 * frames, size * frames):
        for bounds in ((0.5, 2.0), (0.0, 100.0), (1.0, 1.0)):
            budgets = apportioned(worth, count, size, bounds)
            average = count / frames
            low, high = bounds[0] * average, min(bounds[1] * average, size)
            assert sum(budgets) == count
            assert all(math.floor(low) <= budget <= math.ceil(high) for budget in budgets)
            inner = [n for n, b in enumerate(budgets) if math.ceil(low) < b < math.floor(high)]
            for one in inner:  # one factor for all that no bound holds
                for other in inner:
                    assert abs(budgets[one] * worth[other] - budgets[other] * worth[one]) <= worth[one] + worth[other]


def test_budgets_by_hand():
    assert apportioned(torch.tensor([1.0, 1.0, 6.0]), 9, 100, (0.5, 2.0)) == [2, 1, 6], "the third one is held at twice"
    assert apportioned(torch.tensor([0.0, 1.0, 1.0]), 12, 100, (0.5, 2.0)) == [2, 5, 5]
    assert apportioned(torch.tensor([0.0, 0.0, 5.0]), 12, 6, (0.0, 3.0)) == [3, 3, 6], "no more than a frame has"
    assert apportioned(torch.zeros(4), 6, 9, (0.5, 2.0)) == [2, 2, 1, 1]
    assert apportioned(torch.tensor([3.0, 1.0, 2.0]), 1, 9, (0.5, 2.0)) == [1, 0, 0], "frames that get nothing"
    assert apportioned(torch.tensor([2.0]), 3, 9, (0.5, 2.0)) == [3]
    assert even(4, 6) == [1, 2, 1, 2] and even(5, 2) == [0, 0, 1, 0, 1] and even(1, 3) == [3]


def clip(frames: int, places_: int, seed: int = 0) -> VisualSpan:
    scores = torch.rand(frames * places_, generator=torch.Generator().manual_seed(seed))
    grid = (frames, 1, places_)
    return VisualSpan(torch.zeros(len(scores), 2), grid, torch.ones(1, 2), attention=scores, kind="video")


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("budget", ["all", "even", "score"])
def test_every_pruner_is_usable_by_frame(name, budget):
    cls = type(ALL[name])
    for frames, keep in ((5, 0.4), (5, 0.03), (1, 0.5), (4, 1.0)):
        span = clip(frames, 10)
        left = cls(keep, budget=budget)(span).source.tokens.tolist()
        count = max(1, round(keep * frames * 10))
        assert len(left) == len(set(left)) == count and left == sorted(left)
        by_frame = [sum(token // 10 == frame for token in left) for frame in range(frames)]
        if budget == "even":
            assert by_frame == even(frames, count)
        if budget == "score":
            worth = span.attention.view(frames, 10).mean(1)
            assert by_frame == apportioned(worth, count, 10, (0.5, 2.0))
        for frame, some in enumerate(by_frame):
            if budget != "all":
                inside = cls(keep).choose(span.attention[10 * frame : 10 * frame + 10], some)
                assert [token - 10 * frame for token in left if token // 10 == frame] == inside.tolist()
    few = cls(0.2, budget=budget, frames=0.4)(clip(5, 10)).source.tokens // 10
    assert len(few) == 10 and set(few.tolist()) <= {1, 3}, "two frames of five, evenly spaced"
    picture = clip(1, 10)
    picture.kind = "image"
    assert len(cls(0.3, budget=budget, frames=0.3)(picture).embeds) == 3, "a picture is whole"


def test_scores_below_zero_count_from_the_lowest():
    span = clip(3, 4)
    span.attention -= 0.7
    left = UVPrune(0.5, budget="score")(span).source.tokens // 4
    worth = (span.attention - span.attention.min()).view(3, 4).mean(1)
    assert left.bincount(minlength=3).tolist() == apportioned(worth, 6, 4, (0.5, 2.0))


# Inside drafters.

MAKES = [
    *((name, make) for name in ALL for make in ("eagle", "own model")),
    *(("holistic", make) for make in ("eagle3, fewer tokens", "aasd")),
    *(("uv", make) for make in ("msd", "dflash")),
    ("sink_aware", "peagle"),
]


@pytest.mark.parametrize(("name", "make"), MAKES)
def test_the_text_is_the_targets_for_clips_and_pictures(name, make):
    inputs, expected = clips()
    drafter = TINY_DRAFTERS[make]("qwen_vl", "sdpa").with_compressor(ALL[name])
    out = mmspec.generate(drafter.target, drafter, inputs=inputs, max_new_tokens=NEW, tree=Chain(3))
    assert out.token_ids == expected and out.stats.lossless


@pytest.mark.parametrize("name", ALL)
def test_entries_keep_their_places_on_all_axes(name):
    """Of M-RoPE: the position of a kept token is the target's own, beside a sound choice in the whole batch."""
    drafter, row = TINY_DRAFTERS["own model"]("qwen_vl", "sdpa").with_compressor(ALL[name]), alone(3)
    theirs = drafter.target.family.positions(prepare(drafter.target, inputs=row).inputs)[0][:, 0]
    read: list = []
    model = drafter.draft_target.family.decoder
    with listening([Ear(model, before=lambda args, kwargs: read.append(kwargs["position_ids"]))]):
        ((_, kept),) = seen_by(drafter, row)
    assert kept == seen_by(drafter, clips()[0])[-1][1], "the rows beside it make no difference"
    ((tokens, begin),) = places(3)
    chosen = [*range(tokens[0]), *(tokens[n] for n in kept), *range(begin, theirs.shape[1])]
    assert read[0][:, 0].tolist() == theirs[:, chosen].tolist()


class Largest(TorchDispatchMode):
    """The size of the largest tensor that anything returns."""

    numel = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for one in out if isinstance(out, tuple | list) else [out]:
            if torch.is_tensor(one) and 0 not in one.stride():  # not one number that is shown many times
                self.numel = max(self.numel, one.numel())
        return out


@pytest.mark.parametrize("back_end", ["sdpa", "eager"])
@pytest.mark.parametrize("name", ALL)
def test_no_matrix_of_all_tokens_is_made(name, back_end, monkeypatch):
    """Of 320 visual tokens and 150 words, whatever the target's own back end does."""
    monkeypatch.setattr(attention, "PORTION", 8)
    largest, given = Largest(), type(ALL[name]).token_scores

    def watched(self, target, view, layout):
        with largest:
            return given(self, target, view, layout)

    monkeypatch.setattr(type(ALL[name]), "token_scores", watched)
    inputs = inputs_of("qwen2_5_vl", [([video(5, 16, 16)], 150)])
    drafter = TINY_DRAFTERS["eagle"]("qwen_vl", back_end).with_compressor(ALL[name])
    with torch.inference_mode():
        drafter.start(start(drafter.target, inputs, feature_layers=drafter.feature_layers))
    length, heads = inputs["input_ids"].shape[1], 4
    assert length > 470 and 320 * 32 <= largest.numel < heads * length**2 // 10


# What cannot be.


@pytest.mark.parametrize("name", ALL)
def test_it_is_made_again_from_its_configuration(name):
    again = compressor_of(ALL[name].config())
    assert type(again) is type(ALL[name]) and again.config() == ALL[name].config()


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Holistic(0), "Holistic: keep=0 must be a number above 0 and at most 1"),
        (lambda: Holistic(weights=(1, 2)), "Holistic: weights=(1, 2) must be three numbers of 0 or more"),
        (lambda: Holistic(weights=(0, 0, 0)), "Holistic: weights=(0, 0, 0) must be three numbers ... not all 0"),
        (lambda: Holistic(weights=(1, -1, 1)), "Holistic: weights=(1, -1, 1) must be"),
        (lambda: Holistic(crop=0), "Holistic: crop=0 must be a positive integer"),
        (lambda: Holistic(first=2), "Holistic: first=2 must be a number from 0 to 1"),
        (lambda: Holistic(bounds=(1.5, 2)), "Holistic: bounds=(1.5, 2) must be two numbers, from 0 to 1 and 1 or more"),
        (lambda: UVPrune(bounds="ab"), "UVPrune: bounds='ab' must be two numbers"),
        (lambda: UVPrune(budget="evn"), "UVPrune: budget='evn' is unknown. Did you mean 'even'?"),
        (lambda: UVPrune(depth=0), "UVPrune: depth=0 must be a positive integer"),
        (lambda: UVPrune(words=1.5), "UVPrune: words=1.5 must be a positive integer"),
        (lambda: SinkAware(threshold=0), "SinkAware: threshold=0 must be a number above 0"),
        (lambda: SinkAware(always=1.1), "SinkAware: always=1.1 must be a number above 0 and at most 1"),
        (lambda: SinkAware(layers="8"), "SinkAware: layers='8' must be a list of layers, or None for all"),
        (lambda: TopPUniform(0.5, frames=0.25), "keep=0.5 of the tokens do not fit in frames=0.25 of the frames"),
        (lambda: on_eagle(UVPrune(depth=4)), "UVPrune: depth=4 is more than the 3 layers of Qwen2_5_VLForCond"),
        (lambda: on_eagle(Holistic(layers=[3])), "Holistic: layers has 3, which is none of the 3 of Qwen2_5_VL"),
        (lambda: TopPUniform(0.5, budget="even")(formless()), "TopPUniform works on the frames ... these 7 tokens of"),
    ],
)
def test_mistakes_are_one_line(make, said):
    refused(make, said)


def on_eagle(compressor):
    return TINY_DRAFTERS["eagle"]("qwen_vl", "sdpa").with_compressor(compressor)


def formless() -> VisualSpan:
    return VisualSpan(torch.ones(7, 2), None, torch.ones(1, 2), attention=torch.ones(7), kind="video")


def test_the_line_break_behind_a_video_belongs_to_no_frame():
    """As LLaVA-OneVision has one."""
    span = clip(3, 4)
    span.embeds, span.attention = torch.zeros(13, 2), torch.cat([span.attention, torch.tensor([9.0])])
    assert UVPrune(0.5, budget="even")(span).source.tokens.tolist()[-1] < 12
    assert UVPrune(0.5)(span).source.tokens.tolist()[-1] == 12
