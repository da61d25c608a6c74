"""DREAM-S: its checkpoints are DREAM's, and each sub-network guesses what a DREAM of its own size would."""

from __future__ import annotations

import originals
import published
import pytest
import torch
from heads import TOLERANCE, error, guesses_of, lesson_of
from published_drafters import load_written, text_of, written
from refusals import refused
from scripted_rounds import guesses_compared
from tiny_requests import RAGGED, case, target_of

import mmspec
from mmspec.compressors import FeatureGuided, Pool
from mmspec.drafters import DreamDrafter
from mmspec.elastic import load_sub_network
from mmspec.settings import configuration

LAST = "layers.2.self_attn"


def narrowed(tensors: dict, share: float) -> dict:
    """A checkpoint with the first heads of the last layer alone, cut out by hand."""
    size, tensors = published.HEAD_DIM, dict(tensors)
    groups = tensors[f"{LAST}.k_proj.weight"].shape[0] // size
    kept = max(1, int(groups * share))
    queries = kept * published.HEADS // groups
    for part, count in (("q", queries), ("k", kept), ("v", kept)):
        tensors[f"{LAST}.{part}_proj.weight"] = tensors[f"{LAST}.{part}_proj.weight"][: count * size]
    tensors[f"{LAST}.o_proj.weight"] = tensors[f"{LAST}.o_proj.weight"][:, : queries * size]
    return tensors


def checkpoint() -> tuple[dict, dict]:
    """One with as many keys as queries in the last layer, as the published ones."""
    tensors, config = written("dream")
    again = published.layer(published.Numbers(31), "layers.2", shared=published.HEADS, input_norm=True)
    first = published.layer(published.Numbers(32), "layers.0", shared=published.HEADS)
    return tensors | again | first, config | {"num_key_value_heads": published.HEADS}


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> DreamDrafter:
    tensors, config = checkpoint()
    name = "layers.1.cross_attn"
    numbers = published.Numbers(33)
    for part in "kv":  # the head's sizes are the same in all layers
        tensors[f"{name}.{part}_proj.weight"] = numbers.matrix(published.HEADS * published.HEAD_DIM, published.HIDDEN)
    drafter = load_written(tmp_path_factory.mktemp("dream_s"), tensors, config)
    drafter.tensors = tensors
    return drafter


@pytest.mark.parametrize("share", [1.0, 0.75, 0.5, 0.25, 0.01])
def test_a_sub_network_is_the_original_with_fewer_heads(whole, share):
    drafter, lesson, compared = whole.sub_network(share), lesson_of("llava"), 0
    original = originals.Asking(narrowed(whole.tensors, share), eps=published.EPS, base=published.BASE)
    other = originals.Asking(
        narrowed(whole.tensors, 0.5 if share > 0.5 else 1.0), eps=published.EPS, base=published.BASE
    )
    guesses = guesses_of(drafter, lesson, 3)
    for row, answer in enumerate(lesson.answers):
        for root in {0, len(answer) - 2}:
            text, chain = text_of("llava", row, root), answer[root + 1 : -1][:2]
            with torch.no_grad():
                expected, wrong = original.draft(text, chain), other.draft(text, chain)
            for level, logits in enumerate(expected):
                assert error(guesses[row, root, level], logits) < TOLERANCE, (row, root, level)
                assert error(guesses[row, root, level], wrong[level]) > 10 * TOLERANCE
                compared += 1
    assert compared > 8
    assert guesses_compared(drafter, lesson, "llava", 1) > 15, "it drafts with the same heads"
    inputs, ids = case("llava", "sdpa", *RAGGED, 8)
    assert mmspec.generate(drafter.target, drafter, inputs=inputs, max_new_tokens=8).token_ids == ids


def test_all_weights_stay_and_the_first_heads_learn(whole, tmp_path):
    drafter = whole.sub_network(0.5, keep=0.5)
    assert all(ours is theirs for ours, theirs in zip(drafter.parameters(), whole.parameters(), strict=True))
    assert whole.settings.head_share == 1 and whole.compressor is None
    assert isinstance(drafter.compressor, FeatureGuided) and drafter.compressor.keep == 0.5
    drafter.save_pretrained(tmp_path)
    again = mmspec.load_drafter(str(tmp_path), drafter.target)
    assert again.config() == drafter.config() and again.settings.head_share == 0.5
    with torch.enable_grad():
        sum(guess.logits.square().sum() for guess in again.requires_grad_().unroll(lesson_of("llava"), 2)).backward()
    half = published.HEADS * published.HEAD_DIM // 2
    attention = again.layers[2].self_attn
    for part in (attention.q_proj, attention.k_proj, attention.v_proj):
        assert part.weight.grad[:half].any() and not part.weight.grad[half:].any()
    assert attention.o_proj.weight.grad[:, :half].any() and not attention.o_proj.weight.grad[:, half:].any()


def test_its_size_is_a_setting_and_what_has_none_is_refused(whole, tmp_path):
    whole.save_pretrained(tmp_path / "dream")
    words = ["drafter=dream_s", f"drafter.name={tmp_path / 'dream'}", "drafter.head_share=0.25", "drafter.keep=0.5"]
    node, target = configuration.compose("bench", words).drafter, target_of("llava", "sdpa")
    made = configuration.build(node, target=target)
    assert made.settings.head_share == 0.25 and made.compressor.keep == 0.5
    for share in (0.0, 1.5):
        refused(lambda share=share: whole.sub_network(share), f"head_share={share} must be above 0 and at most 1")
    refused(lambda: whole.sub_network(keep=2.0), "FeatureGuided: keep=2.0 must be a number above 0")
    pooled = DreamDrafter(target, compressor=Pool(2))
    refused(lambda: pooled.sub_network(keep=0.5), "keep=0.5 chooses among ... Pool ... leave it out")
    mmspec.drafters.EagleDrafter(target).save_pretrained(tmp_path / "eagle")
    refused(lambda: load_sub_network(str(tmp_path / "eagle"), target), "is a EagleDrafter, which has no sub-networks")
