"""`compile=true`: the same text, few programs, and clear words where it cannot work."""

from __future__ import annotations

import copy

import pytest
import torch
from refusals import refused
from tiny_drafters import blurred_drafter
from tiny_requests import RAGGED, case, target_of

import mmspec
from mmspec import MMSpecError, Target
from mmspec.compressors import Routing
from mmspec.drafters import Eagle3Drafter, EagleDrafter, OwnEncoderDrafter, as_drafter
from mmspec.exactness import described, divergences, excused
from mmspec.inputs import prepare
from mmspec.models import compiled
from mmspec.settings import configuration
from mmspec.trees import Chain, DynamicTree

NEW = 20


@pytest.fixture
def traced(monkeypatch):
    """Programs are traced and guarded as ever, but run by PyTorch itself: no C++ compiler, and no minute of waiting."""
    monkeypatch.setattr(compiled, "BACKEND", "aot_eager")


def compiled_target(name: str, attention: str = "sdpa") -> Target:
    return Target(copy.deepcopy(target_of(name, attention).model), compile=True)


@pytest.mark.parametrize(
    ("name", "attention"),
    [
        pytest.param("gemma3", "sdpa", marks=pytest.mark.slow),
        pytest.param("qwen_vl", "sdpa", marks=pytest.mark.slow),
        pytest.param("mistral", "sdpa", marks=pytest.mark.slow),
        pytest.param("llava", "eager", marks=pytest.mark.slow),
    ],
)
def test_the_text_is_that_of_generate(traced, name, attention):
    """A ragged batch, longer than what the cache had reserved and than any window."""
    target = compiled_target(name, attention)
    inputs, expected = case(name, attention, *RAGGED, 40)
    drafter = as_drafter(target, blurred_drafter(name, attention).model)
    drafter.draft_target = Target(drafter.model)  # that a model which drafts is compiled too is tested below
    for tree in (Chain(3), DynamicTree(3, 2, 6)):
        out = mmspec.generate(target, drafter, inputs=inputs, max_new_tokens=40, tree=tree)
        assert out.token_ids == expected
        assert 0 < out.stats.draft_acceptance_rate < 1


@pytest.mark.slow
def test_plain_decoding_and_a_single_row(traced):
    target = compiled_target("llava")
    inputs, expected = case("llava", "sdpa", (1,), (9,), 90)
    assert mmspec.generate(target, inputs=inputs, max_new_tokens=90).token_ids == expected
    drafter = OwnEncoderDrafter(target, target.model)
    out = mmspec.generate(target, drafter, inputs=inputs, max_new_tokens=90, tree=Chain(4))
    assert out.token_ids == expected and drafter.draft_target.compiled is not None
    assert all(record.accepted == [4] for record in out.stats.rounds[:-1]), "it drafts for itself"


@pytest.mark.slow
@pytest.mark.parametrize("kind", [Eagle3Drafter, pytest.param(EagleDrafter, marks=pytest.mark.slow)])
def test_drafters_get_the_states_that_they_ask_for(traced, kind):
    target, twin = compiled_target("llava"), target_of("llava", "sdpa")
    inputs, _ = case("llava", "sdpa", *RAGGED, NEW)
    torch.manual_seed(1)
    ours = kind(target)
    torch.manual_seed(1)
    theirs = kind(twin)
    for tree in (Chain(3), DynamicTree(3, 2, 6)):
        pair = [
            mmspec.generate(drafter.target, drafter, inputs=inputs, max_new_tokens=NEW, tree=tree)
            for drafter in (ours, theirs)
        ]
        assert pair[0].token_ids == pair[1].token_ids and pair[0].stats.num_spec_steps == pair[1].stats.num_spec_steps
        for a, b in zip(pair[0].stats.rounds, pair[1].stats.rounds, strict=True):
            assert (a.drafted, a.accepted) == (b.drafted, b.accepted)


@pytest.mark.slow
def test_other_lengths_and_requests_need_no_new_program(traced):
    target = compiled_target("llava")
    drafter = OwnEncoderDrafter(target, target.model, tree=DynamicTree(3, 2, 6))

    def ask(images, length, new):
        inputs, expected = case("llava", "sdpa", (images,), (length,), new)
        assert mmspec.generate(target, drafter, inputs=inputs, max_new_tokens=new).token_ids == expected
        return torch._dynamo.utils.counters["stats"]["unique_graphs"]

    ask(1, 9, NEW)
    first = ask(0, 6, NEW)  # by now there were passes over one node and over several
    assert first == ask(2, 12, 25) == ask(0, 30, 70) == ask(1, 5, 300)


@pytest.mark.product
def test_a_chain_of_any_length_behind_any_text_is_one_program(traced):
    """Also where the window is the whole storage, where the mask is the whole buffer, and behind a longer text."""
    target = compiled_target("llama")
    drafter = EagleDrafter(target)
    before = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    for length, new, chain in ((5, 15, 3), (100, 20, 6), (240, 20, 5)):
        inputs, expected = case("llama", "sdpa", (0,), (length,), new)
        out = mmspec.generate(target, drafter, inputs=inputs, max_new_tokens=new, tree=Chain(chain))
        assert out.token_ids == expected
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] - before == 1


@pytest.mark.slow
def test_a_target_that_is_cast_is_compiled_anew(traced):
    target = compiled_target("llama")
    inputs, _ = case("llama", "sdpa", (0,), (6,), NEW)
    for dtype in (torch.float32, torch.bfloat16):
        target.model.to(dtype)
        plain = mmspec.generate(Target(target.model), inputs=inputs, max_new_tokens=4).token_ids
        assert mmspec.generate(target, inputs=inputs, max_new_tokens=4).token_ids == plain


@pytest.mark.slow
def test_the_model_itself_stays_as_it_was(traced):
    """Hooks stay, but outside of compiling they do and keep nothing."""
    target = compiled_target("llava")
    inputs, expected = case("llava", "sdpa", (1,), (9,), NEW)
    mmspec.generate(target, EagleDrafter(target), inputs=inputs, max_new_tokens=NEW)
    assert target.model.generate(**inputs, max_new_tokens=NEW, do_sample=False)[0, -NEW:].tolist() == expected[0]
    assert target.compiled._states == {}


def test_a_model_that_breaks_the_graph_is_named(traced):
    target = compiled_target("llama")
    target.model.model.layers[0].register_forward_pre_hook(lambda module, args: torch._dynamo.graph_break())
    inputs, _ = case("llama", "sdpa", (0,), (6,), NEW)
    refused(lambda: mmspec.generate(target, inputs=inputs, max_new_tokens=4), "compile=true ... ); leave")


def test_an_older_torch_is_named(monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda *_, mode=None: None)
    inputs, _ = case("llama", "sdpa", (0,), (6,), NEW)
    with pytest.raises(MMSpecError, match=r"compile=true needs torch 2\.13 or later, and this is"):
        mmspec.generate(compiled_target("llama"), inputs=inputs, max_new_tokens=4)


@pytest.mark.slow
def test_the_embedded_target_compiled_for_real():
    image, prompt, _ = mmspec.zoo.sample("scenes", "test", 5)
    target = mmspec.load_target("tiny", compile=True)
    drafter = mmspec.load_drafter("tiny/eagle3", target)
    plain = mmspec.generate(mmspec.load_target("tiny"), None, prompt, [image], max_new_tokens=60)
    for out in (
        mmspec.generate(target, None, prompt, [image], max_new_tokens=60),
        mmspec.generate(target, drafter, prompt, [image], max_new_tokens=60),
        mmspec.generate(target, drafter, prompt, [image], max_new_tokens=60, tree=Chain(4)),
    ):
        assert out.token_ids == plain.token_ids


def configured(*options: str):
    """The drafter of a configuration, for any target."""
    config = configuration.compose("generate", list(options))
    return lambda target: configuration.build(config.drafter, target=target)


IN_HALF = {
    "early exit": (True, configured("drafter=early_exit", "drafter.layers=4")),
    "early exit, mlp": (True, configured("drafter=early_exit", "drafter.layers=4", "+drafter.imitation=mlp")),
    "fastvlm": (False, configured("drafter=fastvlm")),  # a block has entries that a compiled pass would not make
    "sp2ec": (True, configured("drafter=sp2ec")),
    "routing": (True, lambda target: mmspec.load_drafter("tiny/eagle", target).with_compressor(Routing(8))),
    "routing, draft model": (
        True,
        lambda target: mmspec.load_drafter("tiny/draft_model", target).with_compressor(Routing(8)),
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("label", IN_HALF)
def test_compiled_in_half_precision_texts_differ_at_near_ties_alone(traced, label):
    """What drafts with the target's own layers, and what is shown other tokens in every round."""
    compile, make = IN_HALF[label]
    target = mmspec.load_target("tiny", "bfloat16", compile=compile)
    drafter = make(target)
    samples = [mmspec.zoo.sample(task, "test", 5) for task in ("scenes", "documents")]
    request = prepare(target, [prompt for _, prompt, _ in samples], [[image] for image, _, _ in samples])
    plain = mmspec.generate(target, inputs=request, max_new_tokens=40).token_ids
    for tree in (Chain(4), DynamicTree(3, 2, 6)):
        out = mmspec.generate(target, drafter, inputs=request, max_new_tokens=40, tree=tree)
        assert out.stats.num_accepted_draft_tokens and (target.compiled is not None) == compile
        for one in divergences(target, request, plain, out.token_ids):
            assert excused(target, one), described(target, one)
