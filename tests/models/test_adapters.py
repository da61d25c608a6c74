"""Targets with an adapter of peft on them: in memory, from a folder, on the head, and what is refused."""

from __future__ import annotations

import json

import models
import pytest
import torch
from refusals import refused
from safetensors.torch import load_file, save_file
from tiny_requests import pictures_for

import mmspec
from mmspec.drafters import EagleDrafter
from mmspec.errors import MMSpecError
from mmspec.files import sources
from mmspec.target import Target
from mmspec.trees import DynamicTree

NEW = 8


@pytest.fixture(scope="module")
def peft():
    return pytest.importorskip("peft")


def adapted(peft, name: str, places, **settings):
    """A tiny model with a strong random adapter."""
    torch.manual_seed(0)
    config = peft.LoraConfig(
        r=2, lora_alpha=32, target_modules=list(places), init_lora_weights="modules_to_save" in settings, **settings
    )
    model = peft.get_peft_model(models.MODELS[name](), config)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if "modules_to_save" in key:
                parameter.add_(torch.randn(parameter.shape) / 4)
    return model


KINDS = {
    "layers": (("q_proj", "up_proj"), {}),
    "head": (("q_proj", "lm_head"), {}),
    "head, DoRA": (("lm_head",), {"use_dora": True}),
    "head, saved": (("q_proj",), {"modules_to_save": ["lm_head"]}),
    "embedding": (("embed_tokens", "q_proj"), {}),
}


@pytest.mark.parametrize(("name", "kind"), [("llava", kind) for kind in KINDS] + [("llama", "head")])
def test_text_and_head_are_those_of_the_model_with_its_adapter(peft, name, kind):
    places, settings = KINDS[kind]
    model = adapted(peft, name, places, **settings)
    target = Target(model)
    inputs = models.inputs_for(name, pictures_for(name, [1]), [9])
    theirs = model.generate(**inputs, max_new_tokens=NEW, do_sample=False)[0, -NEW:].tolist()
    assert theirs != models.reference(models.MODELS[name](), inputs, NEW)[0][-NEW:], "the adapter does nothing"
    drafter = models.redraw(EagleDrafter(target), seed=8)
    out = mmspec.generate(target, drafter, inputs=inputs, max_new_tokens=NEW, tree=DynamicTree(3, 3, 8))
    assert out.token_ids == [theirs]
    states, head = torch.randn(3, target.hidden_size), target.model.get_output_embeddings()
    with torch.no_grad():
        assert (target.family.head(states) - head(states)).abs().max() < 1e-4
        if kind != "head, saved":
            with model.disable_adapter():
                assert (target.family.head(states) - head(states)).abs().max() < 1e-4, "what was read before"


def test_custom_generate_of_the_wrapped_model(peft):
    model = adapted(peft, "llama", ["q_proj", "lm_head"])
    target = Target(model)
    inputs = models.inputs_for("llama", [0], [9])
    ours = model.generate(
        **inputs, max_new_tokens=NEW, do_sample=False, custom_generate=mmspec.hf.custom_generate(EagleDrafter(target))
    )
    assert ours.tolist() == model.generate(**inputs, max_new_tokens=NEW, do_sample=False).tolist()


def test_an_adapter_that_writes_into_the_prompt_is_refused(peft):
    config = peft.PromptTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM")
    refused(lambda: Target(peft.get_peft_model(models.llama(), config)), "PeftModelForCausalLM: its adapter writes")


def test_a_head_that_is_not_the_models_own_is_refused():
    """A model that changes its states between the last norm and the head, whoever does it."""
    model = models.llama()
    model.lm_head.register_forward_pre_hook(lambda _, args: (args[0] * 1.5,))
    refused(lambda: Target(model), "LlamaForCausalLM: its output embedding does not make its")


def folder_of_adapter(peft, tiny_folder, path):
    model = adapted(peft, "llama", ["q_proj", "lm_head"])
    model.peft_config["default"].base_model_name_or_path = str(tiny_folder)
    model.save_pretrained(path)
    return model


@pytest.fixture
def base(tmp_path):
    """The folder of a tiny model with a tokenizer."""
    from toys import byte_tokenizer

    models.llama().save_pretrained(tmp_path / "base")
    byte_tokenizer().save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def test_the_folder_of_an_adapter_is_its_base_model_with_it(peft, base, tmp_path, monkeypatch):
    model = folder_of_adapter(peft, base, tmp_path / "adapter")
    target = mmspec.load_target(str(tmp_path / "adapter"), device="cpu")
    ids = torch.arange(1, 10)[None]
    with torch.no_grad():
        assert (target.model(input_ids=ids).logits - model(input_ids=ids).logits).abs().max() < 1e-5
    plain = mmspec.load_target(str(base), device="cpu")
    assert target.tokenizer is not None and target.fingerprint != plain.fingerprint
    weights = tmp_path / "adapter" / "adapter_model.safetensors"
    kept = load_file(weights)
    save_file({name: value for name, value in kept.items() if "layers.1.self_attn" not in name}, weights)
    refused(lambda: mmspec.load_target(str(tmp_path / "adapter"), device="cpu"), "does not fit its base ... layers.1")
    weights.unlink()
    refused(lambda: mmspec.load_target(str(tmp_path / "adapter"), device="cpu"), "is an adapter without weights")
    save_file(kept, weights)
    monkeypatch.setattr(sources, "is_peft_available", lambda: False)
    refused(lambda: mmspec.load_target(str(tmp_path / "adapter"), device="cpu"), "is an adapter ... base', which")


@pytest.mark.parametrize("settings", [{"base_model_name_or_path": None, "peft_type": "LORA"}, [], {"peft_type": 3}])
def test_an_adapter_of_nothing_is_one_line(tmp_path, settings):
    (tmp_path / "adapter_config.json").write_text(json.dumps(settings))
    with pytest.raises(MMSpecError, match=r"^target '.*' is an adapter of a model without|adapter_config.json cannot"):
        mmspec.load_target(str(tmp_path), device="cpu")
