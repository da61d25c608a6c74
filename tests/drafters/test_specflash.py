"""SpecFLASH: K features a pass, blocks chained in any tree, pictures condensed by learned queries."""

from __future__ import annotations

from functools import cache

import models
import pytest
import torch
from heads import (
    ANSWERS,
    TOLERANCE,
    error,
    expect_loaded_as_saved,
    expect_own_behind_gates,
    expect_plain_texts,
    full_pass,
    guesses_of,
    inputs_of,
    lesson_of,
    trained_by_recipe,
)
from originals import Original
from refusals import refused
from scripted_rounds import Script, Told, expect_true_features_only, guesses_compared
from tiny_requests import target_of
from torch.nn import functional

import mmspec
from mmspec import MMSpecError
from mmspec.compressors import LatentQueries, VisualSpan
from mmspec.drafters import SpecFlashDrafter
from mmspec.models.states import LAST
from mmspec.trees import BestFirstTree, Chain, DynamicTree
from mmspec.verifiers import Gated, Greedy
from mmspec.verifiers.gates import Every

VARIANTS = {
    "released": {"tokens": 3},
    "residual": {"tokens": 2, "residual": True, "input_norm": True, "bias": False, "draft_vocab_size": 20},
    "one token": {"tokens": 1, "residual": True},
    "one block": {"tokens": 4, "chained": False},
}


def made(name: str, variant: str, queries: int | None = None, **settings) -> SpecFlashDrafter:
    """A drafter with random weights."""
    compressor = None if queries is None else LatentQueries(queries)
    drafter = SpecFlashDrafter(target_of(name, "sdpa"), compressor=compressor, **VARIANTS[variant], **settings)
    if drafter.draft_vocab_size:
        drafter.choose_vocabulary(torch.arange(1, 60, 3))
    return models.redraw(drafter, 31).eval()


drafter_of = cache(made)


# What a block says.


def expected(name: str, drafter: SpecFlashDrafter, row: int, root: int, steps: int, wrong: str = "") -> list:
    """Logits behind the answer's token number `root` and those that follow it, by the formulas, on a row alone.

    Args:
        name: of the family.
        drafter: of which only weights and switches are used.
        row, root: where the chain begins.
        steps: levels.
        wrong: a mistake to make: `last`, a block goes on from its first feature; `unread`, only the last token of a
            block enters; `place`, the second block stands where the first one does.
    """
    states, merged, table = full_pass(name, row)
    layer, settings = Original.of(drafter), drafter.settings
    until, count = lesson_of(name).prompt.lengths[row] + root, settings.tokens

    def block(tokens, paired, places):
        u = layer.linear("fc", torch.cat([tokens, paired], dim=-1))
        read = layer.norm("layers.0.input_layernorm", u) if settings.input_norm else u
        q, k, v = (layer.heads(f"layers.0.self_attn.{map}_proj", read) for map in "qkv")
        attended = layer.attend(layer.turn(q, places)[:, -1:], layer.turn(k, places), v)
        s = layer.linear("layers.0.self_attn.o_proj", attended)
        if settings.residual:
            s = s + u[-1:]
        inner = layer.norm("layers.0.norm", s) if settings.residual else s
        out = layer.linear("layers.0.down_proj", functional.silu(layer.linear("layers.0.up_proj", inner)))
        out = out.view(count, -1)
        return out + s if settings.residual else out

    tokens, paired = merged[1 : until + 1], states[LAST][:until]
    places, guesses = torch.arange(until), []
    while len(guesses) < steps:
        features = block(tokens, paired, places)
        guesses += list(drafter.target.family.head(features, drafter._rows()))
        first = until + len(guesses) - count + 1
        ahead = table[first : first + count]
        if len(ahead) < count:
            break
        entering = features[:1].expand_as(features) if wrong == "last" else features
        if wrong == "unread":
            ahead, entering = ahead[-1:], entering[-1:]
        following = torch.arange(places[-1] + 1, places[-1] + 1 + len(ahead)) - int(wrong == "place")
        tokens, paired = torch.cat([tokens, ahead]), torch.cat([paired, entering])
        places = torch.cat([places, following])
    return guesses[:steps]


@pytest.mark.parametrize("name", ["llava", "llama"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_unrolled_guesses_follow_the_formulas(name, variant):
    drafter, lesson, compared = drafter_of(name, variant), lesson_of(name), 0
    guesses, most = guesses_of(drafter, lesson, 6), drafter.max_depth or 6
    assert len(guesses) == sum(max(n - 1 - i, 0) for n in ANSWERS for i in range(most))
    with torch.no_grad():
        for row, root in ((0, 0), (0, 3), (2, 4), (3, 1)):
            steps = min(most, ANSWERS[row] - 1 - root)
            for step, logits in enumerate(expected(name, drafter, row, root, steps)):
                assert error(guesses[row, root, step], logits) < TOLERANCE, (row, root, step)
                compared += 1
    assert compared > 14


@pytest.mark.parametrize("wrong", ["last", "unread", "place"])
def test_the_yardstick_tells_mistakes_apart(wrong):
    """A first block cannot tell how the second one would be chained, and the second one does."""
    drafter = drafter_of("llava", "released")
    guesses = guesses_of(drafter, lesson_of("llava"), 6)
    with torch.no_grad():
        mistaken = expected("llava", drafter, 2, 1, 6, wrong)
    errors = [error(guesses[2, 1, step], logits) for step, logits in enumerate(mistaken)]
    assert max(errors[:3]) < TOLERANCE and min(errors[3:]) > 10 * TOLERANCE


@pytest.mark.parametrize(
    ("name", "variant", "queries"),
    [("llava", variant, None) for variant in VARIANTS]
    + [("qwen_vl", "released", 3), ("gemma3", "residual", 2), ("llama", "released", None), ("llava", "one block", 9)],
)
@pytest.mark.parametrize("width", [1, 2])
def test_training_sees_what_decoding_does(name, variant, queries, width):
    """At every root and step, across the end of a block, in a ragged batch with two pictures in a row."""
    assert guesses_compared(drafter_of(name, variant, queries), lesson_of(name), name, width) > 25


@pytest.mark.parametrize(("name", "queries"), [("llava", None), ("qwen_vl", 3)])
def test_its_cache_holds_true_states_only(name, queries):
    """After rounds of all kinds it is that of a drafter which read the whole text as its prompt."""
    drafter = drafter_of(name, "released", queries)
    expect_true_features_only(drafter, name, inputs_of(name), lesson_of(name).answers)


def test_a_block_costs_one_pass(monkeypatch):
    drafter, reads = drafter_of("llava", "released"), []
    layers = SpecFlashDrafter._layers

    def counting(self, mixed, *rest):
        reads.append(mixed.shape[1])
        return layers(self, mixed, *rest)

    monkeypatch.setattr(SpecFlashDrafter, "_layers", counting)
    for width, wanted in ((1, [1, 3]), (2, [1, 2 + 4 + 8])):
        script = Script(drafter, inputs_of("llava"), lesson_of("llava").answers, Told(width, 5))
        reads.clear()
        script.round([0] * 4)
        assert reads == wanted, "a pass for the root, and one for all nodes above the second block"


def test_one_block_has_one_distribution_a_level():
    drafter = drafter_of("llava", "one block")
    script = Script(drafter, inputs_of("llava"), lesson_of("llava").answers, Told(2, 4))
    builder, _ = script.round([0] * 4)
    assert drafter.independent and drafter.max_depth == 4 and drafter.native_tree().length == 4
    with torch.inference_mode():
        marginals = script.session.marginals(4)
    for depth, logits in enumerate(builder.logits):
        assert error(logits, marginals[:, depth, None].expand_as(logits)) < 1e-6
    assert not drafter_of("llava", "released").independent and drafter_of("llava", "released").native_tree().length == 6


class Uneven(DynamicTree):
    """Expands nodes of several levels in one block."""

    def build(self, growth):
        first = growth.expand(growth.root, 2)
        below = growth.expand(first[:, :1], 2)
        both = growth.expand(torch.cat([first[:, 1:], below[:, :1]], dim=1), 2)
        growth.expand(torch.cat([below[:, 1:], both[:, 2:3]], dim=1), 2)
        return growth.keep_all()


def test_the_text_is_the_targets_with_pictures_without_and_interleaved():
    for name, variant in (("llava", "released"), ("qwen_vl", "one block"), ("llava", "residual")):
        drafter = drafter_of(name, variant, 3)
        deep = Chain(4) if drafter.max_depth else Chain(8)
        last = BestFirstTree(9) if drafter.independent else Uneven(3, 2, 9)
        expect_plain_texts(drafter, name, (DynamicTree(4, 3, 12), deep, last))


def test_it_goes_on_behind_tokens_that_the_target_has_not_read():
    expect_own_behind_gates(drafter_of("llava", "released"), "llava", Chain(4))
    one_block, settling = (
        SpecFlashDrafter(target_of("llava"), tokens=4, chained=False),
        Gated(Greedy(), Every(rounds=3)),
    )
    refused(
        lambda: mmspec.generate(one_block.target, one_block, inputs=inputs_of("llava"), verifier=settling),
        "SpecFlashDrafter drafts from the target's hidden states alone ... leave the gate out",
    )


# The compressor.


@pytest.mark.parametrize("by", ["states", "embeds"])
def test_entries_are_means_by_the_weights_of_their_queries(by):
    torch.manual_seed(2)
    compressor = LatentQueries(3, by=by)
    compressor.attach(8, 6)
    compressor.q.data.mul_(3)
    span = VisualSpan(torch.randn(5, 8), None, torch.randn(2, 8), features=torch.randn(5, 6))
    left, features = compressor(span), span.features if by == "states" else span.embeds
    weights = (compressor.q @ features.T).softmax(-1)
    assert error(left.embeds, weights @ span.embeds) < 1e-6
    assert error(left.source.mean(span.features), weights @ span.features) < 1e-6
    pairs = left.source._replace(matrix=None)  # the same weights, pair by pair
    assert error(pairs.mean(span.features), weights @ span.features) < 1e-6
    few = VisualSpan(torch.randn(2, 8), None, torch.randn(2, 8), features=torch.randn(2, 6))
    assert len(compressor(few).embeds) == 2, "a picture has no more entries than tokens"


def test_queries_see_no_states_where_there_are_none():
    compressor = LatentQueries(3)
    compressor.attach(8, 6)
    with pytest.raises(MMSpecError, match="LatentQueries asks the target's states.*use by='embeds'"):
        compressor(VisualSpan(torch.randn(5, 8), None, torch.randn(2, 8)))
    for settings, message in (({"queries": 0}, "queries=0"), ({"by": "keys"}, "by='keys' must be")):
        with pytest.raises(MMSpecError, match=message) as caught:
            LatentQueries(**settings)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["llava", "qwen_vl"])
def test_two_pictures_are_condensed_each_by_itself(name):
    """The third row has two: its entries are two times as many, and no query looks at the other picture."""
    drafter = drafter_of(name, "released", 2)
    script = Script(drafter, inputs_of(name), lesson_of(name).answers, Told(1, 2))
    removed = [
        length - entries for length, entries in zip(script.context.entries, script.session.session.entries, strict=True)
    ]
    sizes = [[end - start for start, end in row] for row in script.context.visual_spans()]
    assert [len(row) for row in sizes] == [1, 0, 2, 1]
    assert removed == [1 + sum(size - 2 for size in row) for row in sizes], "a root is not read yet"


# Training.


def test_every_weight_is_trained_by_the_recipe():
    """The queries among them, through what their entries hand to the layer. The first weights are so small that little
    reaches them before some steps."""
    drafter, losses = trained_by_recipe(["recipe=specflash", "recipe.drafter.compressor.queries=3"], 12, asked=3)
    assert isinstance(drafter.compressor, LatentQueries) and drafter.settings.tokens == 5
    assert losses[-1] < 0.98 * losses[0]


def test_it_is_loaded_as_it_was_saved(tmp_path):
    expect_loaded_as_saved(made("llava", "residual", 3), tmp_path)


def test_a_number_of_tokens_is_positive():
    with pytest.raises(MMSpecError, match="SpecFlashDrafter: tokens=0"):
        SpecFlashDrafter(target_of("llama", "sdpa"), tokens=0)
