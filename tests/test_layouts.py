"""Layouts: lines that an OCR package reads become regions, and what is read in a picture is what is drafted from."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from refusals import refused

import mmspec
from mmspec import zoo
from mmspec.data import EmbeddedSource
from mmspec.drafters import ReferenceDrafter
from mmspec.layouts import OcrLayout, Region

LINES = {  # text to left, top, right, bottom and confidence, in no order
    "below": (0, 120, 60, 130, 0.9),
    "two": (2, 16, 40, 26, 0.9),
    "beside": (70, 17, 90, 27, 0.9),
    "one": (0, 4, 50, 14, 0.9),
    "unsure": (0, 28, 50, 38, 0.2),
    " ": (0, 40, 50, 50, 0.9),
}


@pytest.fixture
def engine(monkeypatch):
    """Put an OCR package in the place of RapidOCR, and return the pictures that it is shown."""
    seen = []

    class RapidOCR:
        def __init__(self, **options):
            pass

        def __call__(self, pixels):
            seen.append(pixels)
            if not pixels.any():
                return SimpleNamespace(boxes=None, txts=None, scores=None)
            found = LINES.values()
            corners = np.array([[[x, y], [a, y], [a, b], [x, b]] for x, y, a, b, _ in found], dtype=np.float32)
            return SimpleNamespace(boxes=corners, txts=tuple(LINES), scores=tuple(line[-1] for line in found))

    monkeypatch.setitem(sys.modules, "rapidocr", SimpleNamespace(RapidOCR=RapidOCR))
    return seen


def test_lines_close_below_each_other_are_a_region(engine):
    picture = Image.new("RGB", (100, 140), (255, 0, 7))
    assert OcrLayout()(picture) == [
        Region("one\ntwo", (0, 4, 50, 26)),
        Region("beside", (70, 17, 90, 27)),
        Region("below", (0, 120, 60, 130)),
    ]
    assert engine[0][0, 0].tolist() == [7, 0, 255]  # the package reads blue, green, red
    assert [region.text for region in OcrLayout(gap=0.1)(picture)] == ["one", "two", "beside", "below"]
    assert "unsure" in OcrLayout(least=0.1)(picture)[0].text
    assert OcrLayout()(Image.new("RGB", (10, 10))) == []


def test_without_the_package_a_line_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "rapidocr", None)
    refused(OcrLayout, "OcrLayout needs rapidocr, which is not installed: pip install -e '.[ocr]'")


def test_settings_are_refused(engine):
    refused(lambda: OcrLayout(gap=-1), "OcrLayout: gap=-1 must be")
    refused(lambda: OcrLayout(least=2), "OcrLayout: least=2 must be a number from 0 to 1")


@pytest.mark.product
def test_the_rows_pictures_are_read_where_they_bring_no_text():
    target = mmspec.load_target("tiny")
    pages = [zoo.sample("documents", "test", number) for number in (100, 101)]
    read = []

    def layout(picture):
        read.append(picture)
        return [Region(text, box) for text, box in zoo.page_regions("test", 100)]

    drafter = ReferenceDrafter(target, layout=layout, joint="\n")
    prompts, images = [page.prompt for page in pages], [[page.image] for page in pages]
    plain = mmspec.generate(target, None, prompts, images, max_new_tokens=64)
    told = {"references": [None, pages[1].reference]}
    out = mmspec.generate(target, drafter, prompts, images, max_new_tokens=64, extras=told)
    assert out.token_ids == plain.token_ids and len(read) == 1
    assert len(out.stats.rounds) < len(plain.stats.rounds) / 4
    drawn = {"temperature": 1.0, "num_return_sequences": 2, "max_new_tokens": 2}
    mmspec.generate(target, drafter, prompts[0], images[0], **drawn)
    assert len(read) == 2, "once for both answers"
    # Without a picture there is nothing to read, and with a wrong layout there is a line that says what is wrong.
    mmspec.generate(target, drafter, "hello", max_new_tokens=2)
    assert len(read) == 2
    lying = ReferenceDrafter(target, layout=lambda picture: [("no box", 3)])
    refused(lambda: mmspec.generate(target, lying, *pages[0][1::-1], max_new_tokens=2), "region 0 is ('no box', 3)")
    refused(lambda: ReferenceDrafter(target, layout="ocr"), "layout='ocr' must be a function of a picture, or None")


def test_documents_may_come_without_their_text():
    given, bare = (EmbeddedSource(["documents"], count=1, misread=share) for share in (0.0, None))
    assert given[0].regions and not bare[0].regions
    assert given.describe() != bare.describe()


def test_the_real_package_reads_an_embedded_page():
    pytest.importorskip("rapidocr")
    page = zoo.sample("documents", "test", 100)
    assert "\n".join(region.text for region in OcrLayout()(page.image)) == page.reference
