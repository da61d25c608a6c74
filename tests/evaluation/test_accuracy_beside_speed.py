"""Where a method may change the text, how right it is stands beside its speed: in records, figures and the table."""

from __future__ import annotations

import csv
import io
import json
import re

import pytest
from bundles import eagle3, plain, write_bundle
from running import Listed, interrupted_at, measure, side, tiny

from mmspec.data import Example
from mmspec.data.accuracy import metrics_of
from mmspec.drafters import NGramDrafter
from mmspec.evaluation import report
from mmspec.evaluation.bundle import Bundle
from mmspec.similarity import similarity
from mmspec.verifiers import Greedy

pytestmark = pytest.mark.product

TOKENS = 6


class TakesAll(Greedy):
    """Believes every first guess, and says so."""

    lossless = False

    def verify(self, tree, scores):
        if tree.num_nodes > 1:
            scores.logits[:, 0] = -1.0
            scores.logits[:, 0].scatter_(1, tree.tokens[:, 1:2], 1.0)
        return super().verify(tree, scores)


def asked(*references: str, name: str = "documents/test/100", follow_ups=()) -> Example:
    return Example(name, "What does it say?", (f"tiny:{name}",), "documents", None, None, follow_ups, references)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    """Three questions, of which plain decoding answers the first, and nobody knows what is right for the last."""
    target = tiny()
    folder = tmp_path_factory.mktemp("measured") / "b"
    first = measure(
        tmp_path_factory.mktemp("said") / "b", Listed(asked()), chosen=[side("plain", target, tokens=TOKENS)]
    )
    source = Listed(
        asked("nothing of the kind", first.requests[0]["text"][0], follow_ups=("And then?",)),
        asked("xyz", name="documents/test/101"),
        asked(name="documents/test/102"),
    )
    source.metric = metrics_of({"documents": "exact_match"})
    sides = [side("plain", target, tokens=TOKENS)]
    sides += [side("exact", target, NGramDrafter(target), tokens=TOKENS)]
    sides += [side("lossy", target, NGramDrafter(target), verifier=TakesAll(), tokens=TOKENS)]

    with pytest.raises(KeyboardInterrupt):
        measure(folder, source, chosen=sides, progress=interrupted_at(2), repeats=2)
    return measure(folder, source, chosen=sides, repeats=2)


def test_records_say_how_right_and_how_like_plain_an_answer_is(bundle):
    found = {(r["request"], r["turn"], r["side"]): r for r in bundle.requests if r["repeat"] == 0}
    for name in ("plain", "exact", "lossy"):
        right, wrong, unknown = (found[request, 0, name]["accuracy"] for request in range(3))
        assert right == [{"points": float(found[0, 0, name]["text"] == found[0, 0, "plain"]["text"]), "of": 1.0}]
        assert wrong == [{"points": 0.0, "of": 1.0}] and unknown == [None]
        assert found[0, 0, name]["metric"] == "exact_match"
        assert found[0, 1, name]["accuracy"] is None, "what is right for the first question is not for the second"
    for key, record in found.items():
        alike = [similarity(found[*key[:2], "plain"]["token_ids"][0], record["token_ids"][0])]
        assert record["similarity"] == (alike if key[2] == "lossy" else None)
    assert any(record["similarity"] and record["similarity"][0] < 1 for record in found.values()), "nothing differed"
    assert not any("accuracy" in record for record in bundle.requests if record["repeat"])


def test_the_table_shows_accuracy_and_similarity_of_a_run(bundle):
    made = report(bundle.folder)
    records = [r for r in bundle.requests if r["repeat"] == 0 and r["side"] == "lossy"]
    alike = [r["similarity"][0] for r in records]
    points = records[0]["accuracy"][0]["points"]
    headings, rows = made.table().cells()
    shown = {row[0]: dict(zip(headings, row, strict=True)) for row in rows}
    assert shown["plain"]["accuracy"].startswith("0.50") and shown["exact"]["accuracy"].startswith("0.50")
    assert shown["lossy"]["accuracy"].startswith(f"{points / 2:.2f}")
    same = shown["lossy"]["same text as plain"]
    assert same == f"lossy: {alike.count(1.0)}/4, similarity {sum(alike) / 4:.2f}"
    assert shown["exact"]["same text as plain"] == "4/4"
    markdown = re.sub(" +", " ", made.table().markdown())
    assert "| method | documents (exact_match) |" in markdown and "\n| plain | 0.50 |" in markdown
    assert "accuracy, by task" in str(made.table()) and "Similarity: 1 - edit distance" in markdown


def judged(folder, accuracy, metric="anls", lossless=False, **options):
    """A bundle whose answers, of plain decoding and of another method, got so many points of four."""
    sides = [plain(), eagle3(lossless=lossless, **options)]
    folder = write_bundle(folder, sides, {task: [9, 17] for task in ("scenes", "charts")})
    lines = []
    for line in (folder / "requests.jsonl").read_text().splitlines():
        record = json.loads(line)
        points = 4 if record["side"] == "plain" else accuracy[record["task"]]
        record |= {"metric": metric, "accuracy": [{"points": points, "of": 4}]}
        record["similarity"] = None if lossless or record["side"] == "plain" else [0.5 + points / 8]
        lines.append(json.dumps(record))
    (folder / "requests.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def test_the_mean_is_over_tasks_and_a_line_of_the_csv_over_prompts(tmp_path):
    made = report(judged(tmp_path / "a", {"scenes": 4, "charts": 1}))
    mean = made.rows[1].mean
    assert mean.accuracy.value == 0.625 and mean.similarity.value == 0.8125 and mean.accuracy.low == 0.625
    assert made.rows[0].mean.accuracy.value == 1.0 and made.rows[0].mean.similarity is None
    lines = {(line["method"], line["task"]): line for line in csv.DictReader(io.StringIO(made.table().csv()))}
    line = lines["eagle3 chain", "charts"]
    assert (line["accuracy"], line["similarity"], line["metric"], line["alike_same"]) == ("0.25", "0.625", "anls", "0")
    assert made.as_json()["rows"][1]["tasks"]["charts"]["accuracy"]["value"] == 0.25


def test_lossless_methods_alone_have_no_such_column(tmp_path):
    made = report(judged(tmp_path / "a", {"scenes": 4, "charts": 4}, lossless=True))
    assert "accuracy" not in made.table().cells()[0] and "accuracy, by task" not in str(made.table())
    write_bundle(tmp_path / "b", [plain(), eagle3(lossless=False)], {"scenes": [9]})
    made = report(tmp_path / "b")  # of a lossy method, from before anything was judged
    assert "accuracy" not in made.table().cells()[0] and "Accuracy is not measured" in "".join(made.table().notes)


def test_bundles_come_together_and_metrics_do_not_mix(tmp_path):
    write_bundle(tmp_path / "all" / "old", [plain(), eagle3(label="fast")], {"scenes": [9, 17], "charts": [9, 17]})
    judged(tmp_path / "all" / "one", {"scenes": 4, "charts": 2})
    made = report(tmp_path / "all")
    shown = {row.method: row.mean for row in made.rows}
    assert shown["plain"].accuracy.value == 1.0 and shown["eagle3 chain"].accuracy.value == 0.75
    assert shown["fast"].accuracy is None and made.table().judged
    judged(tmp_path / "all" / "two", {"scenes": 0, "charts": 0}, metric="contains", label="other", drafted=5)
    shown = {row.method: row for row in report(tmp_path / "all").rows}
    assert shown["plain"].mean.accuracy is None, "points of one metric were added to those of another"
    assert shown["plain"].overall.metric == "anls contains"
    assert shown["other"].mean.accuracy.value == 0 and shown["eagle3 chain"].mean.accuracy.value == 0.75


def test_strange_records_are_refused(tmp_path):
    folder = judged(tmp_path / "a", {"scenes": 4, "charts": 2})
    text = (folder / "requests.jsonl").read_text()
    (folder / "requests.jsonl").write_text(text.replace('"of": 4', '"of": "many"', 1))
    with pytest.raises(Exception, match="accuracy.*must be"):
        Bundle.open(folder).requests  # noqa: B018
