"""TwigScore keeps the tokens to which a twig attends, for drafters of all kinds, and the text stays the target's."""

from __future__ import annotations

import copy
from functools import cache

import models
import pytest
import torch
from full_recompute import recompute, start
from heads import TOLERANCE, error, guesses_of, lesson_of
from refusals import refused
from scripted_rounds import decode
from tiny_drafters import TINY_DRAFTERS
from tiny_requests import RAGGED, case, interleaved, target_of

import mmspec
from mmspec.compressors import FeatureGuided
from mmspec.drafters import EarlyExitDrafter
from mmspec.families import family_of
from mmspec.models import attention
from mmspec.models.hooks import Ear, listening
from mmspec.twigs import TwigScore

NEW = 12
NAMES = ("llava", "qwen_vl", "gemma3")


@cache
def twig_of(name: str) -> EarlyExitDrafter:
    """A twig of two layers on the first one of the target."""
    return models.redraw(EarlyExitDrafter(target_of(name, "sdpa"), layers=1, imitation="block", blocks=2), 4).eval()


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, str]:
    """The names of saved twigs, by family."""
    found = {name: str(tmp_path_factory.mktemp(name)) for name in NAMES}
    for name, folder in found.items():
        twig_of(name).save_pretrained(folder)
    return found


def kept(drafter, inputs: dict) -> list[list[int]]:
    """The numbers of the tokens that are left of every picture, in the order of the batch."""
    seen: list[list[int]] = []
    drafter, target = drafter.fork(), drafter.target  # with a compressor of its own, which is listened to
    with torch.inference_mode(), listening([Ear(drafter.compressor, after=lambda spans, left: seen.append(left))]):
        drafter.start(start(target, inputs, feature_layers=drafter.feature_layers))
    return [left.source.tokens.tolist() for left in seen]


def best(model, inputs: dict, layer: int, words: int) -> list[list[int]]:
    """The half of every picture's tokens with the most attention of the last words, from the model's own weights in a
    pass over every row alone."""
    found = []
    for row in range(len(inputs["input_ids"])):
        single = models.one_row(inputs, row)
        weights = recompute(model, single, [[]], output_attentions=True).attentions[layer][0].mean(0)
        received, ids = weights[-words:].mean(0), single["input_ids"][0].tolist()
        pictures: list[list[int]] = []
        for place in (place for place, token in enumerate(ids) if token == models.IMAGE):
            if not pictures or pictures[-1][-1] != place - 1:
                pictures.append([])
            pictures[-1].append(place)
        for one in pictures:  # under a window many are 0, of which the first ones are kept
            order = received[one].sort(descending=True, stable=True).indices
            found.append(sorted(order[: max(1, round(len(one) / 2))].tolist()))
    return found


def with_twig(name: str) -> torch.nn.Module:
    """The model whose layers are the target's first one and the twig's, on the back end that returns attention."""
    twin = models.eager_twin(name, target_of(name, "sdpa").model)
    decoder = family_of(twin).decoder
    layers = [decoder.layers[0], *copy.deepcopy(list(twig_of(name).imitation))]
    for number, layer in enumerate(layers):
        layer.self_attn.config, layer.self_attn.layer_idx = decoder.layers[0].self_attn.config, number
    decoder.layers = torch.nn.ModuleList(layers)
    decoder.config.num_hidden_layers = len(layers)
    return twin


@pytest.mark.parametrize("name", NAMES)
def test_what_the_last_words_attend_to_most_is_kept(name, folders, monkeypatch):
    """Against the attention that the model itself returns; a ragged batch with none, one and two pictures."""
    shapes, weigh = [], attention.LayerLook.weights
    monkeypatch.setattr(
        attention.LayerLook, "weights", lambda *given: shapes.append((found := weigh(*given)).shape[2]) or found
    )
    inputs, _ = case(name, "sdpa", *RAGGED, NEW)
    eager, twig = models.eager_twin(name, target_of(name, "sdpa").model), with_twig(name)
    make = TINY_DRAFTERS["eagle"](name, "sdpa").with_compressor
    for model, layer, words, compressor in (
        (eager, 1, 1, TwigScore(0.5, layer=1)),
        (eager, 2, 3, TwigScore(0.5, words=3)),
        (twig, 2, 1, TwigScore(0.5, folders[name])),
    ):
        shapes.clear()
        found = kept(make(compressor), inputs)
        assert found == best(model, inputs, layer, words) and len(found) == 4
        assert shapes == [words], "the attention of these words alone, and not that of every token"
    assert found != kept(make(TwigScore(0.5, layer=0)), inputs)


MAKES = ("eagle", "eagle3, fewer tokens", "msd", "aasd", "dflash", "own model", "shared vision")


@pytest.mark.parametrize("make", MAKES)
def test_every_drafter_takes_it_and_the_text_stays_the_targets(make, folders):
    """In a ragged batch, and in two requests of one and of two pictures that are answered in turns."""
    name = "qwen_vl" if make in ("msd", "own model") else "llava"
    drafter = TINY_DRAFTERS[make](name, "sdpa").with_compressor(TwigScore(0.5, folders[name]))
    inputs, expected = case(name, "sdpa", *RAGGED, NEW)
    out = mmspec.generate(drafter.target, drafter, inputs=inputs, max_new_tokens=NEW)
    assert out.token_ids == expected and out.stats.lossless
    requests = [{"inputs": models.one_row(inputs, row), "max_new_tokens": NEW} for row in (0, 2)]
    alone = [mmspec.generate(drafter.target, drafter, **request) for request in requests]
    for one, other, row in zip(interleaved(drafter.target, drafter, requests), alone, (0, 2), strict=True):
        assert one.token_ids == other.token_ids == [expected[row]]
        assert [each.accepted for each in one.stats.rounds] == [each.accepted for each in other.stats.rounds]


@pytest.mark.parametrize("compressor", [TwigScore(0.5, layer=1), FeatureGuided(0.5)], ids=["twig", "guided"])
@pytest.mark.parametrize(("name", "label"), [("llava", "own model"), ("qwen_vl", "shared vision")])
def test_draft_models_are_trained_with_what_they_read(name, label, compressor):
    drafter, lesson, compared = TINY_DRAFTERS[label](name, "sdpa").with_compressor(compressor), lesson_of(name), 0
    guesses = guesses_of(drafter, lesson, 3)
    for roots, builder, _ in decode(drafter, name, width=1, depth=3):
        for row, root in roots.items():
            for step in range(min(builder.depth, len(lesson.answers[row]) - 1 - root)):
                assert error(builder.logits[step][row, 0], guesses[row, root, step]) < TOLERANCE
                compared += 1
    assert compared > 15


def test_a_drafter_is_saved_with_the_name_of_its_twig(tmp_path, folders):
    target = target_of("llava", "sdpa")
    plain = TINY_DRAFTERS["eagle"]("llava", "sdpa")
    drafter = plain.with_compressor(TwigScore(0.5, folders["llava"], words=2))
    drafter.save_pretrained(tmp_path)
    loaded = mmspec.load_drafter(str(tmp_path), target)
    assert loaded.compressor.config() == drafter.compressor.config() and not [*drafter.compressor.parameters()]
    inputs, _ = case("llava", "sdpa", *RAGGED, NEW)
    assert kept(loaded, inputs) == kept(drafter, inputs) and loaded.feature_layers == drafter.feature_layers


def test_refusals(tmp_path, folders):
    drafter = TINY_DRAFTERS["eagle"]("llava", "sdpa")
    refused(lambda: TwigScore(0.0), "TwigScore: keep=0.0")
    refused(lambda: TwigScore(words=0), "TwigScore: words=0 must be a positive integer")
    refused(lambda: TwigScore(name=3), "TwigScore: name=3 must be the name of a twig, such as")
    refused(lambda: TwigScore(name="a", layer=1), "name='a' is a twig ... layer=1 ... give one of both")
    refused(lambda: drafter.with_compressor(TwigScore(layer=3)), "TwigScore: layer=3 is none of the 3 of LlavaFor")
    flat = EarlyExitDrafter(drafter.target, layers=1, imitation="mlp")
    flat.save_pretrained(tmp_path)
    said = "is a EarlyExitDrafter without layers of attention ... or give layer="
    refused(lambda: drafter.with_compressor(TwigScore(name=str(tmp_path))), said)
