"""Views as HTML: whole, escaped, and in words."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from types import SimpleNamespace

import pytest

from mmspec.demo import rendering
from mmspec.demo.session import SideState, View
from mmspec.visualization import Node, RoundTrace
from mmspec.visualization.colours import ACCEPTED, BONUS

pytestmark = pytest.mark.product

VOID = {"rect", "path", "br", "img"}


class Balanced(HTMLParser):
    """Fails for a tag that is not closed, and keeps the text."""

    def __init__(self, html: str):
        super().__init__()
        self.open, self.text = [], ""
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert tag in VOID or self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def said(html: str) -> str:
    return Balanced(html).text


def done(plain: float, speculative: float, lossless: bool = True, **values) -> View:
    sides = [
        SideState(out=SimpleNamespace(stats=SimpleNamespace(**speeds, lossless=lossless)))
        for speed in (plain, speculative)
        for speeds in [{"tokens_per_second": speed, "tokens_per_second_end_to_end": speed + 5}]
    ]
    return View("done", plain=sides[0], speculative=sides[1], **values)


@pytest.mark.parametrize(
    ("view", "words"),
    [
        (None, "Ask a question"),
        (View("waiting", before=1), "1 question is before yours"),
        (View("waiting", before=3), "3 questions are before yours"),
        (View("loading"), "Loading the models"),
        (View("stopped"), "Stopped."),
        (View("refused", "tree <b> is & unknown"), "tree <b> is & unknown"),
        (View("failed", "RuntimeError: full"), "the terminal has the details. RuntimeError: full"),
        (done(10, 25, same=True, exact=True), "Speed-up, decoding: 2.50; speed-up, end to end: 2.00. Both"),
        (done(10, 25, same=False, exact=False), "The texts are sampled, so they may differ."),
        (done(10, 25, same=False, exact=False, lossless=False), "does not preserve the target's text"),
        (done(10, 25, message="by rounding: here", same=False, exact=True), "The texts differ, by rounding: here."),
        (done(0, 0, same=True, exact=True), "Both wrote the same text, token for token."),
        (View("answering", shared=True), "the times of a shared machine"),
    ],
)
def test_the_status_says_what_is_going_on(view, words):
    assert words in said(rendering.status(view))
    if view is not None:
        assert f"mm-{view.state}" in rendering.status(view)


def test_nothing_that_was_written_becomes_markup():
    nasty = "<script>alert(1)</script> ${x} {{y}} \"' &amp;"
    side = SideState(((nasty, True, 1), (nasty, False, 2)), 4, 2, 1.0, 0.1)
    html = rendering.answers(View("answering", plain=side, speculative=side))
    assert "<script>" not in html and said(html).count(nasty) == 4
    nodes = [Node(1, nasty, -1, 0), Node(2, nasty, 0, 1, None, 0.5, True, bonus=True)]
    assert "<script>" not in rendering.tree([RoundTrace(1, 0, nodes, 0.5)], 1)


def test_tokens_on_the_way_are_coloured_by_origin():
    side = SideState((("drafted", True, 3), ("own", False, 3)), 2, 3, 1.0, 0.1)
    html = rendering.answers(View("answering", speculative=side))
    assert f'title="round 3" style="background:{ACCEPTED}22;border-bottom:2px solid {ACCEPTED}">drafted' in html
    assert f'title="round 3" style="background:{BONUS}22;border-bottom:2px solid {BONUS}">own' in html


def test_the_cards_hold_the_figures():
    side = SideState((("x", False, 0),), 61, 20, 2.5, 0.5)
    text = said(rendering.answers(View("answering", plain=side, speculative=side)))
    assert text.count("30.0 tokens/s, decoding") == 2  # sixty tokens in two seconds: the prompt's are not counted
    assert text.count("61 tokens = 1 from the prompt + 3.00 tokens per pass x 20 passes") == 2
    assert text.count("tokens per pass3.00passes20tokens61seconds2.50") == 2
    assert "take turns" in text and "nan" not in text


def test_the_figures_of_an_answer_add_up(ask):
    last = list(ask(max_new_tokens=40).views())[-1]
    for side, kind in ((last.plain, "plain"), (last.speculative, "speculative")):
        card = re.search(rf'<section class="mm-card mm-{kind}">.*?</section>', rendering.answers(last), re.S)[0]
        figures = re.search(r"tokens per pass([\d.]+)passes(\d+)tokens(\d+)seconds", said(card))
        per_pass, passes, tokens = (float(figure) for figure in figures.groups())
        assert tokens == len(side.out.token_ids[0]) and passes == len(side.out.stats.rounds)
        assert 1 + per_pass * passes == pytest.approx(tokens, abs=0.005 * passes)


def test_one_token_has_no_speed(ask):
    text = said(rendering.answers(list(ask(max_new_tokens=1).views())[-1]))
    assert text.count("tokens/s, decoding: n/a") == 2
    assert text.count("1 token = 1 from the prompt") == 2 and "0.0 tokens/s" not in text
    assert "–" in said(rendering.answers(None))


def test_finished_tokens_say_what_became_of_their_round(ask):
    views = list(ask(max_new_tokens=12).views())
    html = rendering.answers(views[-1])
    assert "the prompt&#x27;s pass" in html and "drafted tokens kept" in html and "mm-cursor" not in html
    assert said(html).count(views[-1].plain.out.text[0]) == 2


def test_another_round_is_another_tree(ask):
    rounds = list(list(ask(max_new_tokens=12).views())[-1].speculative.out.trace)
    assert len(rounds) > 1
    trees = [rendering.tree(rounds, number + 1) for number in range(len(rounds))]
    assert len(set(trees)) == len(rounds)
    for number, (one, tree) in enumerate(zip(rounds, trees, strict=True), start=1):
        assert f"Round {number} of {len(rounds)}: {one.accepted} of {one.drafted} drafted" in said(tree)
        assert one.svg() in tree
    assert rendering.tree(rounds, 0) == trees[0] and rendering.tree(rounds, 99) == trees[-1]
    assert rendering.tree(rounds, float("inf")) == trees[-1]
    assert all(rendering.tree(rounds, number) == trees[0] for number in (None, "2", float("nan"), -(10**400)))
    assert "once it has answered" in said(rendering.tree([], 1))


def test_what_is_chosen_is_described(desk):
    groups = desk.choices.groups
    options = [group.start for group in groups.values()]
    text = said(rendering.chosen(groups, options))
    assert all(group.options[group.start] in text for group in groups.values())
    assert said(rendering.chosen(groups, ["unknown"] * len(groups)))
