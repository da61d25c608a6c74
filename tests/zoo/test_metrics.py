"""The metrics: references are perfect, and every kind of damage costs exactly what it should."""

from itertools import pairwise

import pytest

from mmspec import zoo
from mmspec.zoo.metrics import measure, parse_conclusion, parse_scene, parse_table, total
from mmspec.zoo.scenes import HELD_OUT

SCENE = (
    "The picture shows two shapes on a white background. There is a large purple star in the upper right. "
    "In the middle left there is a small orange ring. The large purple star is above the small orange ring."
)
TABLE = "| label | colour | value |\n| --- | --- | --- |\n| J1 | brown | 4 |\n| K1 | orange | 14 |"


@pytest.mark.parametrize("task", zoo.TASKS)
def test_references_are_perfect(task):
    references = [zoo.sample(task, "test", index).reference for index in range(300)]
    report = total(measure(task, reference, reference) for reference in references)
    for name, value in report.items():
        assert value == (0.0 if name == "character_error_rate" else 1.0), name


@pytest.mark.parametrize("task", zoo.TASKS)
def test_the_answer_to_another_picture_scores_lower(task):
    samples = [zoo.sample(task, "test", index) for index in range(100)]
    pairs = pairwise(samples)
    name, value = next(iter(total(measure(task, a.reference, b.reference) for a, b in pairs).items()))
    assert value > 0.5 if name == "character_error_rate" else value < 0.5


def test_scene_attributes_are_counted_one_by_one():
    assert parse_scene(SCENE) == {
        "upper right": ("large", "purple", "star"),
        "middle left": ("small", "orange", "ring"),
    }
    assert measure("scenes", SCENE, SCENE)["attribute_accuracy"] == (8, 8)
    wrong_colour = SCENE.replace("purple", "red")
    assert measure("scenes", SCENE, wrong_colour)["attribute_accuracy"] == (7, 8)
    wrong_place = SCENE.replace("upper right", "upper left")  # one shape missing, one invented
    assert measure("scenes", SCENE, wrong_place)["attribute_accuracy"] == (4, 12)
    assert measure("scenes", SCENE, "")["attribute_accuracy"] == (0, 8)


def test_held_out_pairs_are_counted_apart():
    colour, shape = sorted(HELD_OUT)[0]
    reference = f"There is a large {colour} {shape} in the centre. There is a small pink circle in the lower left."
    damaged = reference.replace("pink", "red")
    assert measure("scenes", reference, damaged) == {"attribute_accuracy": (7, 8), "held_out_accuracy": (4, 4)}


def test_chart_cells():
    assert parse_table(TABLE) == [["J1", "brown", "4"], ["K1", "orange", "14"]]
    assert measure("charts", TABLE, TABLE.replace("14", "12"))["cell_accuracy"] == (5, 6)
    assert measure("charts", TABLE, TABLE + "\n| L2 | red | 3 |")["cell_accuracy"] == (6, 9)
    assert measure("charts", TABLE, "no table")["cell_accuracy"] == (0, 6)


def test_conclusions():
    assert parse_conclusion("I can see it. So the answer is the upper left.") == "the upper left"
    assert parse_conclusion("no idea") is None
    assert measure("questions", "So the answer is two.", "Why? So the answer is two.")["answer_accuracy"] == (1, 1)
    assert measure("questions", "So the answer is two.", "two")["answer_accuracy"] == (0, 1)


def test_an_unknown_task_is_refused():
    with pytest.raises(ValueError, match="photos"):
        measure("photos", "", "")
