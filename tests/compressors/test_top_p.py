"""TopPUniform: both stages by their definition, the attention of all layers, and the text of the target."""

from __future__ import annotations

from itertools import pairwise

import models
import pytest
import torch
from full_recompute import recompute, start
from refusals import refused
from tiny_drafters import TINY_DRAFTERS
from tiny_requests import RAGGED, case, target_of

import mmspec
from mmspec.compressors import TopPUniform
from mmspec.trees import Chain

NEW = 12


@pytest.mark.parametrize("seed", range(8))
def test_both_stages(seed):
    """The first one is the smallest set that carries the share, unless the budget ends it; the second is spread."""
    torch.manual_seed(seed)
    attention, mass = torch.rand(40) ** 4, (0.0, 0.2, 0.4, 0.9, 1.0)[seed % 5]
    compressor = TopPUniform(0.3, mass)
    chosen = compressor.choose(attention, 12)
    assert len(chosen) == 12 and chosen.tolist() == sorted(set(chosen.tolist()))
    order = attention.sort(descending=True).indices.tolist()
    first = 0
    while first < 12 and attention[order[:first]].sum() < mass * attention.sum():
        first += 1
    assert set(order[:first]) <= set(chosen.tolist())
    rest = [token for token in range(40) if token not in order[:first]]
    spread = [token for token in chosen.tolist() if token not in order[:first]]
    places = [rest.index(token) for token in spread]
    steps = [after - before for before, after in pairwise(places)]
    assert len(spread) == 12 - first and (not steps or max(steps) - min(steps) <= 1)


def test_with_all_of_the_share_it_is_the_most_attended_and_with_none_evenly_spaced():
    attention = torch.tensor([0.1, 0.9, 0.3, 0.8, 0.2, 0.0])
    assert TopPUniform(0.5, 1.0).choose(attention, 3).tolist() == [1, 2, 3]
    assert TopPUniform(0.5, 0.0).choose(attention, 3).tolist() == [1, 3, 5]
    assert TopPUniform(0.5, 0.4).choose(attention, 3).tolist() == [1, 3, 4]
    assert TopPUniform(1.0).choose(attention, 6).tolist() == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("layers", [None, [2]])
@pytest.mark.parametrize("name", ["llava", "qwen_vl"])
def test_attention_is_the_mean_over_layers_heads_and_the_text_behind(name, layers):
    found = []

    class Noting(TopPUniform):
        def attention(self, target, view, words):
            found.append(super().attention(target, view, words))
            return found[-1]

    target, (inputs, _) = target_of(name, "sdpa"), case(name, "sdpa", *RAGGED, NEW)
    drafter = TINY_DRAFTERS["eagle"](name, "sdpa").with_compressor(Noting(0.5, layers=layers))
    with torch.inference_mode():
        drafter.start(start(target, inputs, feature_layers=drafter.feature_layers))
    eager, row = models.eager_twin(name, target.model), 0  # with one picture
    single = models.one_row(inputs, row)
    weights = recompute(eager, single, [[]], output_attentions=True).attentions
    asked = range(len(weights)) if layers is None else layers
    visual = target.family.is_visual(single["input_ids"])[0]
    behind = int(visual.nonzero().max()) + 1
    expected = torch.stack([weights[layer][0].mean(0)[behind:].mean(0) for layer in asked]).mean(0)
    received = found[0][row, : len(visual)]
    ratio = received[visual] / expected[visual]
    assert torch.allclose(ratio, ratio[:1].expand_as(ratio), rtol=1e-4), "up to a common factor"


@pytest.mark.parametrize("label", ["own model", "shared vision", "eagle", "eagle3, fewer tokens", "dflash"])
def test_the_text_is_the_targets(label):
    inputs, expected = case("llava", "sdpa", *RAGGED, NEW)
    drafter = TINY_DRAFTERS[label]("llava", "sdpa").with_compressor(TopPUniform(0.5))
    out = mmspec.generate(drafter.target, drafter, inputs=inputs, max_new_tokens=NEW, tree=Chain(3))
    assert out.token_ids == expected


def test_what_cannot_be_is_refused():
    refused(lambda: TopPUniform(mass=1.5), "TopPUniform: mass=1.5 must be a number from 0 to 1")
    refused(lambda: TopPUniform(layers=[]), "TopPUniform: layers=[] must be a list of layers, or None for all")
    refused(lambda: TopPUniform(layers="8"), "TopPUniform: layers='8' must be a list of layers")
    refused(
        lambda: TINY_DRAFTERS["eagle"]("llava", "sdpa").with_compressor(TopPUniform(layers=[9])),
        "TopPUniform: layers has 9, which is none of the 3 of LlavaForConditionalGeneration",
    )
