"""`mmspec report --prompt`: what comes before the first round, and memory, from a bundle with known phases."""

from __future__ import annotations

import json

import pytest
from bundles import eagle3, lookup, plain, write_bundle

from mmspec import cli
from mmspec.evaluation.plots import PLOTS, looks_of
from mmspec.evaluation.reporting import report

pytestmark = pytest.mark.product


@pytest.fixture
def bundle(tmp_path):
    """Two lengths of prompts; the drafter prunes for a quarter of a second."""
    folder = write_bundle(tmp_path / "b", [plain(), eagle3(), lookup()], {"short": [9, 17], "long": [9]})
    file = folder / "requests.jsonl"
    records = [json.loads(line) for line in file.read_text().splitlines()]
    for record in records:
        if record["side"] == "eagle3 chain":
            record["seconds"] |= {"prune": 0.25, "draft_prefill": 0.5}
            record["wall"] += 0.75
            record["cache_bytes"] = {"target": 2 * 2**20, "drafter": 2**19}
        if record["task"] == "long":
            record["prompt_tokens"] = [80]
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
    return folder


def test_phases_and_memory_by_hand(bundle):
    headings, rows = report(bundle).prompt().cells()
    found = {(row[0], row[1]): dict(zip(headings, row, strict=True)) for row in rows}
    assert [task for _, task in found] == ["short"] * 3 + ["long"] * 3
    assert {method for method, _ in found} == {"plain", "eagle3 chain", "transformers lookup"}
    one, base = found["eagle3 chain", "long"], found["plain", "long"]
    assert one["prompt tokens"] == base["prompt tokens"] == "80"
    assert (one["pruning ms"], one["drafter's prefill ms"]) == ("250.0", "500.0")
    assert (base["pruning ms"], base["drafter's prefill ms"]) == ("0.0", "0.0")
    assert one["target's prefill ms"] == base["target's prefill ms"]
    whole = sum(float(one[name]) for name in headings if name.endswith(" ms") and name != "all ms")
    assert whole == pytest.approx(float(one["all ms"]))
    assert (one["target's cache MiB"], one["drafter's cache MiB"]) == ("2.0", "0.5")
    assert base["target's cache MiB"] == "-"


def test_pruning_is_no_decoding(bundle):
    rows = {row.method: row for row in report(bundle).rows}
    (decoding,) = {rows["eagle3 chain"].tasks[task].speedup_decode.value for task in ("long",)}
    assert decoding > rows["eagle3 chain"].tasks["long"].speedup.value


def test_on_request_only(bundle, tmp_path, capsys):
    assert cli.main(["report", str(bundle)]) == 0
    assert "pruning" not in capsys.readouterr().out
    out, file = tmp_path / "out", tmp_path / "results.md"
    assert cli.main(["report", str(bundle), "--prompt", "--output", str(out), "--into", str(file)]) == 0
    assert "pruning" in capsys.readouterr().out
    assert "pruning ms" in (out / "prompt.md").read_text() and "pruning ms" in file.read_text()


def test_speed_is_drawn_against_lengths_that_differ(bundle, tmp_path):
    def drawn(folder):
        rows = report(folder).rows
        return PLOTS["lengths"].draw(rows, looks_of(rows))

    (axes,) = drawn(bundle).axes
    assert {line.get_label() for line in axes.lines[:2]} == {"eagle3 chain", "transformers lookup"}
    assert all(list(line.get_xdata()) == [10, 80] for line in axes.lines[:2])
    assert drawn(write_bundle(tmp_path / "alike", [plain(), eagle3()], {"one": [9], "other": [9]})) is None
