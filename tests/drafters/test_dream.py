"""DREAM in use: its three layers on an explicit sequence, whatever happened before; and the target's own text."""

from __future__ import annotations

import models
import pytest
import torch
from dreams import GRID, drafter_of, guided, reference_at
from full_recompute import paths_of
from heads import ANSWERS, FAMILIES, TOLERANCE, error, guesses_of, inputs_of, lesson_of
from test_feature_drafters import ROUNDS, Script, Told, decode
from tiny_requests import RAGGED, case

import mmspec
from mmspec.drafters import dream
from mmspec.inputs import append, prepare
from mmspec.training.teacher import Teacher
from mmspec.trees import Chain, DynamicTree, StaticTree
from mmspec.verifiers import Greedy, PointMassSampling

EXPLICIT = [(name, variant) for name, variant in GRID if variant != "hidden"]


@pytest.mark.parametrize(("name", "variant"), EXPLICIT)
def test_unrolled_guesses_are_those_of_the_layers_on_the_explicit_sequence(name, variant):
    drafter, lesson = drafter_of(name, variant), lesson_of(name)
    table, compared = guesses_of(drafter, lesson, 4), 0
    for row, answer in enumerate(lesson.answers):
        for root in {0, 3, len(answer) - 2} & set(range(len(answer) - 1)):
            for step, logits in enumerate(reference_at(name, drafter, row, root, answer[root + 1 : -1][:3])):
                assert error(table[row, root, step], logits) < TOLERANCE, (row, root, step)
                compared += 1
    assert compared > 20 and len(table) == sum(max(n - 1 - i, 0) for n in ANSWERS for i in range(4))


@pytest.mark.parametrize(("name", "variant"), GRID)
@pytest.mark.parametrize("width", [1, 2])
def test_training_sees_what_decoding_does(name, variant, width):
    drafter, lesson, compared = drafter_of(name, variant), lesson_of(name), 0
    guesses = guesses_of(drafter, lesson, 4)
    for roots, builder, _ in decode(drafter, name, width):
        for row, root in roots.items():
            for step, logits in enumerate(builder.logits):
                if (row, root, step) in guesses:
                    node = builder.path[step] - sum(width**level for level in range(step))
                    assert error(logits[row, node], guesses[row, root, step]) < TOLERANCE, (row, root, step)
                    compared += 1
    assert compared > 20


def worst_at(name: str, drafter, row: int, root: int, builder, tree, tree_row: int) -> tuple[float, int]:
    """The largest error at any node that a row's tree expanded, and their number; its levels are full, of width 2."""
    worst, nodes = 0.0, 0
    for path in paths_of(tree, tree_row):
        chain = tree.tokens[tree_row, path[1:-1]].tolist()
        for level, logits in enumerate(reference_at(name, drafter, row, root, chain)):
            worst = max(worst, error(builder.logits[level][tree_row, path[level] - 2**level + 1], logits))
            nodes += 1
    return worst, nodes


@pytest.mark.parametrize("name", FAMILIES)
def test_every_node_of_a_tree_drafts_as_if_its_path_were_all_there_is(name):
    drafter, nodes = drafter_of(name, "dream"), 0
    for roots, builder, tree in decode(drafter, name, width=2, depth=3):
        for row, root in roots.items():
            worst, count = worst_at(name, drafter, row, root, builder, tree, row)
            assert worst < TOLERANCE
            nodes += count
    assert nodes > 50


def test_without_the_tree_mask_nodes_would_remember_their_siblings(monkeypatch):
    """The release has none in its cross-attention. In the first round of one row only other branches are not masked."""
    drafter, row = drafter_of("llava", "dream"), 0
    made, attend, keys_values = [], dream.attend, drafter.layers[1].keys_values

    def remembering(states):
        made.append(1)  # the memory's entries are the last ones made before its attention
        return keys_values(states)

    def careless(queries, keys, values, mask):
        memory = bool(made)
        made.clear()
        return attend(queries, keys, values, None if memory else mask)

    for masked in (True, False):
        if not masked:
            monkeypatch.setattr(drafter.layers[1], "keys_values", remembering)
            monkeypatch.setattr(dream, "attend", careless)
        script = Script(drafter, models.one_row(inputs_of("llava"), row), [lesson_of("llava").answers[row]], Told(2, 3))
        worst, nodes = worst_at("llava", drafter, row, 0, *script.round([0]), 0)
        assert nodes > 10 and (worst < TOLERANCE) == masked


@pytest.mark.parametrize(("name", "variant"), [("llava", "dream"), ("qwen_vl", "hidden"), ("llama", "without memory")])
def test_its_caches_hold_true_states_only(name, variant):
    """After rounds of all kinds they are those of a drafter which read the whole text as its prompt."""
    drafter, inputs, answers = drafter_of(name, variant), inputs_of(name), lesson_of(name).answers
    script = Script(drafter, inputs, answers, Told(2, 3))
    for accepted in (*ROUNDS, [0] * 4):
        active, places = script.context.active.copy(), list(script.places)
        script.round(accepted)
    prompt = prepare(drafter.target, inputs=inputs)
    longer = append(prompt, [answer[: place + 1] for answer, place in zip(answers, places, strict=True)])
    with torch.inference_mode():
        target = drafter.target
        context = target.prefill(longer, target.encode(longer), feature_layers=drafter.feature_layers)
        fresh = drafter.fork(Chain(1))
        # The pictures' places are those of the prompt, whatever the answer says.
        fresh.start(context)
    ours, theirs = script.session.session.cache, fresh.session.cache
    assert len(ours.layers) == len(theirs.layers) == (3 if drafter.settings.cross_attention else 2)
    for row in [row for row, on in enumerate(active) if on]:
        length = ours.lengths_list[row]
        assert length == theirs.lengths_list[row] and ours.speculative == 0
        for mine, wanted in zip(ours.layers, theirs.layers, strict=True):
            keys, values = ours.whole(mine.keys), ours.whole(mine.values)
            assert error(keys[row, :, 1:length], wanted.keys[row, :, 1:length]) < TOLERANCE
            assert error(values[row, :, 1:length], wanted.values[row, :, 1:length]) < TOLERANCE
    assert sum(active) == 3


def test_a_prompt_may_be_a_single_token():
    """Then nothing precedes it, and the memory is empty."""
    drafter, answers = drafter_of("llama", "dream"), [[4, 5, 6, 7]]
    inputs = {"input_ids": torch.tensor([[7]])}
    lesson = Teacher(drafter.target).study(prepare(drafter.target, inputs=inputs), answers)
    guesses, script = guesses_of(drafter, lesson, 2), Script(drafter, inputs, answers, Told(1, 2))
    for root in (0, 1):
        builder, _ = script.round([0])
        for step in range(2):
            assert error(builder.logits[step][0, 0], guesses[0, root, step]) < TOLERANCE


# The whole loop.

TREES = {"chain": Chain(4), "static": StaticTree(["0", "1", "2", "00", "01", "10", "000"]), "dynamic": DynamicTree()}
RULES = {"greedy": (Greedy(), 0.0), "point mass": (PointMassSampling(), 0.7)}


@pytest.mark.parametrize(
    "rows", [((1,), (9,)), ((0,), (7,)), ((2,), (6,)), RAGGED], ids=["one", "none", "two", "ragged"]
)
@pytest.mark.parametrize("name", ["llava", "qwen_vl", "gemma3"])
def test_texts_are_those_of_plain_decoding(name, rows):
    inputs = case(name, "sdpa", *rows, 12)[0]
    for drafter in (drafter_of(name, "dream"), guided(name)):
        for rule, temperature in RULES.values():
            settings = {"max_new_tokens": 12, "verifier": rule, "temperature": temperature, "seed": 3, "inputs": inputs}
            plain = mmspec.generate(drafter.target, **settings)
            for tree in TREES.values():
                assert mmspec.generate(drafter.target, drafter, tree=tree, **settings).token_ids == plain.token_ids


@pytest.mark.parametrize("name", ["llava", "qwen_vl", "gemma3"])
def test_inside_generate_it_finds_the_pictures_and_their_positions(name):
    drafter = guided(name)
    inputs, expected = case(name, "sdpa", *RAGGED, 12)
    options = {"max_new_tokens": 12, "do_sample": False, "custom_generate": mmspec.hf.custom_generate(drafter)}
    assert drafter.target.model.generate(**inputs, **options)[:, -12:].tolist() == expected
