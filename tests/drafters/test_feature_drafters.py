"""EAGLE drafters: what they draft, whatever happened before, is their layer on an explicit sequence; so is training."""

from __future__ import annotations

import heads
import models
import pytest
import torch
from full_recompute import paths_of
from heads import (
    ANSWERS,
    FAMILIES,
    FEW,
    GRID,
    TOLERANCE,
    VARIANTS,
    drafter_of,
    error,
    guesses_of,
    inputs_of,
    lesson_of,
)
from scripted_rounds import Script, Told, decode, expect_true_features_only, guesses_compared
from tiny_drafters import DRAFT_MODELS, NEED_PICTURES
from tiny_requests import RAGGED, case
from yardstick import reference_at

import mmspec
from mmspec import Target
from mmspec.inputs import prepare
from mmspec.training.teacher import Teacher

EXPLICIT = [one for one in GRID if one.values[1] not in heads.ASKING]


@pytest.mark.parametrize(("name", "variant"), EXPLICIT)
def test_unrolled_guesses_are_those_of_the_layer_on_the_explicit_sequence(name, variant):
    drafter, lesson = drafter_of(name, variant), lesson_of(name)
    roots = lesson.root_slots.shape[1]
    guesses, expected = list(drafter.unroll(lesson, 4)), {}
    for row, answer in enumerate(lesson.answers):
        for root in range(len(answer) - 1):
            chain = answer[root + 1 : -1][:3]
            for step, logits in enumerate(reference_at(name, drafter, row, root, chain)):
                expected[step, row * roots + root] = sum(map(len, lesson.answers[:row])) + root + step + 1, logits
    seen = {}
    for step, guess in enumerate(guesses):
        for number, (root, place) in enumerate(zip(guess.roots.tolist(), guess.places.tolist(), strict=True)):
            seen[step, root] = place, guess.logits[number]
    steps = min(drafter.max_depth or 4, 4)
    assert seen.keys() == expected.keys()
    assert len(seen) == sum(max(n - 1 - i, 0) for n in ANSWERS for i in range(steps))
    for key, (place, logits) in expected.items():
        assert seen[key][0] == place
        assert error(seen[key][1], logits) < TOLERANCE, key


MISTAKES = [
    ("hivis", "residual"),
    ("hivis", "unshifted"),
    ("hivis", "positions"),
    ("hivis, packed", "positions"),
    ("eagle, pool", "positions"),
    ("eagle3, prune", "positions"),
    ("msd", "raw"),
    ("vispec", "raw"),
    ("vispec", "summary"),
    ("vispec", "positions"),
    ("vispec, text", "summary"),
    ("sparrow", "unpaired"),
    ("sparrow", "positions"),
    ("sparrow, whole", "raw"),
    ("sparrow, whole", "bridge"),
    ("eagle3, fovea", "all looked at"),
    ("eagle3, fovea", "corrected on"),
]


@pytest.mark.parametrize(("variant", "wrong"), MISTAKES)
def test_the_yardstick_tells_mistakes_apart(variant, wrong):
    """What a wrong residual row, hiding after pairing, other positions and so on would change, it sees."""
    drafter, lesson = drafter_of("llava", variant), lesson_of("llava")
    guesses = guesses_of(drafter, lesson, 3)
    for row in (0, 2):
        chain = lesson.answers[row][1:3]
        expected = reference_at("llava", drafter, row, 0, chain)
        mistaken = reference_at("llava", drafter, row, 0, chain, wrong)
        for step in range(3):
            assert error(guesses[row, 0, step], expected[step]) < TOLERANCE
            right = wrong in ("residual", "corrected on") and not step  # the root's own is right
            assert (error(guesses[row, 0, step], mistaken[step]) > 10 * TOLERANCE) != right


# Decoding.


LEARNERS = GRID + [
    (name, label) for name in FAMILIES for label in DRAFT_MODELS if name in models.VISUAL or label not in NEED_PICTURES
]


@pytest.mark.parametrize(("name", "label"), LEARNERS)
@pytest.mark.parametrize("width", [1, 2])
def test_training_sees_what_decoding_does(name, label, width):
    """At every root and depth, after rounds that accepted nothing, one token or several."""
    drafter = drafter_of(name, label) if label in VARIANTS else DRAFT_MODELS[label](name, "sdpa")
    assert guesses_compared(drafter, lesson_of(name), name, width) > 25


@pytest.mark.parametrize("variant", [variant for variant in VARIANTS if variant not in heads.ASKING])
def test_every_node_of_a_tree_sees_its_own_path_alone(variant):
    """Also those that the drafter chose itself, and whose siblings are drafted beside them."""
    name, nodes = "llava", 0
    drafter = drafter_of(name, variant)
    for roots, builder, tree in decode(drafter, name, width=2, depth=3):
        for row, root in roots.items():
            for path in [path for path in paths_of(tree, row) if path[-1] % 4 == 3]:
                chain = tree.tokens[row, path[1:-1]].tolist()
                for level, logits in enumerate(reference_at(name, drafter, row, root, chain)):
                    ours = builder.logits[level][row, path[level] - 2**level + 1]
                    assert error(ours, logits) < TOLERANCE
                    expected = logits.log_softmax(-1)
                    child, vocabulary = path[level + 1], list(FEW) if drafter.draft_vocab_size else range(models.VOCAB)
                    if child not in builder.path:
                        token = list(vocabulary).index(tree.tokens[row, child])
                        assert abs(tree.log_probs[row, child] - expected[token]) < 2 * TOLERANCE
                    nodes += 1
    assert nodes > 50


@pytest.mark.parametrize(("name", "variant"), EXPLICIT)
def test_its_cache_holds_true_features_only(name, variant):
    """After rounds of all kinds it is that of a drafter which read the whole text as its prompt."""
    expect_true_features_only(drafter_of(name, variant), name, inputs_of(name), lesson_of(name).answers)


@pytest.mark.parametrize("variant", ["eagle", "eagle3", "dream"])
def test_a_prompt_may_be_a_single_token(variant):
    """Then no slot of the prompt is complete before the first root."""
    drafter = drafter_of("llama", variant)
    inputs = {"input_ids": torch.tensor([[7]])}
    answers = [[4, 5, 6, 7]]
    lesson = Teacher(drafter.target, range(3)).study(prepare(drafter.target, inputs=inputs), answers)
    guesses, script = guesses_of(drafter, lesson, 2), Script(drafter, inputs, answers, Told(1, 2))
    for root, accepted in ((0, 0), (1, 0)):
        builder, _ = script.round([accepted])
        for step in range(2):
            assert error(builder.logits[step][0, 0], guesses[0, root, step]) < TOLERANCE


@pytest.mark.parametrize("variant", ["eagle", "eagle3"])
def test_a_placeholder_may_lie_outside_the_embedding_table(variant):
    model = models.llava()
    model.config.image_token_id = models.VOCAB + 9
    drafter = VARIANTS[variant][0](Target(model), visual=False)
    inputs = models.inputs_for("llava", [1, 0], [6, 9])
    inputs["input_ids"][inputs["input_ids"] == models.IMAGE] = models.VOCAB + 9
    plain = mmspec.generate(drafter.target, inputs=inputs, max_new_tokens=8)
    assert mmspec.generate(drafter.target, drafter, inputs=inputs, max_new_tokens=8).token_ids == plain.token_ids


def test_inside_generate_an_eagle_sees_the_pictures_through_the_targets_embeddings():
    drafter = drafter_of("llava", "eagle")
    inputs, expected = case("llava", "sdpa", *RAGGED, 14)
    options = {"max_new_tokens": 14, "do_sample": False, "custom_generate": mmspec.hf.custom_generate(drafter)}
    assert drafter.target.model.generate(**inputs, **options)[:, -14:].tolist() == expected
