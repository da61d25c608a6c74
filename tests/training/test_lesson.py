"""Lessons: what the target knew while writing, row by row, and where in them drafts begin and what they predict."""

from __future__ import annotations

from functools import cache

import models
import pytest
import torch
from full_recompute import recompute, start
from hypothesis import given
from hypothesis import strategies as st
from refusals import refused
from tiny_requests import BACK_ENDS, ragged_inputs, target_of

from mmspec.inputs import PER_TOKEN, Request, append, prepare
from mmspec.lesson import WIDTHS, Lesson
from mmspec.models.states import LAST
from mmspec.training.teacher import Teacher
from mmspec.tree import DraftTree

TOLERANCE = 1e-4
ANSWERS = (5, 9, 2, 7)
LAYERS = {0: 0, 2: 2, LAST: -1}
"""Feature layer to the index in `hidden_states`."""


def answers_of(sizes, seed: int = 0) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(1, 50, (n,), generator=generator).tolist() for n in sizes]


@cache
def ragged(name: str, attention: str) -> tuple[dict, Lesson]:
    inputs = ragged_inputs(name)
    target = target_of(name, attention)
    return inputs, Teacher(target, [0, 2, 0]).study(prepare(target, inputs=inputs), answers_of(ANSWERS))


def test_a_layer_that_the_target_does_not_have_is_refused():
    refused(lambda: Teacher(target_of("llava"), [1, 6]), "layer 6 is to be learnt ... has layers 0 to 2: name one of")


@pytest.mark.parametrize(("name", "attention"), BACK_ENDS)
def test_features_and_logits_are_those_of_every_row_alone(name, attention):
    """Of the model's own pass, which finds positions and masks by itself."""
    inputs, lesson = ragged(name, attention)
    assert lesson.features.keys() == LAYERS.keys()
    first = 0
    for row, answer in enumerate(lesson.answers):
        alone = models.one_row(inputs, row)
        out = recompute(lesson.target.model, alone, [answer], output_hidden_states=True)
        prompt, length = alone["input_ids"].shape[1], lesson.request.lengths[row]
        assert lesson.prompt.lengths[row] == prompt and length == prompt + len(answer)
        for layer, index in LAYERS.items():
            states = out.hidden_states[index][0]
            assert (lesson.features[layer][row, :length] - states).abs().max() < TOLERANCE
            places = slice(first, first + len(answer))
            assert (lesson.states(layer)[places] - states[prompt - 1 : -1]).abs().max() < TOLERANCE
        assert (lesson.logits[places] - out.logits[0, prompt - 1 : -1]).abs().max() < TOLERANCE
        first += len(answer)
    assert len(lesson.logits) == sum(ANSWERS)
    assert not (lesson.logits.requires_grad or lesson.embeds.requires_grad or lesson.logits.is_inference())


@pytest.mark.parametrize("name", models.MODELS)
def test_logits_are_what_the_target_saw_when_it_decoded(name):
    inputs, lesson = ragged(name, "sdpa")
    context = start(lesson.target, inputs)
    scores = context.score(DraftTree.chain(torch.tensor([answer[:2] for answer in lesson.answers])))
    ends = torch.tensor(ANSWERS).cumsum(0) - torch.tensor(ANSWERS)
    assert (lesson.logits[ends] - context.logits).abs().max() < TOLERANCE
    assert (lesson.logits[ends + 1] - scores.logits[:, 0]).abs().max() < TOLERANCE


# Indices, against loops. A state here is a number that tells its row and place.

rows = st.lists(st.tuples(st.integers(1, 6), st.integers(2, 7)), min_size=1, max_size=4)


def numbered(shape: list[tuple[int, int]]) -> Lesson:
    """A lesson of prompts and answers of these lengths, whose states are `1000 * row + slot`."""
    lengths = [prompt + answer for prompt, answer in shape]
    width = max(lengths)
    states = 1000 * torch.arange(len(shape))[:, None] + torch.arange(width)
    ids = torch.zeros(len(shape), max(prompt for prompt, _ in shape), dtype=torch.long)
    prompt = Request({"input_ids": ids, "attention_mask": torch.ones_like(ids)}, [prompt for prompt, _ in shape])
    answers = [[100 * row + i for i in range(answer)] for row, (_, answer) in enumerate(shape)]
    embeds = torch.zeros(len(shape), width, 1)
    return Lesson(None, prompt, answers, append(prompt, answers), None, embeds, {LAST: states[..., None]})


@given(rows)
def test_answer_tokens_are_numbered_row_after_row(shape):
    lesson = numbered(shape)
    wanted = [(row, 100 * row + i) for row, (_, answer) in enumerate(shape) for i in range(answer)]
    assert list(zip(lesson.rows.tolist(), lesson.tokens.tolist(), strict=True)) == wanted
    assert Lesson.weight(lesson.answers) == sum(answer - 1 for _, answer in shape)


@given(rows)
def test_an_answer_token_was_predicted_from_the_state_before_it(shape):
    states = numbered(shape).states(LAST)[:, 0].tolist()
    assert states == [1000 * row + prompt - 1 + i for row, (prompt, answer) in enumerate(shape) for i in range(answer)]


@given(rows)
def test_a_root_is_the_slot_of_the_token_before_it(shape):
    lesson = numbered(shape)
    roots = lesson.root_slots
    assert roots.shape == (len(shape), max(answer for _, answer in shape) - 1)
    assert roots.min() >= 0 and roots.max() <= lesson.embeds.shape[1] - 2
    for row, (prompt, answer) in enumerate(shape):
        # The answer begins at index `prompt`; every token of it but the last is a root.
        assert roots[row, : answer - 1].tolist() == [prompt + i - 1 for i in range(answer - 1)]


@given(rows, st.integers(0, 7))
def test_a_step_predicts_what_stands_so_many_places_behind_each_root(shape, step):
    lesson = numbered(shape)
    valid, places = lesson.drafted(step)
    assert valid.shape == lesson.root_slots.shape
    wanted, first = [], 0
    for row, (_, answer) in enumerate(shape):
        for root in range(valid.shape[1]):
            assert valid[row, root] == (root + 1 + step < answer)
            if valid[row, root]:
                wanted.append(first + root + 1 + step)
        first += answer
    assert places.tolist() == wanted
    if step == 0:
        assert len(places) == Lesson.weight(lesson.answers)


@given(rows)
def test_rows_go_on_with_their_answers(shape):
    lengths, width = [prompt for prompt, _ in shape], max(prompt for prompt, _ in shape)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(1, 50, (len(shape), width), generator=generator)
    types = torch.randint(0, 2, (len(shape), width), generator=generator)
    keep = torch.arange(width) < torch.tensor(lengths)[:, None]
    inputs = {"input_ids": ids * keep, "attention_mask": keep.long(), "pixel_values": torch.ones(2)}
    inputs |= {name: types * keep for name in ("token_type_ids", "mm_token_type_ids")}
    inputs |= {"position_ids": torch.zeros(3, len(shape), width)}
    request = Request(inputs, lengths)
    before, answers = {name: value.clone() for name, value in inputs.items()}, answers_of([n for _, n in shape])

    assert append(request, answers).inputs["input_ids"].shape[1] == max(map(sum, shape))
    longer = append(request, answers, WIDTHS)
    columns = -(-max(map(sum, shape)) // WIDTHS) * WIDTHS
    assert longer.lengths == [sum(both) for both in shape]
    for row, (prompt, answer) in enumerate(shape):
        assert longer.token_ids()[row] == ids[row, :prompt].tolist() + answers[row]
        assert longer.inputs["attention_mask"][row].tolist() == [1] * (prompt + answer) + [0] * (
            columns - prompt - answer
        )
        for name in ("token_type_ids", "mm_token_type_ids"):
            assert longer.inputs[name][row, : prompt + answer].tolist() == types[row, :prompt].tolist() + [0] * answer
    assert "position_ids" not in longer.inputs and longer.inputs["pixel_values"] is inputs["pixel_values"]
    assert all(longer.inputs[name].shape == (len(shape), columns) for name in PER_TOKEN if name in longer.inputs)
    assert inputs.keys() == before.keys() and all(before[name].equal(value) for name, value in inputs.items())
