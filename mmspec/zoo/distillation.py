"""Train the two embedded draft models on what the target itself writes.

The target answers prompts of the training split (greedily, kept in a JSON-lines file that a later run continues); both
draft models then learn from the same batches, in one pass over the target: half cross entropy on its tokens, half
Kullback-Leibler divergence from its distributions (Spec-LLaVA, arXiv 2509.11961, leaves the weights open).

- `draft_model`: two layers that read the target's vision tower through a projector of their own;
- `text_only`: one layer that never sees the picture.

Both begin with the target's embeddings and first layers, the projector with the target's own.
"""

from __future__ import annotations

import json
import math
import random
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM

from ..drafters import DraftModelDrafter
from ..drafters.draft_model import VisualProjector
from ..generation import generate
from ..inputs import prepare
from ..target import Target
from .data import TASKS, sample

LAYERS = {"draft_model": 2, "text_only": 1}
MODES = {"draft_model": "shared_vision", "text_only": "text_only"}


@dataclass
class Settings:
    """What a run depends on.

    Args:
        output: folder of the answers, the log and the trained drafters.
        examples: pictures per task.
        steps: optimizer steps.
        rows: pictures per step.
        learning_rate: peak; warms up, then falls along a cosine.
        generation_rows: pictures that the target answers at once.
        longest_answer: in tokens.
        validation_rows: pictures per task of the validation split for the agreement measured at the end.
    """

    output: Path
    examples: int = 1500
    steps: int = 700
    rows: int = 32
    learning_rate: float = 2e-3
    generation_rows: int = 48
    longest_answer: int = 192
    validation_rows: int = 32
    seed: int = 0


def collect(target: Target, settings: Settings, split: str, per_task: int, path: Path) -> list[dict]:
    """The target's answers: `{"task", "index", "answer"}` with token ids; what the file has is not asked again."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = path.read_text().splitlines() if path.exists() else []
    records = {(r["task"], r["index"]): r for r in map(json.loads, lines)}
    with path.open("a") as file:
        for task in TASKS:
            wanted = [index for index in range(per_task) if (task, index) not in records]
            for start in range(0, len(wanted), settings.generation_rows):
                indices = wanted[start : start + settings.generation_rows]
                samples = [sample(task, split, index) for index in indices]
                out = generate(
                    target,
                    prompt=[s.prompt for s in samples],
                    images=[[s.image] for s in samples],
                    max_new_tokens=settings.longest_answer,
                )
                for index, answer in zip(indices, out.token_ids, strict=True):
                    records[task, index] = {"task": task, "index": index, "answer": answer}
                    file.write(json.dumps(records[task, index]) + "\n")
                file.flush()
                print(f"{split} {task}: {start + len(indices)} of {len(wanted)} answers", flush=True)
    return [records[task, index] for task in TASKS for index in range(per_task)]


def build_drafter(target: Target, name: str) -> DraftModelDrafter:
    """An untrained draft model that begins with parts of the target."""
    text = target.family.text_config
    settings = text.to_dict() | {"num_hidden_layers": LAYERS[name], "tie_word_embeddings": True, "dtype": "float32"}
    settings.pop("layer_types", None)
    model = LlamaForCausalLM(LlamaConfig.from_dict(settings))
    model.model.embed_tokens.load_state_dict(target.family.decoder.embed_tokens.state_dict())
    model.model.norm.load_state_dict(target.family.final_norm.state_dict())
    for ours, theirs in zip(model.model.layers, target.family.layers, strict=False):
        ours.load_state_dict(theirs.state_dict())
    projector = None
    if MODES[name] == "shared_vision":
        source = target.model.model.multi_modal_projector
        projector = VisualProjector(source.linear_1.in_features, text.hidden_size)
        projector.inner.load_state_dict(source.linear_1.state_dict())
        projector.outer.load_state_dict(source.linear_2.state_dict())
    return DraftModelDrafter(target, model, MODES[name], projector)


class Teacher:
    """Batches with the target's distributions on the answer tokens."""

    def __init__(self, target: Target):
        self.target = target

    @torch.no_grad()
    def batch(self, split: str, records: list[dict]) -> dict:
        """Rows `prompt + answer`, right-padded, the vision features, and the target's logits of every answer token."""
        target = self.target
        samples = [sample(r["task"], split, r["index"]) for r in records]
        request = prepare(target, [s.prompt for s in samples], [[s.image] for s in samples])
        vision = target.encode(request)
        rows = [[*p, *r["answer"]] for p, r in zip(request.token_ids(), records, strict=True)]
        ids, answered = _pad(rows, [len(r["answer"]) for r in records])
        embeds = target.family.embed(ids, vision)
        hidden = target.family.decoder(inputs_embeds=embeds, use_cache=False).last_hidden_state
        logits = target.model.get_output_embeddings()(hidden[:, :-1][answered[:, 1:]]).float()
        return {
            "rows": rows,
            "lengths": [len(r["answer"]) for r in records],
            "features": [f.clone() for f in vision.features],
            "logits": logits,
            "tokens": ids[answered],
            "tasks": [r["task"] for r in records for _ in r["answer"]],
        }


def draft_logits(drafter: DraftModelDrafter, batch: dict) -> Tensor:
    """The draft model's logits before each answer token, `[answer tokens, vocab]`."""
    image = drafter.target.family.image_token_id
    rows = batch["rows"]
    if drafter.mode == "text_only":
        rows = [[token for token in row if token != image] for row in rows]
    ids, answered = _pad(rows, batch["lengths"])
    visual = ids == image
    embeds = drafter.model.get_input_embeddings()(ids.masked_fill(visual, 0))
    if drafter.projector is not None:
        projected = torch.cat([drafter.projector(f.to(drafter.projector.inner.weight)) for f in batch["features"]])
        embeds = embeds.masked_scatter(visual[..., None], projected.to(embeds))
    hidden = drafter.model.model(inputs_embeds=embeds, use_cache=False).last_hidden_state
    return drafter.model.lm_head(hidden[:, :-1][answered[:, 1:]]).float()


def distill(target: Target, settings: Settings) -> dict[str, DraftModelDrafter]:
    """Train and save both drafters under `settings.output`; returns them."""
    records = collect(target, settings, "train", settings.examples, settings.output / "train_answers.jsonl")
    held_out = collect(
        target, settings, "validation", settings.validation_rows, settings.output / "validation_answers.jsonl"
    )
    teacher = Teacher(target)
    drafters = {name: build_drafter(target, name) for name in LAYERS}
    weights = {name: _parameters(drafter) for name, drafter in drafters.items()}
    optimizers = {
        name: torch.optim.AdamW(w, lr=settings.learning_rate, weight_decay=0.01, betas=(0.9, 0.98))
        for name, w in weights.items()
    }
    order, rng, started = [], random.Random(settings.seed), time.monotonic()
    for step in range(settings.steps):
        if len(order) < settings.rows:
            order = rng.sample(range(len(records)), len(records))
        chosen, order = order[: settings.rows], order[settings.rows :]
        batch = teacher.batch("train", [records[i] for i in chosen])
        scale = min(1.0, (step + 1) / 40) * 0.5 * (1 + math.cos(math.pi * step / settings.steps))
        losses = {}
        for name, drafter in drafters.items():
            with torch.autocast("cpu", torch.bfloat16):
                logits = draft_logits(drafter, batch)
            hard = functional.cross_entropy(logits, batch["tokens"])
            soft = functional.kl_div(
                logits.log_softmax(-1), batch["logits"].log_softmax(-1), log_target=True, reduction="batchmean"
            )
            loss = 0.5 * hard + 0.5 * soft
            loss.backward()
            nn.utils.clip_grad_norm_(weights[name], 1.0)
            optimizers[name].param_groups[0]["lr"] = settings.learning_rate * scale
            optimizers[name].step()
            optimizers[name].zero_grad()
            losses[name] = round(loss.item(), 4)
        if not all(map(math.isfinite, losses.values())):
            raise FloatingPointError(f"step {step}: the loss is not finite: {losses}; lower the learning rate")
        if step % 20 == 19:
            entry = {"step": step + 1, "seconds": round(time.monotonic() - started, 1), **losses}
            print(json.dumps(entry), flush=True)
    for name, drafter in drafters.items():
        agreement = top1_agreement(teacher, drafter, held_out, settings.rows)
        print(json.dumps({name: {"top-1 agreement on validation answers": agreement}}), flush=True)
        recipe = {key: str(value) if key == "output" else value for key, value in vars(settings).items()}
        recipe.pop("output")
        drafter.to(torch.bfloat16).save_pretrained(settings.output / name, recipe=recipe, agreement=agreement)
    return drafters


@torch.no_grad()
def top1_agreement(teacher: Teacher, drafter: DraftModelDrafter, records: list[dict], rows: int) -> dict[str, float]:
    """Per task, the share of the target's answer tokens that are the draft model's first choice."""
    hits, counts = dict.fromkeys(TASKS, 0), dict.fromkeys(TASKS, 0)
    for start in range(0, len(records), rows):
        batch = teacher.batch("validation", records[start : start + rows])
        right = (draft_logits(drafter, batch).argmax(-1) == batch["tokens"]).tolist()
        for task, hit in zip(batch["tasks"], right, strict=True):
            hits[task] += hit
            counts[task] += 1
    return {task: round(hits[task] / counts[task], 4) for task in TASKS}


def _parameters(drafter: DraftModelDrafter) -> list[nn.Parameter]:
    """The drafter's own weights, fp32."""
    drafter.model.float()
    return [parameter.requires_grad_() for parameter in drafter.parameters()]


def _pad(rows: list[list[int]], answers: list[int]) -> tuple[Tensor, Tensor]:
    """`[rows, length]` ids, right-padded with 0, and the mask of the answer tokens."""
    width = -(-max(map(len, rows)) // 16) * 16
    ids = torch.tensor([row + [0] * (width - len(row)) for row in rows])
    column = torch.arange(width)
    end = torch.tensor([len(row) for row in rows])[:, None]
    return ids, (column < end) & (column >= end - torch.tensor(answers)[:, None])
