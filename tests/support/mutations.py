"""Folders of drafters in all formats, and a way to break them at random: one or two things at a time.

What a mutation changes: a value, a type or a place in `config.json`; a tensor's presence, name, shape, kind or numbers;
the bytes of a file, or what a file is.
"""

from __future__ import annotations

import json
import os
import random
import tempfile
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import models
import published
import torch
from safetensors.torch import load_file, save_file
from tiny_drafters import TINY_DRAFTERS
from tiny_requests import target_of
from torch import Tensor
from toys import byte_tokenizer

CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"

OWN = ["own model", "shared vision", "eagle", "eagle3, fewer tokens", "dream, guided", "medusa", "hivis", "vispec"]
OWN += ["specvlm", "v5e0", "mtp", "early exit, block", "early exit, mlp"]
"""Kinds of drafters that are saved in this library's own form."""

SMALL_MODEL = "small model"
"""One of transformers, in the form of transformers."""

LARGE = [10**6, 10**9, 10**12, 2**63, 10**30, 10**5000]

STRANGE: list[Any] = [None, True, False, 0, -1, 1, 2, 3, 7, 1.5, -2.0, 1e30, float("nan"), float("inf")]
STRANGE += ["", "7", "silu", "\x1b[2J", "mmspec.drafters.EagleDrafter", "os.system", "x" * 10**5]
STRANGE += [[], [1], ["a", "b"], [[1]], {}, {"a": 1}, *LARGE]
"""What may stand where something else is meant."""

KINDS = [torch.int64, torch.int32, torch.bool, torch.complex64, torch.float8_e4m3fn, torch.uint8, torch.float64]


@cache
def originals() -> dict[str, tuple[str, dict[str, Tensor], dict[str, Any], int]]:
    """Name to: the target's family, tensors, configuration, number of shards. Of every published format."""
    made: dict[str, tuple[str, dict[str, Tensor], dict[str, Any], int]] = {}
    for number, (name, written) in enumerate(published.WRITERS.items()):
        family = "qwen_vl" if "qwen" in name or "mrope" in name or "interleaved" in name else "llava"
        made[name] = (family, *written(target_of(family, "sdpa").model), 1 + number % 3)
    heads = {
        f"{head}.0.linear.{part}": torch.randn(32, 32)[0 if part == "bias" else ...]
        for head in range(2)
        for part in ("weight", "bias")
    }
    heads |= {f"{head}.1.weight": torch.randn(models.VOCAB, 32) for head in range(2)}
    made["medusa, published"] = ("llava", heads, {"medusa_num_heads": 2}, 1)
    return made


@cache
def files_of(name: str) -> tuple[str, dict[str, bytes]]:
    """The family of a target, and the files of a sound folder with a drafter for it."""
    with tempfile.TemporaryDirectory() as folder:
        if name in originals():
            family, tensors, config, shards = originals()[name]
            published.write(Path(folder), tensors, config, shards)
        elif name == SMALL_MODEL:
            family = "llava"
            models.llama(seed=2).save_pretrained(folder)
            byte_tokenizer().save_pretrained(folder)
        else:
            family = "llava"
            TINY_DRAFTERS[name.removeprefix("saved ")](family, "sdpa").save_pretrained(folder)
        return family, {path.name: path.read_bytes() for path in Path(folder).iterdir()}


def write(folder: Path, name: str) -> str:
    """A sound folder of a kind; returns the family of its target."""
    family, files = files_of(name)
    folder.mkdir()
    for file, content in files.items():
        (folder / file).write_bytes(content)
    return family


def mutate(folder: Path, draw: random.Random) -> str:
    """Break something in a folder; returns what."""
    choices = [change_config] * 5 + [change_tensors] * 5 + [change_files]
    return draw.choice(choices)(folder, draw)


# config.json


def places(value: Any, path: tuple = ()) -> list[tuple]:
    """The paths of everything in a nested value, itself left out."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [place for key, part in items for place in [(*path, key), *places(part, (*path, key))]]


def change_config(folder: Path, draw: random.Random) -> str:
    config = json.loads((folder / CONFIG).read_text())
    *above, key = draw.choice(places(config))
    parent = config
    for step in above:
        parent = parent[step]
    way = draw.choice(["strange", "strange", "strange", "large", "scale", "drop", "list", "text", "nest", "add"])
    value = parent[key]
    if way == "drop":
        del parent[key]
    elif way == "add":
        names = ["rope_scaling", "head_dim", "eagle_config", "vision_config", "auto_map", "quantization_config"]
        names += ["aux_hidden_states_layer_ids", "own_embedding", "compressor", "text_config", "vocab_size", "rope"]
        config[draw.choice(names)] = draw.choice(STRANGE)
    else:
        number = isinstance(value, int | float) and not isinstance(value, bool)
        changed = {
            "strange": draw.choice(STRANGE),
            "large": draw.choice(LARGE),
            "scale": value * draw.choice([2, 3, 0.5, -1, 100]) if number else draw.choice(STRANGE),
            "list": [value] * draw.choice([1, 2, 100]),
            "text": str(value),
            "nest": nested(draw.choice([3, 200, 5000])),
        }
        parent[key] = changed[way]
    text = dumped(config)
    (folder / CONFIG).write_text(text)
    left = parent.get(key) if isinstance(parent, dict) else parent
    return f"config {'.'.join(map(str, (*above, key)))} {way} {cut(left)}"


class Raw(str):
    """Text that is JSON already."""


def nested(depth: int) -> Raw:
    return Raw("[" * depth + "]" * depth)


def dumped(config: Any) -> str:
    """JSON, also of what `json` would not write: very long integers, and very deep lists."""
    parts: list[str] = []

    def stand_in(value: Any) -> Any:
        if isinstance(value, Raw) or (type(value) is int and abs(value) > 2**70):
            parts.append(value if isinstance(value, Raw) else "9" * 5000)
            return f"@{len(parts) - 1}@"
        if isinstance(value, dict):
            return {name: stand_in(part) for name, part in value.items()}
        return [stand_in(part) for part in value] if isinstance(value, list) else value

    text = json.dumps(stand_in(config))
    for number, part in enumerate(parts):
        text = text.replace(f'"@{number}@"', part)
    return text


def cut(value: Any) -> str:
    try:
        return repr(value)[:60]
    except ValueError:
        return "a very long integer"


# Tensors


def change_tensors(folder: Path, draw: random.Random) -> str:
    path = draw.choice(sorted(folder.glob("*.safetensors")))
    tensors = load_file(path)
    name = draw.choice(sorted(tensors))
    tensor = tensors[name]
    way = draw.choice(["drop", "rename", "add", "kind", "kind", "shape", "shape", "rank", "numbers", "numbers", "many"])
    if way == "drop":
        del tensors[name]
    elif way == "rename":
        names = ["d2t", "t2d", "residual", "imadpt.q", "embed_tokens.weight", f"model.{name}", "999999999.0.weight"]
        tensors[draw.choice([*names, name[::-1], "\x1b[31m"])] = tensors.pop(name)
    elif way == "add":
        names = [
            "d2t",
            "t2d",
            "residual",
            "imadpt.q",
            "layers.1.cross_attn_attn_gate",
            "embed_tokens.weight",
            "fc.bias",
        ]
        tensors[draw.choice([*names, "99999.0.linear.weight"])] = torch.zeros(draw.choice([(), (0,), (3,), (61, 32)]))
    elif way == "kind":
        tensors[name] = tensor.to(draw.choice(KINDS))
    elif way == "shape":
        dims = list(tensor.shape) or [1]
        dims[draw.randrange(len(dims))] += draw.choice([-1, 1, 3, 64, -dims[0]])
        tensors[name] = torch.ones([max(0, size) for size in dims], dtype=tensor.dtype)
    elif way == "rank":
        ranks = [tensor[None], tensor[..., None], tensor.flatten(), torch.zeros((), dtype=tensor.dtype)]
        tensors[name] = draw.choice(ranks).contiguous()
    elif way == "numbers":
        value = draw.choice([float("nan"), float("inf"), 1e38, -1e38, 0.0]) if tensor.is_floating_point() else 99
        tensors[name] = torch.full_like(tensor, value) if draw.random() < 0.5 else tensor.clone()
        if tensors[name].numel():
            tensors[name].view(-1)[draw.randrange(tensor.numel())] = value
    else:
        tensors |= {f"some.name.of.a.tensor.{number}": torch.zeros(1) for number in range(500)}
    save_file(tensors, path, {"format": "pt"})
    return f"tensor {name} {way}"


# Files


def change_files(folder: Path, draw: random.Random) -> str:
    path = draw.choice(sorted(folder.iterdir()))
    data = path.read_bytes()
    way = draw.choice(["truncate", "empty", "garbage", "flip", "missing", "pipe", "folder", "shard", "shard", "link"])
    if way in ("shard", "link"):
        index = folder / INDEX
        if not index.exists():
            (folder / WEIGHTS).rename(folder / "model-00001-of-00001.safetensors")
            index.write_text(json.dumps({"weight_map": {"a": "model-00001-of-00001.safetensors"}}))
        content = json.loads(index.read_text())
        strange = ["../x.safetensors", "/dev/zero", "..", "", "a\0b", 7, None, ["a"], {}, "x" * 5000, "\x1b[2J", CONFIG]
        content = draw.choice([{"weight_map": {"a": value}} for value in strange] + [[], {}, {"weight_map": []}])
        if way == "link":
            (folder / "out.safetensors").symlink_to(Path(__file__))
            content = {"weight_map": {"a": "out.safetensors"}}
        index.write_text(json.dumps(content))
        return f"files index {cut(content)}"
    path.unlink()
    if way == "pipe":
        os.mkfifo(path)
    elif way == "folder":
        path.mkdir()
    elif way == "flip":
        changed = bytearray(data)
        for _ in range(3):
            changed[draw.randrange(len(changed))] = draw.randrange(256)
        path.write_bytes(changed)
    elif way != "missing":
        cuts: dict[str, Callable[[], bytes]] = {
            "truncate": lambda: data[: draw.randrange(len(data))],
            "empty": bytes,
            "garbage": partial(draw.randbytes, 200),
        }
        path.write_bytes(cuts[way]())
    return f"files {path.name} {way}"
