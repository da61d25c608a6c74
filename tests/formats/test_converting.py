"""Pickled checkpoints: refused with the command that converts them, which reads tensors and nothing else."""

from __future__ import annotations

import json
import pickle
import re
import runpy
import sys
from pathlib import Path

import published
import pytest
import torch
from safetensors.torch import load_file
from tiny_requests import target_of

import mmspec
from mmspec import MMSpecError
from mmspec.formats.convert import convert, main


def pickled(folder: Path, tensors: dict, name: str = "pytorch_model.bin") -> str:
    """A folder as `torch.save` leaves it."""
    published.write(folder, {}, published.llama_config())
    (folder / "model.safetensors").unlink()
    torch.save(tensors, folder / name)
    return str(folder)


def eagle() -> dict:
    return published.eagle(target_of("llava", "sdpa").model)[0]


def test_a_pickle_is_refused_with_the_command_that_converts_it_and_then_loads(tmp_path, monkeypatch, capsys):
    target = target_of("llava", "sdpa")
    folder = pickled(tmp_path / "pickled", eagle())
    with pytest.raises(MMSpecError) as caught:
        mmspec.load_drafter(folder, target)
    command = re.search(r"convert it once with: (python -m mmspec\.formats\.convert \S+)$", str(caught.value))[1]
    assert command.endswith(folder)
    python, option, module, argument = command.split()
    monkeypatch.setattr(sys, "argv", [module, argument])
    monkeypatch.delitem(sys.modules, module)
    with pytest.raises(SystemExit) as ended:  # as `python -m` does, without another process
        runpy.run_module(module, run_name="__main__")
    assert (python, option, ended.value.code) == ("python", "-m", 0)
    assert capsys.readouterr().out == f"wrote {folder}/model.safetensors\n"
    drafter = mmspec.load_drafter(folder, target)
    other = mmspec.load_drafter(published.write(tmp_path / "safe", eagle(), published.llama_config()), target)
    ours, theirs = drafter.state_dict(), other.state_dict()
    assert ours.keys() == theirs.keys() and all(theirs[key].equal(value) for key, value in ours.items())


def test_shards_become_one_file_and_tied_tensors_are_written_once(tmp_path):
    tensors = eagle()
    tensors["z.tied"] = tensors["fc.weight"]
    tensors["part"] = tensors["fc.weight"][:3]  # a view, which is a tensor of its own in the file
    folder = Path(pickled(tmp_path, {name: tensors[name] for name in tensors if name < "g"}, "pytorch_model-1.bin"))
    torch.save({name: tensors[name] for name in tensors if name >= "g"}, folder / "pytorch_model-2.bin")
    names = {name: f"pytorch_model-{1 if name < 'g' else 2}.bin" for name in tensors}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": names}))
    written = load_file(convert(folder))
    # Across two pickles nothing is shared, so there the tie has become a copy.
    assert written.keys() == tensors.keys() and all(written[name].equal(tensors[name]) for name in tensors)
    torch.save(tensors, folder / "pytorch_model.bin")
    (folder / "pytorch_model.bin.index.json").unlink()
    for part in (1, 2):
        (folder / f"pytorch_model-{part}.bin").unlink()
    written = load_file(convert(folder, force=True))
    assert written.keys() == tensors.keys() - {"z.tied"}
    assert all(written[name].equal(tensors[name]) for name in written)


class Trap:
    """What a pickle could do to whoever opens it."""

    def __reduce__(self):
        return print, ("the pickle ran",)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (torch.zeros(3), "holds a Tensor, not a dictionary of named tensors"),
        ({"state_dict": {"fc.weight": torch.zeros(3)}}, "no flat dictionary of named tensors: 'state_dict' is a dict"),
        ({"fc.weight": torch.zeros(3), "epoch": 4}, "no flat dictionary of named tensors: 'epoch' is a int"),
        ({3: torch.zeros(3)}, "no flat dictionary of named tensors: 3 is a Tensor"),
        ({"fc.weight": Trap()}, "cannot be read as weights alone: Weights only load failed"),
    ],
    ids=["tensor", "nested", "number", "key", "trap"],
)
def test_what_is_no_flat_dictionary_of_tensors_is_refused(tmp_path, capsys, content, message):
    folder = pickled(tmp_path, content)
    assert main([folder]) == 2
    said = capsys.readouterr()
    assert re.search(rf"^error: '.*pytorch_model\.bin' .*{message}", said.err) and said.err.count("\n") == 1
    assert "ran" not in said.out and not (tmp_path / "model.safetensors").exists()


def test_damaged_and_plain_pickles_are_refused(tmp_path):
    folder = Path(pickled(tmp_path, {}))
    for content in (b"", b"\x00garbage" * 40, pickle.dumps({"fc.weight": Trap()}, protocol=2)):
        (folder / "pytorch_model.bin").write_bytes(content)
        with pytest.raises(MMSpecError, match="cannot be read as weights alone"):
            convert(folder)


def test_nothing_is_overwritten_and_nothing_is_guessed(tmp_path):
    folder = Path(pickled(tmp_path, {"fc.weight": torch.ones(2)}))
    (folder / "model.safetensors").write_bytes(b"mine")
    with pytest.raises(MMSpecError, match="has model.safetensors already; add --force to replace it"):
        convert(folder)
    assert (folder / "model.safetensors").read_bytes() == b"mine"
    assert main([str(folder), "--force"]) == 0 and load_file(folder / "model.safetensors")["fc.weight"].equal(
        torch.ones(2)
    )
    (folder / "model.safetensors").unlink()
    torch.save({}, folder / "other.pt")
    with pytest.raises(MMSpecError, match=r"must have one pickle .*; it has other\.pt, pytorch_model\.bin"):
        convert(folder)
    with pytest.raises(MMSpecError, match="is no folder"):
        convert(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(MMSpecError, match="it has none"):
        convert(tmp_path / "empty")


# The hub.


class Hub:
    """Stands for the Hugging Face hub: a folder per repository, of which only what is asked for arrives."""

    def __init__(self, root: Path):
        self.root = root

    def list_repo_files(self, repository: str) -> list[str]:
        return [path.name for path in (self.root / repository).iterdir()]

    def snapshot_download(self, repository: str, allow_patterns: list[str]) -> str:
        here = self.root / "cache" / repository
        here.mkdir(parents=True, exist_ok=True)
        for path in (self.root / repository).iterdir():
            if any(path.match(pattern) for pattern in allow_patterns):
                (here / path.name).write_bytes(path.read_bytes())
        return str(here)


@pytest.fixture
def hub(tmp_path, monkeypatch) -> Hub:
    import huggingface_hub

    hub = Hub(tmp_path)
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: hub)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", hub.snapshot_download)
    return hub


@pytest.mark.parametrize("shards", [1, 3])
def test_a_published_drafter_comes_from_the_hub(hub, shards):
    published.write(hub.root / "yuhuili" / "EAGLE-tiny", eagle(), published.llama_config(), shards)
    drafter = mmspec.load_drafter("yuhuili/EAGLE-tiny", target_of("llava", "sdpa"))
    assert type(drafter).__name__ == "EagleDrafter"


def test_a_pickle_on_the_hub_is_not_even_fetched(hub):
    pickled(hub.root / "yuhuili" / "EAGLE-old", eagle())
    commands = "hf download yuhuili/EAGLE-old --local-dir EAGLE-old && python -m mmspec.formats.convert EAGLE-old"
    with pytest.raises(MMSpecError, match=re.escape(commands)):
        mmspec.load_drafter("yuhuili/EAGLE-old", target_of("llava", "sdpa"))
    assert not list((hub.root / "cache").rglob("*.bin"))
