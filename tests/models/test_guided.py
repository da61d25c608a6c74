"""FeatureGuided: the drafter keeps what the target looks at, in training as in use, whatever the family."""

from __future__ import annotations

import models
import pytest
import torch
from full_recompute import recompute
from models import eager_twin
from refusals import refused
from scripted_rounds import Script, Told
from tiny_requests import RAGGED, case, target_of

import mmspec
from mmspec.compressors import FeatureGuided, Prune, VisualSpan
from mmspec.drafters import DreamDrafter, EagleDrafter
from mmspec.drafters.reading import TargetView, view_of
from mmspec.inputs import prepare
from mmspec.models.states import LAST
from mmspec.training.teacher import Teacher


def span(attention: list[float] | None) -> VisualSpan:
    received = None if attention is None else torch.tensor(attention)
    return VisualSpan(torch.arange(4.0)[:, None], None, torch.zeros(2, 1), attention=received)


@pytest.mark.parametrize(
    ("keep", "attention", "kept"),
    [
        (0.5, [0.1, 0.4, 0.2, 0.3], [1, 3]),
        (0.75, [0.1, 0.4, 0.2, 0.3], [1, 2, 3]),
        (0.01, [0.1, 0.4, 0.2, 0.3], [1]),
        (1.0, [0.4, 0.1, 0.2, 0.3], [0, 1, 2, 3]),
        (0.5, [0.0] * 4, [0, 1]),
    ],
)
def test_the_most_attended_stay_in_reading_order(keep, attention, kept):
    left = FeatureGuided(keep)(span(attention))
    assert left.embeds[:, 0].tolist() == kept and left.source.dense().argmax(-1).tolist() == kept
    assert left.source.dense().sum(-1).tolist() == [1.0] * len(kept)


@pytest.mark.parametrize("keep", [0, -1, 1.5])
def test_other_shares_are_refused(keep):
    refused(lambda: FeatureGuided(keep), "must be a number above 0 and at most 1")


def test_without_attention_it_says_what_to_do():
    refused(lambda: FeatureGuided()(span(None)), "use Prune, or a drafter on the target's states")


def drafter_of(name: str, cls=EagleDrafter):
    return models.redraw(cls(target_of(name, "sdpa"), compressor=FeatureGuided(0.5)), seed=2)


@pytest.mark.parametrize("name", models.VISUAL)
@pytest.mark.parametrize("cls", [EagleDrafter, DreamDrafter])
def test_a_drafters_prompt_keeps_what_the_eager_model_looks_at(name, cls):
    """The choice is checked against attention that the model itself wrote down, picture by picture."""
    drafter = drafter_of(name, cls)
    target, eager = drafter.target, eager_twin(name, drafter.target.model)
    assert set(drafter.feature_layers) == {LAST, 2}
    inputs = models.inputs_for(name, list(RAGGED[0]), list(RAGGED[1]))
    request = prepare(target, inputs=inputs)
    vision = target.encode(request)
    context = target.prefill(request, vision, feature_layers=drafter.feature_layers)
    prompt = drafter.read(TargetView(request, request, context.embeds, context.features, vision))
    pictures = 0
    for row, spans in enumerate(context.visual_spans()):
        single = models.one_row(inputs, row)
        weights = recompute(eager, single, [[]], output_attentions=True).attentions[-1][0].mean(0)
        places = torch.arange(len(weights))
        kept = [place for place in places.tolist() if single["input_ids"][0, place] != models.IMAGE]
        for start, end in spans:
            words = (places >= end) & (single["input_ids"][0] != models.IMAGE)
            received = weights[words, start:end].mean(0)
            kept += (start + received.topk(round(0.5 * (end - start))).indices).tolist()
            pictures += 1
        assert prompt.positions[row, : len(kept)].tolist() == sorted(kept)
        assert int(prompt.removed[row]) == len(weights) - len(kept)
    assert pictures == sum(RAGGED[0])


@pytest.mark.parametrize("name", models.VISUAL)
def test_training_chooses_as_decoding_does(name):
    """Also where the teacher knows states by layer and nothing else, as from a feature cache."""
    drafter = drafter_of(name)
    inputs = models.inputs_for(name, list(RAGGED[0]), list(RAGGED[1]))
    request = prepare(drafter.target, inputs=inputs)
    answers = [[5, 6, 7, 8]] * 4
    lesson = Teacher(drafter.target, drafter.feature_layers).study(request, answers)
    script = Script(drafter, inputs, answers, Told(1, 2))
    context = script.context
    decoding = drafter.read(view_of(context))
    training = drafter.read(view_of(lesson))
    assert decoding.removed.any() and decoding.removed.tolist() == training.removed.tolist()
    for row, length in enumerate(request.lengths):
        kept = length - int(decoding.removed[row])
        assert training.positions[row, :kept].equal(decoding.positions[row, :kept])


@pytest.mark.parametrize("name", models.VISUAL)
def test_it_can_be_put_on_a_drafter_that_was_trained_without(name):
    drafter = models.redraw(EagleDrafter(target_of(name, "sdpa")), seed=8).with_compressor(FeatureGuided(0.5))
    assert set(drafter.feature_layers) == {LAST, 2}
    inputs, expected = case(name, "sdpa", *RAGGED, 10)
    assert mmspec.generate(drafter.target, drafter, inputs=inputs, max_new_tokens=10).token_ids == expected
    assert LAST in EagleDrafter(target_of(name, "sdpa")).with_compressor(Prune()).feature_layers
