"""Bundles that a kill, a full disk or a pair of scissors left: said to be incomplete, and gone on with."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from bundles import eagle3, plain, write_bundle
from running import QUICK, lines, measure, questions, tiny

from mmspec.errors import MMSpecError
from mmspec.evaluation import report
from mmspec.evaluation.bundle import CONFIG, MANIFEST, REQUESTS, ROUNDS, Bundle
from mmspec.evaluation.sweep import SWEEP, Sweep
from mmspec.files.storage import LOCK, UNFINISHED

pytestmark = pytest.mark.product


class Killed(BaseException):
    """The process is gone: nothing after it runs."""


@pytest.mark.parametrize("name", [REQUESTS, ROUNDS, MANIFEST])
def test_a_bundle_that_was_cut_is_never_read_as_if_it_were_whole(tmp_path, name):
    sides = [plain(), eagle3(label="ngram", accepted=[0], drafted=2)]
    folder = write_bundle(tmp_path / "b", sides, {"scenes": [9, 17], "charts": [5]}, repeats=2)
    whole, file = (folder / name).read_bytes(), folder / name
    ends = [i for i, byte in enumerate(whole) if byte == 10]
    refused = 0
    for end in sorted({*range(0, len(whole), 211), *(i + step for i in ends for step in (-1, 0, 1))}):
        file.write_bytes(whole[:end])
        if whole[:end].rstrip(b"\n") == whole.rstrip(b"\n") and name == MANIFEST:
            continue
        if end == len(whole):
            assert report(folder).rows[1].mean.mean_acceptance_length.value == 1
            continue
        with pytest.raises(MMSpecError) as caught:
            report(folder)
        assert "cut" in str(caught.value) or "empty" in str(caught.value)
        refused += 1
        if name != MANIFEST and end in ends[3::8]:  # what there is of it is right
            made = report(folder, partial=True)
            found = made.rows[1].overall
            assert found is None or found.mean_acceptance_length.value == 1
            assert "PARTIAL: " in "\n".join(made.table().notes)
    assert refused > 4


def test_a_bundle_of_an_older_mmspec_is_counted_by_its_passes_and_repeats(tmp_path):
    folder = write_bundle(tmp_path / "b", [plain(), eagle3()], {"scenes": [9, 9]}, repeats=2)
    manifest = json.loads((folder / MANIFEST).read_text())
    del manifest["written"]
    (folder / MANIFEST).write_text(json.dumps(manifest))
    assert Bundle.open(folder).complete
    for name in (ROUNDS, REQUESTS):
        whole = (folder / name).read_text()
        (folder / name).write_text("".join(whole.splitlines(keepends=True)[:-1]))
        assert not Bundle.open(folder).complete
        (folder / name).write_text(whole)


def test_what_was_cut_is_measured_again(tmp_path):
    source = questions(100, 101)
    whole = measure(tmp_path / "b", source)
    answers = [record["token_ids"] for record in whole.requests]
    rounds = (tmp_path / "b" / ROUNDS).read_bytes()
    (tmp_path / "b" / ROUNDS).write_bytes(rounds[:-40])
    cut = Bundle.open(tmp_path / "b")
    assert not cut.complete and "of 2 blocks" in cut.lost
    bundle = measure(tmp_path / "b", source)
    assert bundle.complete and [record["token_ids"] for record in bundle.requests] == answers
    assert bundle.manifest["written"] == {"blocks": 2, "requests": 4, "rounds": len(bundle.rounds)}


def test_killed_at_any_write_a_run_goes_on(tmp_path, monkeypatch):
    writes = [0]
    real = Path.replace

    def killing(point):
        def replace(self, target):
            writes[0] += 1
            if writes[0] == point:
                raise Killed
            return real(self, target)

        return replace

    for point in range(1, 9):
        folder = tmp_path / str(point)
        writes[0] = 0
        with monkeypatch.context() as patch:
            patch.setattr(Path, "replace", killing(point))
            patch.setattr(Path, "unlink", lambda self, missing_ok=False: None)  # a killed process tidies nothing
            try:
                measure(folder, questions(100))
            except Killed:
                pass
            else:
                break
        assert measure(folder, questions(100)).complete, f"killed at write {point}"
    assert point == 5  # configuration, manifest, the manifest behind the block, the manifest at the end


@pytest.mark.parametrize(
    "left", [(LOCK,), (LOCK, CONFIG), (CONFIG, MANIFEST), (f"{MANIFEST}{UNFINISHED}",), (REQUESTS,)]
)
def test_what_is_left_of_the_beginning_is_begun_again(tmp_path, left):
    folder = tmp_path / "b"
    folder.mkdir()
    for name in left:
        (folder / name).write_text("config: 1\n" if name == CONFIG else "")
    with pytest.raises(MMSpecError, match=r"before it had measured anything: .* --output|is empty: the run"):
        Bundle.open(folder)
    assert measure(folder, questions(100)).complete
    assert all(name in (LOCK, CONFIG, MANIFEST, REQUESTS, ROUNDS) for name in map(_name, folder.iterdir()))


def _name(path: Path) -> str:
    return path.name.removesuffix(UNFINISHED)


def test_a_sweep_that_was_killed_at_its_beginning_is_begun_again(tmp_path):
    (tmp_path / f"{SWEEP}{UNFINISHED}").write_text('{"jobs"')
    for torn in ("", '{"jobs": [["dr'):
        (tmp_path / SWEEP).write_text(torn)
        sweep = Sweep.begin(tmp_path, ["drafter=ngram", "seed=1,2", "task=scenes", *QUICK])
    assert [job[1] for job in Sweep.open(tmp_path).jobs.values()] == ["seed=1", "seed=2"]
    for name, text in zip(sweep.jobs, ("", '{"format": 1'), strict=True):  # jobs that left an empty or a torn manifest
        (tmp_path / name).mkdir()
        (tmp_path / name / MANIFEST).write_text(text)
    assert sweep.bundles == [] and list(sweep.failures()) == ["0,seed=1", "1,seed=2"]


def test_the_manifest_counts_after_every_block(tmp_path):
    seen = []

    def look(done, total, what):
        if done:
            written = json.loads((tmp_path / "b" / MANIFEST).read_text())["written"]
            seen.append((written, len(lines(tmp_path / "b" / REQUESTS)), len(lines(tmp_path / "b" / ROUNDS))))

    measure(tmp_path / "b", questions(100, 101), tiny(), progress=look)
    ((written, requests, rounds),) = seen
    assert written == {"blocks": 1, "requests": requests, "rounds": rounds} and requests == 2
