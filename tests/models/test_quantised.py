"""Quantised targets: `load_target(folder, quantization_config=...)`, with torchao and bitsandbytes where they are."""

from __future__ import annotations

import importlib.util
from functools import partial

import models
import pytest
import torch
from full_recompute import random_tree, start, tree_error
from refusals import refused
from tiny_requests import ragged_inputs
from transformers import BitsAndBytesConfig, TorchAoConfig

import mmspec
from mmspec.drafters import Eagle3Drafter, EagleDrafter, TextOnlyDrafter
from mmspec.errors import MMSpecError
from mmspec.exactness import described, divergences, excused
from mmspec.inputs import prepare
from mmspec.loading import load_target
from mmspec.models import weights
from mmspec.target import Target
from mmspec.training.beginnings import cut_text_only
from mmspec.trees import DynamicTree

NEW = 20
WIDE = {"hidden_size": 128, "intermediate_size": 128, "head_dim": 32}  # blocks of weights are so long


def eight_bits(**options) -> TorchAoConfig:
    pytest.importorskip("torchao")
    from torchao.quantization import Int8WeightOnlyConfig

    return TorchAoConfig(Int8WeightOnlyConfig(), **options)


def bits_and_bytes(**options) -> BitsAndBytesConfig:
    pytest.importorskip("bitsandbytes")
    return BitsAndBytesConfig(**options)


four_bits = partial(bits_and_bytes, load_in_4bit=True, bnb_4bit_compute_dtype=torch.float32)
WEIGHT_ONLY = {
    "torchao": eight_bits,
    "torchao, head too": partial(eight_bits, include_input_output_embeddings=True),
    "bitsandbytes, four bits": four_bits,
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A saved model, wide enough to be quantised in blocks."""
    monkeypatch.setattr(models, "TEXT", models.TEXT | WIDE)
    monkeypatch.setattr(mmspec.loading.AutoTokenizer, "from_pretrained", lambda source: None)
    monkeypatch.setattr(mmspec.loading.AutoProcessor, "from_pretrained", lambda source: None)

    def save(name: str):
        models.MODELS[name]().save_pretrained(tmp_path / name)
        return tmp_path / name

    return save


def drafters(target: Target) -> list:
    twin = models.llama(seed=5, layers=1).to(target.dtype)
    heads = [models.redraw(kind(target), seed=8).to(target.dtype) for kind in (EagleDrafter, Eagle3Drafter)]
    return [TextOnlyDrafter(target, twin), *heads]


def asked(target: Target, name: str):
    return prepare(target, inputs=ragged_inputs(name))


@pytest.mark.parametrize("name", ["llama", "llava"])
@pytest.mark.parametrize("kind", WEIGHT_ONLY)
def test_text_is_that_of_the_quantised_model(folder, name, kind):
    """Weights are made numbers again in every pass: nothing depends on the shape of the pass."""
    if (name, kind) == ("llava", "bitsandbytes, four bits"):
        pytest.skip("the tiny vision tower is narrower than a block")
    path = folder(name)
    config, full = WEIGHT_ONLY[kind](), load_target(path, device="cpu")
    target = load_target(path, device="cpu", quantization_config=config)
    assert any(not weights.is_plain(parameter) for parameter in target.model.parameters())
    assert target.dtype == torch.float32 and target.fingerprint != full.fingerprint
    request = asked(target, name)
    plain = mmspec.generate(target, inputs=request, max_new_tokens=NEW, eos_token_id=[]).token_ids
    assert len(set(plain[0])) > 3
    for row in range(2):
        inputs = models.one_row(dict(request.inputs), row)
        ids = target.model.generate(**inputs, max_new_tokens=NEW, do_sample=False, eos_token_id=-1)
        assert ids[0, -NEW:].tolist() == plain[row]
    for drafter in drafters(target):
        tree = DynamicTree(3, 3, 8)
        out = mmspec.generate(target, drafter, inputs=request, max_new_tokens=NEW, tree=tree, eos_token_id=[])
        assert out.token_ids == plain, type(drafter).__name__


def test_in_bfloat16_differences_are_near_ties(folder):
    path = folder("llava")
    target = load_target(path, "bfloat16", "cpu", quantization_config=eight_bits())
    request = asked(target, "llava")
    plain = mmspec.generate(target, inputs=request, max_new_tokens=NEW, eos_token_id=[]).token_ids
    for drafter in drafters(target):
        found = mmspec.generate(target, drafter, inputs=request, max_new_tokens=NEW, eos_token_id=[]).token_ids
        for one in divergences(target, request, plain, found):
            assert excused(target, one), described(target, one)


@pytest.mark.parametrize("attention", ["eager", "flex_attention"])
def test_other_back_ends(folder, attention):
    path, texts = folder("llama"), []
    for back_end in ("sdpa", attention):
        target = load_target(path, device="cpu", quantization_config=eight_bits(), attn_implementation=back_end)
        drafter = drafters(target)[0]
        out = mmspec.generate(target, drafter, inputs=asked(target, "llama"), max_new_tokens=8, eos_token_id=[])
        texts.append(out.token_ids)
    assert texts[0] == texts[1]


def test_a_quantised_head_can_be_read(folder):
    """Rows of the head are what the head itself multiplies by, and read only once."""
    config = WEIGHT_ONLY["torchao, head too"]()
    target = load_target(folder("llama"), device="cpu", quantization_config=config)
    head, states = target.model.get_output_embeddings(), torch.randn(5, WIDE["hidden_size"])
    assert not weights.is_plain(head.weight)
    some = torch.tensor([3, 11, 40])
    for tokens in (None, some):
        with torch.no_grad():
            ours = target.family.head(states, target.family.head_rows(tokens))
            assert (ours - (head(states) if tokens is None else head(states)[:, some])).abs().max() < 1e-5
    assert target.family.head_rows()[0] is target.family.head_rows()[0]
    assert not target.family.head_rows()[0].is_inference()


def test_eight_bits_of_bitsandbytes_are_not_exact(folder):
    """Activations are rounded to 8 bits as well: the last bit of one may move it by a 127th, and the logits with it."""
    config = bits_and_bytes(load_in_8bit=True)
    target = load_target(folder("llava"), device="cpu", quantization_config=config)
    request = asked(target, "llava")
    context = start(target, request.inputs)
    tree = random_tree(context, 8, torch.Generator().manual_seed(0))
    assert 1e-3 < tree_error(context, dict(request.inputs), tree, context.score(tree)) < 0.3
    plain = mmspec.generate(target, inputs=request, max_new_tokens=NEW, eos_token_id=[]).token_ids
    for drafter in drafters(target):
        found = mmspec.generate(target, drafter, inputs=request, max_new_tokens=NEW, eos_token_id=[]).token_ids
        for one in divergences(target, request, plain, found):
            assert one["margin"] < 0.3 and not excused(target, one), "small, but no excuse in float32"


@pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is not None, reason="bitsandbytes is installed")
def test_a_missing_library_is_named(folder):
    with pytest.raises(MMSpecError, match=r"needs bitsandbytes, which is not installed: pip install -e"):
        load_target(folder("llama"), device="cpu", quantization_config=BitsAndBytesConfig(load_in_4bit=True))


def test_nothing_is_cut_from_quantised_weights(folder):
    target = load_target(folder("llama"), device="cpu", quantization_config=eight_bits())
    refused(lambda: cut_text_only(target, 1), "quantised or not all in memory, so none can be copied")
