"""`mmspec train` under `accelerate launch` with the files of configs/accelerate, on the embedded target: two processes
do what the command alone does, are killed, go on, and leave a head that `mmspec generate` takes."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from accelerate.commands import launch
from processes import finish, kill_all
from tiny_training import logged

import mmspec
from mmspec.data import EmbeddedSource
from mmspec.settings.options import shipped_folder
from mmspec.training.distill import distill

HERE = Path(__file__).parent
STEPS = ["steps=10", "warmup_steps=2", "batch_size=4", "rows=2", "held_out=2", "validate_every=10", "log_every=1"]
SHORT = ["save_every=3", "measured_prompts=0", "depth=2", "mixed_precision=no", "dtype=float32", "recipe=eagle3"]
PLACES = ["--num_processes", "2", "--main_process_port", "0"]

pytestmark = [pytest.mark.slow, pytest.mark.product]


@pytest.fixture(scope="module")
def answers(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("answers")
    distill(mmspec.load_target("tiny", "float32"), EmbeddedSource(count=3), folder, max_new_tokens=12)
    return folder


@pytest.fixture(scope="module")
def alone(answers, tmp_path_factory) -> Path:
    """The training of the command by itself."""
    run = tmp_path_factory.mktemp("alone") / "run"
    said_by(start([sys.executable, "-m", "mmspec"], answers, run, "device=cpu"))
    return run


def start(words: list[str], answers: Path, run: Path, *settings: str) -> subprocess.Popen:
    """Start `mmspec train`, with what stands before `train` as given."""
    paths = os.pathsep.join([str(HERE.parents[1]), os.environ.get("PYTHONPATH", "")])
    return subprocess.Popen(
        [*words, "train", "--data", str(answers), "--output", str(run), *STEPS, *SHORT, *settings],
        env=os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def said_by(process: subprocess.Popen, code: int = 0) -> str:
    """Wait for the end, and return what was said."""
    said, _ = finish(process)
    assert process.returncode == code, said[-3000:]
    return said


def kill_after(process: subprocess.Popen, file: Path) -> None:
    """Kill everything that was started as soon as a file is there, as where a machine loses its power."""
    end = time.monotonic() + 500
    while not file.exists() and process.poll() is None and time.monotonic() < end:
        time.sleep(0.05)
    assert file.exists() and process.poll() is None, "it ended before it could be killed"
    kill_all(process)


@pytest.mark.parametrize(
    ("file", "stage"),
    [
        pytest.param("fsdp2", None),
        *(
            pytest.param(
                "deepspeed",
                stage,
                marks=pytest.mark.skipif(
                    importlib.util.find_spec("deepspeed") is None, reason="needs mmspec[deepspeed]"
                ),
            )
            for stage in (2, 3)
        ),
    ],
)
def test_two_processes_killed_and_resumed(file, stage, answers, alone, tmp_path):
    run, config = tmp_path / "run", shipped_folder() / "accelerate" / f"{file}.yaml"
    words = [sys.executable, "-m", launch.__name__, "--config_file", str(config), *PLACES]
    words += [str(HERE / "as_gpus.py")] if stage is None else ["--zero_stage", str(stage), "-m", "mmspec"]
    kill_after(start(words, answers, run), run / "state" / "progress.json")
    assert len(logged(run)) < 10
    said = said_by(start(words, answers, run))
    assert "going on in" in said and "accepted by position" in said
    ours, theirs = logged(alone), logged(run)
    assert len(ours) == len(theirs) == 10
    for left, right in zip(ours, theirs, strict=True):
        for name, value in left.items():
            assert float(right[name]) == pytest.approx(float(value), rel=1e-4, abs=1e-6), (left["step"], name)
    asked = ["generate", f"drafter={run / 'best'}", "dtype=float32", "max_new_tokens=12", "compare=true", "json=true"]
    done = subprocess.run([sys.executable, "-m", "mmspec", *asked], capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["compare"]["identical"] and len(result["token_ids"]) == 12


def test_fsdp_without_gpus_is_refused(answers, tmp_path):
    """accelerate would train with every weight in every process, and say nothing."""
    config = shipped_folder() / "accelerate" / "fsdp2.yaml"
    words = [sys.executable, "-m", launch.__name__, "--config_file", str(config), *PLACES, "-m", "mmspec"]
    said = said_by(start(words, answers, tmp_path / "run", "device=cpu"), 1)
    assert "accelerate was started for FSDP, but would train with MULTI_CPU on cpu: leave device out" in said
