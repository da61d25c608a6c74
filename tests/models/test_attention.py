"""Attention recomputed for one layer is what the eager model returns, of all families, and leaves no trace."""

from __future__ import annotations

import models
import pytest
import torch
from full_recompute import recompute
from tiny_requests import RAGGED, pictures_for, target_of

from mmspec.inputs import prepare
from mmspec.models.attention import attention_weights, entropy_of_layers, newest_attention, received_attention
from mmspec.training.teacher import Teacher

NAMES = ("llava", "qwen_vl", "gemma3", "llama", "mistral")
LENGTHS = (9, 40, 5, 13)  # the second row is longer than a sliding window


def case_of(name: str, attention: str):
    """A ragged request, its features, and the eager model's `[layers, heads, length, length]` attention, by row."""
    target = target_of(name, attention)
    inputs = models.inputs_for(name, pictures_for(name, RAGGED[0]), list(LENGTHS))
    request = prepare(target, inputs=inputs)
    lesson = Teacher(target, range(3)).study(request, [[3, 4]] * 4)
    eager, wanted = models.eager_twin(name, target.model), []
    for row in range(4):
        weights = recompute(eager, models.one_row(inputs, row), [[3, 4]], output_attentions=True).attentions
        wanted.append(torch.stack([part[0] for part in weights]))
    return target, lesson, wanted


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_it_is_that_of_the_eager_model(name, attention):
    target, lesson, wanted = case_of(name, attention)
    before = target.family.text_config._attn_implementation
    for layer in range(3):
        weights = attention_weights(target, layer, lesson.features, lesson.request.inputs)
        assert (weights.sum(-1) - 1).abs().max() < 1e-5
        for row, expected in enumerate(wanted):
            n = expected.shape[-1]
            assert n == lesson.request.lengths[row]
            assert (weights[row, :, :n, :n] - expected[layer]).abs().max() < 1e-5
    assert target.family.text_config._attn_implementation == before == attention
    assert {block.self_attn.config._attn_implementation for block in target.family.layers} == {attention}


@pytest.mark.parametrize("name", NAMES)
def test_some_tokens_can_be_asked_alone(name):
    target, lesson, _ = case_of(name, "sdpa")
    queries = torch.tensor([[3, 0, 9], [1, 1, 30], [2, 5, 4], [11, 12, 7]])
    inputs = lesson.request.inputs
    for layer in range(3):
        everything = attention_weights(target, layer, lesson.features, inputs)
        some = attention_weights(target, layer, lesson.features, inputs, queries)
        expected = everything.take_along_dim(queries[:, None, :, None], dim=2)
        assert some.shape == expected.shape and (some - expected).abs().max() < 1e-5


@pytest.mark.parametrize("name", NAMES)
def test_the_newest_token_is_asked_from_the_cache_alone(name):
    target, _, wanted = case_of(name, "sdpa")
    request = prepare(target, inputs=models.inputs_for(name, pictures_for(name, RAGGED[0]), list(LENGTHS)))
    lesson = Teacher(target, range(3)).study(request, [[3, 4]] * 4)
    context = target.prefill(lesson.request, target.encode(lesson.request), feature_layers=range(3))
    last = torch.tensor(lesson.request.lengths)[:, None, None] - 1
    for layer in range(3):
        states = context.features[layer].take_along_dim(last, dim=1)
        weights = newest_attention(target, layer, states, context)
        for row, expected in enumerate(wanted):
            n = expected.shape[-1]
            assert (weights[row, :, :n] - expected[layer][:, -1]).abs().max() < 1e-5
            assert weights[row, :, n:].abs().sum() == 0


def test_words_before_a_picture_pay_it_no_attention():
    """So the mean over all words ranks its tokens as the mean over the words behind it."""
    target, lesson, wanted = case_of("llava", "sdpa")
    ids = lesson.request.inputs["input_ids"]
    real = torch.arange(ids.shape[1]) < torch.tensor(lesson.prompt.lengths)[:, None]
    words = real & (ids != models.IMAGE)
    received = received_attention(target, 2, lesson.features, lesson.request.inputs, words)
    for row, expected in enumerate(wanted):
        n = expected.shape[-1]
        asked = words[row, :n]
        assert (received[row, :n] - expected[2][:, asked].mean((0, 1))).abs().max() < 1e-5
    picture = (ids[0] == models.IMAGE).nonzero()[:, 0]
    n = wanted[0].shape[-1]
    behind = words[0, :n] & (torch.arange(n) > picture.max())
    mean = wanted[0][2][:, behind].mean((0, 1))[picture]
    ratio = received[0, picture] / mean
    assert behind.sum() < words[0].sum() and mean.min() > 0 and (ratio - ratio[0]).abs().max() < 1e-4


@pytest.mark.parametrize("name", NAMES)
def test_entropy_is_the_mean_over_heads_and_tokens_without_padding(name):
    target = target_of(name, "sdpa")
    inputs = models.inputs_for(name, pictures_for(name, RAGGED[0]), list(LENGTHS))
    ours = entropy_of_layers(target, [prepare(target, inputs=inputs)])
    eager, sums, tokens = models.eager_twin(name, target.model), torch.zeros(3), 0
    for row in range(4):
        single = models.one_row(inputs, row)
        weights = recompute(eager, single, [[]], output_attentions=True).attentions
        for layer, part in enumerate(weights):
            sums[layer] += -(part * part.clamp(min=1e-30).log()).sum(-1).mean(1).sum()
        tokens += single["input_ids"].shape[1]
    assert torch.tensor(ours).allclose(sums / tokens, atol=1e-4)
