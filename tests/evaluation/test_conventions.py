"""The same runs as others count them, and the files that others read."""

from __future__ import annotations

import json

import pytest
from bundles import eagle3, lookup, plain, write_bundle

from mmspec.errors import MMSpecError
from mmspec.evaluation import report
from mmspec.evaluation.conventions import EXPLAINED

# eagle3 writes 9 tokens as 1 + 3 + 1 + 3 + 1: 4 accepted in four rounds of ours. Theirs emits no last bonus token, so
# it needs a fifth round, 9 = 4 + 5. Of 7 tokens = 1 + 3 + 1 + 2 the last was accepted: 7 = 4 + 3, three rounds.
PROMPTS = {"scenes": [9, 7]}


@pytest.fixture
def made(tmp_path):
    return report(write_bundle(tmp_path / "bundle", [plain(), eagle3(), lookup()], PROMPTS, turns=1))


def figures(made, name, method="eagle3 chain", scope="all"):
    return dict(made.units(name).rows)[method][scope]


def test_eagle(made):
    found = figures(made, "eagle")
    assert found["tau"] == 16 / 8 and found["accept_length"] == 8 / 8
    # Tokens again, less one: the synthetic bundle has one more token than ids, so the baseline counts as many.
    ours, theirs = (9 / 3 + 7 / 2.5) / 2, (9 / 5 + 7 / 4) / 2
    assert found["speed-up"] == pytest.approx(ours / theirs)
    assert figures(made, "eagle", "plain") == {"speed-up": 1, "tau": 1, "accept_length": 0}


def test_eagle_counts_the_baselines_text_not_its_ids(tmp_path):
    folder = write_bundle(tmp_path / "bundle", [plain(), eagle3()], {"scenes": [9]})
    path = folder / "requests.jsonl"
    path.write_text(path.read_text().replace('"retokenized": [10]', '"retokenized": [7]'))
    assert figures(report(folder), "eagle")["speed-up"] == pytest.approx((9 / 3) / (6 / 5))
    path.write_text(path.read_text().replace('"retokenized": [7]', '"retokenized": [null]'))
    assert figures(report(folder), "eagle")["speed-up"] is None


def test_turns_of_a_question_are_pooled(tmp_path):
    made = report(write_bundle(tmp_path / "bundle", [plain(), eagle3()], PROMPTS, turns=2))
    assert figures(made, "eagle")["speed-up"] == pytest.approx((9 / 3 + 7 / 2.5) / (9 / 5 + 7 / 4))


def test_mmspec(made):
    found = figures(made, "mmspec")
    assert found["MAT (paper)"] == 8 / 8 and found["MAT (repository)"] == 16 / 8
    assert found["paired"] == pytest.approx((5 / 3 + 4 / 2.5) / 2)
    assert found["global"] == pytest.approx(9 / 5.5)


def test_vispec(made):
    assert figures(made, "vispec")["accepted"] == 8 / 8
    assert figures(made, "vispec")["speed-up"] == figures(made, "eagle")["speed-up"]


def test_vllm(made):
    found = figures(made, "vllm")
    assert found["mean_acceptance_length"] == 1 + 8 / 7
    assert found["draft_acceptance_rate"] == 8 / 28
    assert found["acceptance per position"] == [4 / 7, 4 / 7, 0]
    assert figures(made, "vllm", "plain")["mean_acceptance_length"] is None


def test_transformers_drafts_are_what_its_passes_do_not_explain(made):
    assert figures(made, "mmspec", "transformers lookup")["MAT (repository)"] == 16 / 9  # 5 and 4 passes


@pytest.mark.parametrize("name", EXPLAINED)
def test_tables_name_every_method_and_explain_themselves(made, name):
    table = made.units(name)
    for text in (table.markdown(), str(table)):
        for part in ("plain", "eagle3 chain", "transformers lookup", EXPLAINED[name][0][:40]):
            assert part in text


def test_units_by_task(tmp_path):
    made = report(write_bundle(tmp_path / "bundle", [plain(), eagle3()], {"scenes": [9], "charts": [5]}))
    assert made.units("mmspec").scopes == ["scenes", "charts", "all"]
    assert figures(made, "mmspec", scope="charts")["MAT (repository)"] == 5 / 3


def test_what_cannot_be_counted_is_refused(tmp_path, made):
    with pytest.raises(MMSpecError, match="units=eagel is unknown. Did you mean 'eagle'"):
        made.units("eagel")
    many = report(write_bundle(tmp_path / "many", [plain(), eagle3()], PROMPTS, batch=2))
    for call in (lambda: many.units("eagle"), lambda: many.export(tmp_path / "out")):
        with pytest.raises(MMSpecError, match="batch=2"):
            call()


def test_export_has_the_benchmarks_files_and_fields(tmp_path):
    bundle = write_bundle(tmp_path / "bundle", [plain(), eagle3(), lookup()], PROMPTS, turns=2)
    files = report(bundle).export(tmp_path / "out")
    names = ["baseline", "eagle3_chain", "transformers_lookup"]
    assert [path.name for path in files] == [f"{name}-temperature-0.jsonl" for name in names]
    answers = [[json.loads(line) for line in path.read_text().splitlines()] for path in files]
    assert all([line["question_id"] for line in lines] == ["scenes/test/0", "scenes/test/1"] for lines in answers)
    baseline, ours, stock = (lines[0]["choices"][0] for lines in answers)
    assert baseline["idxs"] == [8, 8] and baseline["decode_time"] == [5, 5] and "acceptance_length" not in baseline
    assert ours == {
        "index": 0,
        "turns": ["a text"] * 2,
        "idxs": [4, 4],
        "new_tokens": [9, 9],
        "wall_time": [3, 3],
        "draft_time": [1, 1],
        "acceptance_length": [[2, 0, 2, 0, 0]] * 2,
        "target_time": [2, 2],
    }
    assert "acceptance_length" not in stock and stock["idxs"] == [4, 4]
    for line in answers[1]:
        for new, lengths in zip(
            *(line["choices"][0][name] for name in ("new_tokens", "acceptance_length")), strict=True
        ):
            assert new == sum(lengths) + len(lengths)
    assert answers[1][0].keys() == {
        *("question_id", "topic", "category", "answer_id", "model_id", "choices", "tstamp"),
    }


def test_two_methods_of_one_file_name_are_refused(tmp_path):
    sides = [plain(), eagle3(label="a b"), eagle3(label="a, b")]
    with pytest.raises(MMSpecError, match="'a b' and 'a, b'"):
        report(write_bundle(tmp_path / "bundle", sides, PROMPTS)).export(tmp_path / "out")
    assert not (tmp_path / "out").exists()
