"""The logits pipeline against Hugging Face's own processors, and sampled texts against the model's exact law."""

from __future__ import annotations

import pytest
import torch
from laws import g_test
from models import inputs_for, llama, llava, reference
from refusals import refused
from toys import PrefixRule
from transformers import GenerationConfig, LogitsProcessorList, NoBadWordsLogitsProcessor, NoRepeatNGramLogitsProcessor

import mmspec
from mmspec import Target
from mmspec.decoding.sampling import LogitsPipeline, NoiseTape
from mmspec.drafters import NGramDrafter, TextOnlyDrafter
from mmspec.seeds import random_stream
from mmspec.trees import Chain, DynamicTree, StaticTree
from mmspec.verifiers import RejectionSampling

ALPHA = 1e-4


# The pipeline, one call at a time.

OPTIONS = [
    {"temperature": 0.7},
    {"temperature": 1.0, "top_k": 5},
    {"temperature": 1.3, "top_p": 0.6},
    {"temperature": 1.0, "min_p": 0.2},
    {"temperature": 0.5, "top_k": 9, "top_p": 0.8, "min_p": 0.05, "repetition_penalty": 1.7},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_pipeline_equals_the_processors_of_model_generate(options):
    model = llama(layers=1)
    custom = [PrefixRule()]
    config = GenerationConfig(do_sample=True, **{"top_k": None, **options})
    theirs = model._get_logits_processor(config, input_ids_seq_length=6, logits_processor=LogitsProcessorList(custom))
    ours = LogitsPipeline(**options, logits_processor=custom)
    assert [type(p) for p in ours.processors] == [type(p) for p in theirs]
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(2, 4, 61, generator=generator)
    prefixes = [[torch.randint(0, 61, (n,), generator=generator).tolist() for n in (6, 7, 7, 9)] for _ in range(2)]
    before = logits.clone()
    got = ours(logits, lambda: prefixes)
    assert torch.equal(logits, before), "the target's raw logits must stay as they are"
    for row in range(2):
        for node in range(4):
            want = theirs(torch.tensor([prefixes[row][node]]), logits[row, node][None].clone())
            torch.testing.assert_close(got[row, node], want[0])


def test_prefixes_are_only_asked_for_when_a_processor_needs_them():
    logits = torch.randn(1, 2, 9)

    def unwanted():
        raise AssertionError("asked for prefixes")

    LogitsPipeline(0.7, top_k=3, top_p=0.9, min_p=0.1)(logits, unwanted)
    LogitsPipeline()(logits, unwanted)
    with pytest.raises(AssertionError):
        LogitsPipeline(0.7, repetition_penalty=1.2)(logits, unwanted)


def test_precision_is_float32_at_least():
    for dtype, result in (
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ):
        logits = torch.randn(1, 1, 5).to(dtype)
        assert LogitsPipeline(1.0)(logits, list).dtype == result
        assert LogitsPipeline(0.5)(logits, list).dtype == result


def test_greedy_ignores_what_shapes_a_draw():
    pipeline = LogitsPipeline(0.0, top_k=1, top_p=0.1, min_p=0.9)
    assert pipeline.greedy and not pipeline.processors
    assert len(LogitsPipeline(0.0, repetition_penalty=1.3).processors) == 1


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", -0.1),
        ("temperature", float("nan")),
        ("top_k", 0),
        ("top_k", 2.5),
        ("top_p", 0.0),
        ("top_p", 1.01),
        ("min_p", -0.1),
        ("min_p", 1.5),
        ("repetition_penalty", 0.0),
    ],
)
def test_values_out_of_range_are_refused_by_name(name, value):
    refused(
        lambda: LogitsPipeline(**{"temperature": 1.0, name: value}), f"{name}={value!r} is out of range: it must be"
    )


# Greedy text behind processors that look at the prefix.

DRAFTERS = {
    "none": lambda target: (None, None),
    "ngram": lambda target: (NGramDrafter(target, max_ngram=2, length=4), None),
    "chain": lambda target: (_draft_model(target), Chain(3)),
    "static": lambda target: (_draft_model(target), StaticTree(["0", "1", "2", "00", "01", "10", "000"])),
    "dynamic": lambda target: (_draft_model(target), DynamicTree(depth=3, top_k=3, total=12)),
    "self": lambda target: (TextOnlyDrafter(target, target.model), DynamicTree(3, 3, 12)),
}


def _draft_model(target):
    """A draft model that agrees with the target now and then: the target with a little noise on its weights."""
    model = llama(layers=3)
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator) * parameter.std().nan_to_num(1.0))
    return TextOnlyDrafter(target, model)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ({"repetition_penalty": 1.4}, {"repetition_penalty": 1.4}),
        ({"logits_processor": [NoRepeatNGramLogitsProcessor(2)]}, {"no_repeat_ngram_size": 2}),
        (
            {"logits_processor": [NoBadWordsLogitsProcessor([[7], [3, 9], [12, 40, 8]], None)]},
            {"bad_words_ids": [[7], [3, 9], [12, 40, 8]]},
        ),
        ({"logits_processor": [PrefixRule()]}, {"logits_processor": [PrefixRule()]}),
        (
            {"repetition_penalty": 1.2, "logits_processor": [NoRepeatNGramLogitsProcessor(3), PrefixRule()]},
            {"repetition_penalty": 1.2, "no_repeat_ngram_size": 3, "logits_processor": [PrefixRule()]},
        ),
    ],
    ids=["penalty", "no_repeat", "bad_words", "custom", "all"],
)
def test_greedy_text_behind_processors_equals_model_generate(ours, theirs):
    model, new = llama(), 20
    inputs = inputs_for("llama", [0, 0], [9, 5])
    want = reference(model, inputs, new, **theirs)
    assert want != reference(model, inputs, new), "the processors change nothing here"
    target = Target(model)
    for name, drafter in DRAFTERS.items():
        draft, tree = drafter(target)
        out = mmspec.generate(target, draft, inputs=inputs, max_new_tokens=new, tree=tree, **ours)
        assert out.token_ids == want, name
        if name in ("chain", "static", "dynamic"):
            assert out.stats.num_accepted_draft_tokens > 0, "no path was ever followed: nothing was tested"


def test_processors_see_image_tokens_as_model_generate_does():
    model = llava()
    inputs = inputs_for("llava", [1])
    want = reference(model, inputs, 12, repetition_penalty=1.5)
    drafter = NGramDrafter(target := Target(model))
    assert mmspec.generate(target, drafter, inputs=inputs, max_new_tokens=12, repetition_penalty=1.5).token_ids == want


# Noise.


def test_noise_is_gumbel_and_independent_between_positions_and_rows():
    logits = torch.tensor([1.0, 0.0, -1.0, 0.5])
    law = logits.softmax(-1)
    tape = NoiseTape(4000, 4, seed=3, device=torch.device("cpu"))
    noise = tape.peek(2)
    first, second = (logits + noise).argmax(-1).unbind(1)
    joint = law[:, None] * law
    assert g_test(list(zip(first.tolist(), second.tolist(), strict=True)), joint) > ALPHA
    neighbours = list(zip(first[:-1:2].tolist(), first[1::2].tolist(), strict=True))
    assert g_test(neighbours, joint) > ALPHA
    assert g_test(list(zip(first.tolist(), first.tolist(), strict=True)), joint) < ALPHA, "the test is blind"


def test_noise_of_a_position_does_not_depend_on_how_it_is_read_nor_on_other_rows():
    device = torch.device("cpu")
    whole = NoiseTape(3, 5, 7, device).peek(6)
    tape = NoiseTape(3, 5, 7, device)
    tape.peek(2)
    tape.consume([1, 2, 0])
    pieces = tape.peek(3)
    for row, start in enumerate([1, 2, 0]):
        assert torch.equal(pieces[row], whole[row, start : start + 3])
    assert torch.equal(NoiseTape(1, 5, 7, device).peek(6)[0], whole[0])
    assert not torch.equal(NoiseTape(3, 5, 8, device).peek(6), whole)


def test_streams_of_a_request_are_independent():
    """The default seed once gave the first row's noise the same draws as the verifier's own generator."""
    purposes = ["verifier", "drafter", *[f"noise of row {row}" for row in range(50)]]
    seeds = [random_stream(torch.device("cpu"), seed, p).initial_seed() % 2**32 for seed in range(50) for p in purposes]
    assert len(set(seeds)) == len(seeds)


@pytest.mark.parametrize("seed", [0, 1])
def test_first_and_second_token_of_one_row_are_independent(seed):
    """`RejectionSampling` draws the first token; with point proposals noise chooses the second one. A flat law shows a
    shared draw at once: both would be the same token."""
    vocab = 5000
    context = type("Context", (), {"logits": torch.zeros(1, vocab), "history": [[0]]})
    verifier = RejectionSampling().fork_for(context, LogitsPipeline(1.0), seed)
    first = verifier.first_token(context)
    assert first.item() != verifier.noise.peek(1)[0, 0].argmax().item()
