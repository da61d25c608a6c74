"""The picture of a round: well-formed, one box per node, nothing outside, nothing on top of another."""

from __future__ import annotations

from itertools import combinations
from xml.etree import ElementTree

import pytest
from models import inputs_for
from tiny_drafters import blurred_drafter
from tiny_requests import target_of

import mmspec
from mmspec.trees import DynamicTree
from mmspec.visualization import Node, RoundTrace, colours

TEXTS = ["<b>&\"'", "\x00", "\x1b[1m", "\n", " the", "", "�", "a word that is far too long", "漢字", "\ud800"]


def elements(svg: str, tag: str) -> list[ElementTree.Element]:
    return ElementTree.fromstring(svg).findall(f".//{{http://www.w3.org/2000/svg}}{tag}")


def star(texts: list[str]) -> RoundTrace:
    """A root with a child for every text, of which the first is accepted."""
    children = [Node(n, text, 0, 1, 0.5, 0.25, n == 0) for n, text in enumerate(texts)]
    root, bonus = Node(1, "x", -1, 0, accepted=True), Node(2, "y", 1, 2, None, 1.0, True, True)
    return RoundTrace(7, 0, [root, *children, bonus], 0.0)


def boxes(one: RoundTrace) -> list[dict[str, float]]:
    rects = [group[1] for group in elements(one.svg(), "g")]
    return [{key: float(rect.get(key)) for key in ("x", "y", "width", "height")} for rect in rects]


@pytest.fixture(scope="module")
def rounds() -> list[RoundTrace]:
    target, drafter = target_of("llama", "sdpa"), blurred_drafter("llama", "sdpa")
    tree, inputs = DynamicTree(3, 4, 13), inputs_for("llama", [0])
    return list(mmspec.generate(target, drafter, inputs=inputs, tree=tree, max_new_tokens=12, trace=True).trace)


def test_every_node_has_a_box_and_all_but_the_root_an_edge(rounds):
    for one in rounds:
        svg = one._repr_svg_()
        assert len(elements(svg, "g")) == len(one.nodes) and len(elements(svg, "path")) == len(one.nodes) - 1
        top = ElementTree.fromstring(svg)
        assert top.get("aria-label") == f"round {one.number}: {one.accepted} of {one.drafted} drafted tokens kept"


def test_boxes_are_inside_and_apart(rounds):
    for one in [*rounds, star(TEXTS)]:
        top, places = ElementTree.fromstring(one.svg()), boxes(one)
        width, height = float(top.get("width")), float(top.get("height"))
        assert all(0 < box["x"] < box["x"] + box["width"] < width for box in places)
        assert all(0 < box["y"] < box["y"] + box["height"] < height for box in places)
        for a, b in combinations(places, 2):
            beside = a["x"] + a["width"] < b["x"] or b["x"] + b["width"] < a["x"]
            assert beside or a["y"] + a["height"] < b["y"] or b["y"] + b["height"] < a["y"]


def test_what_was_kept_runs_along_the_top(rounds):
    for one in rounds:
        kept = [box["y"] for box, node in zip(boxes(one), one.nodes, strict=True) if node.accepted]
        assert len(set(kept)) == 1 and kept[0] == min(box["y"] for box in boxes(one))


def test_any_token_is_well_formed_xml_and_says_what_it_is():
    labels = [text.text for text in elements(star(TEXTS).svg(), "text")]
    assert labels == ["x", "<b>&\"'", "�", "�[1m", "⏎", "␣the", "∅", "�", "a␣word␣that␣is␣…", "漢字", "�", "y"]


def test_wide_letters_have_wide_boxes():
    narrow, wide = boxes(star(["ab", "漢字"]))[1:3]
    assert wide["width"] - narrow["width"] == pytest.approx(2 * 7.3, abs=0.11)


def test_tooltips_and_colours_say_what_became_of_a_node():
    one = star(["yes", "no"])
    titles = [title.text for title in elements(one.svg(), "title")]
    assert titles == [
        "root: the last token of the round before",
        "drafted and accepted; drafter 0.500; target 0.250",
        "drafted and rejected; drafter 0.500; target 0.250",
        "bonus: the target's own token; target 1.000",
    ]
    strokes = [group[1].get("stroke") for group in elements(one.svg(), "g")]
    assert strokes == [colours.ROOT, colours.ACCEPTED, colours.REJECTED, colours.BONUS]
    edges = elements(one.svg(), "path")
    assert [edge.get("stroke") for edge in edges] == strokes[1:]
    assert [edge.get("stroke-width") for edge in edges] == ["3.0", "3.0", "2.0"], "as thick as the drafter is sure"
    assert [edge.get("stroke-dasharray") for edge in edges] == [None, None, "4 3"]
