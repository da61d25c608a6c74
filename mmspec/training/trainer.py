"""`Trainer`: one for all drafters and recipes, on Hugging Face accelerate.

The frozen target runs beside the drafter and nothing is stored. Everything that a step does follows from its number
(its examples, its noise), the weights and the optimizer's state. Therefore a training that was killed goes on exactly
as it would have gone, and several processes do what one would.
"""

from __future__ import annotations

import json
import math
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from transformers import get_scheduler

from ..data.examples import Source
from ..drafters import Drafter
from ..errors import MMSpecError
from ..files.storage import read_json_object
from ..lesson import Lesson
from . import zero
from .author import check_author
from .curriculum import order_of
from .data import Loader, TrainingPass, split
from .feature_cache import CachedTeacher
from .journal import Sums, TrainingJournal
from .objective import Objective
from .output import BEST, LAST_DRAFTER, OutputFolder
from .settings import TrainingSettings
from .sharding import check_parallelism, whole, whole_weights
from .state import save_folder
from .teacher import Teacher
from .validation import Validator


class Trainee(nn.Module):
    """A drafter with its objective as one module whose forward pass gives the loss, for data parallelism to wrap."""

    def __init__(self, drafter: Drafter, objective: Objective):
        super().__init__()
        self.drafter, self.objective = drafter, objective

    def forward(
        self, lesson: Lesson, seed: str, progress: float = 0.0, gate: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return the loss and the sums to log, see `Objective`; a `gate` is a zero that is added, see `zero.gate`."""
        total, marks = self.objective(self.drafter, lesson, seed, progress)
        # A weight that these answers do not reach has a gradient of 0, not none: all processes exchange the same ones.
        learning = [parameter.sum() for parameter in self.drafter.parameters() if parameter.requires_grad]
        total = total + 0 * torch.stack(learning).sum()
        return total if gate is None else total + gate, marks


class Trainer:
    """Trains one drafter.

    Args:
        drafter: the drafter to train, in fp32; parameters that require no gradient stay as they are.
        objective: the loss of its guesses.
        examples: the target's answers.
        output: folder for the log, the state to resume from, and the drafters `best` and `last`.
        settings: how the training runs, see `TrainingSettings`.
        optimizer: function that makes the optimizer from the parameters; AdamW by default.
        accelerator: Hugging Face accelerate's object, which knows about processes, devices and precision; for DeepSpeed
            made by `mmspec.training.sharding.make_accelerator`.
        feature_cache: folder to keep the target's states in, instead of computing them at every step; see
            `CachedTeacher`.
        parts: names of the drafter's modules that are trained, such as `projector`, while all others stay as they are;
            by default everything is trained that the drafter can train.
        recipe: plain values that say how the training was configured: saved with the drafter, and compared on resuming.

    Raises:
        MMSpecError: for a data set too small, or an output folder that holds another training or that another process
            trains into.
    """

    def __init__(
        self,
        drafter: Drafter,
        objective: Objective,
        examples: Source,
        output: str | Path,
        settings: TrainingSettings | None = None,
        optimizer: Callable[[list[nn.Parameter]], torch.optim.Optimizer] | None = None,
        accelerator: Accelerator | None = None,
        recipe: dict[str, Any] | None = None,
        feature_cache: str | Path | None = None,
        parts: Sequence[str] | None = None,
    ):
        self.settings = settings or TrainingSettings()
        self.accelerator = accelerator or Accelerator()
        check_parallelism(self.accelerator)
        if zero.is_zero(self.accelerator):
            zero.check_zero(self.accelerator, drafter.target.model, self.settings.clip_value)
        self.output = Path(output)
        self._folder = OutputFolder(self.output, self.accelerator)
        try:
            self._set_up(drafter, objective, examples, optimizer, recipe, feature_cache, parts)
        except BaseException:
            self._folder.release()
            raise

    def _set_up(
        self,
        drafter: Drafter,
        objective: Objective,
        examples: Source,
        optimizer: Callable[[list[nn.Parameter]], torch.optim.Optimizer] | None,
        recipe: dict[str, Any] | None,
        feature_cache: str | Path | None,
        parts: Sequence[str] | None,
    ) -> None:
        settings = self.settings
        self.objective, self.target, self.recipe = objective, drafter.target, recipe or {}
        training, self.held_out = split(len(examples), settings.held_out, settings.seed)
        self.order = order_of(examples, training, settings)
        self._count = len(examples)
        if self.accelerator.num_processes > settings.batch_size:
            raise MMSpecError(
                f"batch_size={settings.batch_size} is less than the {self.accelerator.num_processes} processes: every "
                "process needs an example"
            )
        self._folder.claim(self.identity())
        report = self.output / f"dropped-{self.accelerator.process_index}.jsonl"
        pools = [*self.order.pools, self.held_out]
        with self._folder.writing():
            self.loader = Loader(self.target, examples, settings.max_length, settings.max_failures, report, pools)
        check_author(examples, self.target)
        if drafter.draft_vocab_size is not None and not _chosen(drafter):
            self._choose_vocabulary(drafter, training)
        self.teacher = Teacher(self.target, [*drafter.lesson_layers, *objective.feature_layers])
        if feature_cache is not None:
            self.teacher = CachedTeacher(self.teacher, self.loader, feature_cache)
            self.teacher.fill(self.accelerator.process_index, self.accelerator.num_processes, settings.rows)
            self.accelerator.wait_for_everyone()
        self.drafter = drafter.to(self.accelerator.device).float().train()
        self.target.model.requires_grad_(False)  # drafters read its embeddings and its head
        drafter.requires_grad_(False)
        for parameter in _learning(drafter, parts):
            parameter.requires_grad_(True)
        if not any(parameter.requires_grad for parameter in drafter.parameters()):
            raise MMSpecError(f"{type(drafter).__name__} has no weights to train")
        make = optimizer or (lambda parameters: torch.optim.AdamW(parameters, lr=1e-3, betas=(0.9, 0.95)))
        trainee, made = Trainee(drafter, objective), make([p for p in drafter.parameters() if p.requires_grad])
        self._zero = zero.is_zero(self.accelerator)
        if self._zero:
            zero.set_up(self.accelerator, trainee, made, settings.clip_norm)
        # Rebuilt by every process alike, and stepped by hand: its place follows from the number of the step.
        self.trainee, self.optimizer = self.accelerator.prepare(trainee, made)
        self._torch_optimizer = made if self._zero else self.optimizer.optimizer
        try:
            self.scheduler = get_scheduler(
                settings.schedule, self._torch_optimizer, settings.warmup_steps, settings.steps
            )
        except ValueError as error:
            raise MMSpecError(f"schedule={settings.schedule!r}: {error}") from None
        self.step, self.best, self.seconds = 0, 0.0, 0.0
        self._validator: Validator | None = None
        with self._folder.writing():
            self._resume()
            self.journal = TrainingJournal(self.output, self.step) if self.accelerator.is_main_process else None

    # The loop.

    def run(self, progress: Callable[[int, dict[str, float]], None] | None = None) -> dict:
        """Train until `settings.steps`, and return the last validation.

        An interrupt (Ctrl-C, or a signal to terminate) ends the current step, saves the state and raises
        `KeyboardInterrupt`; running again with the same output folder goes on.

        Args:
            progress: function that is called after every step with its number and the means to show.

        Raises:
            MMSpecError: if the loss is no longer finite, the disk is full, too many pictures fail to open, or another
                process trains into the folder.
        """
        self._folder.hold()
        interrupted: list[bool] = []
        handlers = {name: signal.signal(name, lambda *_: interrupted.append(True)) for name in _signals()}
        try:
            with self._folder.writing():  # what writes a checkpoint has its own, better words
                return self._train(progress, interrupted) or self._last_report()
        finally:
            for name, handler in handlers.items():
                signal.signal(name, handler)
            self._folder.release()

    def end(self) -> None:
        """Finish trackers and the exchange among processes, as the last thing that a program does with the trainer."""
        # torch's reducer, in the trainee of data parallelism, has to go while others hold the group of the processes.
        # As the last to hold it, the reducer would wait, with Python's lock held, for a thread of the group that may be
        # waiting for that lock.
        del self.trainee
        self.accelerator.free_memory()
        self.accelerator.end_training()

    def _train(self, progress: Callable[[int, dict[str, float]], None] | None, interrupted: list[bool]) -> dict:
        """Run all steps that are left, and return the last validation; nothing where no step was left."""
        settings, report = self.settings, {}
        sums = Sums(self.objective.names)
        while self.step < settings.steps:
            started = time.monotonic()
            sums.add(self.train_step())
            self.step += 1
            self.seconds += time.monotonic() - started
            if progress is not None:
                progress(self.step, sums.means())
            last = self.step == settings.steps
            if self.step % settings.log_every == 0 or last:
                self._log({**sums.means(), "learning_rate": self.scheduler.get_last_lr()[0]})
                sums = Sums(self.objective.names)
            if self.step % settings.validate_every == 0 or last:
                report = self._validate()
            stop = self._anywhere(bool(interrupted))
            if self.step % settings.save_every == 0 or last or stop:
                self._save()
            if stop:
                raise KeyboardInterrupt
        return report

    def _last_report(self) -> dict:
        """Return the validation of a training that has ended before."""
        path = self.output / LAST_DRAFTER / "config.json"
        config = (read_json_object(path) if path.exists() else None) or {}
        return config.get("metadata", {}).get("validation") or self._validate()

    def train_step(self) -> Tensor:
        """Run one optimizer step, and return sums over all processes: loss, gradient norm, drafted tokens, then the
        marks."""
        accelerator, settings = self.accelerator, self.settings
        passes = list(
            self.loader.passes(
                self.order.step(self.step), settings.rows, accelerator.process_index, accelerator.num_processes
            )
        )
        tokens = torch.tensor(float(sum(Lesson.weight(p.answers) for p in passes)), device=accelerator.device)
        tokens = accelerator.reduce(tokens, "sum")
        marks = torch.zeros(1 + len(self.objective.names), device=accelerator.device)
        # Divided weights are put together by all processes in every pass, so one that is through repeats its last pass,
        # which then counts nothing.
        most = int(accelerator.gather(torch.tensor([len(passes)], device=accelerator.device)).max())
        gate = zero.gate(accelerator.device) if self._zero else None
        for number in range(most):
            counts = number < len(passes)
            lesson = self.teacher.lesson_of(passes[number] if counts else passes[-1])
            last = number + 1 == most
            with nullcontext() if last or self._zero else accelerator.no_sync(self.trainee):
                with accelerator.autocast():  # FSDP2 leaves that to its caller
                    total, counted = self.trainee(
                        lesson, f"{settings.seed}/{self.step}", self.step / settings.steps, gate
                    )
                # Data parallelism averages over the processes; the loss is a mean over the tokens of all of them.
                loss = counts * total * accelerator.num_processes / tokens
                if self._zero:
                    zero.add_gradient(self.trainee, loss, last)
                else:
                    accelerator.backward(loss)
            if counts:
                marks += torch.cat([total.detach()[None], counted])
        marks = accelerator.reduce(marks, "sum")
        if self._zero:  # which does not step where the norm is not finite
            norm = zero.clip_and_step(self.trainee)
        else:
            norm = float(whole(accelerator.clip_grad_norm_(self.trainee.parameters(), settings.clip_norm or math.inf)))
        if settings.clip_value is not None:
            nn.utils.clip_grad_value_(self.trainee.parameters(), settings.clip_value)  # each number by itself
        if not math.isfinite(marks[0].item()) or not math.isfinite(norm):
            self._give_up(passes, marks[0].item() / tokens.item(), norm)
        self.optimizer.step()
        self.scheduler.step()
        self.optimizer.zero_grad()
        return torch.cat([marks[:1], (norm * tokens)[None], tokens[None], marks[1:]])

    def _give_up(self, passes: list[TrainingPass], loss: float, norm: float) -> None:
        """Save the weights, which are still those of the last good step, and raise an error that says where it
        happened."""
        self.optimizer.zero_grad()
        if self.step:  # before the first step there is nothing to keep
            self._save()
        ids = ", ".join(name for batch in passes for name in batch.ids[:4])
        raise MMSpecError(
            f"step {self.step + 1}: the loss is {loss:.4g} and the norm of its gradient {norm:.4g}, with "
            f"{ids} ...; the state before it is in {str(self.output)!r}: lower the learning rate, or look at these "
            "examples"
        )

    # What surrounds it.

    def _validate(self) -> dict:
        """Measure a copy in the target's own precision, and save it as `best` if it is the best so far."""
        self.accelerator.wait_for_everyone()
        state = whole_weights(self.accelerator, self.trainee)
        report: dict = {}
        if self.accelerator.is_main_process:
            if self._validator is None:
                rows = self.settings.rows
                chunks = [self.held_out[i : i + rows] for i in range(0, len(self.held_out), rows)]
                passes = [self.loader.prepare(chunk) for chunk in chunks]
                self._validator = Validator(
                    self.teacher,
                    passes,
                    self.settings.depth,
                    self.settings.measured_prompts,
                    temperature=self.settings.temperature,
                )
            drafter = self._copy({name.removeprefix("drafter."): tensor for name, tensor in state.items()})
            report = self._validator(drafter)
            score = report["simulated"]["mean_acceptance_length"]
            metadata = {"recipe": self.recipe, "steps": self.step, "validation": report}
            save_folder(self.output / LAST_DRAFTER, lambda folder: drafter.save_pretrained(folder, **metadata))
            if score > self.best:
                self.best = score
                save_folder(self.output / BEST, lambda folder: drafter.save_pretrained(folder, **metadata))
            assert self.journal is not None  # as in every main process
            self.journal.validation({"step": self.step, **report})
            flat = {f"acceptance/{name}": part["mean_acceptance_length"] for name, part in report["tasks"].items()}
            self.accelerator.log({"mean_acceptance_length": score, **flat}, step=self.step)
        self.accelerator.wait_for_everyone()
        return report

    def _copy(self, state: dict[str, Tensor]) -> Drafter:
        """Return a drafter with these weights, in the target's precision, as it will be loaded."""
        drafter = type(self.drafter).from_config(json.loads(json.dumps(self.drafter.config())), self.target)
        drafter.load_state_dict(state)
        return drafter.eval()

    def _log(self, means: dict[str, float]) -> None:
        self.accelerator.log(means, step=self.step)
        if self.journal is not None:
            self.journal.log({"step": self.step, "seconds": round(self.seconds, 1), **means})

    def _anywhere(self, here: bool) -> bool:
        """Return True if it is true in any process."""
        if self.accelerator.num_processes == 1:
            return here
        if here:
            self.accelerator.set_trigger()
        return self.accelerator.check_trigger()

    # Resuming.

    def identity(self) -> dict[str, Any]:
        """Return the values that must be the same for a training to be resumed."""
        settings = {name: value for name, value in asdict(self.settings).items() if name not in TrainingSettings.FREE}
        return {"recipe": self.recipe, "settings": settings, "examples": self._count}

    def _save(self) -> None:
        progress = {"step": self.step, "best": self.best, "seconds": self.seconds}
        self._folder.save(self.trainee, self.drafter, self._torch_optimizer, progress)

    def _resume(self) -> None:
        progress = self._folder.load(self.trainee, self.drafter, self._torch_optimizer)
        if progress is None:
            return
        self.step, self.best, self.seconds = progress["step"], progress["best"], progress["seconds"]
        rates = [group["lr"] for group in self._torch_optimizer.param_groups]  # already those of the next step
        self.scheduler.load_state_dict({"last_epoch": self.step, "_last_lr": rates, "lr_lambdas": [None] * len(rates)})

    def _choose_vocabulary(self, drafter: Drafter, training: list[int]) -> None:
        """Choose the most frequent answer tokens of the training examples; among equally frequent ones the smallest."""
        sound = (number for number in training if self.loader.fault(number) is None)
        counts = Counter(token for number in sound for token in self.loader.answer(self.loader.examples[number]))
        ranked = sorted(range(self.target.vocab_size), key=lambda token: (-counts[token], token))
        drafter.choose_vocabulary(torch.tensor(ranked[: drafter.draft_vocab_size]))


def _learning(drafter: Drafter, parts: Sequence[str] | None) -> list[nn.Parameter]:
    """Return the weights of a drafter that are trained.

    Args:
        drafter: the drafter.
        parts: names of its modules to which training is confined; None for no such limit.

    Raises:
        MMSpecError: for a name that no module of it has.
    """
    every = list(drafter.trainable_parameters())
    if parts is None:
        return every
    known = dict(drafter.named_children())
    for name in parts:
        if name not in known:
            raise MMSpecError(f"recipe.parts: {type(drafter).__name__} has no {name!r}; it consists of {list(known)}")
    chosen = {id(parameter) for name in parts for parameter in known[name].parameters()}
    return [parameter for parameter in every if id(parameter) in chosen]


def _chosen(drafter: Drafter) -> bool:
    """Return True if a drafter knows already which tokens it drafts, as one that was trained before does, whose head is
    for those tokens. Until then they are the first ones."""
    vocabulary = drafter.draft_vocabulary
    return vocabulary is not None and not torch.equal(vocabulary.cpu(), torch.arange(len(vocabulary)))


def _signals() -> list[signal.Signals]:
    """Return the signals that ask to stop. Handlers can only be set in the main thread."""
    return [signal.SIGINT, signal.SIGTERM] if threading.current_thread() is threading.main_thread() else []
