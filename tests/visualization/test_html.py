"""An answer as HTML: read back as a browser would."""

from __future__ import annotations

from html.parser import HTMLParser
from xml.etree import ElementTree

import models
import pytest
import torch
from toys import Scripted, byte_tokenizer

import mmspec
from mmspec import Target
from mmspec.visualization import colours
from mmspec.visualization.html import tokens

SPLIT = "ab é the €😀.ing漢ß\n"


class Spans(HTMLParser):
    """Marked texts as `[text, style, title]`, one list for every row; the last list is the legend."""

    def __init__(self, html: str):
        super().__init__()
        self.rows, self.open, self.rest = [], 0, ""
        self.feed(html)
        self.close()
        assert self.open == 0, "tags are not closed"

    def handle_starttag(self, tag, attributes):
        self.open += 1
        attributes = dict(attributes)
        if tag == "div":
            self.rows.append([])
        else:
            assert tag == "span"
            self.rows[-1].append(["", attributes["style"], attributes.get("title")])

    def handle_endtag(self, tag):
        self.open -= 1

    def handle_data(self, data):
        if self.rows[-1]:
            self.rows[-1][-1][0] += data
        self.rest += data


def writing(target, texts: list[list[int]], right: int, **options):
    """The output of a target that is made to write `texts`, with a drafter that gets `right` of three tokens right."""
    inputs = models.inputs_for("llama", [0] * len(texts))
    lengths = inputs["attention_mask"].sum(-1).tolist()
    assert len(set(lengths)) == 1

    def force(input_ids, scores):
        forced = torch.full_like(scores, -torch.inf)
        for number, ids in enumerate(input_ids.tolist()):
            row = next(n for n, prompt in enumerate(prompts) if ids[: len(prompt)] == prompt)
            forced[number, (texts[row] + [0] * 9)[len(ids) - lengths[0]]] = 0.0
        return forced

    prompts = [models.one_row(inputs, row)["input_ids"][0].tolist() for row in range(len(texts))]
    drafter = Scripted(target, texts, right=right)
    return mmspec.generate(
        target, drafter, inputs=inputs, logits_processor=force, max_new_tokens=len(texts[0]), **options
    )


@pytest.fixture(scope="module")
def target():
    return Target(models.llama(), byte_tokenizer())


@pytest.fixture(scope="module")
def out(target):
    ids = target.tokenizer.encode(SPLIT)
    return writing(target, [ids, ids[::-1]], right=2)


def test_pieces_join_to_the_text_though_characters_are_split_over_tokens(target, out):
    assert out.text[0] == SPLIT and len(out.token_ids[0]) == len(target.tokenizer.encode(SPLIT)) > len(SPLIT) - 4
    assert out.token_ids[1] == out.token_ids[0][::-1]
    for row in range(2):
        pieces = out.pieces(row)
        assert len(pieces) == len(out.token_ids[row]) and "".join(pieces) == out.text[row]
    assert out.pieces()[-1] == "\n" and "😀" in out.pieces() and "" in out.pieces()


def test_html_says_the_text_of_every_row_and_colours_it_by_origin(out):
    _, first, second, legend = Spans(out._repr_html_()).rows
    for row, spans in enumerate((first, second)):
        assert "".join(text for text, *_ in spans) == out.text[row]
        shown = [(p, d) for p, d in zip(out.pieces(row), out.drafted[row], strict=True) if p]
        assert [text for text, *_ in spans] == [piece for piece, _ in shown]
        for (_, style, _), (_, drafted) in zip(spans, shown, strict=True):
            ours, other = (colours.ACCEPTED, colours.BONUS) if drafted else (colours.BONUS, colours.ACCEPTED)
            assert ours in style and other not in style
    assert [text.split(" \xa0")[0] for text, *_ in legend] == ["drafted and accepted ", "the target itself"]
    assert any(out.drafted[0]) and not all(out.drafted[0])


def test_html_gives_the_figures(out):
    stats = out.stats
    assert f"{stats.origin} | {stats.tokens_per_second:.1f} tokens/s" in Spans(out._repr_html_()).rest


def test_tooltips_name_the_round(target):
    ids, short = (target.tokenizer.encode(text) for text in ("abcdefgh", "ab.defgh"))
    out = writing(target, [short, ids], right=2, eos_token_id=short[2])  # the first row ends after a round
    titles = [title for *_, title in Spans(out._repr_html_()).rows[2]]
    said = ["the prompt's pass", *["drafted, round 1, 2 of 3 drafted tokens kept"] * 2]
    said += ["bonus, round 1, 2 of 3 drafted tokens kept", *["drafted, round 2, 2 of 3 drafted tokens kept"] * 2]
    said += ["bonus, round 2, 2 of 3 drafted tokens kept", "drafted, round 3, 1 of 3 drafted tokens kept"]
    assert titles == [f"token {n} ({t}): {what}" for n, (t, what) in enumerate(zip(ids, said, strict=True), start=1)]


def test_html_is_escaped():
    target = mmspec.load_target("tiny")
    text = "<b>&\"'</div> one"
    ids = target.tokenizer.encode(text, add_special_tokens=False)

    def force(input_ids, scores):
        token = ids[input_ids.shape[1] - start]
        return torch.full_like(scores, -torch.inf).index_fill(1, torch.tensor([token]), 0.0)

    start = len(target.tokenizer.encode("one"))
    out = mmspec.generate(
        target,
        inputs={"input_ids": torch.tensor([target.tokenizer.encode("one")])},
        logits_processor=force,
        max_new_tokens=len(ids),
    )
    assert out.text == [text]
    # Browsers forgive a lone sign, and every token has a span of its own; XML does not.
    assert "".join(ElementTree.fromstring(f"<p>{tokens(out, 0)}</p>").itertext()) == text


def test_without_a_tokenizer_there_are_numbers(target):
    ids = [7, 8, 9, 10, 11]
    out = writing(Target(target.model), [ids], right=1)
    assert out.text == [None] and [text for text, *_ in Spans(out._repr_html_()).rows[1]] == [f"{i} " for i in ids]
