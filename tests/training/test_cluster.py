"""`scripts/train_on_slurm.py` on one machine, through submitit's own executor for that."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import mmspec
from mmspec.data import EmbeddedSource
from mmspec.training.distill import distill

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "scripts" / "train_on_slurm.py"
FEW = ["steps=3", "warmup_steps=0", "batch_size=4", "rows=2", "held_out=2", "measured_prompts=0", "device=cpu"]

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not SCRIPT.exists(), reason="not a checkout")]


def test_a_job_trains_with_two_processes(tmp_path):
    pytest.importorskip("submitit")
    target = mmspec.load_target("tiny")
    distill(target, EmbeddedSource(count=3), tmp_path / "answers", max_new_tokens=12)
    places = ["--data", str(tmp_path / "answers"), "--output", str(tmp_path / "run")]
    job = ["--local", "--gpus", "0", "--processes", "2", "--logs", str(tmp_path / "logs")]
    paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, str(SCRIPT), *job, "--", "recipe=eagle3", *places, *FEW],
        env=os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert str(tmp_path / "logs") in done.stdout
    assert len((tmp_path / "run" / "log.csv").read_text().splitlines()) == 2, "the header and the last step"
    assert {path.name for path in (tmp_path / "run").glob("dropped-*")} <= {"dropped-0.jsonl", "dropped-1.jsonl"}
    mmspec.load_drafter(str(tmp_path / "run" / "best"), target)
    (log,) = (tmp_path / "logs").glob("*.out")
    assert "accepted by position" in log.read_text()


def test_a_file_that_is_not_there():
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--local", "--config", "fsdp9", "--", "steps=1"], capture_output=True, text=True
    )
    assert done.returncode == 2 and "--config fsdp9: there is no such file; choose from" in done.stderr
