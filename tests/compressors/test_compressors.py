"""Compressors by numbers worked out by hand, and the prompts that drafters make of them."""

from __future__ import annotations

from dataclasses import replace

import models
import pytest
import torch
from omegaconf import OmegaConf
from refusals import refused
from tiny_drafters import eagle_drafter
from tiny_requests import RAGGED, case, target_of
from torch import nn

import mmspec
from mmspec.compressors import (
    Compressed,
    Conv,
    Elastic,
    Frames,
    Hide,
    Holistic,
    Layout,
    Pool,
    Prune,
    Resampler,
    SinkAware,
    Sources,
    UVPrune,
    VisualCompressor,
    VisualSpan,
    compressed_prompt,
    layout_of,
    whole_prompt,
)
from mmspec.compressors.base import compressor_of
from mmspec.drafters import EagleDrafter, HiVisDrafter, NGramDrafter, ViSpecDrafter
from mmspec.drafters.reading import view_of
from mmspec.inputs import append, prepare
from mmspec.settings import configuration


def span(rows: int, columns: int, width: int = 1, times: int = 1, **fields) -> VisualSpan:
    """A picture, or a video, whose tokens are their own numbers."""
    embeds = torch.arange(float(times * rows * columns))[:, None].expand(-1, width).contiguous()
    kind = "video" if times > 1 else "image"
    return VisualSpan(embeds, (times, rows, columns), **{"text": torch.ones(2, width), "kind": kind, **fields})


def attached(compressor: VisualCompressor, hidden: int = 1, state: int = 1) -> VisualCompressor:
    compressor.attach(hidden, state)
    return compressor.eval()


def numbers(tensor: torch.Tensor) -> list[float]:
    return tensor[:, 0].tolist()


# Hide, Pool, Conv, Prune.


def test_hide_leaves_nothing():
    left = Hide()(span(2, 3, width=4))
    assert left.embeds.shape == (0, 4) and left.source.dense().shape == (0, 6) and left.summary is None


@pytest.mark.parametrize(
    ("grid", "size", "expected"),
    [
        ((2, 4), 2, [2.5, 4.5]),
        ((3, 4), 2, [2.5, 4.5, 8.5, 10.5]),  # the last row of windows is one token high
        ((3, 4), 3, [5.0, 7.0]),  # the last column of windows is one token wide
        ((3, 3), 2, [2.0, 3.5, 6.5, 8.0]),  # the corner is a single token
        ((2, 2), 5, [1.5]),
        ((1, 3), 1, [0.0, 1.0, 2.0]),
    ],
)
def test_pool_takes_the_mean_of_every_window(grid, size, expected):
    left = Pool(size)(span(*grid))
    assert numbers(left.embeds) == pytest.approx(expected)
    assert (left.source.dense() > 0).sum().item() == grid[0] * grid[1], "every token is in one window"


def test_conv_begins_as_pool_and_fills_up_with_zeros_at_the_edge():
    conv = attached(Conv(2), hidden=3)
    for grid in ((2, 2), (4, 6)):
        ours, pooled = conv(span(*grid, width=3)), Pool(2)(span(*grid, width=3))
        assert torch.allclose(ours.embeds, pooled.embeds) and ours.source.dense().equal(pooled.source.dense())
    assert numbers(conv(span(3, 4, width=3)).embeds) == pytest.approx([2.5, 4.5, 17 / 4, 21 / 4])
    with torch.no_grad():
        conv.conv.weight.zero_()
        conv.conv.weight[:, :, 0, 1] = torch.eye(3)  # the upper right token of every window
        conv.conv.bias.fill_(100.0)
    assert numbers(conv(span(2, 4, width=3)).embeds) == pytest.approx([101, 103])


@pytest.mark.parametrize(
    ("keep", "expected"), [(0.25, [2, 6, 10]), (0.5, [1, 3, 5, 7, 9, 11]), (0.01, [6]), (1.0, list(range(12)))]
)
def test_uniform_pruning_is_evenly_spaced(keep, expected):
    left = Prune(keep)(span(3, 4))
    assert numbers(left.embeds) == expected
    assert left.source.dense().argmax(-1).tolist() == expected and set(left.source.dense().flatten().tolist()) <= {
        0.0,
        1.0,
    }


def test_random_pruning_is_the_same_for_every_picture_of_a_size():
    first, again, other = (Prune(0.5, "random", seed)(span(5, 6)) for seed in (0, 0, 1))
    assert first.source.dense().equal(again.source.dense()) and not first.source.dense().equal(other.source.dense())
    kept = numbers(first.embeds)
    assert len(set(kept)) == 15 and kept == sorted(kept), "different tokens, in reading order"


def test_pruning_by_similarity_keeps_what_resembles_any_word():
    embeds = torch.tensor([[1.0, 0.0], [0.0, 9.0], [-1.0, 0.1], [3.0, 0.1], [-1.0, -1.0]])
    words = torch.tensor([[0.0, 0.1], [5.0, 0.0]])
    left = Prune(0.6, "similarity")(VisualSpan(embeds, None, words))
    assert left.source.dense().argmax(-1).tolist() == [0, 1, 3], "cosines 1, 1, 0.1, nearly 1, and below 0"
    assert Prune(0.2, "similarity")(VisualSpan(embeds, None, -words)).source.dense().argmax(-1).tolist() == [2]


# Resampler.


def plain_resampler(summary: bool) -> Resampler:
    """Two queries, one head, and projections that change nothing but the values, which they double."""
    resampler = attached(Resampler(2, heads=1, summary=summary), hidden=2)
    with torch.no_grad():
        resampler.q.copy_(torch.tensor([[[2**0.5, 0.0]], [[0.0, 0.0]]]))
        for part, factor in ((resampler.k_proj, 1.0), (resampler.v_proj, 2.0), (resampler.o_proj, 1.0)):
            part.weight.copy_(factor * torch.eye(2))
    return resampler


def test_a_resampler_looks_at_a_picture_once():
    """The first query asks for large first numbers, the second one for nothing in particular."""
    seen = VisualSpan(torch.tensor([[0.0, 3.0], [1.0, 0.0], [2.0, 6.0]]), None, torch.ones(1, 2))
    with torch.no_grad():
        left = plain_resampler(False)(seen)
        summed = plain_resampler(True)(seen)
    weights = torch.tensor([0.0, 1.0, 2.0]).softmax(0)
    first, second = 2 * weights @ seen.embeds, 2 * seen.embeds.mean(0)
    assert torch.allclose(left.embeds, torch.stack([first, second])) and left.summary is None
    assert left.source.dense().tolist() == [[0, 1, 0], [0, 0, 1]], "at the last places of the picture"
    assert torch.allclose(summed.embeds, first[None]) and torch.allclose(summed.summary, second)
    assert summed.source.dense().tolist() == [[0, 0, 1]]


def test_a_picture_of_fewer_tokens_than_queries_has_no_more_places():
    left = attached(Resampler(5, heads=2), hidden=4)(span(1, 2, width=4))
    assert left.embeds.shape == (2, 4) and left.source.dense().equal(torch.eye(2))


# Videos.


@pytest.mark.parametrize(("keep", "expected"), [(0.5, [1, 3, 5]), (0.01, [3]), (0.34, [1, 4]), (1, [0, 1, 2, 3, 4, 5])])
def test_frames_keeps_frames_evenly_spaced(keep, expected):
    left = Frames(keep)(span(2, 3, times=6))
    wanted = [6.0 * frame + token for frame in expected for token in range(6)]
    assert numbers(left.embeds) == left.source.mean(torch.arange(36.0)[:, None])[:, 0].tolist() == wanted


def test_frames_keeps_those_of_most_change():
    """The third frame is new, the fifth is new in one place; the others repeat what was there."""
    one, other = torch.tensor([[1.0, 0]] * 4), torch.tensor([[0, 1.0]] * 4)
    changed = torch.cat([other[:3], one[:1]])
    clip = torch.cat([one, one, other, other, changed, changed])
    picture = VisualSpan(clip, (6, 2, 2), torch.ones(1, 2), kind="video")
    for keep, expected in ((0.5, [0, 2, 4]), (0.34, [0, 2]), (0.1, [0])):
        kept = Frames(keep, "change")(picture).source.dense().argmax(-1).view(-1, 4)[:, 0] // 4
        assert kept.tolist() == expected


def test_frames_leaves_pictures_and_sounds_whole():
    for whole in (span(2, 3), span(1, 1, times=6, kind="audio"), VisualSpan(torch.ones(5, 1), None, torch.ones(1, 1))):
        assert torch.equal(Frames(0.2)(whole).embeds, whole.embeds)


def test_windows_do_not_reach_from_one_frame_into_the_next():
    """Three rows a frame, so that windows of two would."""
    clip, frames = span(3, 4, width=2, times=2), [span(3, 4, width=2), span(3, 4, width=2)]
    frames[1].embeds = clip.embeds[12:]
    for compressor in (Pool(2), attached(Conv(2), hidden=2)):
        left, alone = compressor(clip), [compressor(frame) for frame in frames]
        assert torch.allclose(left.embeds, torch.cat([one.embeds for one in alone]))
        assert torch.equal(left.source.dense(), torch.block_diag(*[one.source.dense() for one in alone]))


# Elastic.


def elastic(mode: str, weights: list[float], **settings) -> Elastic:
    """One whose gate gives fixed weights, whatever is asked."""
    compressor = attached(Elastic(mode, **settings), hidden=4, state=3)
    with torch.no_grad():
        compressor.gate[2].weight.zero_()
        compressor.gate[2].bias.copy_(torch.tensor(weights).log())
    return compressor


def asked(rows: int, columns: int) -> VisualSpan:
    return span(rows, columns, width=4, states=torch.ones(2, 3))


def test_fusion_adds_operators_up():
    left = elastic("fusion", [0.5, 0.25, 0.25])(asked(2, 4))
    pruned = [2, 6]  # of 8 tokens, as many as there are windows
    assert numbers(left.embeds) == pytest.approx([(a + b) / 2 for a, b in zip(pruned, [2.5, 4.5], strict=True)])
    window = [0.125, 0.125, 0.0, 0.0, 0.125, 0.125, 0.0, 0.0]
    assert left.source.dense()[0].tolist() == pytest.approx([w + 0.5 * (n == 2) for n, w in enumerate(window)])
    assert numbers(elastic("fusion", [1e-9, 1 - 2e-9, 1e-9])(asked(3, 3)).embeds) == pytest.approx([2, 3.5, 6.5, 8])


def test_concatenation_takes_everything():
    compressor = attached(Elastic("concatenation", size=2, queries=3), hidden=4)
    left = compressor(span(4, 4, width=4))
    parts = [branch(span(4, 4, width=4)) for branch in compressor.branches]
    assert [len(part.embeds) for part in parts] == [1, 1, 4, 3], "one twentieth, 4 x 4, 2 x 2, and three queries"
    assert left.embeds.equal(torch.cat([part.embeds for part in parts])) and len(left.source.dense()) == 9
    assert not hasattr(compressor, "gate")


@pytest.mark.parametrize(("number", "kind"), list(enumerate([Prune, Pool, Conv, Resampler, Hide])))
def test_selection_uses_the_likeliest_branch(number, kind):
    compressor, picture = elastic("selection", [0.6 if n == number else 0.1 for n in range(5)]), asked(4, 4)
    assert isinstance(compressor.branches[number], kind) and compressor.choice(picture) == number
    own = compressor.branches[number](picture)
    for _ in range(5):
        left = compressor(picture)
        assert left.embeds.equal(own.embeds) and left.source.dense().equal(own.source.dense())


def test_different_questions_choose_different_branches():
    compressor = elastic("selection", [0.2] * 5)
    with torch.no_grad():
        compressor.gate[0].weight.copy_(torch.tensor([[1.0, -1.0, 0.0]]))
        compressor.gate[0].bias.zero_()
        compressor.gate[2].weight.copy_(torch.tensor([[0.0], [1.0], [0.0], [0.0], [-9.0]]))
    picture = span(4, 4, width=4)
    for states, number in (([[4.0, 0.0, 0.0]], 1), ([[0.0, 1.0, 0.0]], 4), ([[4.0, 0.0, 0.0], [0.0, 5.0, 0.0]], 4)):
        picture.states = torch.tensor(states)
        assert compressor.choice(picture) == number, "the mean of the words counts"
        assert len(compressor(picture).embeds) == {1: 4, 4: 0}[number]


def test_training_draws_branches_as_often_as_the_gate_says():
    weights = [0.4, 0.3, 0.15, 0.1, 0.05]
    compressor, picture = elastic("selection", weights).train(), asked(4, 8)
    torch.manual_seed(0)
    run, draws = [], 600
    for number, branch in enumerate(compressor.branches):
        branch.register_forward_hook(lambda *_, number=number: run.append(number))
    for _ in range(draws):
        compressor(picture)
    assert len(run) == draws, "one branch each time"
    for number, weight in enumerate(weights):
        assert abs(run.count(number) / draws - weight) < 4 * (weight * (1 - weight) / draws) ** 0.5
    with torch.no_grad():
        assert {len(compressor(picture).embeds) for _ in range(40)} == {8}, "without gradients it is in use"


def test_the_gate_learns_although_one_branch_is_run():
    """Straight through: the entries are the branch's own, the gradient is that of their weight."""
    compressor = elastic("selection", [0.2] * 5).train()
    picture = asked(2, 4)
    torch.manual_seed(1)
    reached = torch.zeros(5)
    for _ in range(30):
        left = compressor(picture)
        if not len(left.embeds):
            continue
        whole = left.embeds.detach()
        assert any(torch.allclose(whole, part(picture).embeds.detach()) for part in compressor.branches[:4])
        compressor.gate.zero_grad()
        left.embeds.sum().backward()
        reached += compressor.gate[2].bias.grad.abs()
    assert reached.min() > 0


def test_fusion_teaches_the_gate_and_the_convolution():
    compressor = elastic("fusion", [0.2] * 3).train()
    left = compressor(asked(2, 4))
    (left.embeds.square().sum() + left.source.weights.square().sum()).backward()
    weights = (compressor.gate[2].bias, compressor.branches[2].conv.weight)
    assert all(weight.grad.abs().max() > 0 for weight in weights)


# What all of them have in common.

ALL = {
    "hide": Hide(),
    "pool": Pool(2),
    "conv": Conv(2),
    "prune": Prune(0.3, "random"),
    "resampler": Resampler(2, heads=2),
    "fusion": Elastic("fusion"),
    "concatenation": Elastic("concatenation"),
    "selection": Elastic("selection"),
}


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("grid", [(1, 1), (3, 4), (5, 2)])
def test_every_entry_stands_for_a_mean_of_tokens(name, grid):
    compressor = attached(ALL[name], hidden=4, state=3)
    left = compressor(asked(*grid))
    assert left.embeds.shape == (len(left.source.dense()), 4) and left.source.dense().shape[1] == grid[0] * grid[1]
    assert (
        torch.allclose(left.source.dense().sum(-1), torch.ones(len(left.source.dense())))
        and (left.source.dense() >= 0).all()
    )


@pytest.mark.parametrize("name", ALL)
def test_it_is_made_again_from_its_configuration(name):
    again = compressor_of(ALL[name].config())
    assert type(again) is type(ALL[name]) and again.config() == ALL[name].config()
    assert compressor_of(None) is None


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"class": "mmspec.trees.Chain"}, "which is no VisualCompressor"),
        ({"class": "mmspec.compressors.Pool", "edge": 3}, "Pool has no argument 'edge'. Available: size."),
    ],
)
def test_a_configuration_of_something_else_is_refused(config, reason):
    refused(lambda: compressor_of(config), reason)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Pool(0), "Pool: size=0 must be"),
        (lambda: Prune(0), "Prune: keep=0 must be a number above 0 and at most 1"),
        (lambda: Prune(1.1), "Prune: keep=1.1 must be a number above 0 and at most 1"),
        (lambda: Prune("half"), "Prune: keep='half' must be a number above 0"),
        (lambda: Frames(None), "Frames: keep=None must be a number above 0"),
        (lambda: Hide(margin=2), "Hide: margin=2 must be two numbers of tokens"),
        (lambda: Prune(0.5, "randomly"), "Prune: by='randomly' is unknown. Did you mean 'random'?"),
        (lambda: Resampler(0), "Resampler: queries=0 must be"),
        (lambda: attached(Resampler(2, heads=3), 4), "heads=3 does not divide the hidden size 4"),
        (lambda: Elastic("fuse"), "Elastic: mode='fuse' is unknown. Did you mean 'fusion'?"),
        (lambda: Elastic(temperature=0), "Elastic: temperature=0 must be a number above 0"),
        (
            lambda: attached(Elastic(), 4)(span(2, 2, width=4)),
            "its gate reads the target's states, and this drafter has none",
        ),
        (
            lambda: Pool(2)(VisualSpan(torch.ones(3, 1), None, torch.ones(1, 1))),
            "these 3 tokens of kind image have none",
        ),
        (
            lambda: Pool(2)(VisualSpan(torch.ones(3, 1), (1, 2, 2), torch.ones(1, 1))),
            "these 3 tokens of kind image have none",
        ),
    ],
)
def test_mistakes_are_one_line(make, message):
    refused(lambda: make(), message)


# Prompts.


class Marked(VisualCompressor):
    """Leaves the last token, and a summary that is the first."""

    def forward(self, span):
        last = torch.tensor([len(span) - 1])
        return Compressed(span.embeds[-1:], Sources.some(last, len(span)), span.embeds[0])


def prompt_of(*rows: str):
    """Rows of words `.`, visual tokens (a letter per picture, 2 x 2 or 1 x n), padding `_`; embedded as indices."""
    width = max(map(len, rows))
    visual = torch.zeros(len(rows), width, dtype=torch.bool)
    words, spans, grids = visual.clone(), [], []
    for number, row in enumerate(rows):
        spans.append([(row.index(letter), row.rindex(letter) + 1) for letter in sorted(set(row) - {".", "_"})])
        grids.append([(1, 2, 2) if end - start == 4 else (1, 1, end - start) for start, end in spans[-1]])
        for place, sign in enumerate(row):
            visual[number, place], words[number, place] = sign not in "._", sign == "."
    embeds = torch.arange(float(width))[None, :, None].expand(len(rows), -1, 1)
    return whole_prompt(embeds, 10 * embeds, visual), Layout(
        visual, spans, grids, [["image"] * len(row) for row in spans], words
    )


@pytest.mark.parametrize(
    ("compressor", "embeds", "positions", "position_offset"),
    [
        (Hide(), [0, 1, 6, 7], [0, 1, 6, 7], 4),
        (Hide(packed=True), [0, 1, 6, 7], [0, 1, 2, 3], 0),
        (Pool(2), [0, 1, 3.5, 6, 7], [0, 1, 4, 6, 7], 3),
        (Prune(0.5), [0, 1, 3, 5, 6, 7], [0, 1, 3, 5, 6, 7], 2),
        (Prune(1.0), list(range(8)), list(range(8)), 0),
    ],
)
def test_text_keeps_its_places_unless_it_is_packed(compressor, embeds, positions, position_offset):
    prompt = compressed_prompt(compressor, *prompt_of("..aaaa.."))
    assert prompt.embeds[0, :, 0].tolist() == embeds and prompt.positions[0].tolist() == positions
    assert prompt.states[0, :, 0].tolist() == [10 * value for value in embeds], "states follow by the same weights"
    assert prompt.position_offset.tolist() == [position_offset] and prompt.removed.tolist() == [8 - len(embeds)]
    kept = len(embeds) - 4
    assert prompt.visual[0].tolist() == [False] * 2 + [True] * kept + [False] * 2 and prompt.summary is None
    # What follows the prompt has the position that its number in the sequence and `position_offset` say.
    assert prompt.positions[0, -1] == len(embeds) - 1 + position_offset


def test_resampled_entries_stand_at_the_last_places():
    compressor = attached(Resampler(3, heads=1))
    prompt = compressed_prompt(compressor, *prompt_of(".aaaaaa.bb.."))
    assert prompt.positions[0].tolist() == [0, 4, 5, 6, 7, 8, 9, 10, 11]
    assert prompt.states[0, :, 0].tolist() == [10.0 * place for place in prompt.positions[0].tolist()]
    assert prompt.visual[0].tolist() == [False, True, True, True, False, True, True, False, False]


def test_rows_of_all_kinds_share_a_batch():
    """Two pictures of different sizes, none, one; padding stays behind."""
    whole, layout = prompt_of(".aaaa.bbb.", "...._" + 5 * "_", "aaaa..____")
    prompt = compressed_prompt(Pool(2), whole, layout)
    assert (
        prompt.embeds.shape[1] == 10
        and prompt.removed.tolist() == [4, 0, 3]
        and prompt.position_offset.equal(prompt.removed)
    )
    assert prompt.embeds[0, :6, 0].tolist() == [0, 2.5, 5, 6.5, 8, 9]
    assert prompt.positions[0, :6].tolist() == [0, 2, 5, 6, 8, 9], "means of 1 to 4 and of 6 and 7, halves to even"
    assert prompt.embeds[1, :4, 0].tolist() == [0, 1, 2, 3] and not prompt.visual[1].any()
    assert prompt.embeds[2, :3, 0].tolist() == [1.5, 4, 5] and prompt.visual[2].nonzero()[:, 0].tolist() == [0]
    alone = compressed_prompt(Pool(2), *prompt_of("aaaa.."))
    for name in ("embeds", "states", "positions", "visual"):
        assert getattr(prompt, name)[2, :3].equal(getattr(alone, name)[0])


def test_a_question_is_what_follows_its_picture():
    """Or all of the text, if nothing does; neither padding nor the answer."""
    asked = []

    class Asking(Prune):
        def forward(self, span):
            asked.append((span.text[:, 0].tolist(), span.states[:, 0].tolist()))
            return super().forward(span)

    whole, layout = prompt_of(".aa.bb..__", "..aa" + 6 * "_")
    last = 100 + whole.embeds
    compressed_prompt(Asking(), whole, layout, last)
    texts = [[3, 6, 7], [6, 7], [0, 1]]
    assert asked == [(text, [100 + place for place in text]) for text in texts]


def test_the_summary_is_that_of_the_latest_picture():
    whole, layout = prompt_of(".aa.bbb..", "....." + 4 * "_", ".aa.____" + "_")
    prompt = compressed_prompt(Marked(), whole, layout)
    assert prompt.embeds[0, :6, 0].tolist() == [0, 2, 3, 6, 7, 8]
    assert prompt.summary[0, :6, 0].tolist() == [0, 1, 1, 4, 4, 4], "from the picture's first entry on"
    assert not prompt.summary[1].any(), "no picture, no summary"
    assert prompt.summary[2, :, 0].tolist() == [0] + [1] * (prompt.embeds.shape[1] - 1), "padding included"
    assert compressed_prompt(Hide(), whole, layout).summary is None


def test_positions_of_several_axes_follow_entry_by_entry():
    whole, layout = prompt_of("..aaaa..", "....____")
    rows = torch.tensor([[0, 1, 2, 2, 3, 3, 4, 5], [0, 1, 2, 3, 0, 0, 0, 0]])
    columns = torch.tensor([[0, 1, 2, 3, 2, 3, 4, 5], [0, 1, 2, 3, 0, 0, 0, 0]])
    whole.positions, whole.position_offset = torch.stack([rows, columns]), torch.tensor([-2, 0])
    pruned = compressed_prompt(Prune(0.5), whole, layout)
    assert pruned.positions[:, 0, :6].tolist() == [[0, 1, 2, 3, 4, 5], [0, 1, 3, 3, 4, 5]]
    assert pruned.positions[:, 1, :4].tolist() == [[0, 1, 2, 3]] * 2
    assert pruned.position_offset.tolist() == [0, 0], "two tokens fewer make up for two places that the picture saves"
    pooled = compressed_prompt(Pool(2), whole, layout)
    assert pooled.positions[:, 0, :5].tolist() == [[0, 1, 2, 4, 5]] * 2 and pooled.position_offset.tolist() == [1, 0]
    packed = compressed_prompt(Hide(packed=True), whole, layout)
    assert packed.positions[:, 0, :4].tolist() == [[0, 1, 2, 3]] * 2 and packed.position_offset.tolist() == [0, 0]


def test_positions_are_exact_in_half_precision():
    """Where a ninth is no number, and 900 ninths of something less so."""
    whole, layout = prompt_of("." * 900 + "a" * 36 + "..")
    layout.grids[0][0] = (1, 6, 6)
    half = replace(whole, embeds=whole.embeds.bfloat16(), states=whole.states.bfloat16())
    for compressor in (Pool(3), elastic("fusion", [0.1, 0.5, 0.4], size=3)):
        given = {"last": torch.ones(1, whole.embeds.shape[1], 3)}
        parts = [replace(part, embeds=part.embeds.expand(-1, -1, 4)) for part in (half, whole)]
        ours, exact = (compressed_prompt(compressor, part, layout, **given).positions for part in parts)
        assert ours.equal(exact)
    assert compressed_prompt(Pool(3), half, layout).positions[0, 900:904].tolist() == [907, 910, 925, 928]


def test_a_prompt_without_text_is_refused():
    refused(lambda: compressed_prompt(Hide(), *prompt_of("..aa", "aaaa")), "Hide: a prompt has no text beside its")


@pytest.mark.parametrize("name", models.VISUAL)
def test_the_layout_of_a_request(name):
    """Pictures, their grids and the words around them, with and without an answer behind."""
    target = target_of(name, "sdpa")
    request = prepare(target, inputs=models.inputs_for(name, [2, 0, 1], [6, 4, 5]))
    longer = append(request, [[7, 8, 9], [7], [8, 9]])
    vision = target.encode(request)
    tall = (1, 3, 2) if name == "qwen_vl" else (1, 2, 2)
    for read in (request, longer):
        layout = layout_of(target.family, read, request, vision)
        assert layout.grids == [[(1, 2, 2), tall], [], [(1, 2, 2)]]
        assert layout.kinds == [["image"] * 2, [], ["image"]]
        ids = read.inputs["input_ids"]
        assert layout.visual.equal(ids == models.IMAGE)
        for row, (spans, grids) in enumerate(zip(layout.spans, layout.grids, strict=True)):
            for (start, end), (_, rows, columns) in zip(spans, grids, strict=True):
                assert end - start == rows * columns and (ids[row, start:end] == models.IMAGE).all()
            said = layout.words[row].nonzero()[:, 0].tolist()
            assert said == [n for n, token in enumerate(request.token_ids()[row]) if token != models.IMAGE]


# Drafters.


def test_a_trained_drafter_may_look_through_a_compressor_without_weights():
    drafter = EagleDrafter(target_of("llava", "sdpa"))
    other = drafter.with_compressor(Pool(2))
    assert drafter.compressor is None and isinstance(other.compressor, Pool) and other.fc is drafter.fc
    assert type(other) is EagleDrafter and other.state_dict().keys() == drafter.state_dict().keys()
    refused(lambda: other.with_compressor(Hide()), "this EagleDrafter was trained with Pool: leave")


@pytest.mark.parametrize(
    ("drafter", "compressor", "message"),
    [
        (EagleDrafter, Conv(2), "Conv has weights of its own, which this EagleDrafter was"),
        (EagleDrafter, Elastic("fusion"), "Elastic has weights of its own, which this EagleDrafter"),
        (HiVisDrafter, Pool(2), "this HiVisDrafter was trained with Hide: leave"),
        (ViSpecDrafter, Pool(2), "this ViSpecDrafter was trained with Resampler: leave"),
        (NGramDrafter, Pool(2), "NGramDrafter takes no compressor: choose a drafter that"),
    ],
)
def test_what_would_have_to_be_trained_is_refused(drafter, compressor, message):
    refused(lambda: drafter(target_of("llava", "sdpa")).with_compressor(compressor), message)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda t: HiVisDrafter(t, compressor=Pool(2)), "hides pictures, so compressor=Pool does not fit; use Eagle"),
        (lambda t: Hide(margin=(1, -2)), "Hide: margin=(1, -2) must be two numbers"),
        (lambda t: Hide(margin=[1]), "Hide: margin=[1] must be two numbers"),
        (lambda t: HiVisDrafter(t, steps=0), "HiVisDrafter: steps=0 must be at least 1"),
        (lambda t: ViSpecDrafter(t, queries=1), "queries=1 must be at least 2, one of them for the global"),
        (lambda t: ViSpecDrafter(t, compressor=Resampler(2)), "ViSpecDrafter: Resampler makes no summary; use Resam"),
        (lambda t: ViSpecDrafter(t, heads=5), "heads=5 does not divide the hidden size 32"),
    ],
)
def test_heads_refuse_what_does_not_fit_them(make, message):
    refused(lambda: make(target_of("llava", "sdpa")), message)


def test_hivis_refuses_pictures_that_it_cannot_hide(monkeypatch):
    """As where the image token is another one than the drafter takes it for: hiding nothing would go unnoticed."""
    drafter = HiVisDrafter(target_of("llava", "sdpa"))
    inputs, _ = case("llava", "sdpa", (1,), (9,), 14)
    request = prepare(drafter.target, inputs=inputs)
    context = drafter.target.prefill(request, drafter.target.encode(request), feature_layers=drafter.feature_layers)
    view = view_of(context)
    assert drafter.read(view).removed.tolist() == [4]
    monkeypatch.setattr(type(drafter.target.family), "placeholders", {5000: "image"})
    refused(lambda: drafter.read(view), "hiding them removed no token: ... placeholder tokens [5000] is in it")


def test_a_configuration_chooses_drafter_and_compressor():
    target = target_of("llava", "sdpa")

    def build(drafter, compressor):
        return configuration.build_drafter(OmegaConf.create({"drafter": drafter, "compressor": compressor}), target)

    eagle = OmegaConf.create({"_target_": "mmspec.drafters.EagleDrafter"})
    pool = configuration.compose("generate", ["compressor=pool", "compressor.size=3"]).compressor
    assert build(eagle, None).compressor is None and build(None, None) is None
    assert build(eagle, pool).compressor.size == 3
    refused(lambda: build(None, pool), "drafter=none: choose a drafter")


WITHOUT_WEIGHTS = [
    Hide(),
    Hide(packed=True),
    Pool(2),
    Prune(0.5, "similarity"),
    Holistic(0.5),
    UVPrune(0.5),
    SinkAware(0.5),
]


@pytest.mark.parametrize("compressor", WITHOUT_WEIGHTS)
@pytest.mark.parametrize("name", models.VISUAL)
def test_text_stays_that_of_the_target(name, compressor):
    inputs, expected = case(name, "sdpa", *RAGGED, 14)
    drafter = eagle_drafter(name, "sdpa").with_compressor(compressor)
    assert mmspec.generate(drafter.target, drafter, inputs=inputs, max_new_tokens=14).token_ids == expected


def test_inside_generate_the_grid_of_qwen_is_there():
    """transformers consumes it where a callable does not ask for it."""
    inputs, expected = case("qwen_vl", "sdpa", *RAGGED, 14)
    eagle = eagle_drafter("qwen_vl", "sdpa")
    for compressor in (Hide(), Prune(0.5), Pool(2)):
        drafter = eagle.with_compressor(compressor)
        options = {"max_new_tokens": 14, "do_sample": False, "custom_generate": mmspec.hf.custom_generate(drafter)}
        assert drafter.target.model.generate(**inputs, **options)[:, -14:].tolist() == expected


def test_a_compressor_keeps_its_own_weights_where_a_heads_are_drawn():
    """`Conv` begins as `Pool` inside a drafter too."""
    drafter = EagleDrafter(target_of("llava", "sdpa"), compressor=Conv(2))
    assert isinstance(drafter.compressor.conv, nn.Conv2d)
    assert torch.allclose(drafter.compressor(span(2, 2, width=32)).embeds, Pool(2)(span(2, 2, width=32)).embeds)
