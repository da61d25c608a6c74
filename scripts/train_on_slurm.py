"""Train a head on the machines of a Slurm cluster: a job that starts `mmspec train` on every machine, through submitit.

What stands behind `--` are the arguments of `mmspec train`, with folders that all machines see. A job whose time ends
saves its state, queues up again and goes on. Needs `pip install -e '.[cluster]'`.

python scripts/train_on_slurm.py --machines 2 --gpus 8 --hours 12 -- recipe=eagle3 --data answers --output my_head
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import submitit

ROOT = Path(__file__).resolve().parent.parent
WARNED_SECONDS, SAVING_SECONDS = 120, 90
"""How long before a job's time ends Slurm warns, and how long the training may then take to end its step and save."""
TIMES = 1000
"""How often a job whose time has ended queues up again; submitit's own limit is three."""


@dataclass
class Machine:
    """What every machine of the job does: it starts its processes, which find the others by the first machine's name.

    Args:
        arguments: arguments of `mmspec train`.
        config: file of accelerate's configuration; the numbers of machines and processes are the job's.
        processes: processes of each machine.
    """

    arguments: list[str]
    config: str
    processes: int

    def __call__(self) -> None:
        """Run the training to its end.

        Raises:
            RuntimeError: if it failed.
        """
        job = submitit.helpers.TorchDistributedEnvironment()
        machines = submitit.JobEnvironment().num_nodes
        places = {
            "config_file": self.config,
            "num_machines": machines,
            "machine_rank": job.rank,  # one task a machine
            "num_processes": machines * self.processes,
            "main_process_ip": job.master_addr,
            "main_process_port": job.master_port,
        }
        launch = [sys.executable, "-m", "accelerate.commands.launch"]
        launch += [word for name, value in places.items() for word in (f"--{name}", str(value))]
        if machines * self.processes == 1:  # the launcher would not hand on the signal that asks to save
            launch = launch[:1]
        paths = os.pathsep.join(path for path in (str(ROOT), os.environ.get("PYTHONPATH")) if path)
        variables = {"PYTHONPATH": paths, "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": str(SAVING_SECONDS - 5)}
        self.running = subprocess.Popen([*launch, "-m", "mmspec", "train", *self.arguments], env=os.environ | variables)
        while self.running.poll() is None:  # a signal that arrives meanwhile is handled between two looks
            time.sleep(0.5)
        if self.running.returncode:
            raise RuntimeError(f"mmspec train ended with {self.running.returncode} on machine {job.rank}")

    def checkpoint(self) -> submitit.helpers.DelayedSubmission:
        """Let the training save, and queue the same job again: submitit calls this shortly before the time ends."""
        self.running.terminate()
        with suppress(subprocess.TimeoutExpired):  # then the job goes on from the last state that was saved
            self.running.wait(SAVING_SECONDS)
        return submitit.helpers.DelayedSubmission(Machine(self.arguments, self.config, self.processes))


def main() -> None:
    """Submit the job, and say where it writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--machines", type=int, default=1, help="number of machines")
    parser.add_argument("--gpus", type=int, default=8, help="graphics cards of each machine")
    parser.add_argument("--processes", type=int, help="processes of each machine; by default one for each card")
    parser.add_argument("--hours", type=float, default=12, help="time after which the job queues up again")
    parser.add_argument("--partition", help="Slurm's partition")
    parser.add_argument("--config", default="several_machines", help="name in configs/accelerate, or a file: fsdp2")
    parser.add_argument("--logs", default="runs/slurm", help="folder for what the job prints")
    parser.add_argument("--local", action="store_true", help="run here, without Slurm, and wait")
    parser.add_argument("arguments", nargs="*", help="behind --: arguments of mmspec train")
    options = parser.parse_args()
    shipped = ROOT / "configs" / "accelerate" / f"{options.config}.yaml"
    config = shipped if shipped.exists() else Path(options.config).resolve()
    if not config.exists():
        parser.error(f"--config {options.config}: there is no such file; choose from {shipped.parent}")
    cluster = "local" if options.local else "slurm"
    executor = submitit.AutoExecutor(options.logs, cluster, slurm_max_num_timeout=TIMES, local_max_num_timeout=TIMES)
    executor.update_parameters(
        name="mmspec-train",
        nodes=options.machines,
        tasks_per_node=1,
        gpus_per_node=options.gpus,
        timeout_min=max(1, round(60 * options.hours)),
        slurm_signal_delay_s=WARNED_SECONDS,
    )
    if options.partition:
        executor.update_parameters(slurm_partition=options.partition)
    job = executor.submit(Machine(options.arguments, str(config), options.processes or max(options.gpus, 1)))
    print(f"job {job.job_id} writes to {job.paths.stdout}")
    if options.local:
        job.result()


if __name__ == "__main__":
    main()
