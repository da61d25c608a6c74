"""`scripts/train_on_slurm.py` on one machine, through submitit's own executor for that."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
from processes import finish
from tiny_training import logged

import mmspec
from mmspec.data import EmbeddedSource
from mmspec.training.distill import distill

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "scripts" / "train_on_slurm.py"
FEW = ["steps=3", "warmup_steps=0", "batch_size=4", "rows=2", "held_out=2", "measured_prompts=0", "device=cpu"]

pytestmark = pytest.mark.skipif(not SCRIPT.exists(), reason="not a checkout")


@pytest.fixture(scope="module")
def answers(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("answers")
    distill(mmspec.load_target("tiny"), EmbeddedSource(count=3), folder, max_new_tokens=12)
    return folder


def submitted(answers: Path, folder: Path, *settings: str) -> subprocess.Popen:
    """Start a job of two processes on this machine."""
    pytest.importorskip("submitit")
    places = ["--data", str(answers), "--output", str(folder / "run")]
    job = ["--local", "--gpus", "0", "--processes", "2", "--logs", str(folder / "logs")]
    paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    return subprocess.Popen(
        [sys.executable, str(SCRIPT), *job, "--", "recipe=eagle3", *places, *FEW, *settings],
        env=os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.slow
def test_a_job_trains_with_two_processes(answers, tmp_path):
    job = submitted(answers, tmp_path)
    said, errors = finish(job)
    assert job.returncode == 0, errors[-3000:]
    assert str(tmp_path / "logs") in said
    assert len((tmp_path / "run" / "log.csv").read_text().splitlines()) == 2, "the header and the last step"
    assert {path.name for path in (tmp_path / "run").glob("dropped-*")} <= {"dropped-0.jsonl", "dropped-1.jsonl"}
    mmspec.load_drafter(str(tmp_path / "run" / "best"), mmspec.load_target("tiny"))
    (log,) = (tmp_path / "logs").glob("*.out")
    assert "accepted by position" in log.read_text()


@pytest.mark.slow
def test_a_job_whose_time_ends_saves_queues_up_again_and_goes_on(answers, tmp_path):
    """submitit's executor for one machine sends the signal that Slurm sends, and starts the job anew as Slurm would."""
    job = submitted(answers, tmp_path, "steps=40", "save_every=1000", "log_every=1", "dtype=float32")
    log, end = tmp_path / "run" / "log.csv", time.monotonic() + 500
    while job.poll() is None and time.monotonic() < end and not (log.exists() and log.read_text().count("\n") > 2):
        time.sleep(0.1)
    (machine,) = (
        each for each in psutil.Process(job.pid).children(recursive=True) if "submitit.core._submit" in each.cmdline()
    )
    machine.send_signal(signal.SIGUSR2)
    _, errors = finish(job)
    assert job.returncode == 0, errors[-3000:]
    said = "".join(path.read_text() for path in (tmp_path / "logs").iterdir() if path.suffix in (".out", ".err"))
    assert said.count("going on in") == 1 and "Requeued job" in said
    assert [int(float(row["step"])) for row in logged(tmp_path / "run")] == list(range(1, 41))


@pytest.fixture
def script(monkeypatch):
    """The script as a module, on the first of so many machines."""
    submitit = pytest.importorskip("submitit")
    job = SimpleNamespace(rank=0, master_addr="first", master_port=29500, num_nodes=1)
    monkeypatch.setattr(submitit.helpers, "TorchDistributedEnvironment", lambda: job)
    monkeypatch.setattr(submitit, "JobEnvironment", lambda: job)
    spec = importlib.util.spec_from_file_location("train_on_slurm", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "train_on_slurm", module)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(("processes", "launched"), [(1, False), (2, True)])
def test_the_training_hears_the_signal_that_asks_to_save(script, monkeypatch, processes, launched):
    """accelerate's launcher of a single process ends alone when it is asked to, and leaves the training running."""
    started = []
    monkeypatch.setattr(
        script.subprocess,
        "Popen",
        lambda command, env: started.append(command) or SimpleNamespace(poll=int, returncode=0),
    )
    script.Machine(["steps=1"], "a.yaml", processes)()
    (command,) = started
    assert command[-4:] == ["-m", "mmspec", "train", "steps=1"]
    assert ("accelerate.commands.launch" in command) == launched == (len(command) > 5)


def test_a_training_that_does_not_end_in_time_is_queued_again(script, monkeypatch):
    monkeypatch.setattr(script, "SAVING_SECONDS", 0.1)
    machine = script.Machine(["steps=1"], "a.yaml", 1)
    deaf = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(flush=True); time.sleep(60)"
    machine.running = subprocess.Popen([sys.executable, "-c", deaf], stdout=subprocess.PIPE)
    machine.running.stdout.readline()
    try:
        again = machine.checkpoint()
        assert machine.running.poll() is None and again.function == script.Machine(["steps=1"], "a.yaml", 1)
    finally:
        machine.running.kill()
        machine.running.communicate()


@pytest.mark.slow
def test_a_file_that_is_not_there():
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--local", "--config", "fsdp9", "--", "steps=1"], capture_output=True, text=True
    )
    assert done.returncode == 2 and "--config fsdp9: there is no such file; choose from" in done.stderr
