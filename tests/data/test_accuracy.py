"""How answers are judged: what counts for each metric, and what a task may name."""

from __future__ import annotations

import json

import pytest
from refusals import refused

from mmspec import zoo
from mmspec.data import METRICS, ConversationFile, EmbeddedSource, Metric
from mmspec.data.accuracy import metrics_of

TABLE = "| label | colour | value |\n| --- | --- | --- |\n| J1 | brown | 4 |\n| K1 | orange | 14 |"


@pytest.mark.parametrize(
    ("name", "reference", "answer", "points"),
    [
        ("exact_match", "A cat", " a  CAT.", 1.0),
        ("exact_match", "5", "-5", 0.0),
        ("exact_match", "a cat", "it is a cat", 0.0),
        ("exact_match", "?", "!", 0.0),
        ("contains", "a cat", "It is a\ncat, I think.", 1.0),
        ("contains", "cat", "concatenate", 0.0),
        ("contains", "4.5", "4x5", 0.0),
        ("edit_similarity", "abcd", "abcx", 0.75),
        ("edit_similarity", "abcd", "ABCD", 0.0),
        ("anls", "abcd", "ABCX ", 0.75),
        ("anls", "abcd", "abxx", 0.0),  # one half is not above one half
        ("anls", "", "", 1.0),
    ],
)
def test_what_counts(name, reference, answer, points):
    assert METRICS[name].points(reference, answer) == (points, 1.0)


def test_counts_of_drawn_pictures_are_those_of_the_generator():
    assert METRICS["chart_cells"].points(TABLE, TABLE.replace("14", "12")) == (5.0, 6.0)
    assert METRICS["conclusion"].points("So the answer is two.", "Why? So the answer is two.") == (1.0, 1.0)
    assert METRICS["scene_attributes"].points("There is a large purple star in the upper right.", "") == (0.0, 4.0)


def test_the_best_of_several_references_counts():
    assert METRICS["anls"].best(["dog", "cat"], "cats") == (0.75, 1.0)
    assert METRICS["chart_cells"].best(["no table", TABLE], TABLE) == (6.0, 6.0)


def test_a_task_names_one_for_all_one_for_each_or_none():
    class Mine(Metric):
        name = "mine"

    mine = Mine()
    source = EmbeddedSource(metric={"charts": "chart_cells", "scenes": mine})
    assert source.metric_of("charts").name == "chart_cells" and source.metric_of("scenes") is mine
    assert source.metric_of("questions") is None and EmbeddedSource().metric_of("charts") is None
    assert EmbeddedSource(metric="anls").metric_of("questions") is METRICS["anls"]


@pytest.mark.parametrize("metric", ["anl", {"charts": "anl"}])
def test_an_unknown_name_is_refused_with_the_nearest(metric):
    refused(lambda: metrics_of(metric), "metric='anl' is unknown. Did you mean 'anls'")


def test_embedded_questions_bring_their_answer():
    example = EmbeddedSource(tasks=["questions"], split="test")[2]
    assert example.references == (zoo.sample("questions", "test", 2).reference,) and example.answer is None


@pytest.mark.parametrize(
    ("row", "references"),
    [
        ({"prompt": "How many?", "answers": ["two", "2"]}, ("two", "2")),
        ({"prompt": "How many?", "answers": [{"answer": "two", "confidence": "yes"}]}, ("two",)),
        ({"prompt": "How many?", "answer": "two"}, ("two",)),
        ({"prompt": "How many?", "references": ["2"], "answers": ["two"]}, ("2",)),
        ({"prompt": "How many?", "answers": "two"}, ("two",)),
        ({"prompt": "How many?"}, ()),
        ({"messages": [{"role": "user", "content": "?"}, {"role": "assistant", "content": "two"}]}, ("two",)),
    ],
)
def test_rows_of_files_say_what_is_right(tmp_path, row, references):
    (tmp_path / "a.jsonl").write_text(json.dumps(row))
    assert ConversationFile(tmp_path / "a.jsonl", metric="contains")[0].references == references


def test_answers_that_are_no_texts_matter_only_to_who_measures(tmp_path):
    (tmp_path / "a.jsonl").write_text(json.dumps({"prompt": "How many?", "answers": [2]}))
    assert ConversationFile(tmp_path / "a.jsonl")[0].references == ()
    refused(lambda: ConversationFile(tmp_path / "a.jsonl", metric="contains")[0], "row 1: answers must be a list of")
