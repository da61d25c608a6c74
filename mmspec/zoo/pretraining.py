"""Train an embedded target from nothing: `python scripts/train_tiny_target.py`, `scripts/train_tiny_video_target.py`.

These measures make an hour on two CPU cores enough:

- the forward and backward pass run in bf16 where the processor has instructions for it (elsewhere that is thirty times
  slower than fp32, which is taken instead), the weights that the optimizer changes are fp32;
- one single-threaded process per core, each with its share of the pictures, and gradients averaged once per step:
  faster than one process with several threads, which meet after every operation, and far faster on a busy machine;
- in bf16, attention is two plain matrix products, which at these lengths beat the fused kernel by far;
- the vision tower may begin alone, on the loss of the patches: what a patch shows needs no language model to be learnt,
  and a step of the tower costs a twentieth;
- Muon for the hidden matrices, AdamW for everything else;
- the learning rate warms up, stays, and decays at the end (warmup-stable-decay), so that a run can be extended or cut
  short by resuming it with another budget.
"""

from __future__ import annotations

import json
import math
import os
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import distributed, multiprocessing, nn
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from mmspec.files.storage import replacing
from mmspec.models.precision import computes_in_bfloat16
from mmspec.zoo.batches import IGNORE
from mmspec.zoo.courses import PICTURES, Course
from mmspec.zoo.losses import Losses, losses_of
from mmspec.zoo.muon import StackedMuon
from mmspec.zoo.vocabulary import kept_tokenizer

CHECKPOINT = "checkpoint.safetensors"


@dataclass
class PretrainingSettings:
    """Everything that a run depends on. Its length is `minutes` of training if given, and `steps` otherwise.

    `dtype` is that of the two passes: `bfloat16`, `float32`, or `auto` for the one that this processor is made for. The
    first `tower_steps` steps train on the loss of the patches alone, without the language model.
    """

    output: Path
    steps: int = 2500
    minutes: float | None = None
    pictures: int = 32
    rows: int = 8
    processes: int = 2
    learning_rate: float = 2e-3
    muon_learning_rate: float = 4e-3
    weight_decay: float = 0.05
    clip: float = 1.0
    patch_weight: float = 0.3
    warmup_steps: int = 60
    decay: float = 0.25
    optimizer: str = "muon"
    dtype: str = "auto"
    tower_steps: int = 0
    save_minutes: float = 4.0
    validate_minutes: float = 10.0
    validate_examples: int = 12
    seed: int = 0

    def working_dtype(self) -> torch.dtype:
        """Return the dtype of the two passes.

        Raises:
            ValueError: for a name that is not one of the three.
        """
        if self.dtype not in ("auto", "bfloat16", "float32"):
            raise ValueError(f"unknown dtype {self.dtype!r}: choose auto, bfloat16 or float32")
        if self.dtype == "auto":
            return torch.bfloat16 if computes_in_bfloat16() else torch.float32
        return getattr(torch, self.dtype)


class MasterWeights:
    """Copies in fp32 of the parameters of the model that runs, and the optimizers that update them."""

    def __init__(self, model: PreTrainedModel, settings: PretrainingSettings):
        self.settings = settings
        self.masters = {n: nn.Parameter(p.detach().float().clone()) for n, p in model.named_parameters()}
        self.model = model.bfloat16() if settings.working_dtype() == torch.bfloat16 else model.float()
        self.parameters = dict(self.model.named_parameters())
        hidden: list[nn.Parameter] = []
        other: list[nn.Parameter] = []
        for name, parameter in self.masters.items():
            matrix = parameter.dim() == 2 and "embed" not in name and "lm_head" not in name
            (hidden if matrix and settings.optimizer == "muon" else other).append(parameter)
        decayed = [p for p in other if p.dim() > 1]
        rest = [p for p in other if p.dim() <= 1]
        groups = [{"params": decayed, "weight_decay": settings.weight_decay}, {"params": rest, "weight_decay": 0.0}]
        self.optimizers: list[torch.optim.Optimizer] = [
            torch.optim.AdamW(groups, lr=settings.learning_rate, betas=(0.9, 0.98))
        ]
        if hidden:
            muon: torch.optim.Optimizer
            pace, decay = settings.muon_learning_rate, settings.weight_decay
            if self.model.dtype == torch.bfloat16:
                muon = torch.optim.Muon(hidden, lr=pace, weight_decay=decay, adjust_lr_fn="match_rms_adamw")
            else:
                muon = StackedMuon(hidden, lr=pace, weight_decay=decay)
            self.optimizers.append(muon)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["initial_lr"] = group["lr"]

    def average_gradients(self, progress: float) -> float:
        """Average the gradients and `progress` over all processes, so that all of them stay identical; return the mean
        progress."""
        gradients = []
        for name, master in self.masters.items():
            gradient = self.parameters[name].grad  # None where the loss does not reach (the unused last norm of CLIP)
            master.grad = torch.zeros_like(master) if gradient is None else gradient.float()
            gradients.append(master.grad.view(-1))
            self.parameters[name].grad = None
        if self.settings.processes == 1:
            return progress
        flat = torch.cat([*gradients, torch.tensor([progress])]) / self.settings.processes
        distributed.all_reduce(flat)
        for master, piece in zip(self.masters.values(), flat[:-1].split([g.numel() for g in gradients]), strict=True):
            master.grad = piece.view_as(master)
        return flat[-1].item()

    def step(self, schedule: float) -> float:
        """Clip, update the fp32 weights and copy them into the model; return the norm of the gradient."""
        norm = nn.utils.clip_grad_norm_(self.masters.values(), self.settings.clip)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = schedule * group["initial_lr"]
            optimizer.step()
        self.copy_to_model()
        return norm.item()

    @torch.no_grad()
    def copy_to_model(self) -> None:
        """Round the fp32 weights into the model that runs."""
        for name, master in self.masters.items():
            self.parameters[name].copy_(master)

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return weights and optimizer state under flat names, for one safetensors file."""
        flat = {f"weights/{name}": master.detach() for name, master in self.masters.items()}
        for number, optimizer in enumerate(self.optimizers):
            for name, master in self.masters.items():
                for key, value in optimizer.state.get(master, {}).items():
                    flat[f"optimizer{number}/{name}/{key}"] = torch.as_tensor(value).clone()
        return flat

    @torch.no_grad()
    def load(self, tensors: dict[str, torch.Tensor]) -> None:
        """Load the tensors that `tensors` returned."""
        for key, value in tensors.items():
            kind, name, *rest = key.split("/")
            if kind == "weights":
                self.masters[name].copy_(value)
            else:
                state = self.optimizers[int(kind.removeprefix("optimizer"))].state
                state.setdefault(self.masters[name], {})[rest[0]] = value
        self.copy_to_model()


def share_spent(settings: PretrainingSettings, step: int, seconds: float) -> float:
    """Return the used share of the budget, which is time or steps."""
    return seconds / (60 * settings.minutes) if settings.minutes else step / settings.steps


def rate(settings: PretrainingSettings, step: int, progress: float) -> float:
    """Return the learning rate as a share of its peak: warmup-stable-decay. `progress` is the spent share of the
    budget; the rate decays to 0 at its end."""
    warm = min(1.0, (step + 1) / settings.warmup_steps)
    cold = min(1.0, max(0.0, (1.0 - progress) / settings.decay))
    return warm * cold


def write_checkpoint(path: Path, weights: MasterWeights, state: dict) -> None:
    """Write one safetensors file, beside the old one and then renamed, so that an interruption leaves the old one
    complete."""
    with replacing(path) as unfinished:
        save_file(weights.tensors(), unfinished, metadata={"state": json.dumps(state)})


def read_checkpoint(path: Path, weights: MasterWeights) -> dict:
    """Load weights and optimizer state; return the step and the seconds already spent."""
    with safe_open(path, "pt") as file:
        weights.load({key: file.get_tensor(key) for key in file.keys()})
        return json.loads(file.metadata()["state"])


def train(settings: PretrainingSettings, spawn: bool = True, course: Course = PICTURES) -> Path:
    """Run or resume a training; return the path of its last checkpoint. Without `spawn`, it runs in this process."""
    settings.output.mkdir(parents=True, exist_ok=True)
    kept_tokenizer(settings.output / "tokenizer", course.tokenizer)  # made once, before the processes share it
    if not spawn:
        if settings.processes != 1:
            raise ValueError(f"spawn=False trains in this process alone, but processes is {settings.processes}")
        _run(0, settings, course)
        return settings.output / CHECKPOINT
    with tempfile.TemporaryDirectory() as meeting:
        multiprocessing.spawn(_join, args=(settings, course, f"file://{meeting}/point"), nprocs=settings.processes)
    return settings.output / CHECKPOINT


def _join(rank: int, settings: PretrainingSettings, course: Course, meeting: str) -> None:
    """Set up a new process: take its share of the cores and connect to the others."""
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // settings.processes))
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    distributed.init_process_group("gloo", init_method=meeting, rank=rank, world_size=settings.processes)
    _run(rank, settings, course)
    distributed.destroy_process_group()


def _run(rank: int, settings: PretrainingSettings, course: Course) -> None:
    """Run one process with its share of every step. The first process also saves, logs and validates."""
    tokenizer = kept_tokenizer(settings.output / "tokenizer", course.tokenizer)
    model = course.model(tokenizer, settings.seed)
    attention = "mmspec_dense" if settings.working_dtype() == torch.bfloat16 else "sdpa"
    model.set_attn_implementation(attention)
    weights = MasterWeights(model, settings)
    path = settings.output / CHECKPOINT
    state: dict[str, Any] = read_checkpoint(path, weights) if path.exists() else {"step": 0, "seconds": 0.0}
    model.train()
    journal = PretrainingJournal(settings, course, tokenizer, weights) if rank == 0 else None
    stream = course.stream(tokenizer, settings.pictures, settings.rows)
    step, spent, started = state["step"], state["seconds"], time.monotonic()
    progress = share_spent(settings, step, spent)
    while progress < 1.0:
        batches = stream.step(step)
        answers = sum((batch.labels[:, 1:] != IGNORE).sum().item() for batch in batches)
        for number, batch in enumerate(batches):
            # Rows are sorted by length, so deal them out like cards, changing hands with every round and step.
            if (number + number // settings.processes + step) % settings.processes != rank:
                continue
            losses = losses_of(model, batch, course.read, towers_alone=step < settings.tower_steps)
            loss = losses.answers.sum() / answers + settings.patch_weight * losses.patches.sum() / settings.pictures
            (loss * settings.processes).backward()
            if journal:
                journal.note(losses, batch.tasks)
        schedule = rate(settings, step, progress)
        step += 1
        seconds = spent + time.monotonic() - started
        progress = weights.average_gradients(share_spent(settings, step, seconds))
        norm = weights.step(schedule)
        if not math.isfinite(norm):
            raise FloatingPointError(f"the gradient is not finite at step {step}: lower the learning rate and resume")
        if journal:
            journal.after_step({"step": step, "seconds": round(seconds, 1)}, schedule, norm, progress >= 1.0)


class PretrainingJournal:
    """Records of the first process: losses per task (of its share), validation metrics, checkpoints."""

    def __init__(
        self,
        settings: PretrainingSettings,
        course: Course,
        tokenizer: PreTrainedTokenizerFast,
        weights: MasterWeights,
    ):
        self.settings, self.course, self.tokenizer, self.weights = settings, course, tokenizer, weights
        self.totals, self.counts = torch.zeros(len(course.tasks) + 1), torch.zeros(len(course.tasks) + 1)
        self.saved = self.validated = time.monotonic()

    def write(self, record: dict) -> None:
        """Append a line to `log.jsonl` and print it."""
        line = json.dumps(record)
        with (self.settings.output / "log.jsonl").open("a") as file:
            file.write(line + "\n")
        print(line, flush=True)

    def note(self, losses: Losses, tasks: torch.Tensor) -> None:
        """Add the losses of a micro-batch to the means of its tasks and of the patches."""
        values = torch.cat([losses.answers, losses.patches]).detach()
        kinds = torch.cat([tasks[losses.rows], torch.full_like(tasks, len(self.course.tasks))])
        self.totals.index_add_(0, kinds, values)
        self.counts.index_add_(0, kinds, torch.ones_like(values))

    def after_step(self, state: dict, schedule: float, norm: float, last: bool) -> None:
        """Log every tenth step, save and validate when it is time, and after the last step."""
        if state["step"] % 10 == 0:
            means = (self.totals / self.counts.clamp(min=1)).tolist()
            losses = {task: round(mean, 4) for task, mean in zip((*self.course.tasks, "patches"), means, strict=True)}
            self.write({**state, "rate": round(schedule, 4), "norm": round(norm, 3), **losses})
            self.totals.zero_()
            self.counts.zero_()
        now, settings = time.monotonic(), self.settings
        if last or now - self.saved > 60 * settings.save_minutes:
            write_checkpoint(settings.output / CHECKPOINT, self.weights, state)
            self.saved = now
        if settings.validate_minutes and (last or now - self.validated > 60 * settings.validate_minutes):
            self.validate(state)
            self.validated = time.monotonic()

    def validate(self, state: dict) -> None:
        """Compute the metrics over a few greedy answers per task of the validation split."""
        model = self.weights.model
        model.eval()
        attention = model.config._attn_implementation
        model.set_attn_implementation("sdpa")
        report = self.course.evaluate(model, self.tokenizer, self.settings.validate_examples)
        model.set_attn_implementation(attention)
        model.train()
        self.write({**state, "validation": report})
