"""Loading by name: where files come from holds for all of them, weights are looked at first, and no code is run."""

from __future__ import annotations

import json
import time

import models
import pytest
import torch
from refusals import refused
from safetensors.torch import load_file, save_file
from tiny_drafters import TINY_DRAFTERS
from tiny_requests import case, target_of
from toys import byte_tokenizer
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

import mmspec
from mmspec.errors import MMSpecError


@pytest.fixture
def folder(tmp_path):
    """A tiny model with a tokenizer."""
    models.llama().save_pretrained(tmp_path / "model")
    byte_tokenizer().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def configured(folder, **settings) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))


WHERE = {"revision": "v1.0", "token": "a", "cache_dir": "/c", "local_files_only": True, "subfolder": "", "proxies": {}}


@pytest.mark.parametrize("kind", ["target", "drafter"])
def test_where_files_come_from_holds_for_all_of_them(monkeypatch, folder, kind):
    target = mmspec.load_target(str(folder), device="cpu")
    given = {}

    def recording(loader):
        plain = loader.from_pretrained

        def from_pretrained(source, *args, **kwargs):
            given[loader.__name__] = {name: kwargs.get(name) for name in (*WHERE, "trust_remote_code")}
            return plain(source, *args, **kwargs)

        monkeypatch.setattr(loader, "from_pretrained", from_pretrained)

    for loader in (AutoConfig, AutoModelForCausalLM, AutoTokenizer):
        recording(loader)
    if kind == "target":
        mmspec.load_target(str(folder), device="cpu", **WHERE)
    else:
        mmspec.load_drafter(str(folder), target, **WHERE)
    assert set(given) == {"AutoConfig", "AutoModelForCausalLM", "AutoTokenizer"}
    assert all(got == {**WHERE, "trust_remote_code": False} for got in given.values())


def test_a_subfolder_is_where_all_files_are(folder):
    loaded = mmspec.load_target(str(folder.parent), device="cpu", subfolder="model")
    assert loaded.fingerprint == mmspec.load_target(str(folder), device="cpu").fingerprint
    assert loaded.tokenizer.get_vocab() == byte_tokenizer().get_vocab()
    drafter = mmspec.load_drafter(str(folder.parent), loaded, subfolder="model")
    assert drafter.draft_target.fingerprint == loaded.fingerprint


@pytest.mark.parametrize("kind", ["target", "drafter"])
def test_code_of_a_repository_is_not_run_and_nobody_is_asked(monkeypatch, folder, kind):
    target = mmspec.load_target(str(folder), device="cpu")
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("the user was asked"))
    (folder / "mine.py").write_text("raise SystemExit('it was run')")
    configured(folder, model_type="mine", auto_map={"AutoConfig": "mine.Config", "AutoModelForCausalLM": "mine.Model"})
    with pytest.raises(MMSpecError, match=rf"^{kind} '.*' brings code of its own.*pass trust_remote_code=True"):
        mmspec.load_target(str(folder)) if kind == "target" else mmspec.load_drafter(str(folder), target)


def test_a_pickle_is_refused_unless_it_is_asked_for(folder):
    weights = folder / "model.safetensors"
    torch.save(load_file(weights), folder / "pytorch_model.bin")
    before = mmspec.load_target(str(folder), device="cpu").fingerprint
    weights.unlink()
    refused(lambda: mmspec.load_target(str(folder), device="cpu"), "weights only as a pickle (['pytorch_model.bin'])")
    assert mmspec.load_target(str(folder), device="cpu", use_safetensors=False).fingerprint == before


@pytest.mark.parametrize(
    ("settings", "kept", "message"),
    [
        ({}, 0, r"(no weights: model.safetensors is missing|has neither model.safetensors).*; fetch it again"),
        ({"intermediate_size": 10**6, "hidden_size": 8192}, 99, r"LlamaForCausalLM has [\d,]+ numbers, and the files"),
        ({"head_dim": 10**9}, 99, r"LlamaForCausalLM has [\d,]+ numbers, and the files hold [\d,]+; fetch it again"),
        ({"num_hidden_layers": 10**9}, 99, r"30 tensors cannot be 1000000000 layers; fetch it again"),
        ({}, 29, "lacks weights of LlamaForCausalLM: missing keys"),
    ],
    ids=["none", "wide", "heads", "deep", "one missing"],
)
@pytest.mark.parametrize("kind", ["target", "drafter"])
def test_nothing_random_is_taken_for_a_model(monkeypatch, folder, settings, kept, message, kind):
    """Nor is it built: what a folder of some kilobytes describes may be larger than the machine."""
    target = mmspec.load_target(str(folder), device="cpu")
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    if kept:
        save_file(dict(sorted(weights.items())[:kept]), folder / "model.safetensors", {"format": "pt"})
    configured(folder, **settings)
    if kept != 29:
        monkeypatch.setattr(PreTrainedModel, "from_pretrained", lambda *_, **__: pytest.fail("it was built"))
    started = time.perf_counter()
    with pytest.raises(MMSpecError, match=rf"^({kind}|folder) '.*{message}"):
        mmspec.load_target(str(folder)) if kind == "target" else mmspec.load_drafter(str(folder), target)
    assert time.perf_counter() - started < 30


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda t: mmspec.generate("tiny", None, "?"), "takes a Target, and 'tiny' is a name: mmspec.load_target('ti"),
        (lambda t: mmspec.generate(t.model, None, "?"), "a LlamaForCausalLM: make one with mmspec.Target"),
        (lambda t: mmspec.generate(mmspec.drafters.EagleDrafter(t), t, "?"), "this is a drafter, a EagleDrafter"),
        (
            lambda t: mmspec.generate(t, t.model, "?"),
            "drafter is a LlamaForCausalLM, ... as_drafter(target, model",
        ),
        (
            lambda t: mmspec.generate(t, None, "?", max_tokens=3),
            "generate has no argument 'max_tokens'. Did you mean 'max",
        ),
        (
            lambda t: mmspec.stream(t, None, "?", max_tokens=3),
            "stream has no argument 'max_tokens'. Did you mean 'max_new",
        ),
        (lambda t: mmspec.hf.custom_generate("tiny/eagle3"), "drafter='tiny/eagle3' is no Drafter; load one with"),
        (lambda t: mmspec.hf.custom_generate(t, sead=1), "custom_generate has no argument 'sead'. Did you mean 'seed'"),
        (lambda t: mmspec.Target(t.model, compiled=True), "Target has no argument 'compiled'. Did you mean 'compile'"),
        (lambda t: mmspec.Target("tiny"), "a name is loaded with mmspec.load_target('tiny')"),
        (lambda t: mmspec.load_target(t.model), "a LlamaForCausalLM: for a model there is mmspec.Target"),
        (lambda t: mmspec.load_drafter("tiny/eagle3", "tiny"), "and 'tiny' is a name: mmspec.load_target('tiny')"),
        (lambda t: mmspec.load_drafter(t, "tiny/eagle3"), "takes a Target, and 'tiny/eagle3' is a name"),
        (lambda t: mmspec.load_drafter("tiny/eagle3", t, revison="x"), "'revison'. Did you mean 'revision'"),
    ],
)
def test_what_was_meant_is_said_in_one_line(call, message):
    target = mmspec.Target(models.llama())
    refused(lambda: call(target), message)


@pytest.mark.parametrize("name", ["eagle", "eagle3, fewer tokens"])
def test_a_drafter_that_is_loaded_in_inference_mode_works_there_and_elsewhere(tmp_path, name):
    """Its weights are moved next to one another when it first drafts, and count no versions before and after."""
    inputs, expected = case("llava", "sdpa", (1,), (9,), 8)
    TINY_DRAFTERS[name]("llava", "sdpa").save_pretrained(tmp_path / "drafter")
    target = target_of("llava", "sdpa")
    with torch.inference_mode():
        drafter = mmspec.load_drafter(str(tmp_path / "drafter"), target)
        assert mmspec.generate(target, drafter, inputs=inputs, max_new_tokens=8).token_ids == expected
    assert mmspec.generate(target, drafter, inputs=inputs, max_new_tokens=8).token_ids == expected
    drafter.save_pretrained(tmp_path / "again")
    again = mmspec.load_drafter(str(tmp_path / "again"), target)
    assert mmspec.generate(target, again, inputs=inputs, max_new_tokens=8).token_ids == expected
