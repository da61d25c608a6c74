"""The projected column: what two devices would give where both sides took turns, beside what was measured."""

from __future__ import annotations

import json

import pytest
from bundles import eagle3, plain, write_bundle

from mmspec.evaluation.bench import benchmark
from mmspec.evaluation.reporting import report

HEADING = "speed-up, decoding, projected"


def cells_of(*folders) -> dict[str, dict[str, str]]:
    headings, rows = report(folders).table().cells()
    return {row[0]: dict(zip(headings, row, strict=True)) for row in rows}


def note_overlap(folder) -> None:
    """Let half of the decoding of all answers with rounds have overlapped."""
    file = folder / "requests.jsonl"
    records = [json.loads(line) for line in file.read_text().splitlines()]
    for record in records:
        if record["side"] == "eagle3 chain" and record["passes"]:
            whole = record["wall"] - sum(record["seconds"].get(phase, 0) for phase in ("vision", "prefill"))
            record["overlap_seconds"] = whole / 2
    file.write_text("".join(json.dumps(record) + "\n" for record in records))


def test_what_overlap_saves_is_left_out_of_decoding(tmp_path):
    folder = write_bundle(tmp_path / "b", [plain(), eagle3(), eagle3(label="waits")], {"scenes": [9, 17]})
    assert HEADING not in cells_of(folder)["plain"]
    note_overlap(folder)
    rows = {row.method: row for row in report(folder).rows}
    one = rows["eagle3 chain"].mean
    assert one.speedup_projected.value == 2 * one.speedup_decode.value
    assert rows["waits"].mean.speedup_projected is rows["plain"].mean.speedup_projected is None
    cells = cells_of(folder)
    assert cells["waits"][HEADING] == cells["plain"][HEADING] == "-"
    assert float(cells["eagle3 chain"][HEADING]) == pytest.approx(one.speedup_projected.value, abs=0.01)
    assert "no measurement" in report(folder).table().markdown()
    lines = report(folder).table().csv().splitlines()
    assert "speedup_projected" in lines[0].split(",")


@pytest.mark.parametrize("known", [0, 1])
@pytest.mark.parametrize("other", [[9, 17], [9, 17, 33]], ids=["the same questions", "further ones"])
def test_bundles_that_do_not_all_know_the_overlap_have_no_projection(tmp_path, known, other):
    """What was measured before there were projections would count as if nothing could overlap, and pull the figure
    down; the order of the bundles is all the same."""
    folders = [write_bundle(tmp_path / "0", [plain(), eagle3()], {"scenes": [9, 17]})]
    folders.append(write_bundle(tmp_path / "1", [plain(), eagle3()], {"scenes": [*other, 1]}))
    note_overlap(folders[known])
    assert HEADING in cells_of(folders[known])["plain"]
    assert HEADING not in cells_of(*folders)["plain"]
    note_overlap(folders[1 - known])
    cells = cells_of(*folders)["eagle3 chain"]
    assert float(cells[HEADING]) == pytest.approx(2 * float(cells["speed-up, decoding"]), abs=0.01)


@pytest.mark.product
def test_a_drafter_in_turn_has_a_projection_and_one_beside_has_none(tmp_path):
    sides = {
        name: f'{name}: "drafter=parallelvlm drafter.name=tiny/text_only drafter.overlap={overlap}"'
        for name, overlap in (("in turn", "false"), ("beside", "true"))
    }
    asked = ["task=tiny", "task.tasks=[scenes]", "task.count=1", "max_new_tokens=12", "repeats=1", "warmup=0"]
    benchmark([f"methods={{{', '.join(sides.values())}}}", *asked], tmp_path / "b")
    cells = cells_of(tmp_path / "b")
    assert float(cells["in turn"][HEADING]) > float(cells["in turn"]["speed-up, decoding"])
    assert cells["beside"][HEADING] == "-"
