"""Drafters from published checkpoints: loaded, refused, and beside the originals that their authors wrote."""

from __future__ import annotations

from functools import cache

import heads
import models
import originals
import published
import pytest
import torch
from heads import inputs_of, lesson_of
from tiny_requests import target_of

import mmspec
from mmspec import MMSpecError
from mmspec.drafters import Drafter
from mmspec.models.states import LAST


def written(format: str, name: str = "llava") -> tuple[dict, dict]:
    """Tensors and configuration of a checkpoint of a format, for a target."""
    return published.WRITERS[format](target_of(name, "sdpa").model)


def load_written(folder, tensors: dict, config: dict, name: str = "llava", shards: int = 1, **options) -> Drafter:
    return mmspec.load_drafter(published.write(folder, tensors, config, shards), target_of(name, "sdpa"), **options)


def refused(folder, tensors: dict, config: dict, message: str, name: str = "llava", **options) -> None:
    with pytest.raises(MMSpecError, match=message) as caught:
        load_written(folder, tensors, config, name, **options)
    assert "\n" not in str(caught.value)


@cache
def asked(family: str) -> tuple[dict, list]:
    """A prompt with a picture, and what the target alone says to it."""
    inputs = models.inputs_for(family, [1])
    return inputs, mmspec.generate(target_of(family, "sdpa"), inputs=inputs, max_new_tokens=6).token_ids


def outcome(folder, family: str) -> str | None:
    """What is said of a folder; None if its drafter works."""
    inputs, expected = asked(family)
    target = target_of(family, "sdpa")
    try:
        drafter = mmspec.load_drafter(str(folder), target)
        written = mmspec.generate(target, drafter, inputs=inputs, max_new_tokens=6).token_ids
    except MMSpecError as error:
        return str(error)
    assert written == expected
    return None


def original(format: str, name: str) -> originals.Original:
    """The original, told what its own code would know."""
    options = {"eps": published.EPS, "base": published.BASE}
    if format in ("msd", "msd, qwen"):
        cls = originals.Decoupled
    elif format == "vispec":
        cls = originals.Adapted
    elif format.startswith("hivis"):
        cls, options["packed"] = originals.Hidden, name == "llava"
    elif format == "dream":
        cls = originals.Asking
    elif format.startswith("mtp"):
        cls = originals.Native
        norms = ("mtp.pre_fc_norm_embedding", "mtp.pre_fc_norm_hidden", "mtp.norm", "mtp.fc")
        if format in ("mtp", "mtp, shared"):
            options["names"] = [(*norms, f"mtp.layers.{number}") for number in range(1 + ("shared" in format))]
            options |= {"added": 1.0, "turned": 4, "sections": (1, 1, 0), "interleaved": True}
        elif format == "mtp, appended":
            parts, layers = ("enorm", "hnorm", "shared_head.norm", "eh_proj"), ["layers.61", "layers.62", "layers.63"]
            options["names"] = [(*(f"{layer}.{part}" for part in parts), layer) for layer in layers]
        else:
            parts = ("token_layernorm", "hidden_layernorm", "final_layernorm", "input_proj")
            layers = [f"mtp_layers.{number}" for number in range(1 + ("mimo" in format))]
            options["names"] = [(*(f"{layer}.{part}" for part in parts), layer) for layer in layers]
            options["states_first"] = "mimo" in format
    elif format.startswith("peagle"):
        cls = originals.Parallel
        options |= {"layers": [1, 1, 2], "mask": published.DRAFTED[2], "norm_before_residual": True}
        if format == "peagle, vLLM":
            options |= {"layers": [1, 0, 2], "mask": 7, "norm_before_residual": False}
    elif format.startswith("eagle3"):
        cls = originals.Third
        options["layers"] = {"eagle3, speculators": [1, 0, 2], "eagle3, other width": [0, 1, 2]}.get(format, [1, 1, 2])
        if format == "eagle3, speculators":
            options |= {"prefix": "layers.0", "norm_output": True}
        if format == "eagle3, other width":
            options |= {"norm_before_residual": True}
        if format in ("eagle3, mrope", "eagle3, interleaved"):
            options |= {"sections": (2, 1, 1), "interleaved": format == "eagle3, interleaved"}
    else:
        cls = originals.Fused
    made = cls(written(format, name)[0], **options)
    if format == "hivis, old":
        made.residual = "adaptive_embedding"
    return made


@cache
def axes_of(name: str, row: int) -> torch.Tensor:
    """`[3, length]` positions of prompt and answer, by transformers' own count."""
    target, lesson = target_of(name, "sdpa"), lesson_of(name)
    ids = torch.tensor(lesson.request.token_ids()[row])
    if name != "qwen_vl":
        return torch.arange(len(ids)).expand(3, -1)
    single = models.one_row(inputs_of(name), row)
    positions, _ = target.model.model.get_rope_index(
        ids[None],
        mm_token_type_ids=(ids[None] == models.IMAGE).int(),
        image_grid_thw=single.get("image_grid_thw"),
        attention_mask=torch.ones_like(ids[None]),
    )
    return positions[:, 0]


@cache
def text_of(name: str, row: int, root: int) -> originals.Text:
    """A row of the lesson up to a root, the answer's token of that number."""
    lesson, model = lesson_of(name), target_of(name, "sdpa").model
    states, read, _ = heads.full_pass(name, row)
    length = lesson.prompt.lengths[row]
    ids = lesson.request.token_ids()[row][: length + root + 1]
    return originals.Text(
        ids,
        {(-1 if layer == LAST else layer): state[: len(ids) - 1] for layer, state in states.items()},
        read[: len(ids)],
        model.get_input_embeddings().weight.detach(),
        model.get_output_embeddings().weight.detach(),
        models.IMAGE,
        length,
        axes_of(name, row),
    )
