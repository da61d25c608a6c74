"""A side of a benchmark that fails is a row that says why, and the others have their figures."""

from __future__ import annotations

import csv
import io
import json

import pytest
from bundles import eagle3, plain, write_bundle
from running import PAGE, QUICK, AcceptsAll, interrupted_at, measure, questions, side, sides, tiny

from mmspec.cli import main
from mmspec.drafters import NGramDrafter
from mmspec.errors import MMSpecError
from mmspec.evaluation import report
from mmspec.evaluation.bundle import Bundle
from mmspec.evaluation.table import csv_lines

pytestmark = pytest.mark.product


class Stumbles(NGramDrafter):
    """Fails in its n-th answer, in the middle of it."""

    def __init__(self, target, error, after=1):
        super().__init__(target)
        self.error, self.calls, self.after = error, [], after

    shared = ("calls",)

    def start(self, context):
        self.calls.append(1)
        super().start(context)

    def draft(self, root):
        if len(self.calls) > self.after:
            raise self.error
        return super().draft(root)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (RuntimeError("sizes\nof tensors"), "question 'scenes/test/101': RuntimeError: sizes"),
        (MMSpecError("no room for a tree"), "question 'scenes/test/101': no room for a tree"),
        (MemoryError(), "question 'scenes/test/101': out of memory (MemoryError)"),
    ],
)
def test_a_failure_in_the_middle_costs_the_others_nothing(tmp_path, error, reason):
    target, heard = tiny(), []
    chosen = [*sides(target), side("stumbles", target, Stumbles(target, error))]
    bundle = measure(tmp_path / "b", questions(100, 101, 102), chosen=chosen, notice=heard.append)
    assert bundle.complete and [reason in why for why in bundle.failures.values()] == [True]
    assert len(heard) == 1 and heard[0].startswith("stumbles failed, the others go on: ")
    answers = {label: [r["request"] for r in bundle.requests if r["side"] == label] for label in ("plain", "ngram")}
    assert answers == {"plain": [0, 1, 2], "ngram": [0, 1, 2]}
    (failed,) = [side["failed"] for side in bundle.manifest["sides"] if side["label"] == "stumbles"]
    assert (failed["traceback"] is None) == isinstance(error, MMSpecError)
    rows = {row.method: row for row in report(tmp_path / "b").rows}
    assert rows["ngram"].overall.requests == 3 and rows["stumbles"].overall is None
    assert reason in rows["stumbles"].failed
    # With --partial there is what it had answered.
    assert {row.method: row for row in report(tmp_path / "b", partial=True).rows}["stumbles"].overall.requests == 1


def test_a_run_ends_when_no_method_is_left_or_plain_decoding_fails(tmp_path):
    target = tiny()
    slips = Stumbles(target, MMSpecError("it slipped"), 0)
    for label, chosen in (
        ("stumbles", [side("plain", target), side("stumbles", target, slips)]),
        ("plain", [side("plain", target, slips), side("other", target)]),
    ):
        with pytest.raises(MMSpecError, match=f"method '{label}', question 'scenes/test/100': it slipped"):
            measure(tmp_path / label, chosen=chosen)
        assert Bundle.open(tmp_path / label).manifest["status"] == "failed"


def test_a_method_that_is_wrong_fails_alone(tmp_path):
    target = tiny()
    wrong = side("wrong", target, NGramDrafter(target), verifier=AcceptsAll())
    bundle = measure(tmp_path / "b", PAGE, chosen=[*sides(target), wrong], repeats=2)
    assert bundle.complete and "is not lossless: on prompt 'documents/test/100'" in bundle.failures["wrong"]
    assert [r["same"] for r in bundle.requests if r["side"] == "wrong"] == [False], "one answer, and no second"
    assert [r["same"] for r in bundle.requests if r["side"] == "ngram"] == [True, True]


def test_a_side_that_failed_stays_failed_when_its_run_goes_on(tmp_path):
    target = tiny()
    source = questions(100, 101, 102)
    wrong = [*sides(target), side("stumbles", target, Stumbles(target, MMSpecError("it slipped")))]
    with pytest.raises(KeyboardInterrupt):
        measure(tmp_path / "b", source, chosen=wrong, progress=interrupted_at(2))
    mended = [*sides(target), side("stumbles", target, NGramDrafter(target))]
    bundle = measure(tmp_path / "b", source, chosen=mended)
    assert bundle.complete and list(bundle.failures) == ["stumbles"] and len(bundle.blocks()) == 3


def test_a_side_that_has_answered_all_there_is_is_tried_again(tmp_path):
    target, source = tiny(), questions(100, 101)
    chosen = [side("plain", target), side("stumbles", target, Stumbles(target, MMSpecError("it slipped")))]
    with pytest.raises(MMSpecError, match="question 'scenes/test/101': it slipped"):
        measure(tmp_path / "b", source, chosen=chosen)
    chosen = [side("plain", target), side("stumbles", target, NGramDrafter(target))]
    bundle = measure(tmp_path / "b", source, chosen=chosen)
    assert bundle.complete and not bundle.failures and len(bundle.requests) == 4
    # One that wrote another text has answered, and trying again does not mend that.
    wrong = sides(target, verifier=AcceptsAll())
    for message in ("is not lossless", "no method is left to measure: method 'ngram' is not lossless"):
        with pytest.raises(MMSpecError, match=message):
            measure(tmp_path / "c", PAGE, chosen=wrong)


def test_the_row_says_why_everywhere(tmp_path):
    failed = eagle3(label="broken", failed="there is no folder 'runs/x'")
    folder = write_bundle(tmp_path / "a", [plain(), eagle3(), failed], {"scenes": [9], "charts": [5]})
    made = report(folder)
    table = made.table()
    assert table.cells()[1][-1][-1] == "FAILED: there is no folder 'runs/x'"
    for text in (table.markdown(), str(table)):
        assert "FAILED: there is no" in text and "broken: there is no folder 'runs/x'" in text
    (line,) = [line for line in csv.DictReader(io.StringIO(table.csv())) if line["method"] == "broken"]
    assert line["failed"] == "there is no folder 'runs/x'" and line["speedup"] == ""
    assert [row["failed"] for row in json.loads(json.dumps(made.as_json()))["rows"]][-1]
    assert csv_lines(made.rows[1])[0]["failed"] is None
    for text in (str(made.limits()), str(made.units("vllm")), *map(str, made.save(tmp_path / "out"))):
        assert text
    # Measured again, in a bundle of its own, it joins the table.
    write_bundle(tmp_path / "b", [plain(), eagle3(label="broken")], {"scenes": [9], "charts": [5]})
    rows = {row.method: row for row in report([tmp_path / "a", tmp_path / "b"]).rows}
    assert rows["broken"].mean.speedup.value == rows["eagle3 chain"].mean.speedup.value


@pytest.mark.usefixtures("no_plots")
def test_what_cannot_be_built_is_a_row_and_the_exit_code_tells(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    methods = (
        f"methods={{gone:'drafter={tmp_path}/empty',theirs:'engine=transformers drafter=eagle3',ok:'drafter=ngram'}}"
    )
    output = str(tmp_path / "b")
    assert main(["bench", methods, "task=scenes", *QUICK, "--output", output]) == 1
    out, err = capsys.readouterr()
    bundle = Bundle.open(output)
    assert bundle.complete and set(bundle.failures) == {"gone", "theirs"}
    assert "engine=transformers has no counterpart of Eagle3Drafter" in bundle.failures["theirs"]
    assert out.count("FAILED: ") >= 2 and "2 of 4 methods failed (gone, theirs)" in err
    assert "Traceback" not in err and "Warning" not in err
    methods = f"methods={{gone:'drafter={tmp_path}/empty'}}"
    assert main(["bench", methods, "task=scenes", *QUICK, "--output", str(tmp_path / "c")]) == 2
    assert "method 'gone': " in capsys.readouterr().err
