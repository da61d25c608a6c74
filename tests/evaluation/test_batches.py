"""Several batch sizes in one run: what is measured, what it is compared with, and what a reader sees."""

from __future__ import annotations

import csv
import io
import json

import pytest
from running import PAGE, AcceptsAll, Listed, interrupted_at, lines, measure, questions, side, sides, tiny

from mmspec.cli import main
from mmspec.drafters import NGramDrafter
from mmspec.errors import MMSpecError
from mmspec.evaluation import report
from mmspec.evaluation.bench import complete, prepare_run
from mmspec.evaluation.bundle import REQUESTS, Bundle
from mmspec.evaluation.engines import MMSpecEngine, TransformersEngine
from mmspec.evaluation.methods import PLAIN, Method
from mmspec.evaluation.questions import MIXED, grouped
from mmspec.exactness import Divergence

pytestmark = pytest.mark.product

THREE = (100, 101, 102)


def single(target) -> Method:
    """Prompt lookup of transformers, which takes single prompts only."""
    made = side("lookup", target)
    drafter = NGramDrafter(target)
    sampling, most = made.running.sampling, made.running.max_new_tokens
    made.engine = TransformersEngine(target, drafter, None, None, sampling, most)
    made.overrides = ("engine=transformers", "drafter=ngram")
    return made


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    """Three prompts at batch sizes 2 and 1, one method that takes both and one that takes single prompts."""
    target = tiny()
    place = tmp_path_factory.mktemp("sizes") / "b"
    return measure(place, questions(*THREE), chosen=[*sides(target), single(target)], batch_size=[2, 1], repeats=2)


def test_every_prompt_is_asked_at_every_size(bundle):
    assert bundle.complete and bundle.manifest["batch"] == [1, 2] and bundle.manifest["requests"] == 5
    by_size = {}
    for record in bundle.requests:
        if record["repeat"] == 0:
            by_size.setdefault((record["side"], record["batch"]), []).append(record["ids"])
    names = [f"scenes/test/{number}" for number in THREE]
    for label in (PLAIN, "ngram"):
        assert by_size[label, 1] == [[name] for name in names]
        assert by_size[label, 2] == [names[:2], names[2:]]
    assert ("lookup", 1) in by_size and ("lookup", 2) not in by_size


def test_each_size_is_compared_with_plain_decoding_of_its_own(bundle):
    made = report(bundle.folder)
    rows = {(row.method, row.conditions["batch"]): row for row in made.rows}
    assert set(rows) == {(PLAIN, 1), (PLAIN, 2), ("ngram", 1), ("ngram", 2), ("lookup", 1)}
    for size in (1, 2):
        assert rows[PLAIN, size].mean.speedup.value == 1
        exact = rows["ngram", size].overall.exact
        assert (exact.same, exact.compared, exact.single_same, exact.single_compared) == (3, 3, 3, 3)
        ours, theirs = ([r for r in bundle.requests if r["batch"] == size and r["side"] == s] for s in ("ngram", PLAIN))
        seconds = [sum(r["wall"] for r in some) for some in (ours, theirs)]
        assert rows["ngram", size].mean.speedup.value == pytest.approx(seconds[1] / seconds[0], rel=0.3)


def test_a_reader_sees_the_sizes(bundle, tmp_path, capsys):
    made = report(bundle.folder)
    headings, rows = made.table().cells()
    assert headings[:2] == ["method", "batch size"] and [row[1] for row in rows] == ["1", "1", "1", "2", "2"]
    assert {row[headings.index("exact match with single prompts")] for row in rows} == {"100% (3/3)"}
    by_size = made.table().sheets[-1]
    assert by_size.headings == ["figure", "method", "batch size 1", "batch size 2"]
    assert ["exact match with single prompts", "lookup", "100% (3/3)", "-"] in by_size.rows
    notes = "\n".join(made.table().notes)
    for part in (
        "batches of 1, 2,",
        "over plain at the same batch size",
        "Batches of 2: 1 of 2 hold fewer",
        "at no other batch size: lookup",
    ):
        assert part in notes
    found = list(csv.DictReader(io.StringIO(made.table().csv())))
    assert {line["batch"] for line in found} == {"1", "2"} and "exact_single_same" in found[0]
    assert set(made.frame()["batch"]) == {1, 2} and len(made.as_json()["bundles"]) == 1
    page = tmp_path / "page.md"
    assert main(["report", str(bundle.folder), "--limits", "--into", str(page), "--output", str(tmp_path / "out")]) == 0
    assert "batches.png" in page.read_text() and (tmp_path / "out" / "batches.png").stat().st_size
    assert "batch size 2" in page.read_text()
    capsys.readouterr()


def test_an_answer_that_a_batch_changes_is_counted(bundle, tmp_path):
    folder = tmp_path / "changed"
    folder.mkdir()
    for file in bundle.folder.iterdir():
        if file.is_file() and file.suffix != ".lock":
            (folder / file.name).write_bytes(file.read_bytes())
    records = lines(folder / REQUESTS)
    for record in records:
        if record["batch"] == 2 and len(record["ids"]) == 2 and "token_ids" in record:
            record["token_ids"][1][-1] += 1  # plain decoding and the method alike: the batch did it
    (folder / REQUESTS).write_text("".join(json.dumps(record) + "\n" for record in records))
    rows = {(row.method, row.conditions["batch"]): row for row in report(folder).rows}
    for label in (PLAIN, "ngram"):
        exact = rows[label, 2].overall.exact
        assert (exact.single_same, exact.single_compared) == (2, 3)
    assert rows["ngram", 2].overall.exact.same == 3 and rows["ngram", 1].overall.exact.single_same == 3


def test_an_interrupted_run_goes_on(tmp_path):
    target = tiny()
    chosen = [*sides(target), single(target)]
    options = {"chosen": chosen, "batch_size": [1, 2]}
    with pytest.raises(KeyboardInterrupt):
        measure(tmp_path / "b", questions(*THREE), progress=interrupted_at(4), **options)
    begun = Bundle.open(tmp_path / "b")
    assert not begun.complete and len(begun.blocks()) == 4
    assert report(tmp_path / "b", partial=True).rows
    bundle = measure(tmp_path / "b", questions(*THREE), **options)
    assert bundle.complete and len(bundle.blocks()) == 5


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("0", "batch_size=0: 0 is no whole number of at least 1; give one, or several such as batch_size=1,4,8"),
        ("a", "batch_size=a: 'a' is no whole number"),
        ("4,a", "batch_size=4,a: 'a' is no whole number"),
        ("1,1", "batch_size=1,1 has 1 more than once: leave one out"),
        ("[]", "batch_size=: there is no number"),
        ("1.5", "batch_size=1.5: 1.5 is no whole number"),
    ],
)
def test_sizes_that_are_none_are_refused(given, message):
    with pytest.raises(MMSpecError) as caught:
        prepare_run(["drafter=ngram", f"batch_size={given}"])
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_the_pictures_that_ship_fill_the_largest_batch():
    assert "task.count=16" in complete(["drafter=ngram", "batch_size=1,4,8,16"])
    for overrides in (["batch_size=4"], ["batch_size=8", "task.count=2"], ["batch_size=8", "task=folder"]):
        assert not any(one == "task.count=8" for one in complete(overrides))
    config, settings, _ = prepare_run(["experiment=batches"])
    assert settings.batches == [1, 8] and config.task.count == 8


def test_a_mixed_batch_takes_from_each_task_in_turns():
    source = Listed(*questions(100, 101, 102).examples, *questions(100, 101, tasks=("charts",)).examples)
    groups = list(grouped(source, 2, mixed=True))
    found = [[example.id for example in group.examples] for group in groups]
    assert found == [
        ["scenes/test/100", "charts/test/100"],
        ["scenes/test/101", "charts/test/101"],
        ["scenes/test/102"],
    ]
    assert {group.task for group in groups} == {MIXED}


class SlipsAtTheEnd(MMSpecEngine):
    """Right in every pass; its last token is written down wrongly, as if two logits had been equal."""

    def answer(self, request, seed):
        found = super().answer(request, seed)
        found.token_ids[0][-1] += 1
        return found


def slipping(target) -> Method:
    made = side("slips", target, NGramDrafter(target))
    engine = made.running
    made.engine = SlipsAtTheEnd(target, engine.drafter, None, None, engine.sampling, engine.max_new_tokens)
    return made


def test_what_rounding_explains_is_said_and_no_more_is_looked_for_than_asked(tmp_path):
    target = tiny("bfloat16")
    chosen = [side(PLAIN, target), slipping(target)]
    bundle = measure(tmp_path / "b", questions(*THREE), target, chosen, tie=1e9, attributed=2)
    found = [record["divergence"][0] for record in bundle.requests if record["side"] == "slips"]
    assert [one.get("cause") for one in found] == ["rounding", "rounding", None]
    (note,) = [note for note in report(bundle.folder).table().notes if note.startswith("slips: 3 of 3 answers differ")]
    assert "the 2 whose cause was looked for by rounding: tree passes round as any pass does" in note


def test_a_fault_fails_the_method_even_at_a_near_tie(tmp_path):
    target = tiny("bfloat16")
    chosen = sides(target, verifier=AcceptsAll())
    with pytest.raises(Divergence, match="the rule that accepts tokens is WRONG"):
        measure(tmp_path / "b", PAGE, target, chosen, tie=1e9)
    bundle = measure(tmp_path / "c", PAGE, target, chosen, tie=1e9, on_divergence="report")
    table = report(bundle.folder).table()
    assert table.cells()[1][1][-1] == "0/1, 1 near-tie, 1 FAULT"
    assert any("1 by a FAULT: the rule" in note for note in table.notes)
