"""The same runs as others count them."""

from __future__ import annotations

import pytest
from bundles import eagle3, lookup, plain, write_bundle

from mmspec.errors import MMSpecError
from mmspec.evaluation import report
from mmspec.evaluation.conventions import EXPLAINED

pytestmark = pytest.mark.product

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
    with pytest.raises(MMSpecError, match="batch_size=2"):
        many.units("eagle")
