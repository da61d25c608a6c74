"""Several processes do what one does: with data parallelism, FSDP2 or DeepSpeed, killed, resumed, and resumed by
others.

`several_processes.py` says how FSDP2 comes to run on processors.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate import FullyShardedDataParallelPlugin
from accelerate.commands import launch
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.utils import DistributedType
from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env
from processes import finish
from refusals import refused
from safetensors.torch import load_file
from tiny_training import logged, target, trainer

import mmspec
from mmspec.settings.options import shipped_folder
from mmspec.training.sharding import check_parallelism
from mmspec.training.zero import check_zero

HERE = Path(__file__).parent
zero = pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="needs mmspec[deepspeed]")
READY = sorted((shipped_folder() / "accelerate").glob("*.yaml"))


def train(folder: Path, head: str, processes: int = 1, *flags: str, killed: bool = False) -> Path:
    """Run the training of 20 steps."""
    several = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    paths = [str(HERE.parents[1]), str(HERE.parent / "support"), os.environ.get("PYTHONPATH", "")]
    process = subprocess.Popen(
        [sys.executable, *(several if processes > 1 else []), str(HERE / "several_processes.py"), folder, head, *flags],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    _, errors = finish(process)
    assert (process.returncode != 0) == killed, errors[-3000:]
    return folder


def same(one: Path, other: Path, tolerance: float = 1e-4) -> None:
    """Compare two trainings: every number of every step, and what was saved at the end."""
    ours, theirs = logged(one), logged(other)
    assert len(ours) == len(theirs) == 20
    for left, right in zip(ours, theirs, strict=True):
        for name, value in left.items():
            assert float(right[name]) == pytest.approx(float(value), rel=tolerance, abs=1e-2 * tolerance), (
                left["step"],
                name,
            )
    weights, others = (load_file(folder / "last" / "model.safetensors") for folder in (one, other))
    assert weights.keys() == others.keys()
    for name, tensor in weights.items():
        torch.testing.assert_close(
            others[name], tensor, rtol=tolerance, atol=tolerance, msg=lambda text, name=name: name + text
        )
    for name in ("best", "last"):
        mmspec.load_drafter(str(other / name), target())


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> dict[str, Path]:
    """The trainings in one process."""
    return {head: train(tmp_path_factory.mktemp(head) / "run", head) for head in ("eagle", "medusa")}


@pytest.fixture(scope="module")
def limited(tmp_path_factory) -> Path:
    """The training in one process whose gradient's norm is limited."""
    return train(tmp_path_factory.mktemp("limited") / "run", "eagle", 1, "--norm")


@pytest.mark.slow
@pytest.mark.parametrize("flags", [(), ("--fsdp",)], ids=["data parallelism", "FSDP2"])
@pytest.mark.parametrize("head", ["eagle", "medusa"])
def test_two_processes_do_what_one_does(alone, tmp_path, head, flags):
    same(alone[head], train(tmp_path / "run", head, 2, *flags))


@pytest.mark.slow
def test_fsdp_computes_in_autocast_as_one_process_does(alone, tmp_path):
    one = train(tmp_path / "one", "eagle", 1, "--bf16")
    assert logged(one) != logged(alone["eagle"])
    same(one, train(tmp_path / "two", "eagle", 2, "--fsdp", "--bf16"), tolerance=2e-2)


@pytest.mark.slow
def test_four_processes_killed_and_resumed_by_others(alone, tmp_path):
    """Four with FSDP2, then two, then one without it, then two again: each but the last dies on the way."""
    run = tmp_path / "run"
    train(run, "eagle", 4, "--fsdp", "--die", "8", killed=True)
    assert len(logged(run)) >= 6 and (run / "state" / "progress.json").exists()
    train(run, "eagle", 2, "--fsdp", "--die", "13", killed=True)
    train(run, "eagle", 1, "--die", "19", killed=True)
    assert not (run / "state").exists() and (run / "state.safetensors").exists()
    train(run, "eagle", 2, "--fsdp")
    assert (run / "state").exists() and not (run / "state.safetensors").exists()
    same(alone["eagle"], run)


@zero
@pytest.mark.slow
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_two_processes_of_deepspeed_do_what_one_does(limited, tmp_path, stage):
    assert any(float(step["gradient_norm"]) > 0.3 for step in logged(limited)), "else nothing is clipped"
    same(limited, train(tmp_path / "run", "eagle", 2, "--zero", str(stage)))


@zero
@pytest.mark.slow
def test_deepspeed_computes_in_autocast_as_one_process_does(tmp_path):
    one = train(tmp_path / "one", "medusa", 1, "--norm", "--bf16")
    same(one, train(tmp_path / "two", "medusa", 2, "--zero", "3", "--bf16"), tolerance=2e-2)


@zero
@pytest.mark.slow
def test_deepspeed_killed_and_resumed_in_other_ways(limited, tmp_path):
    """Two processes at stage 2, then at stage 3, then one without DeepSpeed, then two at stage 1."""
    run = tmp_path / "run"
    train(run, "eagle", 2, "--zero", "2", "--die", "8", killed=True)
    assert len(logged(run)) >= 6 and (run / "state" / "progress.json").exists()
    assert len(list((run / "state").glob("*.distcp"))) == 2, "a part from every process"
    train(run, "eagle", 2, "--zero", "3", "--die", "13", killed=True)
    train(run, "eagle", 1, "--norm", "--die", "19", killed=True)
    assert (run / "state.safetensors").exists()
    train(run, "eagle", 2, "--zero", "1")
    same(limited, run)


# What is not known to give the same training


def accelerator(kind: DistributedType = DistributedType.MULTI_GPU, steps: int = 1, **plugin) -> SimpleNamespace:
    """What `check_parallelism` reads of an accelerator."""
    fsdp = None
    if plugin:
        fsdp = FullyShardedDataParallelPlugin(**({"fsdp_version": 2, "cpu_ram_efficient_loading": False} | plugin))
    state = SimpleNamespace(fsdp_plugin=fsdp)
    return SimpleNamespace(distributed_type=kind, gradient_accumulation_steps=steps, state=state)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"fsdp_version": 1}, "fsdp_version: 1 is not supported, set 2, or take a file of configs/accelerate"),
        ({"cpu_ram_efficient_loading": True}, "fsdp_cpu_ram_efficient_loading: true is not supported, set false"),
        ({"activation_checkpointing": True}, "fsdp_activation_checkpointing: true is not supported, set false"),
        ({"cpu_offload": True}, "fsdp_offload_params: true is not supported, set false"),
        ({"auto_wrap_policy": "size_based_wrap"}, "set fsdp_auto_wrap_policy: NO_WRAP"),
    ],
)
def test_settings_of_fsdp_that_are_refused(setting, message):
    check_parallelism(accelerator(DistributedType.FSDP, fsdp_version=2))
    refused(lambda: check_parallelism(accelerator(DistributedType.FSDP, **setting)), message)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"stage": 0}, "zero_stage: 0 of DeepSpeed is not supported, set 1 or 2 or 3"),
        (
            {"offload_optimizer": {"device": "cpu"}},
            "offload_optimizer_device: cpu of DeepSpeed is not supported",
        ),
        ({"offload_param": {"device": "nvme"}}, "offload_param_device: nvme of DeepSpeed is not supported, set none"),
        ({"optimizer": {"type": "Adam"}}, "optimizer of DeepSpeed's file is the recipe's here"),
        ({"clip_value": 0.5}, "clip_value=0.5 is not for DeepSpeed"),
        ({"divided": True}, "DeepSpeed has divided the target"),
    ],
)
def test_settings_of_deepspeed_that_are_refused(setting, message):
    def check(optimizer=None, clip_value=None, divided=False, **zero_settings):
        config = {"zero_optimization": {"stage": 2, **zero_settings}} | ({"optimizer": optimizer} if optimizer else {})
        plugin = SimpleNamespace(deepspeed_config=config)
        module = torch.nn.Linear(1, 1)
        if divided:
            module.weight.ds_id = 0
        check_zero(SimpleNamespace(state=SimpleNamespace(deepspeed_plugin=plugin)), module, clip_value)

    check()
    refused(lambda: check(**setting), message)


@pytest.mark.parametrize("name", ["FSDP", "DEEPSPEED"])
def test_a_division_that_accelerate_leaves_out(monkeypatch, name):
    monkeypatch.setenv(f"ACCELERATE_USE_{name}", "true")
    left_out = accelerator(DistributedType.MULTI_CPU)
    left_out.device = torch.device("cpu:0")  # as accelerate numbers the processor where it has started processes
    said = f"accelerate was started for {name}, but would train with MULTI_CPU on cpu: leave device out"
    refused(lambda: check_parallelism(left_out), said)


def test_other_ways_are_refused():
    refused(lambda: check_parallelism(accelerator(DistributedType.MEGATRON_LM)), "MEGATRON_LM trains no head here")
    refused(lambda: check_parallelism(accelerator(steps=4)), "gradient_accumulation_steps=4 of accelerate does nothing")


@pytest.mark.usefixtures("fresh_accelerator")
def test_a_damaged_state_in_parts(tmp_path):
    (tmp_path / "state").mkdir()
    for progress, words in {'{"step": 1}': "cannot be read, or is of another drafter", '{"st': "is damaged"}.items():
        (tmp_path / "state" / "progress.json").write_text(progress)
        refused(lambda: trainer(tmp_path, steps=1), words)


# The files of configs/accelerate


@pytest.mark.parametrize("file", READY, ids=lambda file: file.stem)
def test_ready_made_configurations(file, monkeypatch):
    """accelerate reads each of them, and starts processes with what it says; the trainer takes what comes of it."""
    config = load_config_from_file(str(file))
    assert config.num_processes > 1 and config.num_processes % config.num_machines == 0
    words = ["--config_file", str(file), "--main_process_ip", "localhost", "-m", "mmspec", "train"]
    arguments, _, _ = launch._validate_launch_command(launch.launch_command_parser().parse_args(words))
    assert arguments.num_processes == config.num_processes and arguments.module
    if deepspeed := config.distributed_type == DistributedType.DEEPSPEED:
        arguments.deepspeed_fields_from_accelerate_config = ",".join(config.deepspeed_config)  # as the launcher does
        _, started = prepare_deepspeed_cmd_env(arguments)
        assert arguments.use_deepspeed and started["ACCELERATE_DEEPSPEED_ZERO_STAGE"] == "2"
    else:
        started = prepare_multi_gpu_env(arguments)
    for name, value in started.items():
        monkeypatch.setenv(name, value)
    assert started["ACCELERATE_MIXED_PRECISION"] == "no"
    assert (started.get("ACCELERATE_USE_DEEPSPEED") == "true") == deepspeed
    fsdp = started.get("ACCELERATE_USE_FSDP") == "true"
    assert fsdp == (config.distributed_type == DistributedType.FSDP)
    plugin = FullyShardedDataParallelPlugin() if fsdp else None
    state = SimpleNamespace(fsdp_plugin=plugin)
    check_parallelism(
        SimpleNamespace(distributed_type=config.distributed_type, gradient_accumulation_steps=1, state=state)
    )


def test_the_files_are_those_of_the_page():
    assert [file.stem for file in READY] == ["deepspeed", "eight_gpus", "fsdp2", "several_machines", "two_gpus"]
    page = HERE.parents[1] / "docs" / "train_on_several_gpus.md"
    if page.exists():
        text = page.read_text(encoding="utf-8")
        assert all(f"configs/accelerate/{file.name}" in text for file in READY)
