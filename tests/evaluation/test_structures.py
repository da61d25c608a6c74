"""What bundles say of one-pass drafters is what these drafters do: operations are counted, weights are theirs."""

from __future__ import annotations

import pytest
import torch
from blocks import build
from scripted_rounds import Script, Told
from tiny_requests import target_of
from torch.utils.flop_counter import FlopCounterMode

import mmspec
from mmspec.drafters import MedusaDrafter, V5e0Drafter
from mmspec.evaluation.structures import structure_of
from mmspec.speed.deployment import Deployment
from mmspec.speed.roofline import DEVICES, Architecture
from mmspec.speed.structure import structure_from
from mmspec.trees import Chain

LEVELS, NEW = 3, 3


def sizes_of(target) -> Architecture:
    text = target.family.text_config
    widths = text.hidden_size, text.num_hidden_layers, text.intermediate_size
    heads = text.num_attention_heads, text.num_key_value_heads, text.head_dim
    return Architecture(*widths, *heads, vocabulary=target.vocab_size)


def made(variant: str):
    target = target_of("llama", "sdpa")
    linear = {"medusa": MedusaDrafter, "v5e0": V5e0Drafter}
    settings = {"heads": LEVELS} if variant in linear else {}
    return (linear[variant](target, **settings) if variant in linear else build(target, variant)).eval()


def counted(drafter) -> float:
    """The operations of all products but attention's in a round that drafts a chain behind some new tokens."""
    prompt = torch.tensor([[7, 8, 9, 10, 11, 12, 13, 14]])
    script = Script(drafter, {"input_ids": prompt}, [[4, 5, 6, 7, 8, 9, 10, 11]], Told(1, LEVELS))
    script.round([NEW - 1])
    script.session.tree = Chain(LEVELS)
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        script.session.draft(torch.tensor([script.context.history[0][-1]]))
    counts = counter.get_flop_counts()["Global"]
    return sum(count for operation, count in counts.items() if "attention" not in str(operation))


@pytest.mark.parametrize(
    "variant",
    [
        "dflash",
        "dflash, shifted",
        "jetspec",
        "dspark",
        "dspark, gated",
        "dspark, rnn",
        "domino",
        "lilicorr",
        "dfly",
        "dflare",
        "medusa",
        "v5e0",
    ],
)
def test_a_round_takes_the_operations_that_the_structure_says(variant):
    drafter = made(variant)
    structure, sizes = structure_from(structure_of(drafter)), sizes_of(drafter.target)
    setting = Deployment(DEVICES["h100"], prefix=0)  # no attention
    said = structure.first_pass(NEW, sizes, setting)[1] + LEVELS * structure.one_level(1, sizes, setting)[1]
    # Of the lattice's weights a few are asked once a slot, and are taken to be asked once a candidate.
    assert said == pytest.approx(counted(drafter), rel=0.25 if variant == "lilicorr" else 0.03)


@pytest.mark.parametrize("name", ["dflash", "dspark"])
def test_a_pass_reads_the_weights_that_a_drafter_has(name):
    target = mmspec.load_target("tiny")
    drafter = mmspec.load_drafter(f"tiny/{name}", target)
    described = structure_of(drafter)
    layer = sum(weight.numel() for weight in target.family.layers[0].parameters())
    body = sum(weight.numel() for part in (drafter.layers, drafter.fc) for weight in part.parameters())
    assert described["kind"] == "block" and described["read"] == body / layer
    assert (described["slots"], described["cached"]) == (drafter.settings.block_size, drafter.settings.layers)
    if name == "dspark":
        wide = drafter.markov_head.markov_w2.weight
        assert described["level_heads"] == wide.numel() / (target.hidden_size * target.vocab_size)
        assert described["level"] == 0
    else:
        assert described["level"] == described["level_heads"] == 0
