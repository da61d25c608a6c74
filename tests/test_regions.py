"""Pages in two stages: the crops, one batch for all regions, and a text that is plain decoding's whatever was read."""

from __future__ import annotations

from functools import cache

import pytest
from PIL import Image
from refusals import refused

import mmspec
from mmspec import regions, zoo
from mmspec.data import EmbeddedSource
from mmspec.drafters import ReferenceDrafter
from mmspec.regions import Region, RegionReader, in_circles

TRUE = [Region(*region) for region in zoo.page_regions("test", 100)]


@cache
def reader(**options):
    drafter = ReferenceDrafter(mmspec.load_target("tiny"), joint="\n")
    _, prompt, _ = zoo.sample("documents", "test", 100)
    return RegionReader(target=drafter.target, drafter=drafter, prompt=prompt, margin=0, canvas=True, **options)


def plain(image):
    return mmspec.generate(reader().target, None, reader().prompt, [image], max_new_tokens=96)


@pytest.mark.product
def test_regions_are_read_in_one_batch_and_then_the_page():
    image, _, text = zoo.sample("documents", "test", 100)
    expected = plain(image)
    found = reader().read(image, TRUE, max_new_tokens=96)
    assert "\n".join(region.text for region in TRUE) == text
    assert found.page.token_ids == expected.token_ids and found.text == expected.text[0]
    assert found.regions is not None and len(found.regions.text) == len(TRUE) == 2
    # The embedded model reads whole pages only: on a canvas it reads the block, and goes on behind it.
    assert all(text.startswith(region.text[:30]) for text, region in zip(found.texts, TRUE, strict=True)), found.texts
    assert len(found.page.stats.rounds) < len(expected.token_ids[0]) / 3


@pytest.mark.product
@pytest.mark.parametrize("wrong", ["", "THE SUN 123\n" * 4, zoo.misread(TRUE[0].text, 0.4)])
def test_a_parser_that_is_wrong_changes_nothing(wrong):
    image = zoo.sample("documents", "test", 100).image
    lying = RegionReader(**{**vars(reader()), "layout": lambda page: [Region(wrong, box) for _, box in TRUE]})
    assert lying.read(image, max_new_tokens=96).page.token_ids == plain(image).token_ids


def test_a_single_region_is_not_read_alone(monkeypatch):
    asked = []
    monkeypatch.setattr(regions, "generate", lambda *given, **options: asked.append(options) or Page())
    found = reader().read(zoo.demo_image(), TRUE[:1])
    assert len(asked) == 1 and found.regions is None and found.texts == [TRUE[0].text]
    assert reader().read(zoo.demo_image(), []).texts == []


class Page:
    """An answer."""

    text = ("a",)


def test_a_region_that_goes_in_circles_is_stopped_and_its_draft_taken(monkeypatch):
    assert in_circles([1, 2] * 40) and not in_circles([1, 2] * 10) and not in_circles([*range(99)])
    monkeypatch.setattr(regions, "TIMES", 0)  # whatever is written is a circle
    image = zoo.sample("documents", "test", 100).image
    found = reader().read(image, TRUE, max_new_tokens=96)
    assert [len(ids) for ids in found.regions.token_ids] == [1, 1]
    assert found.texts == [region.text for region in TRUE]
    assert found.page.token_ids == plain(image).token_ids


def test_crops_have_a_margin_and_stay_on_the_page():
    page = Image.new("RGB", (100, 60), "white")
    page.paste((255, 0, 0), (20, 30, 40, 50))
    cut = RegionReader(**{**vars(reader()), "margin": 5, "canvas": False}).crop(page, (20, 30, 40, 50))
    assert cut.size == (30, 30) and cut.getpixel((4, 4)) == (255, 255, 255) and cut.getpixel((5, 5)) == (255, 0, 0)
    whole = reader().crop(page, (20, 30, 40, 50))
    assert whole.size == page.size and whole.getpixel((20, 0)) == (255, 0, 0) == whole.getpixel((39, 19))
    assert reader().crop(page, (0, 0, 999, 999)).size == page.size


def test_documents_bring_their_regions_to_the_benchmark():
    true, wrong = (EmbeddedSource(["documents", "scenes"], count=1, misread=share) for share in (0.0, 0.3))
    assert "\n".join(true[0].regions) == true[0].references[0] and true[1].regions == ()
    assert [*map(len, wrong[0].regions)] == [*map(len, true[0].regions)] and wrong[0].regions != true[0].regions
    assert wrong[0].references == true[0].references and wrong.describe() != true.describe()
    refused(lambda: EmbeddedSource(misread=2), "misread=2 must be a number from 0 to 1")


def test_what_is_no_region_is_refused():
    image = zoo.demo_image()
    refused(lambda: reader().read(image), "has no layout parser: give regions=[Region(text, box), ...]")
    refused(lambda: reader().read(image, ["a"]), "region 0 is 'a': give Region(text, (left, top, right, bottom))")
    refused(lambda: reader().read(image, [Region("a", (9, 0, 3, 9))]), "region 0 is Region(text='a', box=(9, 0, 3, 9))")
    nobody = {**vars(reader()), "drafter": None}
    refused(lambda: RegionReader(**nobody), "drafter=None must be a ReferenceDrafter")
    refused(lambda: reader().read(image, 3), "regions=3 must be a list of Region(text, box)")
    for box in ((0, 0, float("nan"), 9), (0, 0, float("inf"), 9)):
        refused(lambda box=box: reader().read(image, [Region("a", box)]), "region 0 is ... give Region(text")
    for box in ((500, 0, 600, 9), (0, 500, 9, 600), (-9, 0, -3, 9), (0, -9, 9, 0)):
        refused(lambda box=box: reader().read(image, [Region("a", box)]), "which lies outside of the page of")
    for name, value in (("canvas", "no"), ("layout", 3), ("region_prompt", 3)):
        refused(
            lambda name=name, value=value: RegionReader(**{**vars(reader()), name: value}), f"{name}={value!r} must be"
        )
    refused(lambda: RegionReader(**{**vars(reader()), "margin": -1}), "margin=-1 must be a whole number")
    refused(lambda: RegionReader(**{**vars(reader()), "prompt": " "}), "prompt=' ' must be a text")
