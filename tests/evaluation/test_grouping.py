"""Which bundles go together, and what is refused."""

from __future__ import annotations

import json

import pytest
from bundles import eagle3, lookup, plain, write_bundle

from mmspec.errors import MMSpecError
from mmspec.evaluation import report

pytestmark = pytest.mark.product

OTHER = {"name": "other", "class": "Llava", "dtype": "float32", "fingerprint": "f" * 16}


def labels(made):
    return [row.method for row in made.rows]


def test_the_same_method_of_two_bundles_is_one(tmp_path):
    write_bundle(tmp_path / "a", [plain(), eagle3()], {"scenes": [9]})
    # Another machine, twice as slow on both sides: each is measured against its own plain decoding.
    slow = [plain(pass_seconds=1.0), eagle3(pass_seconds=1.0)]
    write_bundle(tmp_path / "b", slow, {"charts": [9]})
    made = report(tmp_path)
    assert labels(made) == ["plain", "eagle3 chain"]
    row = made.rows[1]
    assert row.tasks["scenes"].speedup.value == 5 / 3 and row.tasks["charts"].speedup.value == 9 / 5
    assert row.overall.repeats == 1


def test_the_same_request_again_is_another_repeat(tmp_path):
    write_bundle(tmp_path / "a", [plain(), eagle3()], {"scenes": [9]})
    write_bundle(tmp_path / "b", [plain(), eagle3(pass_seconds=1.0)], {"scenes": [9]})
    figures = report(tmp_path).rows[1].overall
    assert (figures.requests, figures.repeats, figures.tokens) == (1, 2, 9)
    assert figures.spread == (1, 5 / 3)
    assert figures.speedup.value == 5 / 4  # the median of 3 and 5 seconds


def test_sampled_answers_of_another_seed_are_no_repeats(tmp_path):
    for seed in (0, 1):
        sampling = {"temperature": 1.0}
        write_bundle(tmp_path / str(seed), [plain(), eagle3()], {"scenes": [9]}, sampling=sampling, seed=seed)
    figures = report(tmp_path).rows[1].overall
    assert (figures.requests, figures.repeats) == (2, 1)


def test_other_settings_are_another_method(tmp_path):
    write_bundle(tmp_path / "a", [plain(), eagle3()], {"scenes": [9]})
    write_bundle(tmp_path / "b", [plain(), eagle3(settings={"tree": {"length": 5}})], {"scenes": [9]})
    assert sorted(labels(report(tmp_path)))[:2] == ["eagle3 chain (tree.length=3)", "eagle3 chain (tree.length=5)"]


def test_a_method_without_a_task_has_a_gap_and_no_mean(tmp_path):
    write_bundle(tmp_path / "a", [plain(), eagle3()], {"scenes": [9], "charts": [5]})
    write_bundle(tmp_path / "b", [plain(), lookup()], {"scenes": [9]})
    made = report(tmp_path)
    assert labels(made) == ["plain", "eagle3 chain", "transformers lookup"]
    row = made.rows[2]
    assert row.tasks["charts"] is None and row.mean is None and row.tasks["scenes"] is not None


def test_a_bundle_named_twice_counts_once(tmp_path):
    folder = write_bundle(tmp_path / "a", [plain(), eagle3()], {"scenes": [9]})
    assert report([tmp_path, folder, tmp_path / "a" / ".." / "a"]).rows[1].overall.repeats == 1


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"target": OTHER}, "target: tiny .* and other"),
        ({"target": OTHER | {"fingerprint": "0123456789abcdef", "dtype": "bfloat16"}}, "dtype: float32 and bfloat16"),
        ({"sampling": {"temperature": 1.0}}, "sampling"),
        ({"batch": 4}, "batch: 1 and 4"),
        ({"max_new_tokens": 8}, "max_new_tokens: 128 and 8"),
    ],
)
def test_different_conditions_are_refused_unless_asked(tmp_path, changes, named):
    write_bundle(tmp_path / "a", [plain(), eagle3()], {"scenes": [9]})
    write_bundle(tmp_path / "b", [plain(), eagle3()], {"scenes": [9]}, **changes)
    with pytest.raises(MMSpecError, match=f"differ in {named}.*--mixed"):
        report(tmp_path)
    made = report(tmp_path, mixed=True)
    assert labels(made) == ["plain", "eagle3 chain"] * 2 and len(made.groups) == 2


@pytest.mark.parametrize("status", ["running", "interrupted", "failed"])
def test_incomplete_bundles_are_refused_unless_asked(tmp_path, status):
    sides = [plain(), eagle3()]
    written = {"blocks": 1, "requests": 2, "rounds": 12}
    changes = {"status": status, "error": "disk full", "written": written}
    folder = write_bundle(tmp_path / "a", sides, {"scenes": [9, 9]}, **changes)
    path = folder / "requests.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:3]))  # of the second request plain only
    with pytest.raises(MMSpecError, match=rf"{status}; disk full\).*mmspec bench --resume .*--partial"):
        report(folder)
    made = report(folder, partial=True)
    assert made.rows[1].overall.requests == 1
    assert any(f"{status} (disk full), with 1 of 2 requests" in note for note in made.table().notes)


def test_another_baseline(tmp_path):
    folder = write_bundle(tmp_path / "a", [plain(), eagle3(), lookup()], {"scenes": [9]})
    made = report(folder, baseline="transformers lookup")
    assert labels(made)[0] == "transformers lookup"
    assert {row.method: row.overall.speedup.value for row in made.rows}["plain"] == pytest.approx(3.5 / 5)
    with pytest.raises(MMSpecError, match="'eagle3'.*Did you mean 'eagle3 chain'"):
        report(folder, baseline="eagle3")


def test_what_is_no_bundle_is_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    for folder, message in ((tmp_path / "gone", "no such folder"), (tmp_path / "empty", "no bundle")):
        with pytest.raises(MMSpecError, match=message):
            report(folder)
    with pytest.raises(MMSpecError, match="no bundles were given"):
        report([])
    folder = write_bundle(tmp_path / "a", [plain()], {"scenes": [9]}, format=99)
    with pytest.raises(MMSpecError, match="99"):
        report(folder)


def test_an_empty_bundle_has_no_figures(tmp_path):
    folder = write_bundle(tmp_path / "a", [plain(), eagle3()], {}, status="interrupted")
    made = report(folder, partial=True)
    assert all(row.overall is None and row.mean is None for row in made.rows)
    assert "| eagle3 chain |" in made.table().markdown()
    json.dumps(made.as_json())
