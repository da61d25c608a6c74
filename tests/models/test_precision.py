"""Half precision: everything runs, and where a text differs from plain decoding the target was undecided.

`docs/precision.md` has the table of what is tested here.
"""

from __future__ import annotations

import copy
import json

import models
import pytest
import torch
from mistakes import no_tree_mask, sequential_positions
from tiny_requests import ragged_inputs, target_of

import mmspec
from mmspec.commands import generate as command
from mmspec.decoding.stats import Stats
from mmspec.drafters import EagleDrafter, as_drafter
from mmspec.exactness import TIE, described, divergences, excused
from mmspec.inputs import prepare
from mmspec.target import Target
from mmspec.trees import DynamicTree, StaticTree

pytestmark = pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
NEW = 14
HALVES = (torch.bfloat16, torch.float16)
BACK_ENDS = ("sdpa", "eager", "flex_attention")
# The one whose attention is plainest, both with windows, and the one with positions of its own.
CASES = [
    (name, attention, dtype)
    for name in ("llava", "gemma3", "qwen_vl")
    for attention in BACK_ENDS
    for dtype in HALVES
    if attention != "flex_attention" or (name, dtype) in (("llava", torch.bfloat16), ("gemma3", torch.float16))
]


def half(name: str, attention: str, dtype: torch.dtype) -> Target:
    model = copy.deepcopy(target_of(name, "sdpa").model).to(dtype)
    model.set_attn_implementation(attention)
    return Target(model)


def texts(target: Target, name: str, new: int, tree=None) -> tuple:
    """A ragged batch, and its text by plain decoding and with a draft model."""
    inputs = ragged_inputs(name)
    request = prepare(target, inputs=inputs)
    drafter = as_drafter(target, models.blurred(target.model))
    plain = mmspec.generate(target, inputs=request, max_new_tokens=new)
    out = mmspec.generate(target, drafter, inputs=request, max_new_tokens=new, tree=tree or DynamicTree(4, 3, 10))
    assert out.stats.num_accepted_draft_tokens
    return request, plain.token_ids, out.token_ids


@pytest.mark.parametrize(("name", "attention", "dtype"), CASES)
def test_every_difference_is_a_near_tie(name, attention, dtype):
    """Of drafted from plain text, and of plain text from what `model.generate` writes to every row alone."""
    target, new = half(name, attention, dtype), 8 if attention == "flex_attention" else NEW
    assert target.dtype == dtype
    request, plain, found = texts(target, name, new)
    with torch.compiler.set_stance("force_eager"):  # flex attention in `generate` as in ours
        alone = models.reference(target.model, dict(request.inputs), new)
    for pair in ((plain, found), (alone, plain)):
        for one in divergences(target, request, *pair):
            assert excused(target, one), described(target, one)


@pytest.mark.parametrize("dtype", HALVES)
def test_heads_draft_in_the_targets_precision(dtype):
    target = half("llava", "sdpa", dtype)
    drafter = models.redraw(EagleDrafter(target), seed=8).to(dtype)
    request = prepare(target, inputs=models.inputs_for("llava", [1, 0]))
    plain = mmspec.generate(target, inputs=request, max_new_tokens=16).token_ids
    found = mmspec.generate(target, drafter, inputs=request, max_new_tokens=16).token_ids
    assert all(excused(target, one) for one in divergences(target, request, plain, found))


# The report: a constructed tie is one, and a mistake is none.


@pytest.mark.parametrize("dtype", [torch.float32, *HALVES])
def test_a_constructed_tie(dtype):
    """Two rows of the head that are equal but for one last bit: either token may stand for the other."""
    target = half("llama", "sdpa", dtype)
    request = prepare(target, inputs=models.inputs_for("llama", [0]))
    ((first, *_),) = mmspec.generate(target, inputs=request, max_new_tokens=1).token_ids
    rows = target.model.get_output_embeddings().weight.data
    other = (first + 1) % models.IMAGE
    rows[other] = rows[first]
    rows[other, 0] = torch.nextafter(rows[first, 0], torch.tensor(torch.inf, dtype=dtype))
    plain = mmspec.generate(target, inputs=request, max_new_tokens=4).token_ids
    chosen = plain[0][0]
    assert chosen in (first, other)
    found = [[other if chosen == first else first, *plain[0][1:]]]
    (one,) = divergences(target, request, plain, found)
    assert (one["row"], one["position"], one["plain"], one["token"]) == (0, 0, chosen, found[0][0])
    assert one["tie"] and 0 <= one["margin"] == one["top2"] < 0.1
    assert excused(target, one) == (dtype != torch.float32), "in float32 there is no excuse"
    assert "at new token 0 it wrote" in described(target, one) and "a near-tie)" in described(target, one)


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("mistake", [no_tree_mask, sequential_positions])
def test_a_mistake_is_no_tie(mistake, dtype, monkeypatch):
    target = half("llava", "sdpa", dtype)
    with monkeypatch.context() as patch:
        mistake(patch, target)
        request, plain, found = texts(target, "llava", NEW, StaticTree())
    differences = divergences(target, request, plain, found)
    wrong = [one for one in differences if not excused(target, one)]
    assert wrong and max(one["margin"] for one in wrong) > 0.1
    assert all("a near-tie" not in described(target, one) for one in wrong)


def test_margins_are_those_of_decoding_token_by_token():
    """In bfloat16 another shape of pass would give other margins than the one that plain decoding saw."""
    target = half("llama", "sdpa", torch.bfloat16)
    request = prepare(target, inputs=models.inputs_for("llama", [0]))
    seen = []
    keep = lambda ids, scores: seen.append(scores[0].float()) or scores  # noqa: E731
    (plain,) = mmspec.generate(target, inputs=request, max_new_tokens=9, logits_processor=[keep]).token_ids
    for position in (0, 3, 8):
        found = [*plain[:position], (plain[position] + 1) % 50, *plain[position + 1 :]]
        (one,) = divergences(target, request, [plain], [found])
        scores = seen[position]
        assert one["position"] == position
        assert one["margin"] == float(scores[plain[position]] - scores[found[position]])
        step = torch.finfo(torch.bfloat16).eps * scores[[plain[position], found[position]]].abs().max()
        assert one["tie"] == (abs(one["margin"]) <= TIE * step)
        assert one["top2"] == float(scores.topk(2).values.diff().abs())


# What `mmspec generate compare=true` says.


@pytest.mark.product
def test_the_command_says_where_a_text_differs_and_by_how_much(capsys, monkeypatch):
    """The embedded target in bfloat16, whose drafted text is made to differ at one place."""
    from mmspec.cli import main

    real = mmspec.generate

    def other(target, drafter=None, **options):
        out = real(target, drafter, **options)
        if drafter is not None:
            out.token_ids[0][2] += 1
        return out

    monkeypatch.setattr(mmspec, "generate", other)
    options = ["max_new_tokens=6", "compare=true", "json=true"]
    assert main(["generate", "target.dtype=bfloat16", *options]) == 0
    line, last = capsys.readouterr().out.strip().splitlines()[-2:]
    found = json.loads(last)["compare"]["divergence"]
    assert found["position"] == 2 and found["margin"] > 0 and not found["excused"]
    assert "text DIFFERS: at new token 2 it wrote" in line and "in bfloat16)" in line


def test_the_line_under_the_answer():
    stats = Stats(prompt_tokens=[5], new_tokens=[3], lossless=True)
    compared = {"tokens_per_second": 3.0, "plain_tokens_per_second": 2.0, "identical": False}
    compared |= dict.fromkeys(command.SPEEDUPS.values(), 1.5)
    for is_excused, word in ((True, "text differs by rounding: at"), (False, "text DIFFERS: at")):
        said = compared | {"divergence": {"excused": is_excused, "text": "at new token 3 ..."}}
        assert word in command.summary_line(stats, said, sampled=False)
