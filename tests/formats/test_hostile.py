"""Folders that are made to do harm: kinds of files and numbers, paths, and sizes that nothing in the folder has."""

from __future__ import annotations

import json
import os
import resource

import models
import mutations
import published
import pytest
import torch
from published_drafters import outcome
from safetensors.torch import load_file, save_file
from tiny_requests import target_of

import mmspec
from mmspec import MMSpecError
from mmspec.errors import LONGEST, listed, shown
from mmspec.files.folders import read_json


def refused(folder, message: str, family: str = "llava") -> None:
    with pytest.raises(MMSpecError, match=message) as error:
        mmspec.load_drafter(str(folder), target_of(family, "sdpa"))
    assert str(error.value).isprintable() and len(str(error.value)) < 800


def edit(folder, *path, to) -> None:
    """Change a value of `config.json`."""
    config = json.loads((folder / "config.json").read_text())
    *above, last = path
    parent = config
    for step in above:
        parent = parent[step]
    parent[last] = to
    (folder / "config.json").write_text(json.dumps(config))


def sound(folder, name: str):
    folder.mkdir(exist_ok=True)
    mutations.write(folder / "drafter", name)
    return folder / "drafter"


# Numbers.


@pytest.mark.parametrize("name", ["eagle", "saved eagle", "medusa, published", "eagle3"])
def test_tensors_of_a_wrong_kind_are_refused(tmp_path, name):
    folder = sound(tmp_path, name)
    path = sorted(folder.glob("*.safetensors"))[0]
    tensors = load_file(path)
    key = next(key for key, tensor in tensors.items() if tensor.is_floating_point() and tensor.ndim == 2)
    for dtype, kind in [
        (torch.int64, "I64"),
        (torch.bool, "BOOL"),
        (torch.complex64, "C64"),
        (torch.float8_e4m3fn, "F8_E4M3"),
    ]:
        save_file(tensors | {key: tensors[key].to(dtype)}, path)
        refused(folder, f"'{key}' holds numbers of kind {kind}, and F64, F32, F16, BF16 are read there")


def test_tokens_of_a_wrong_kind_are_refused(tmp_path):
    folder = sound(tmp_path, "eagle3")
    for path in folder.glob("*.safetensors"):
        tensors = load_file(path)
        if "d2t" in tensors:
            save_file(tensors | {"d2t": tensors["d2t"].float()}, path)
    refused(folder, "'d2t' holds numbers of kind F32, and I64, ")


@pytest.mark.parametrize("name", ["saved eagle3, fewer tokens", "eagle3"])
def test_tokens_that_the_target_does_not_have_are_refused(tmp_path, name):
    folder = sound(tmp_path, name)
    for path in folder.glob("*.safetensors"):
        tensors = load_file(path)
        if "d2t" in tensors:
            tensors["d2t"][-1] = 99
            save_file(tensors, path)
    refused(
        folder,
        r"d2t of \d+ draft tokens leads to \d+ tokens from \d+ to 1\d\d; \d+ different ones of the target's 61",
    )


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite_are_said_and_cost_no_text(tmp_path, caplog, value):
    folder = sound(tmp_path, "saved eagle")
    tensors = load_file(folder / "model.safetensors")
    tensors["fc.weight"][0, 0] = value
    save_file(tensors, folder / "model.safetensors")
    assert outcome(folder, "llava") is None
    (record,) = [record for record in caplog.records if "NaN" in record.message]
    assert "1 of 10 tensors have numbers that are NaN or infinite in float32 (['fc.weight'])" in record.message
    assert "\n" not in record.message


# Files.


def test_a_pipe_is_not_waited_for_and_a_folder_is_no_file(tmp_path):
    for number, name in enumerate(["eagle", "saved eagle"]):
        for file in ("config.json", "model.safetensors"):
            folder = sound(tmp_path / f"{number} {file}", name)
            (folder / file).unlink()
            os.mkfifo(folder / file)
            refused(folder, f"{file}' is a pipe, socket or device where a file is expected")
            (folder / file).unlink()
            (folder / file).mkdir()
            refused(folder, f"{file}' is a folder where a file is expected")


@pytest.fixture
def sharded(tmp_path):
    """A checkpoint in one shard, and a way to say where that is."""
    folder = sound(tmp_path, "eagle")
    (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")

    def say(name):
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"fc.weight": name}}))
        return folder

    return say


def test_shards_lie_in_their_folder(tmp_path, sharded):
    assert outcome(sharded("model-00001-of-00001.safetensors"), "llava") is None
    outside = tmp_path / "outside.safetensors"
    (tmp_path / "drafter" / "model-00001-of-00001.safetensors").rename(outside)
    for name in ("../outside.safetensors", str(outside), "a/../../outside.safetensors", "/dev/zero", "..\\outside", ""):
        refused(sharded(name), "which does not lie in its folder")
    (tmp_path / "drafter" / "link.safetensors").symlink_to(outside)
    refused(sharded("link.safetensors"), "is a link out of its folder, to .*outside.safetensors'; put the file itself")
    for name in (7, None, ["a"], {}):
        refused(sharded(name), "does not list the shards")


def test_the_hubs_cache_keeps_its_files_elsewhere(tmp_path, sharded):
    snapshot = sharded("model-00001-of-00001.safetensors")
    cache = tmp_path / "hub" / "models--a--b"
    (cache / "blobs").mkdir(parents=True)
    (cache / "snapshots" / "1").mkdir(parents=True)
    for number, path in enumerate(sorted(snapshot.iterdir())):
        path.rename(cache / "blobs" / str(number))
        (cache / "snapshots" / "1" / path.name).symlink_to(f"../../blobs/{number}")
    assert outcome(cache / "snapshots" / "1", "llava") is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 10**5, "nested too deeply"),
        ('{"a": ' + "[" * 60 + "]" * 60 + "}", "nested more than 40 levels deep"),
        ('{"hidden_size": ' + "9" * 5000 + "}", "the integer 99999999... has 5000 digits, and no setting is so large"),
        ('{"a": -' + "9" * 20 + "}", "has 21 digits"),
    ],
)
def test_json_is_read_within_bounds(tmp_path, text, message):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(MMSpecError, match=message):
        read_json(tmp_path / "config.json")


def test_an_error_is_one_bounded_line_that_no_terminal_obeys():
    message = str(MMSpecError("a\nb \x1b[2J" + "x" * 10**6 + " the way out"))
    assert message.startswith("a b \\x1b[2Jxxx") and message.endswith(" the way out") and len(message) == LONGEST
    assert listed(range(1000), 3) == "['0', '1', '10'] and 997 others" and listed([]) == "none"
    assert len(shown("x" * 10**6)) == 200 and shown(10**5000) == "a int too large to print"


# Sizes.


HUGE = [
    (
        "saved eagle",
        ("head", "intermediate_size"),
        10**9,
        r"gate_proj.weight has shape \[48, 32\], .* \[1000000000, 32\]",
    ),
    ("saved eagle", ("head", "head_dim"), 10**9, "has shape"),
    ("saved eagle", ("head", "hidden_size"), 10**6, "hidden size"),
    ("saved eagle3, fewer tokens", ("draft_vocab_size",), 60, "has shape"),
    ("saved hivis", ("steps",), 10**12, r"residual has shape \[\d+, 32\]"),
    ("saved vispec", ("compressor", "queries"), 10**9, "compressor.q has shape"),
    ("saved medusa", ("heads",), 10**9, "config.json says heads=1000000000, but there are 15 tensors"),
    ("saved medusa", ("layers",), 10**6, "config.json says layers=1000000, but there are 15 tensors"),
    ("saved own model", ("model", "text_config", "num_hidden_layers"), 10**6, "says num_hidden_layers=1000000, but"),
    ("saved own model", ("model", "text_config", "intermediate_size"), 10**9, "has shape"),
    ("saved own model", ("model", "text_config", "vocab_size"), 10**9, "has shape"),
    ("saved own model", ("model", "vision_config", "image_size"), 10**6, "has shape"),
    ("saved shared vision", ("projector",), [16, 10**9], "projector.inner.weight has shape"),
    ("saved shared vision", ("model", "num_hidden_layers"), 10**12, "says num_hidden_layers=1000000000000, but"),
]


@pytest.mark.parametrize(("name", "path", "value", "message"), HUGE)
def test_sizes_that_nothing_has_are_refused_before_they_take_memory(tmp_path, name, path, value, message):
    folder = sound(tmp_path, name)
    edit(folder, *path, to=value)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refused(folder, message)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300 * 2**10  # kB


@pytest.mark.parametrize("path", [("model", "max_position_embeddings"), ("model", "_attn_implementation")])
def test_settings_that_take_no_memory_or_name_code_do_nothing(tmp_path, path):
    folder = sound(tmp_path, "saved shared vision")
    edit(folder, *path, to=10**12 if path[1] == "max_position_embeddings" else "someone/kernels")
    edit(folder, "model", "auto_map", to={"AutoModelForCausalLM": "someone/code--model.Model"})
    assert outcome(folder, "llava") is None


# Padding.


def with_tables(tmp_path, rows: int) -> str:
    """An EAGLE-3 head over all tokens, whose tables have so many rows."""
    _, tensors, config, _ = mutations.originals()["eagle3, other width"]
    tensors = dict(tensors)
    for key in ("lm_head.weight", "embed_tokens.weight"):
        table = torch.full((rows, tensors[key].shape[1]), 9.0)
        table[: models.VOCAB] = tensors[key][: min(models.VOCAB, rows)]
        tensors[key] = table
    return published.write(tmp_path / str(rows), tensors, config | {"draft_vocab_size": rows, "vocab_size": rows})


@pytest.mark.parametrize("rows", [64, 66])
def test_rows_beyond_the_tokens_are_padding_and_cut(tmp_path, rows):
    padded, plain = (
        mmspec.load_drafter(with_tables(tmp_path, count), target_of("llava", "sdpa")) for count in (rows, 61)
    )
    assert padded.draft_vocab_size is plain.draft_vocab_size is None
    assert padded.lm_head.weight.equal(plain.lm_head.weight) and padded.lm_head.weight.shape[0] == models.VOCAB
    assert outcome(tmp_path / str(rows), "llava") is None


def test_a_target_may_be_padded_where_the_head_is_not(tmp_path):
    drafter = mmspec.load_drafter(with_tables(tmp_path, 57), target_of("llava", "sdpa"))
    assert drafter.draft_vocabulary.tolist() == list(range(57)) and drafter.embed_tokens.weight.shape[0] == 57
    assert outcome(tmp_path / "57", "llava") is None


def test_far_more_or_fewer_rows_are_other_tokens(tmp_path):
    for rows in (61 + 8, 61 - 9):
        refused(with_tables(tmp_path, rows), rf"missing keys \['d2t'\], without which its {rows} draft tokens cannot")


def test_a_reduced_vocabulary_may_be_padded(tmp_path):
    family, tensors, config, _ = mutations.originals()["eagle3"]
    more = {
        "lm_head.weight": torch.cat([tensors["lm_head.weight"], torch.full((2, 32), 9.0)]),
        "d2t": torch.cat([tensors["d2t"], torch.zeros(2, dtype=torch.long)]),
        "t2d": torch.cat([tensors["t2d"], torch.zeros(3, dtype=torch.bool)]),
    }
    target = target_of(family, "sdpa")
    plain = mmspec.load_drafter(published.write(tmp_path / "plain", tensors, config), target)
    for number, changed in enumerate(
        [("lm_head.weight",), ("lm_head.weight", "d2t"), ("lm_head.weight", "d2t", "t2d")]
    ):
        folder = tmp_path / str(number)
        padded = mmspec.load_drafter(
            published.write(folder, tensors | {key: more[key] for key in changed}, config), target
        )
        assert padded.draft_vocabulary.tolist() == published.DRAFTED
        assert padded.lm_head.weight.equal(plain.lm_head.weight) and outcome(folder, family) is None


def test_medusas_heads_may_be_padded(tmp_path):
    family, tensors, config, _ = mutations.originals()["medusa, published"]
    more = {key: torch.cat([tensors[key], torch.full((3, 32), 9.0)]) for key in ("0.1.weight", "1.1.weight")}
    drafter = mmspec.load_drafter(
        published.write(tmp_path / "padded", tensors | more, config), target_of(family, "sdpa")
    )
    assert drafter.medusa_head[1][-1].weight.equal(tensors["1.1.weight"])
    assert outcome(tmp_path / "padded", family) is None
