"""Loading a drafter takes hardly more memory than the drafter itself."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import models
import pytest
import torch
from heads import guesses_of, lesson_of
from tiny_requests import target_of

import mmspec
from mmspec.drafters import EagleDrafter, EagleSettings

SMALL = {"hidden_size": 1536, "intermediate_size": 4096, "vocab_size": 16000}
FULL = {"hidden_size": 4096, "intermediate_size": 11008, "vocab_size": 32000}
"""Of EAGLE for a model of seven billion parameters: 0.73 GB in half precision."""

LIMIT = 1.3
"""Times the checkpoint's size, above what was in memory before."""

PROGRAM = """
import json, sys
import torch, transformers
import mmspec

folder, sizes = sys.argv[1], json.loads(sys.argv[2])
config = transformers.LlamaConfig(num_hidden_layers=1, num_attention_heads=32, num_key_value_heads=32, **sizes)
torch.set_default_dtype(torch.bfloat16)
with torch.device("meta"):
    model = transformers.LlamaForCausalLM(config)
model = model.to_empty(device="cpu")
torch.set_default_dtype(torch.float32)
for parameter in model.parameters():
    parameter.data.fill_(0.01)
model.model.rotary_emb = type(model.model.rotary_emb)(config)
model.model.embed_tokens.weight.data.copy_(torch.arange(sizes["vocab_size"])[:, None] % 7)
target = mmspec.Target(model)

def status(name):
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith(name))

def measured(name):
    open("/proc/self/clear_refs", "w").write("5")  # the peak begins anew
    before = status("VmRSS")
    drafter = mmspec.load_drafter(name, target)
    return drafter, status("VmHWM") - before

drafter, published = measured(folder)
assert drafter.settings.own_embedding is None
drafter.save_pretrained(folder + "/saved")
del drafter
drafter, saved = measured(folder + "/saved")
print(json.dumps({"published": published, "saved": saved}))
"""


def write(folder: Path, hidden_size: int, intermediate_size: int, vocab_size: int) -> int:
    """An EAGLE checkpoint in half precision; returns its size in bytes."""
    from safetensors.torch import save_file

    def numbers(*shape: int) -> torch.Tensor:
        return torch.empty(shape, dtype=torch.bfloat16).uniform_(-0.01, 0.01)

    table = (torch.arange(vocab_size)[:, None] % 7).expand(-1, hidden_size).to(torch.bfloat16).contiguous()
    tensors = {"embed_tokens.weight": table, "fc.weight": numbers(hidden_size, 2 * hidden_size)}
    tensors |= {f"layers.0.self_attn.{name}_proj.weight": numbers(hidden_size, hidden_size) for name in "qkvo"}
    tensors |= {f"layers.0.mlp.{name}_proj.weight": numbers(intermediate_size, hidden_size) for name in ("gate", "up")}
    tensors["layers.0.mlp.down_proj.weight"] = numbers(hidden_size, intermediate_size)
    tensors["layers.0.post_attention_layernorm.weight"] = numbers(hidden_size)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    config = {"num_attention_heads": 32, "num_key_value_heads": 32, "rope_theta": 10000.0, "bias": False}
    (folder / "config.json").write_text(json.dumps(config))
    return (folder / "model.safetensors").stat().st_size


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak from /proc")
@pytest.mark.parametrize("sizes", [SMALL, pytest.param(FULL, marks=pytest.mark.slow)], ids=["small", "full"])
def test_loading_takes_little_more_than_the_drafter(tmp_path, sizes):
    size = write(tmp_path, **sizes)
    command = [sys.executable, "-c", PROGRAM, str(tmp_path), json.dumps(sizes)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    peaks = json.loads(done.stdout.splitlines()[-1])
    print({"checkpoint": size, **peaks})
    assert peaks["published"] <= LIMIT * size
    assert peaks["saved"] <= LIMIT * size, "and so does one of our own, which lacks the embedding"


@dataclass(frozen=True, kw_only=True)
class ScaledSettings(EagleSettings):
    """Where the tensor is kept: in an attribute, or in a buffer."""

    kind: str = "attribute"


class Scaled(EagleDrafter):
    """Of an inventor: with a tensor that is computed when it is made, and kept in no file."""

    Settings = ScaledSettings

    def build(self):
        super().build()
        scale = torch.full((1,), 0.5)
        if self.settings.kind == "buffer":
            self.register_buffer("scale", scale, persistent=False)
        else:
            self.scale = scale

    def head_input(self, output):
        return output * self.scale


class Chosen(Scaled):
    """Of one who puts it together differently."""

    @classmethod
    def from_config(cls, config, target):
        drafter = super().from_config(config | {"kind": "buffer"}, target)
        drafter.chosen = True
        return drafter


@pytest.mark.parametrize(("cls", "kind"), [(Scaled, "attribute"), (Scaled, "buffer"), (Chosen, "buffer")])
def test_what_a_drafter_computes_itself_survives(tmp_path, cls, kind):
    drafter = models.redraw(cls(target_of("llava", "sdpa"), kind=kind), seed=1)
    drafter.save_pretrained(tmp_path)
    loaded = mmspec.load_drafter(str(tmp_path), drafter.target)
    assert loaded.scale.equal(torch.full((1,), 0.5)) and getattr(loaded, "chosen", False) == (cls is Chosen)
    ours, theirs = (guesses_of(one, lesson_of("llava"), 1) for one in (drafter, loaded))
    assert all(theirs[key].equal(logits) for key, logits in ours.items())
