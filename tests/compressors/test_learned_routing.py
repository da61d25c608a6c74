"""Routing by learned maps, and routing of draft models: what is seen in training is what is seen in drafting."""

from __future__ import annotations

import models
import pytest
import torch
from heads import TOLERANCE, error, expect_loaded_as_saved, guesses_of, lesson_of
from refusals import refused
from scripted_rounds import guesses_compared
from tiny_drafters import TINY_DRAFTERS, shared_vision_drafter
from tiny_requests import RAGGED, case, interleaved, target_of

import mmspec
from mmspec.compressors import LearnedRouting, Routing
from mmspec.drafters import Eagle3Drafter, EagleDrafter, MixtureDrafter, MsdDrafter, SharedVisionDrafter
from mmspec.drafters.reading import view_of
from mmspec.drafters.router import Router, shown_at
from mmspec.models.states import LAST
from mmspec.training.beginnings import routed as routed_head
from mmspec.trees import Chain, DynamicTree

NEW = 12
HEADS = {"eagle": EagleDrafter, "eagle3": Eagle3Drafter, "msd": MsdDrafter}


def routed(name: str, make: str = "eagle", compressor=None):
    drafter = HEADS[make](target_of(name, "sdpa"), compressor=compressor or LearnedRouting(2, width=6))
    return models.redraw(drafter, 3).eval()


def record(monkeypatch) -> list[torch.Tensor]:
    """What routers hide, round by round."""
    hidden, choose = [], Router.choose
    monkeypatch.setattr(Router, "choose", lambda self: hidden.append(found := choose(self)) or found)
    return hidden


@pytest.mark.parametrize("by", ["states", "embeds"])
@pytest.mark.parametrize("name", ["llava", "qwen_vl"])
@torch.no_grad()
def test_the_largest_products_with_the_newest_state_are_shown(name, by, monkeypatch):
    """Against the maps applied to the states of a lesson that holds the text which was written."""
    drafter = routed(name, compressor=LearnedRouting(2, width=6, by=by))
    target, maps, rounds = drafter.target, drafter.compressor, record(monkeypatch)
    inputs, expected = case(name, "sdpa", *RAGGED, NEW)
    out = mmspec.generate(target, drafter, inputs=inputs, max_new_tokens=NEW, tree=Chain(2))
    assert out.token_ids == expected and len(rounds) == len(out.stats.rounds)
    places = [1] * len(expected)
    for hidden, record_of in zip(rounds, out.stats.rounds, strict=True):
        for row in range(len(expected)):
            if places[row] >= NEW:
                continue
            single = mmspec.inputs.prepare(target, inputs=models.one_row(inputs, row))
            read = mmspec.inputs.append(single, [expected[row][: places[row]]])
            context = target.prefill(read, target.encode(read), feature_layers=[LAST])
            visual = target.family.is_visual(read.inputs["input_ids"])[0]
            known = context.embeds if by == "embeds" else context.features[LAST]
            scores = maps.key(known[0]) @ maps.query(context.features[LAST][0, -2])
            count = min(2, int(visual.sum()))
            best = set(scores.masked_fill(~visual, -torch.inf).topk(count).indices.tolist())
            length = single.max_length
            seen = visual[:length] & ~hidden[row, :length]
            assert set(seen.nonzero()[:, 0].tolist()) == best
            places[row] += record_of.emitted[row]
    assert any(not one.equal(rounds[0]) for one in rounds[1:]), "the choice never changed"


@pytest.mark.parametrize("make", HEADS)
@pytest.mark.parametrize("compressor", [Routing(2), LearnedRouting(2, width=6)], ids=["attention", "learned"])
def test_training_shows_what_drafting_does(make, compressor):
    """Every guess of a lesson is what the drafter says while it writes the same, round by round."""
    for name in ("llava", "qwen_vl"):
        drafter, lesson = routed(name, make, compressor.fork()), lesson_of(name)
        assert guesses_compared(drafter, lesson, name, 1) > 15
        everything = routed(name, make, compressor.fork())
        everything.compressor.k = 10**6
        everything.load_state_dict(drafter.state_dict(), strict=False)
        whole, some = guesses_of(everything, lesson, 2), guesses_of(drafter, lesson, 2)
        assert max(error(whole[key], logits) for key, logits in some.items()) > 100 * TOLERANCE


def test_maps_learn_to_look_at_what_helps():
    """The head stays as it is, and sees one token; its loss falls by what the maps learn to show it."""
    drafter, lesson = routed("llava", compressor=LearnedRouting(1, width=6)), lesson_of("llava")
    maps = drafter.compressor

    def loss() -> torch.Tensor:
        return sum(torch.nn.functional.cross_entropy(each.logits, lesson.tokens[each.places]) for each in guesses())

    def guesses():
        return drafter.unroll(lesson, 2)

    with torch.no_grad():
        before = loss()
    shown = shown_at(maps.train(), drafter.target, view_of(lesson), lesson.root_slots)
    assert shown.gain.requires_grad and shown.gain.abs().max() == 0, "what is seen is seen whole"
    optimizer = torch.optim.Adam(maps.parameters(), 0.02)
    torch.manual_seed(0)
    for _ in range(40):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
    maps.eval()
    with torch.no_grad():
        assert loss() < before - 0.05


def test_maps_are_saved_and_a_trained_head_begins_with_its_weights(tmp_path):
    target = target_of("llava", "sdpa")
    expect_loaded_as_saved(routed("llava"), tmp_path / "routed")
    head = models.redraw(EagleDrafter(target), 3)
    head.save_pretrained(tmp_path / "head")
    made = routed_head(target, LearnedRouting(3, width=6), str(tmp_path / "head"))
    assert isinstance(made.compressor, LearnedRouting) and made.compressor.k == 3
    assert all(made.state_dict()[name].equal(weight) for name, weight in head.state_dict().items())
    refused(lambda: routed_head(target, Routing(3), str(tmp_path / "routed")), "has LearnedRouting already ... start=")
    refused(lambda: routed_head(target, None, str(tmp_path / "head")), "routed: compressor=None is no VisualCompressor")
    twin = routed("llava")
    twin.load_state_dict(mmspec.load_drafter(str(tmp_path / "routed"), target).state_dict())
    refused(lambda: head.with_compressor(LearnedRouting()), "LearnedRouting has weights of its own")
    refused(lambda: LearnedRouting(by="pixels"), "LearnedRouting: by='pixels' must be 'states' or 'embeds'")
    refused(lambda: LearnedRouting(noise=-1), "LearnedRouting: noise=-1")


# Draft models.


@pytest.mark.parametrize(
    ("name", "label"), [("llava", "shared vision"), ("qwen_vl", "own model"), ("gemma3", "own model")]
)
def test_draft_models_are_routed_too(name, label, monkeypatch):
    """Their text is the target's, in a ragged batch and in turns; with all tokens they draft as without, and what is
    hidden is not attended to."""
    plain = TINY_DRAFTERS[label](name, "sdpa")
    inputs, expected = case(name, "sdpa", *RAGGED, NEW)
    for tree in (Chain(3), DynamicTree(2, 3, 6)):
        rounds = []
        for drafter in (plain, plain.with_compressor(Routing(10**6)), plain.with_compressor(Routing(2))):
            out = mmspec.generate(drafter.target, drafter, inputs=inputs, max_new_tokens=NEW, tree=tree)
            assert out.token_ids == expected and out.stats.lossless
            rounds.append([(one.accepted, one.drafted) for one in out.stats.rounds])
        assert rounds[0] == rounds[1]
    drafter = plain.with_compressor(Routing(2))
    requests = [{"inputs": models.one_row(inputs, row), "max_new_tokens": NEW, "tree": Chain(3)} for row in (0, 2)]
    hidden = record(monkeypatch)
    outputs = interleaved(drafter.target, drafter, requests)
    assert [out.token_ids for out in outputs] == [[expected[0]], [expected[2]]]
    visual = [int(drafter.target.family.is_visual(request["inputs"]["input_ids"]).sum()) for request in requests]
    assert {int(one.sum()) for one in hidden} == {max(count - 2, 0) for count in visual}


def test_what_draft_models_cannot_do_is_said():
    plain = shared_vision_drafter("llava", "sdpa")
    make = lambda compressor: SharedVisionDrafter(plain.target, plain.model, plain.projector, compressor=compressor)  # noqa: E731
    refused(lambda: make(LearnedRouting()), "LearnedRouting is learned with a head of one layer ... choose Routing")
    refused(lambda: [*make(Routing()).unroll(lesson_of("llava"))], "train it without Routing, and draft with it")
    other = TINY_DRAFTERS["text only"]("llava", "sdpa")
    refused(
        lambda: MixtureDrafter(plain.target, [make(Routing()), other]), "MixtureDrafter: Routing chooses anew ... alone"
    )
