"""Drafters on disk: what is written is what is read, and whatever does not fit is refused with the reason."""

from __future__ import annotations

import json
import pickle
import re
from pathlib import Path

import pytest
import torch
from models import TEXT, VOCAB, inputs_for, llama, llava, rescale
from refusals import refused
from safetensors.torch import load_file, save_file
from toys import byte_tokenizer
from transformers import LlamaConfig, LlamaForCausalLM

import mmspec
from mmspec import MMSpecError, Target, loading
from mmspec.drafters import (
    Drafter,
    NGramDrafter,
    OwnEncoderDrafter,
    SharedVisionDrafter,
    TextOnlyDrafter,
    VisualProjector,
)
from mmspec.files.folders import Header, read_config
from mmspec.trees import DynamicTree


def tied(seed=2):
    config = LlamaConfig(**TEXT, tie_word_embeddings=True)
    return rescale(LlamaForCausalLM(config), seed)


def projector() -> VisualProjector:
    torch.manual_seed(0)
    return VisualProjector(16, 32)


MAKE = {
    "text_only": lambda target: TextOnlyDrafter(target, llama(seed=2)),
    "text_only, tied": lambda target: TextOnlyDrafter(target, tied()),
    "own_vision": lambda target: OwnEncoderDrafter(target, llava(seed=2, layers=1)),
    "shared_vision": lambda target: SharedVisionDrafter(target, llama(seed=2), projector()),
    "shared_vision, tied": lambda target: SharedVisionDrafter(target, tied(), projector()),
}


@pytest.fixture(scope="module")
def target():
    return Target(llava())


@pytest.fixture
def folder(target, tmp_path) -> Path:
    """A saved drafter, for tests that break it."""
    MAKE["shared_vision"](target).save_pretrained(tmp_path / "drafter")
    return tmp_path / "drafter"


def change(folder: Path, **values) -> None:
    """Set keys of `config.json`; None removes one."""
    config = {**json.loads((folder / "config.json").read_text()), **values}
    (folder / "config.json").write_text(json.dumps({k: v for k, v in config.items() if v is not None}))


@pytest.mark.parametrize("name", MAKE)
def test_what_is_saved_is_what_is_loaded(target, tmp_path, monkeypatch, name):
    def no_pickle(*args, **kwargs):
        raise AssertionError("pickle was used")

    for module, function in ((pickle, "load"), (pickle, "loads"), (torch, "load"), (torch, "save"), (pickle, "dump")):
        monkeypatch.setattr(module, function, no_pickle)
    drafter = MAKE[name](target)
    drafter.save_pretrained(tmp_path / "a" / "b", steps=300, note="trained on pictures")
    assert sorted(path.name for path in (tmp_path / "a" / "b").iterdir()) == ["config.json", "model.safetensors"]
    config = read_config(tmp_path / "a" / "b")
    assert config["mmspec_drafter"] == f"{type(drafter).__module__}.{type(drafter).__name__}"
    assert config["metadata"] == {"steps": 300, "note": "trained on pictures"}
    about = {"model_type": "llava", "vocab_size": VOCAB, "hidden_size": 32, "weights": target.fingerprint}
    assert config["target"] == about

    loaded = mmspec.load_drafter(str(tmp_path / "a" / "b"), target)
    ours, theirs = drafter.state_dict(), loaded.state_dict()
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)
    assert not loaded.training and loaded.target is target
    saved = load_file(tmp_path / "a" / "b" / "model.safetensors")
    assert len(saved) == len(ours) - ("tied" in name), "tied tensors must be stored once"
    if "tied" in name:
        assert loaded.model.lm_head.weight is loaded.model.get_input_embeddings().weight
    options = {"inputs": inputs_for("llava", [1, 2]), "max_new_tokens": 12, "tree": DynamicTree(3, 3, 10)}
    first, second = (mmspec.generate(target, d, **options) for d in (drafter, loaded))
    assert [r.accepted for r in first.stats.rounds] == [r.accepted for r in second.stats.rounds]
    assert first.token_ids == second.token_ids
    header = Header("it", tmp_path / "a" / "b" / "model.safetensors")
    assert {name: part.shape for name, part in header.items()} == {k: tuple(t.shape) for k, t in saved.items()}


def test_a_drafter_loads_in_the_dtype_of_its_target(folder):
    half = Target(llava().to(torch.bfloat16))
    loaded = mmspec.load_drafter(str(folder), half)
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.bfloat16}
    out = mmspec.generate(half, loaded, inputs=inputs_for("llava", [1]), max_new_tokens=6)
    assert len(out.token_ids[0]) == 6


def test_a_plain_hugging_face_folder_drafts_as_it_is(target, tmp_path):
    tokenizer = byte_tokenizer()
    llama(seed=2).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    text_target = Target(llama(), tokenizer)
    drafter = mmspec.load_drafter(str(tmp_path), text_target)
    assert isinstance(drafter, TextOnlyDrafter)
    out = mmspec.generate(text_target, drafter, prompt="a thing", max_new_tokens=5)
    assert out.text == mmspec.generate(text_target, prompt="a thing", max_new_tokens=5).text


# Damage.


def test_missing_and_unexpected_keys_are_listed(target, folder):
    weights = load_file(folder / "model.safetensors")
    del weights["projector.inner.bias"], weights["model.model.norm.weight"]
    weights["model.model.layers.7.extra"] = torch.zeros(2)
    save_file(weights, folder / "model.safetensors")
    with pytest.raises(MMSpecError) as error:
        mmspec.load_drafter(str(folder), target)
    assert re.search(
        r"model\.safetensors' does not fit SharedVisionDrafter: missing keys \['model\.model\.norm\.weight', "
        r"'projector\.inner\.bias'\], unexpected keys \['model\.model\.layers\.7\.extra'\]",
        str(error.value),
    )


def test_a_wrong_shape_is_named(target, folder):
    weights = load_file(folder / "model.safetensors")
    weights["projector.inner.weight"] = torch.zeros(32, 8)
    save_file(weights, folder / "model.safetensors")
    refused(lambda: mmspec.load_drafter(str(folder), target), "projector.inner.weight has shape [32, 8] ... needs [32")


@pytest.mark.parametrize("damage", ["truncated", "garbage", "empty", "header"])
def test_a_corrupt_weights_file_is_named(target, folder, damage):
    path = folder / "model.safetensors"
    data = path.read_bytes()
    path.write_bytes(
        {"truncated": data[: len(data) // 2], "garbage": b"\x80\x04pickle?" * 99, "empty": b"", "header": data[:12]}[
            damage
        ]
    )
    refused(lambda: mmspec.load_drafter(str(folder), target), "model.safetensors' is not a valid ... ); fetch or train")


def test_a_missing_weights_file_is_named(target, folder):
    (folder / "model.safetensors").unlink()
    refused(lambda: mmspec.load_drafter(str(folder), target), "model.safetensors' does not exist")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "config.json' cannot be read:"),
        ("\ud800", "config.json' cannot be read:"),
        ("[1]", "config.json' holds a list where a JSON object is expected"),
    ],
)
def test_a_corrupt_config_is_named(target, folder, text, message):
    (folder / "config.json").write_bytes(text.encode("utf-8", "surrogatepass"))
    refused(lambda: mmspec.load_drafter(str(folder), target), message)


def test_a_folder_without_a_config_is_named(target, tmp_path):
    refused(lambda: mmspec.load_drafter(str(tmp_path), target), "has no config.json, so it holds no drafter or model")


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("mmspec.drafters.gone.Drafter", "not importable: No module named 'mmspec.drafters.gone'"),
        ("Drafter", "no importable path of a Drafter"),
        ("mmspec.trees.Chain", "which is no Drafter"),
    ],
)
def test_a_class_that_is_no_drafter_is_refused(target, folder, path, message):
    change(folder, mmspec_drafter=path)
    said = refused(lambda: mmspec.load_drafter(str(folder), target), message)
    assert "config.json" in said and str(path) in said


@pytest.mark.parametrize(
    "values",
    [
        {"mmspec_drafter": "mmspec.drafters.draft_model.DraftModelDrafter"},
        {"model": None},
        {"projector": None},
        {"model": {"model_type": "no_such_model"}},
        {"projector": [1]},
        {"target": "llava"},
        {"mmspec_drafter": "mmspec.drafters.Drafter"},
    ],
    ids=str,
)
def test_a_config_that_lacks_something_is_refused(target, folder, values):
    change(folder, **values)
    refused(lambda: mmspec.load_drafter(str(folder), target), "config.json' ... Drafter")


def test_a_mode_in_a_folder_stands_for_a_class(target, folder):
    """As in the embedded folders, which were written when there was one class."""
    change(folder, mmspec_drafter="mmspec.drafters.draft_model.DraftModelDrafter", mode="shared_vision")
    assert type(mmspec.load_drafter(str(folder), target)) is SharedVisionDrafter
    for mode in ("blind", ["text_only"]):
        change(folder, mode=mode)
        refused(lambda: mmspec.load_drafter(str(folder), target), "mode ... is unknown; there are ... text_only")


def test_a_drafter_of_another_vocabulary_is_refused(target, folder):
    change(folder, target={"vocab_size": 152064})
    refused(lambda: mmspec.load_drafter(str(folder), target), "a vocabulary of 152064 tokens but the target's has 61")


def test_drafters_without_a_config_say_that_they_cannot_be_saved(target, tmp_path):
    class Mine(Drafter):
        pass

    with pytest.raises(NotImplementedError, match="Mine cannot be saved: it has no config"):
        Mine(target).save_pretrained(tmp_path)
    with pytest.raises(NotImplementedError, match="NGramDrafter cannot be saved"):
        NGramDrafter(target).save_pretrained(tmp_path / "ngram")
    assert not (tmp_path / "ngram" / "config.json").exists()


def test_nothing_in_the_package_unpickles():
    """But for the converter, which is there for it, and reads nothing but tensors."""
    package = Path(mmspec.__file__).parent
    converter = package / "formats" / "convert.py"
    assert converter.read_text().count("weights_only=True)") == 2  # what it does, and says
    for path in set(package.rglob("*.py")) - {converter}:
        source = path.read_text()
        assert not re.search(r"\b(import pickle|torch\.load\(|torch\.save\(|joblib|weights_only)", source), path


# Names.


@pytest.fixture
def embedded(tmp_path, monkeypatch) -> Path:
    for name in ("target", "draft_model", "text_only"):
        (tmp_path / "zoo" / "tiny" / name).mkdir(parents=True)
    monkeypatch.setattr(loading, "EMBEDDED", tmp_path / "zoo")
    return tmp_path / "zoo" / "tiny"


def test_unknown_names_suggest_the_nearest(target, embedded):
    refused(lambda: mmspec.load_target("tinny"), "target 'tinny' is neither ... Did you mean 'tiny'?")
    refused(lambda: mmspec.load_drafter("tiny/draft_modle", target), "drafter 'tiny/draft_modle' is unknown. Did you")
    refused(lambda: mmspec.load_drafter("nothing", target), "drafter 'nothing' is neither ... Available")
    refused(lambda: mmspec.load_target("/no/such/folder"), "target '/no/such/folder' is neither")
    llama().save_pretrained(embedded / "target")
    refused(lambda: mmspec.load_target("tiny", dtype="float23"), "dtype 'float23' is unknown. Did you mean")


@pytest.fixture
def model_folder(tmp_path) -> Path:
    llama().save_pretrained(tmp_path / "model")
    byte_tokenizer().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_a_saved_model_loads_as_a_target(model_folder):
    loaded = mmspec.load_target(str(model_folder), device="cpu")
    inputs = inputs_for("llama", [0])
    want = mmspec.generate(Target(llama()), inputs=inputs, max_new_tokens=6).token_ids
    assert mmspec.generate(loaded, inputs=inputs, max_new_tokens=6).token_ids == want
    assert loaded.dtype == torch.float32
    assert mmspec.load_target(str(model_folder), "bfloat16", "cpu").dtype == torch.bfloat16


@pytest.mark.parametrize("damage", ["weights", "config", "no weights", "no tokenizer"])
def test_a_damaged_model_folder_is_refused_in_one_line(model_folder, damage):
    if damage == "weights":
        data = (model_folder / "model.safetensors").read_bytes()
        (model_folder / "model.safetensors").write_bytes(data[:1000])
    elif damage == "config":
        (model_folder / "config.json").write_text("{")
    elif damage == "no weights":
        (model_folder / "model.safetensors").unlink()
    else:
        for path in model_folder.glob("tokenizer*"):
            path.unlink()
    said = "has no tokenizer that can be read" if damage == "no tokenizer" else "cannot be loaded: .+"
    with pytest.raises(MMSpecError, match=rf"target '.*model' ({said})") as error:
        mmspec.load_target(str(model_folder), device="cpu")
    assert "\n" not in str(error.value)


class Hub:
    """Stands for the Hugging Face hub: a folder per repository."""

    def __init__(self, root: Path):
        self.root = root

    def create_repo(self, repository, private=False, exist_ok=False):
        if repository == "some/one":
            raise PermissionError("403 Forbidden")
        (self.root / repository).mkdir(parents=True, exist_ok=exist_ok)

    def upload_folder(self, repo_id, folder_path):
        for path in Path(folder_path).iterdir():
            (self.root / repo_id / path.name).write_bytes(path.read_bytes())
        return f"https://hub/{repo_id}"

    def snapshot_download(self, repository, allow_patterns):
        if not (self.root / repository).is_dir():
            raise FileNotFoundError(repository)
        return str(self.root / repository)


@pytest.fixture
def hub(tmp_path, monkeypatch) -> Hub:
    import huggingface_hub

    hub = Hub(tmp_path / "hub")
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: hub)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", hub.snapshot_download)
    return hub


def test_a_drafter_goes_to_the_hub_and_comes_back(target, hub):
    drafter = MAKE["shared_vision"](target)
    assert drafter.push_to_hub("me/drafter", recipe="mine") == "https://hub/me/drafter"
    assert read_config(hub.root / "me" / "drafter")["metadata"] == {"recipe": "mine"}
    loaded = mmspec.load_drafter("me/drafter", target)
    for name, tensor in drafter.state_dict().items():
        assert torch.equal(tensor, loaded.state_dict()[name])


def test_what_the_hub_says_is_passed_on(target, hub):
    refused(lambda: MAKE["text_only"](target).push_to_hub("some/one"), "the hub did not take 'some/one': 403")
    with pytest.raises(MMSpecError, match="drafter 'no/where'|target 'no/where'"):
        mmspec.load_drafter("no/where", target)
