"""`mmspec report --limits`: the share of its limit that each method reaches, from a bundle with known phases."""

from __future__ import annotations

import json

import pytest
from bundles import eagle3, lookup, plain, write_bundle

from mmspec import cli
from mmspec.evaluation.reporting import report

pytestmark = pytest.mark.product


@pytest.fixture
def bundle(tmp_path):
    return write_bundle(tmp_path / "b", [plain(), eagle3(pass_seconds=2.0), lookup()], {"scenes": [9, 17]})


def test_limits_by_hand(bundle):
    table = report(bundle).limits()
    one = dict((row.method, one) for row, one in table.limits)["eagle3 chain"]
    (one_round,) = one.tasks.values()
    # Two tokens in rounds of 2 s: 0.5 drafting, 1 scoring, 0.5 observing; a plain token takes 0.5 s, all in its pass.
    assert (one_round.tokens, one_round.draft, one_round.score, one_round.overhead) == (2.0, 0.5, 1.0, 0.5)
    assert (one_round.step, one_round.plain, one_round.depth) == (0.5, 0.5, 3.0)
    assert one.speedup_decode == one_round.speedup == 0.5 and one.limit == 1.0 and one.share == 0.5
    assert one.levers == {
        "no_overhead": 2 / 3,
        "cheap_scoring": 2 / 3,
        "free_drafting": 2 / 3,
        "perfect_acceptance": 1.0,
    }
    headings, rows = table.cells()
    assert headings[:4] == ["method", "speed-up, decoding", "limit", "share of limit"]
    assert rows == [["eagle3 chain", "0.50", "1.00", "50%", "0.67", "0.67", "0.67", "1.00"]]
    assert "No limits of transformers lookup" in table.notes[1]


def test_a_baseline_of_another_loop_has_no_step(bundle):
    table = report(bundle, baseline="transformers lookup").limits()
    assert table.cells()[1] == [] and "plain; eagle3 chain" in table.notes[1]


def test_on_request_only(bundle, tmp_path, capsys):
    assert cli.main(["report", str(bundle)]) == 0
    assert "share of" not in capsys.readouterr().out
    out, file = tmp_path / "out", tmp_path / "results.md"
    assert cli.main(["report", str(bundle), "--limits", "--output", str(out), "--into", str(file)]) == 0
    assert "limits of the speed-up" in capsys.readouterr().out
    assert "| eagle3 chain | 0.50 | 1.00 | 50% |" in " ".join((out / "limits.md").read_text().split())
    (entry,) = json.loads((out / "limits.json").read_text())
    assert entry["method"] == "eagle3 chain" and entry["share"] == 0.5
    text = file.read_text()
    assert text.index("end to end") < text.index("share of limit") < text.index("speedup.png")
