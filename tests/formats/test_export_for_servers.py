"""What servers take as it is: targets in the layout that they read, and drafters whose layouts are vLLM's own."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from running import tiny
from safetensors.torch import load_file
from tiny_requests import target_of
from torch.nn.functional import silu
from transformers import AutoModelForCausalLM

import mmspec
from mmspec import MMSpecError
from mmspec.cli import main
from mmspec.drafters import MedusaDrafter
from mmspec.formats.export import export_drafter, export_target
from mmspec.formats.export.target import needs_rewriting, served_name, write_target
from mmspec.loading import EMBEDDED
from mmspec.models.weights import fingerprint


def test_a_tower_without_its_level_is_written_with_it_and_is_the_same_model(tmp_path):
    folder = export_target(tiny(), tmp_path / "target")
    before, after = (load_file(one / "model.safetensors") for one in (EMBEDDED / "tiny" / "target", folder))
    assert len(before) == len(after) and not needs_rewriting(folder)
    for name, tensor in before.items():
        moved = name.replace("vision_tower.", "vision_tower.vision_model.")
        assert torch.equal(tensor, after[moved])
    assert {file.name for file in folder.iterdir()} == {file.name for file in (EMBEDDED / "tiny" / "target").iterdir()}
    assert fingerprint(mmspec.load_target(str(folder)).model) == fingerprint(tiny().model)


def test_shards_and_their_index_are_renamed_together(tmp_path):
    tiny().model.save_pretrained(tmp_path / "own", max_shard_size="4MB")
    assert len(list((tmp_path / "own").glob("*.safetensors"))) > 1 and needs_rewriting(tmp_path / "own")
    folder = write_target(tmp_path / "own", tmp_path / "served")
    index = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    assert any(name.startswith("model.vision_tower.vision_model.") or ".vision_model." in name for name in index)
    for name, file in index.items():
        assert name in load_file(folder / file)


def test_other_layouts_stay_as_they_are():
    clip, other = ({"vision_config": {"model_type": kind}} for kind in ("clip_vision_model", "pixtral"))
    assert served_name("vision_tower.encoder.x", clip) == "vision_tower.vision_model.encoder.x"
    assert served_name("model.vision_tower.encoder.x", clip) == "model.vision_tower.vision_model.encoder.x"
    for name in ("vision_tower.vision_model.encoder.x", "language_model.x", "multi_modal_projector.x"):
        assert served_name(name, clip) == name
    for config in (other, {}, {"vision_config": None}):
        assert served_name("vision_tower.encoder.x", config) == "vision_tower.encoder.x"


def test_older_files_have_the_names_that_servers_read(tmp_path):
    shutil.copy(EMBEDDED / "tiny" / "target" / "config.json", tmp_path)
    (tmp_path / "pytorch_model.bin").touch()
    assert not needs_rewriting(tmp_path)
    with pytest.raises(MMSpecError, match=r"has no weights in \.safetensors beside its config.json"):
        write_target(tmp_path, tmp_path / "served")


def test_heads_name_the_target_that_was_written_or_another(tmp_path):
    drafter = mmspec.load_drafter("tiny/eagle3", tiny())
    made = export_drafter(drafter, tmp_path)
    named = json.loads((tmp_path / "config.json").read_text())["speculators_config"]["verifier"]["name_or_path"]
    assert named == made.target == str((tmp_path / "target").resolve())
    assert made.speculative_config == {"method": "eagle3", "model": str(tmp_path), "num_speculative_tokens": 5}
    assert made.command.startswith(f"vllm serve {tmp_path}/target --dtype float32 --speculative-config ")
    assert export_drafter(drafter, tmp_path, "there/served").target == "there/served"


def test_medusa_is_what_vllm_computes(tmp_path):
    drafter = MedusaDrafter(target_of("llava", "sdpa"), heads=3, layers=2)
    with torch.no_grad():
        for weight in drafter.parameters():
            weight.normal_()
    made = export_drafter(drafter, tmp_path, "a/target", speculative_tokens=2)
    config, weights = json.loads((tmp_path / "config.json").read_text()), load_file(tmp_path / "model.safetensors")
    assert (made.method, config["medusa_num_heads"], config["medusa_num_layers"]) == ("medusa", 2, 2)
    # Told the method, vLLM asks the configuration of a vision-language target for a vocabulary that is not at its top.
    assert config["model_type"] == "medusa" and made.speculative_config.keys() == {"model", "num_speculative_tokens"}
    states = torch.randn(4, drafter.target.hidden_size)
    for head in range(2):
        ours, x = drafter.medusa_head[head](states), states
        for layer in range(2):
            name = f"blocks.{head}.layers.{layer}"
            x = x + silu(x @ weights.pop(f"{name}.weight").T + weights.pop(f"{name}.bias"))
        torch.testing.assert_close(ours, x @ weights.pop(f"lm_heads.{head}.weight").T)
    assert not weights
    with pytest.raises(MMSpecError, match=r"speculative_tokens=4 is more than the 3 heads"):
        export_drafter(drafter, tmp_path, "a/target", speculative_tokens=4)


def test_a_draft_model_is_an_ordinary_folder(tmp_path):
    drafter = mmspec.load_drafter("tiny/text_only", tiny())
    made = export_drafter(drafter, tmp_path, speculative_tokens=3)
    assert (made.method, made.speculative_tokens) == ("draft_model", 3)
    ids = torch.tensor([[1, 9, 20, 30]])
    read = AutoModelForCausalLM.from_pretrained(tmp_path)
    torch.testing.assert_close(read(ids).logits, drafter.model(ids).logits)
    assert (tmp_path / "tokenizer.json").exists()


@pytest.mark.parametrize("name", ["my-eagle-1", "Eagle3", "dflash/blind", "DSPARK"])
def test_folders_by_whose_names_a_server_goes_are_refused(name, tmp_path):
    blind = mmspec.load_drafter("tiny/text_only", tiny())
    for drafter in (blind, MedusaDrafter(target_of("llava", "sdpa"), heads=1)):
        with pytest.raises(MMSpecError, match=r"would take what lies in .* for a drafter of another kind"):
            export_drafter(drafter, tmp_path / name, "a/target")
    assert not (tmp_path / name).exists()
    assert export_drafter(mmspec.load_drafter("tiny/eagle3", tiny()), tmp_path / name).method == "eagle3"


def test_what_would_be_served_as_something_else_is_refused(tmp_path):
    for name, words in {"draft_model": "a server drafts from the text alone", "vispec": "has no counterpart"}.items():
        with pytest.raises(MMSpecError, match=words):
            export_drafter(mmspec.load_drafter(f"tiny/{name}", tiny()), tmp_path / name)
        assert not (tmp_path / name).exists()


def test_the_command_says_how_to_serve(tmp_path, capsys):
    assert main(["export", "--output", str(tmp_path), "drafter=text_only"]) == 0
    said = capsys.readouterr().out
    assert (
        f"serve it with: vllm serve {tmp_path}/target --dtype bfloat16 --speculative-config" in said
        and "draft_model" in said
    )
