"""What drafters keep of a picture, of every kind of compressor and of none."""

from __future__ import annotations

from functools import cache

import numpy
import pytest
import torch
from toys import hooks_of

import mmspec
from mmspec import MMSpecError, visualization, zoo
from mmspec.compressors import Elastic, FeatureGuided, Hide, Pool, Prune, Resampler
from mmspec.drafters import EagleDrafter, MedusaDrafter, NGramDrafter
from mmspec.inputs import prepare

pytestmark = pytest.mark.product

QUESTION = "Describe the picture."


@cache
def target():
    return mmspec.load_target("tiny")


@cache
def embedded(name: str):
    return mmspec.load_drafter(f"tiny/{name}", target())


def kept(drafter, images=None, prompt=QUESTION):
    return visualization.kept_tokens(drafter, prompt, zoo.demo_image() if images is None else images)


def one(drafter, **options):
    (only,) = kept(drafter, **options)
    assert only.tokens == 144 and only.weights.shape == (12, 12) and 0 <= only.weights.min() <= only.weights.max() <= 1
    return only


EVERYTHING = dict.fromkeys(["eagle", "eagle3", "msd", "draft_model"], 144)
NOTHING = dict.fromkeys(
    ["text_only", "hivis", "hidden", "ngram", "medusa", "v5e0"], 0
)  # blind, hiding, or without a prompt


@pytest.mark.parametrize(("name", "entries"), (EVERYTHING | NOTHING).items())
def test_without_a_compressor_that_chooses_all_is_kept_or_nothing(name, entries):
    made = {"hidden": lambda: embedded("eagle").with_compressor(Hide())}
    made |= {"ngram": lambda: NGramDrafter(target()), "medusa": lambda: MedusaDrafter(target())}
    only = one(made[name]() if name in made else embedded(name))
    assert only.entries == entries and (only.weights == (entries > 0)).all()


def test_pruned_pictures_keep_some_places():
    only = one(embedded("eagle").with_compressor(Prune(0.25, "uniform")))
    places = [(2 * number + 1) * 144 // 72 for number in range(36)]
    assert only.entries == 36 and only.weights.flatten().nonzero()[:, 0].tolist() == places
    assert set(only.weights.unique().tolist()) == {0.0, 1.0}


def test_pooled_pictures_keep_a_part_of_every_token():
    only = one(embedded("eagle").with_compressor(Pool(3)))
    assert only.entries == 16 and (only.weights == 1).all()
    only = one(embedded("draft_model").with_compressor(Pool(5)))  # the windows at the edge are smaller
    assert only.entries == 9 and only.weights[11, 11] == 1
    assert only.weights[0, 0] == pytest.approx(4 / 25) and only.weights[0, 11] == pytest.approx(4 / 10)


def test_guided_pictures_keep_what_the_target_looks_at(monkeypatch):
    seen = []
    choose = FeatureGuided.choose

    def watching(self, attention, count):
        seen.append((attention.clone(), count))
        return choose(self, attention, count)

    monkeypatch.setattr(FeatureGuided, "choose", watching)
    only = one(embedded("dream"))
    ((attention, count),) = seen
    left = only.weights.flatten() > 0
    assert only.entries == count == int(left.sum()) == 108
    assert attention[left].min() >= attention[~left].max()


def test_the_gate_of_an_elastic_compressor_decides():
    scene, chart = (zoo.sample(kind, "test", 0) for kind in ("scenes", "charts"))
    of_scene = one(embedded("specvlm"), images=scene.image, prompt=scene.prompt)
    of_chart = one(embedded("specvlm"), images=chart.image, prompt=chart.prompt)
    assert of_scene.entries == 36 and (of_scene.weights == 1).all()
    assert of_chart.entries == 0 and (of_chart.weights == 0).all()


@pytest.mark.parametrize("mode", ["fusion", "concatenation"])
def test_other_modes_of_an_elastic_compressor(mode):
    drafter = EagleDrafter(target(), compressor=Elastic(mode)).eval()
    only = one(drafter)
    assert only.entries == (36 if mode == "fusion" else 7 + 9 + 36 + 2) and (only.weights > 0).all()
    assert len(only.weights.unique()) > 1, "what is pruned too counts more"


def test_a_resampler_keeps_what_its_queries_look_at():
    drafter = embedded("vispec")
    only = one(drafter)
    assert isinstance(drafter.compressor, Resampler) and only.entries == 1
    request = prepare(target(), [QUESTION], [[zoo.demo_image()]])
    (seen,) = target().encode(request).embeds
    looked = torch.zeros(len(seen))
    with torch.no_grad():
        for head in range(drafter.compressor.heads):
            width = seen.shape[1] // drafter.compressor.heads
            keys = seen @ drafter.compressor.k_proj.weight[head * width : (head + 1) * width].T
            looked += (drafter.compressor.q[:, head] @ keys.T / width**0.5).softmax(-1).sum(0)
    assert torch.allclose(only.weights.flatten(), looked / looked.max(), atol=1e-5)


def test_an_elastic_compressor_that_resamples_looks_at_everything():
    drafter = EagleDrafter(target(), compressor=Elastic()).eval()
    gate = drafter.compressor.gate[-1]
    torch.nn.init.zeros_(gate.weight)
    gate.bias.data = torch.tensor([0.0, 0.0, 0.0, 1.0, 0.0])  # the fourth branch is the resampler
    only = one(drafter)
    assert only.entries == 2 and (only.weights > 0).all()


def test_two_pictures_are_two():
    images = [zoo.sample("scenes", "test", number).image for number in range(2)]
    first, second = kept(embedded("dream"), images=images)
    assert first.entries == second.entries == 108 and not torch.equal(first.weights, second.weights)


def test_what_cannot_be_drawn_is_refused(monkeypatch):
    with pytest.raises(MMSpecError, match="the prompt has no pictures"):
        kept(embedded("dream"), images=[])
    monkeypatch.setattr(type(target().family), "grids", lambda self, inputs, vision: [None] * len(vision.sizes))
    with pytest.raises(MMSpecError, match="visual tokens of LlavaForConditionalGeneration do not form a rectangle"):
        kept(embedded("dream"))


def test_looking_leaves_no_trace():
    drafter = embedded("dream")
    options = {"prompt": QUESTION, "images": [zoo.demo_image()], "max_new_tokens": 12}
    before = mmspec.generate(target(), drafter, **options)
    attributes = set(vars(drafter))
    one(drafter)
    assert not hooks_of(drafter) and set(vars(drafter)) == attributes
    after = mmspec.generate(target(), drafter, **options)
    assert [r.accepted for r in after.stats.rounds] == [r.accepted for r in before.stats.rounds]


def test_a_failure_leaves_no_hook(monkeypatch):
    drafter = embedded("dream")
    monkeypatch.setattr(FeatureGuided, "forward", lambda self, span: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        kept(drafter)
    assert not hooks_of(drafter)


def test_the_panels_say_and_veil_what_is_left_out():
    drafters = {"all": embedded("eagle"), "guided": embedded("dream"), "none": embedded("hivis")}
    plot = visualization.draw_kept(drafters, QUESTION, zoo.demo_image())
    assert [axes.get_title() for axes in plot.axes] == [
        "all\n144 entries for 144 tokens",
        "guided\n108 entries for 144 tokens",
        "none\n0 entries for 144 tokens",
    ]
    for axes, drafter in zip(plot.axes, drafters.values(), strict=True):
        picture, veil = (image.get_array() for image in axes.images)
        assert (picture == numpy.asarray(zoo.demo_image())).all()
        opaque = torch.tensor(veil[..., 3])
        assert torch.allclose(opaque, 0.8 * (1 - one(drafter).weights))
        assert axes.images[1].get_extent() == [0, 12, 12, 0]
