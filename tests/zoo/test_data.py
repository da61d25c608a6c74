"""The procedural tasks: deterministic, disjoint, with combinations that only the test split shows."""

import itertools

import pytest

from mmspec import zoo
from mmspec.zoo.data import conversation, subject_of
from mmspec.zoo.drawing import ALPHABET, FONTS, SHAPES, draw_shape, glyph
from mmspec.zoo.scenes import HELD_OUT, Scene

PAIRS = list(itertools.product(zoo.TASKS, zoo.SPLITS))


@pytest.mark.parametrize(("task", "split"), PAIRS)
def test_samples_are_deterministic_and_differ(task, split):
    first, again, other = (zoo.sample(task, split, index) for index in (3, 3, 4))
    assert first.image.tobytes() == again.image.tobytes()
    assert first[1:] == again[1:]
    assert first.image.tobytes() != other.image.tobytes()
    image, prompt, reference = first
    assert image.size == (96, 96) and image.mode == "RGB"
    assert prompt and reference


@pytest.mark.parametrize("task", zoo.TASKS)
def test_splits_share_no_picture(task):
    contents = {split: {repr(subject_of(task, split, index)) for index in range(200)} for split in zoo.SPLITS}
    for left, right in itertools.combinations(zoo.SPLITS, 2):
        assert not contents[left] & contents[right]


def pairs_of_scenes(subjects):
    return {(thing.colour, thing.shape) for s in subjects if isinstance(s, Scene) for thing in s.things}


@pytest.mark.parametrize("task", ["scenes", "questions"])
def test_held_out_pairs_appear_only_in_the_test_split(task):
    for split in ("train", "validation"):
        assert not pairs_of_scenes(subject_of(task, split, index) for index in range(600)) & HELD_OUT
    assert pairs_of_scenes(subject_of(task, "test", index) for index in range(600)) >= HELD_OUT


def test_held_out_pairs_never_enter_training_conversations():
    for index in range(400):
        for prompt, reference in conversation("scenes", index).turns:
            for colour, shape in HELD_OUT:
                assert f"{colour} {shape}" not in prompt + reference


def test_prompts_vary():
    for task in zoo.TASKS:
        assert len({zoo.sample(task, "test", index).prompt for index in range(40)}) >= 3


def test_difficulty_shortens_the_early_conversations():
    def length(difficulty):
        return sum(len(conversation("documents", index, difficulty).turns[0][1]) for index in range(20))

    assert length(0.0) < length(0.5) < length(1.0)


def test_a_question_is_not_asked_twice_of_one_picture():
    for index in range(50):
        prompts = [prompt for prompt, _ in conversation("questions", index).turns]
        assert len(prompts) == len(set(prompts)) >= 2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("photos", "test", 0), ["photos", "scenes, charts, documents, questions"]),
        (("scenes", "dev", 0), ["dev", "train, validation, test"]),
        (("scenes", "test", -1), ["-1"]),
    ],
)
def test_wrong_arguments_are_named(arguments, words):
    with pytest.raises(ValueError) as error:
        zoo.sample(*arguments)
    assert all(word in str(error.value) for word in words)


@pytest.mark.parametrize("font", FONTS)
def test_every_glyph_is_distinct_in_every_font(font):
    masks = {glyph(character, font, 12).tobytes() for character in ALPHABET}
    assert len(masks) == len(ALPHABET)


def test_an_unknown_shape_is_refused():
    image = zoo.sample("scenes", "test", 0).image
    with pytest.raises(ValueError, match="hexagon.*" + SHAPES[0]):
        draw_shape(image, "hexagon", (16, 16), 14, (0, 0, 0))
