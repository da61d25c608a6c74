"""`generate(custom_generate=...)` gives what `generate` gives."""

from __future__ import annotations

import models
import pytest
import torch

import mmspec
from mmspec.drafters import DraftModelDrafter, NGramDrafter
from mmspec.errors import MMSpecError


@pytest.mark.parametrize("name", sorted(models.MODELS))
@pytest.mark.parametrize("images", [[1, 0, 2], [1]])
def test_greedy_equals_generate(name, images):
    images = images if name in models.VISUAL else [0] * len(images)
    model = models.MODELS[name]()
    target = mmspec.Target(model)
    drafter = DraftModelDrafter(target, models.llama(seed=3, layers=1), "text_only")
    inputs = models.inputs_for(name, images, [5 + 4 * i for i in range(len(images))])
    drafted = model.generate(
        **inputs, max_new_tokens=12, do_sample=False, custom_generate=mmspec.hf.custom_generate(drafter)
    )
    width = inputs["input_ids"].shape[1]
    assert drafted[:, :width].equal(inputs["input_ids"])
    assert drafted[:, width:].tolist() == models.reference(model, inputs, 12)
    assert drafter.last_output.stats.mean_acceptance_length >= 1


def test_settings_of_the_call_apply():
    model = models.llama()
    target = mmspec.Target(model)
    inputs = models.inputs_for("llama", [0])
    custom = mmspec.hf.custom_generate(NGramDrafter(target))
    options = {"max_new_tokens": 20, "do_sample": False, "repetition_penalty": 1.7, "no_repeat_ngram_size": 2}
    assert model.generate(**inputs, **options, custom_generate=custom).equal(model.generate(**inputs, **options))
    stop = model.generate(**inputs, max_new_tokens=20, do_sample=False)[0, -8].item()
    ended = model.generate(**inputs, max_new_tokens=20, do_sample=False, eos_token_id=stop, custom_generate=custom)
    assert ended.equal(model.generate(**inputs, max_new_tokens=20, do_sample=False, eos_token_id=stop))


def test_sampling_follows_the_global_seed():
    model = models.llama()
    inputs = models.inputs_for("llama", [0])
    custom = mmspec.hf.custom_generate(NGramDrafter(mmspec.Target(model)))
    texts = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        options = {"max_new_tokens": 20, "do_sample": True, "temperature": 1.5, "top_k": 20}
        texts.append(model.generate(**inputs, **options, custom_generate=custom).tolist())
    assert texts[0] == texts[1] != texts[2]


def test_refusals():
    model = models.llama()
    custom = mmspec.hf.custom_generate(NGramDrafter(mmspec.Target(model)))
    inputs = models.inputs_for("llama", [0])
    with pytest.raises(MMSpecError, match="another model"):
        models.llama(seed=1).generate(**inputs, max_new_tokens=4, custom_generate=custom)
    with pytest.raises(MMSpecError, match="num_beams=2"):
        model.generate(**inputs, max_new_tokens=4, num_beams=2, custom_generate=custom)


def test_the_models_own_penalty_applies_once():
    model = models.llama()
    model.generation_config.repetition_penalty = 1.6
    target = mmspec.Target(model)
    inputs = models.inputs_for("llama", [0])
    expected = models.reference(model, inputs, 20)
    assert mmspec.generate(target, NGramDrafter(target), inputs=inputs, max_new_tokens=20).token_ids == expected
    custom = mmspec.hf.custom_generate(NGramDrafter(target))
    ours = model.generate(**inputs, max_new_tokens=20, do_sample=False, custom_generate=custom)
    assert ours[:, inputs["input_ids"].shape[1] :].tolist() == expected
    plain = mmspec.generate(target, None, inputs=inputs, max_new_tokens=20, repetition_penalty=1.0)
    assert plain.token_ids != expected
