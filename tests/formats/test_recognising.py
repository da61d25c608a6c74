"""Which format a published checkpoint is, whose embedding is read, and what files it may come in."""

from __future__ import annotations

import json
import logging

import models
import published
import pytest
import torch
import transformers
from heads import TOLERANCE, error, guesses_of, lesson_of
from published_drafters import load_written, original, refused, text_of, written
from tiny_requests import target_of
from toys import byte_tokenizer

import mmspec
from mmspec import MMSpecError, Target, formats
from mmspec.drafters import DraftModelDrafter, Eagle3Drafter, EagleDrafter, MsdDrafter

# Embeddings.


def test_a_copy_of_the_targets_embedding_is_not_kept(tmp_path):
    """Rounded, padded or cut, it is the target's as far as both go."""
    tensors, config = written("eagle")
    table = tensors["embed_tokens.weight"]
    padded = torch.cat([table, torch.ones(7, 32)])
    for number, copied in enumerate((table, table.half(), table.bfloat16(), padded, table[:50])):
        drafter = load_written(tmp_path / str(number), tensors | {"embed_tokens.weight": copied}, config)
        assert drafter.settings.own_embedding is None and "embed_tokens.weight" not in drafter.state_dict()


@pytest.mark.parametrize("format", ["eagle", "vispec", "dream"])
def test_another_embedding_is_kept_for_text_and_said_aloud(tmp_path, caplog, format):
    tensors, config = written(format)
    table = tensors["embed_tokens.weight"] = 1.05 * written("eagle")[0]["embed_tokens.weight"]
    with caplog.at_level(logging.WARNING):
        drafter = load_written(tmp_path, tensors, config)
    assert drafter.config()["own_embedding"] == models.VOCAB and drafter.embed_tokens.weight.equal(table)
    assert "has another embed_tokens.weight than the target, which is kept" in caplog.text
    guesses, lesson = guesses_of(drafter, lesson_of("llava"), 2), lesson_of("llava")
    for row in (0, 1, 2):
        text = text_of("llava", row, 0)
        visual = torch.tensor([token == models.IMAGE for token in text.ids])[:, None]
        read = torch.where(visual, text.read, table[torch.tensor(text.ids)])
        text = type(text)(**vars(text) | {"read": read, "table": table})
        with torch.no_grad():
            expected = original(format, "llava").draft(text, lesson.answers[row][1:-1][:1])
        for level, logits in enumerate(expected):
            assert error(guesses[row, 0, level], logits) < TOLERANCE
    again = mmspec.load_drafter(saved(drafter, tmp_path / "saved"), drafter.target)
    assert again.embed_tokens.weight.equal(table) and again.config()["own_embedding"] == models.VOCAB


def saved(drafter, folder) -> str:
    drafter.save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("rows", [40, 152064])
def test_the_tokens_of_another_tokenizer_are_refused(tmp_path, rows):
    tensors, config = written("eagle")
    refused(
        tmp_path / "embedding",
        tensors | {"embed_tokens.weight": torch.ones(rows, 32)},
        config,
        f"has a vocabulary of {rows} tokens with other embeddings, the target one of 61: they must share a tokenizer",
    )
    if rows > 2000:
        del tensors["embed_tokens.weight"]
        config |= {"vocab_size": rows}
        refused(tmp_path / "config", tensors, config, f"has a vocabulary of {rows} tokens, the target one of 61")


def test_another_width_is_refused(tmp_path):
    config = transformers.LlamaConfig(**{**models.TEXT, "hidden_size": 48})
    wide = Target(models.rescale(transformers.LlamaForCausalLM(config), 0))
    for format, message in {
        "eagle": "EagleDrafter: the hidden size is 32 but the target's is 48",
        "dream": "has hidden size 32 and no embed_tokens.weight, so it works on a target of that size; this one's is",
        "eagle3": "has hidden size 32 and no embed_tokens.weight, so it works on a target of that size; this one's is",
    }.items():
        folder = published.write(tmp_path / format, *written(format, "llama"))
        with pytest.raises(MMSpecError, match=message):
            mmspec.load_drafter(folder, wide)


# Which format it is.


def test_msd_is_told_from_eagle_by_its_configuration_or_by_the_user(tmp_path):
    tensors, config = written("eagle")
    folder = published.write(tmp_path, tensors, config)
    target = target_of("llava", "sdpa")
    assert type(mmspec.load_drafter(folder, target)) is EagleDrafter
    assert type(mmspec.load_drafter(folder, target, format="msd")) is MsdDrafter
    tensors, config = written("msd")
    folder = published.write(tmp_path / "msd", tensors, config)
    assert type(mmspec.load_drafter(folder, target)) is MsdDrafter
    assert type(mmspec.load_drafter(folder, target, format="eagle")) is EagleDrafter
    with pytest.raises(MMSpecError, match=r"format='egale' is unknown\. Did you mean 'eagle'\?"):
        mmspec.load_drafter(folder, target, format="egale")


def test_what_was_recognised_is_logged(tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        load_written(tmp_path, *written("msd"))
    assert f"checkpoint {str(tmp_path)!r} is loaded as format='msd' (MsdDrafter)" in caplog.text


@pytest.mark.parametrize("format", ["eagle", "msd"])
def test_what_only_the_configuration_tells_is_said_aloud_unless_it_was_asked_for(tmp_path, caplog, format):
    tensors, config = written("msd, qwen", "qwen_vl")
    if format == "eagle":
        del config["vision_config"]
    other = {"eagle": "msd", "msd": "eagle"}[format]
    with caplog.at_level(logging.WARNING):
        drafter = load_written(tmp_path, tensors, config, "qwen_vl")
        assert type(drafter) is {"eagle": EagleDrafter, "msd": MsdDrafter}[format] and drafter.settings.input_norm
        assert f"is taken for format={format!r}, but " in caplog.text and f"say format={other!r}" in caplog.text
        caplog.clear()
        load_written(tmp_path, tensors, config, "qwen_vl", format=format)
        load_written(tmp_path / "eagle", *written("eagle"))
    assert not caplog.text


def test_a_nested_configuration_of_a_whole_model_is_read(tmp_path):
    """As transformers writes it, whose text part has the layer's numbers."""
    tensors, config = written("msd")
    text = {name: config.pop(name) for name in ("rms_norm_eps", "rope_theta", "num_attention_heads", "hidden_size")}
    del config["mm_vision_tower"]
    nested = {"model_type": "llava", "text_config": text, "vision_config": {"hidden_size": 1024, "rms_norm_eps": 7.0}}
    drafter = load_written(tmp_path, tensors, nested)
    assert type(drafter) is MsdDrafter and drafter.head.rms_norm_eps == published.EPS
    assert drafter.head.rope_parameters["rope_theta"] == published.BASE


def test_a_checkpoint_of_two_methods_is_not_guessed(tmp_path):
    tensors, config = written("vispec")
    tensors |= {"residual": torch.zeros(3, 32)}
    refused(tmp_path, tensors, config, "looks like 'vispec', 'hivis'; say which it is with format=")


def test_no_format_claims_a_checkpoint_of_another():
    for name, write in published.WRITERS.items():
        tensors, config = write(target_of("llava", "sdpa").model)
        shapes = {key.removeprefix("model."): tuple(tensor.shape) for key, tensor in tensors.items()}
        claims = [format.name for format in formats.FORMATS if format.matches(shapes, config)]
        assert claims == [name.partition(",")[0]]


def test_hivis_is_refused_where_nobody_says_how_text_stands(tmp_path):
    refused(tmp_path, *written("hivis", "gemma3"), "released for LLaVA and Qwen-VL, .* and not for 'gemma3'", "gemma3")


def test_a_whole_model_drafts_as_it_is_and_its_damage_is_explained(tmp_path):
    models.llama(seed=2).save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    target = target_of("llama", "sdpa")
    assert isinstance(mmspec.load_drafter(str(tmp_path), target), DraftModelDrafter)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "nothing"}))
    with pytest.raises(MMSpecError, match=r"cannot be loaded: .*nor has it the keys of a published drafter \(eagle,"):
        mmspec.load_drafter(str(tmp_path), target)


def test_a_drafter_of_our_own_needs_no_format(tmp_path):
    target = target_of("llava", "sdpa")
    folder = saved(Eagle3Drafter(target), tmp_path)
    with pytest.raises(MMSpecError, match="was saved by mmspec and says what it is: leave format='eagle3' out"):
        mmspec.load_drafter(folder, target, format="eagle3")


# Files.


@pytest.mark.parametrize("shards", [2, 5])
def test_a_checkpoint_in_shards_is_the_one_in_a_single_file(tmp_path, shards):
    one, several = (load_written(tmp_path / str(count), *written("vispec"), shards=count) for count in (1, shards))
    ours, theirs = one.state_dict(), several.state_dict()
    assert ours.keys() == theirs.keys() and all(theirs[key].equal(value) for key, value in ours.items())


def test_a_missing_shard_and_a_damaged_index_are_named(tmp_path):
    tensors, config = written("eagle")
    folder = published.write(tmp_path, tensors, config, shards=3)
    target = target_of("llava", "sdpa")
    (tmp_path / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(MMSpecError, match=r"lacks the shards \['model-00002-of-00003\.safetensors'\]; fetch it again"):
        mmspec.load_drafter(folder, target)
    (tmp_path / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(MMSpecError, match="index.json' does not list the shards of a checkpoint"):
        mmspec.load_drafter(folder, target)
    (tmp_path / "model.safetensors").write_bytes(b"\x80\x04nothing")
    with pytest.raises(MMSpecError, match="model.safetensors' is not a valid safetensors file"):
        mmspec.load_drafter(folder, target)
