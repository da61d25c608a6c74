"""`num_return_sequences`: rows of their own for every answer, whose media are held and encoded once."""

from __future__ import annotations

from collections import Counter

import pytest
import tiny_families
import torch
from models import inputs_for, reference
from tiny_drafters import TINY_DRAFTERS, blurred_drafter
from tiny_requests import target_of

import mmspec
from mmspec import Target
from mmspec.compressors import Pool
from mmspec.compressors.layout import layout_of
from mmspec.drafters import Drafter
from mmspec.inputs import prepare
from mmspec.trees import Chain
from mmspec.verifiers import RejectionSampling

NEW, COPIES = 6, 3
ROWS = [["image", "image"], [], ["image"]]


def one_by_one(monkeypatch, target) -> list[int]:
    """How many pictures every run of the vision tower encodes from now on."""
    counts, encode = [], type(target.family).encode

    def counting(self, inputs):
        vision = encode(self, inputs)
        counts.append(0 if vision is None else len(vision.sizes))
        return vision

    monkeypatch.setattr(type(target.family), "encode", counting)
    return counts


@pytest.mark.parametrize("name", ["llava", "qwen_vl", "gemma3", "llava_onevision", "internvl", "smolvlm", "qwen3_vl"])
def test_a_repeated_prompt_is_read_as_it_is_alone(name, monkeypatch):
    """Tiles, packed patches, pictures batched by row, several axes of positions, DeepStack."""
    target = target_of(name, "sdpa")
    tiny = tiny_families.FAMILIES.get(name)
    inputs = inputs_for(name, [2, 0, 1], [9, 20, 5]) if tiny is None else tiny.inputs(ROWS, [9, 20, 5])
    request = prepare(target, inputs=inputs)
    counts = one_by_one(monkeypatch, target)
    copies = target.repeat(target.repeat(request, 2), 2)
    contexts = [target.prefill(each, target.encode(each)) for each in (request, copies)]
    assert counts[0] == counts[1] > 0, "encoded once"
    once, four = contexts
    for what in ("logits", "embeds", "position_offset"):
        want = getattr(once, what)
        want = want.repeat_interleave(4, -1 if what == "position_offset" else 0)
        assert torch.allclose(getattr(four, what), want, atol=1e-5), what
    assert copies.lengths == [n for n in request.lengths for _ in range(4)] and copies.batch_size == 12
    layouts = [layout_of(target.family, c.request, c.request, c.vision) for c in contexts]
    assert layouts[1].grids == [row for row in layouts[0].grids for _ in range(4)]
    assert layouts[1].spans == [row for row in layouts[0].spans for _ in range(4)]


@pytest.mark.parametrize(
    ("name", "drafter"),
    [("llava", "own model"), ("qwen_vl", "own model"), ("qwen_vl", "dream, guided"), ("llava", "shared vision"),
     ("qwen_vl", "pooled"), ("llava", "text only")],
)  # fmt: skip
def test_drafters_see_every_copy_as_it_is_alone(name, drafter):
    """At temperature 0 all answers to a row are its own, and as much is accepted of each."""
    target, pooled = target_of(name, "sdpa"), drafter == "pooled"
    drafter = TINY_DRAFTERS["own model" if pooled else drafter](name, "sdpa")
    drafter = drafter.with_compressor(Pool(2)) if pooled else drafter
    inputs = inputs_for(name, [1, 2], [9, 5])
    request = prepare(target, inputs=inputs)
    alone = mmspec.generate(target, drafter, inputs=request, max_new_tokens=NEW)
    assert alone.token_ids == reference(target.model, inputs, NEW)
    out = mmspec.generate(target, drafter, inputs=target.repeat(request, COPIES), max_new_tokens=NEW)
    assert out.token_ids == [ids for ids in alone.token_ids for _ in range(COPIES)]
    assert out.drafted == [origin for origin in alone.drafted for _ in range(COPIES)]


@pytest.fixture(scope="module")
def tiny():
    return mmspec.load_target("tiny")


def test_answers_are_those_to_the_prompt_given_so_often(tiny):
    drafter = mmspec.load_drafter("tiny/eagle3", tiny)
    picture, sampled = mmspec.zoo.demo_image(), {"temperature": 2.0, "max_new_tokens": 4, "seed": 5}
    prompts, extras = ["Describe the picture.", "What is left of it?"], {"reference": ["a", "b"]}
    out = mmspec.generate(tiny, drafter, prompts, [picture, None], num_return_sequences=COPIES, **sampled)
    often = [prompt for prompt in prompts for _ in range(COPIES)]
    want = mmspec.generate(tiny, drafter, often, [picture] * COPIES + [None] * COPIES, **sampled)
    assert out.token_ids == want.token_ids and out.text == want.text
    assert len(set(map(tuple, out.token_ids[:COPIES]))) > 1, "draws of its own for every answer"
    request = tiny.repeat(prepare(tiny, prompts, [picture, None], extras=extras), COPIES)
    assert request.extras == {"reference": ["a"] * COPIES + ["b"] * COPIES}
    assert [len(row) for row in request.images] == [1] * COPIES + [0] * COPIES


def test_a_draft_model_with_a_processor_of_its_own_reads_every_copy(tiny):
    drafter = mmspec.drafters.OwnEncoderDrafter(tiny, tiny.model, processor=tiny.processor)
    request = tiny.repeat(prepare(tiny, ["What?", "Why?"], [mmspec.zoo.demo_image(), None]), 2)
    out = mmspec.generate(tiny, drafter, inputs=request, max_new_tokens=NEW)
    assert out.token_ids[0] == out.token_ids[1] and out.token_ids[2] == out.token_ids[3]
    assert len(out.stats.rounds) == 1, "the draft model is the target, so all of its guesses are right"


def test_the_law_of_every_answer_is_that_of_a_single_one():
    """First and second tokens of many answers to one prompt, drafted by rejection sampling, against the target's
    probabilities: chi-square with four degrees of freedom, which exceeds 20 once in two thousand times."""
    target, temperature, count = target_of("llava", "sdpa"), 0.6, 800
    inputs = inputs_for("llava", [1])

    def excess(tokens: list[int], logits: torch.Tensor) -> float:
        law = torch.softmax(logits.double() / temperature, -1)
        top = law.topk(4).indices.tolist()
        seen = Counter(token if token in top else -1 for token in tokens)
        shares = {token: float(law[token]) for token in top}
        shares[-1] = 1 - sum(shares.values())
        return sum((seen[token] - share * len(tokens)) ** 2 / (share * len(tokens)) for token, share in shares.items())

    out = mmspec.generate(
        target,
        blurred_drafter("llava", "sdpa"),
        inputs=inputs,
        tree=Chain(2),
        verifier=RejectionSampling(),
        temperature=temperature,
        max_new_tokens=2,
        num_return_sequences=count,
        seed=1,
    )
    with torch.inference_mode():
        logits = target.model(**inputs).logits[0, -1]
        assert excess([ids[0] for ids in out.token_ids], logits) < 20
        first = int(logits.argmax())
        inputs = inputs | {"input_ids": torch.cat([inputs["input_ids"], torch.tensor([[first]])], 1)}
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
        second = target.model(**inputs).logits[0, -1]
    after = [ids[1] for ids in out.token_ids if ids[0] == first]
    assert len(after) > 100 and excess(after, second) < 20
    assert excess(after, logits) > 40, "another law would be noticed"
    assert 0 < out.stats.num_accepted_draft_tokens < out.stats.num_draft_tokens


class Curious(Drafter):
    """Says what it was told of every row and drafts what that says."""

    told: list = []

    def start(self, context):
        self.context = context
        type(self).told.append(context.request.extras)

    def draft(self, root):
        return mmspec.drafters.NoDrafter(self.target).draft(root)


def test_extras_reach_a_drafter():
    target = Target(target_of("llama", "sdpa").model)
    inputs = inputs_for("llama", [0, 0])
    documents = [["a", "b"], []]
    mmspec.generate(target, Curious(target), inputs=inputs, extras={"documents": documents}, max_new_tokens=2)
    request = prepare(target, inputs=inputs, extras={"state": torch.eye(2)})
    mmspec.generate(target, Curious(target), inputs=request, max_new_tokens=2)
    first, second = Curious.told
    assert first == {"documents": documents} and torch.equal(torch.stack(second["state"]), torch.eye(2))
