"""Selection among answers: likelihoods are a plain forward pass's, consensus keeps its laws, cascades and verdicts."""

from __future__ import annotations

import json
import math
from functools import cache

import pytest
import torch
from omegaconf import OmegaConf
from running import Listed, measure, side

import mmspec
from mmspec import MMSpecError, zoo
from mmspec.data import Example
from mmspec.data.accuracy import metrics_of
from mmspec.decoding.sampling import Sampling
from mmspec.evaluation import report
from mmspec.evaluation.methods import GROUPS, Method
from mmspec.inputs import prepare
from mmspec.selection import (
    Answerability,
    Cascade,
    CascadeEngine,
    Member,
    Verdict,
    VerdictEngine,
    closest,
    disagreement,
    token_scores,
)

QUESTION = "Describe the picture."
ANSWERS = ("In the top left there is a small red circle.", "A red square.", "Blue")


@cache
def large():
    return mmspec.load_target("tiny")


@cache
def members():
    return tuple(Member(mmspec.load_drafter(f"tiny/{name}", large()), name) for name in ("draft_model", "text_only"))


@cache
def other():
    """Another model with eyes and a processor of its own: here the same weights."""
    return mmspec.Target(large().model, large().processor)


def asked():
    return prepare(large(), QUESTION, [zoo.demo_image()])


def ids_of(*texts):
    return [large().tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]


def straight(model, answer: list[int], **inputs) -> float:
    """The mean negative log-likelihood by the model's own forward pass over prompt and answer."""
    with torch.inference_mode():
        logits = model(**inputs).logits[0]
    said = logits[-len(answer) - 1 : -1].float().log_softmax(-1)
    return -said.gather(1, torch.tensor(answer)[:, None]).mean().item()


def inputs_of(name: str, answer: list[int]) -> tuple:
    """A member's model, and the inputs of its forward pass over the prompt and an answer, put together by hand."""
    request = asked()
    prompt = request.inputs["input_ids"]
    ids = torch.cat([prompt, torch.tensor([answer], dtype=torch.long)], dim=1)
    if name in ("large", "other"):
        pixels = {name: value for name, value in request.inputs.items() if name.startswith("pixel")}
        return large().model, {"input_ids": ids, "attention_mask": torch.ones_like(ids), **pixels}
    drafter = mmspec.load_drafter(f"tiny/{name}", large())
    visual = large().family.is_visual(ids)
    if name == "text_only":
        return drafter.model, {"input_ids": ids[~visual][None]}
    features = torch.cat(large().encode(request).features)
    embeds = drafter.model.get_input_embeddings()(ids)
    embeds[visual] = drafter.projector(features)
    return drafter.model, {"inputs_embeds": embeds}


@pytest.mark.product
@pytest.mark.parametrize("name", ["large", "other", "draft_model", "text_only"])
def test_likelihoods_of_many_answers_in_one_pass_are_those_of_plain_forward_passes(name):
    by_name = {"large": Member(large(), "large"), "other": Member(other(), "other")}
    member = (by_name | {one.name: one for one in members()})[name]
    answers = ids_of(*ANSWERS)
    found = member.nll(asked(), answers, large())
    with torch.inference_mode():
        expected = []
        for answer in answers:
            model, inputs = inputs_of(name, answer)
            expected.append(straight(model, answer, **inputs))
    assert found == pytest.approx(expected, abs=1e-4) and len(set(found)) == 3
    assert [len(one) for one in member.logits(asked(), answers, large())] == [len(answer) for answer in answers]


def test_the_codes_variant_counts_the_words_of_the_question_too():
    member = Member(large(), "large")
    found = member.nll(asked(), ids_of(*ANSWERS), large(), over="turn")
    for text, nll in zip(ANSWERS, found, strict=True):
        request = prepare(large(), f"{QUESTION}\n{text}", [zoo.demo_image()])
        with torch.inference_mode():
            logits = large().model(**request.inputs).logits[0, :-1].float().log_softmax(-1)
        ids = request.inputs["input_ids"][0, 1:]
        said = logits.gather(1, ids[:, None])[:, 0][~large().family.is_visual(ids)]
        assert nll == pytest.approx(-said.mean().item(), abs=1e-4)
    assert found != pytest.approx(member.nll(asked(), ids_of(*ANSWERS), large()), abs=1e-2)


def test_consensus_by_hand_and_its_laws():
    nll = torch.tensor([[1.0, 2.0, 4.0], [0.5, 0.4, 3.0], [2.0, 2.5, 1.0]])
    # Answer 0: model 1 finds it 0.1 away from its own, model 2 1.0 away.
    assert disagreement(nll).tolist() == pytest.approx([0.1 + 1.0, 1.0 + 1.5, 3.0 + 2.6])
    assert closest(disagreement(nll).tolist(), 2) == [0, 1]
    shifted = nll + torch.tensor([[5.0], [-1.0], [0.3]])
    assert disagreement(shifted).tolist() == pytest.approx(disagreement(nll).tolist(), abs=1e-5)
    assert disagreement(torch.full((4, 4), 0.7)).tolist() == [0.0] * 4
    drawn = {tuple(closest([0.0] * 4, 2, seed)) for seed in range(30)}
    assert len(drawn) > 5 and closest([0.0] * 4, 2, 3) == closest([0.0] * 4, 2, 3)


def test_token_scores_are_those_of_the_formula():
    logits = torch.randn(3, 90, generator=torch.Generator().manual_seed(0))
    for row, found in zip(logits.tolist(), token_scores(logits).tolist(), strict=True):
        best, *rivals = sorted(row, reverse=True)[:64]
        mean = sum(rivals) / 63
        spread = math.sqrt(sum((one - mean) ** 2 for one in rivals) / 63)
        assert found == pytest.approx((best - mean) / (spread + 1e-6), rel=1e-4)
    scores = token_scores(logits).sort().values
    for of, expected in (("min", scores[0]), ("mean", scores.mean()), ("lowest", scores[:1].mean())):
        assert Answerability(of=of).probability(logits) == pytest.approx((0.6 * expected).sigmoid().item())
    assert Answerability(0.98).keeps(1 / (1 + math.exp(-0.6 * 6.6))) and not Answerability(0.98).keeps(0.97)


def own_text(member, new=24) -> str:
    """What a member writes token by token, each time by a pass over everything."""
    if member.name == "large":
        return mmspec.generate(large(), inputs=asked(), max_new_tokens=new).text[0]
    written: list[int] = []
    with torch.inference_mode():
        while len(written) < new:
            model, inputs = inputs_of(member.name, written)
            token = int(model(**inputs).logits[0, -1].argmax())
            if token in large().eos_token_ids:
                break
            written.append(token)
    return large().tokenizer.decode(written, skip_special_tokens=True)


@pytest.mark.product
def test_a_cascade_keeps_what_is_sure_and_asks_the_large_model_otherwise():
    small = members()[0]
    never, always = (Cascade(large(), small, Answerability(threshold)) for threshold in (1.0, 0.0))
    kept, asked_large = (one.ask(QUESTION, zoo.demo_image(), max_new_tokens=24) for one in (always, never))
    assert kept.by == "draft_model" and kept.passes == 0 and not kept.rounds and kept.tokens["large"] == 0
    assert kept.text == own_text(small)
    assert asked_large.by == "large" and asked_large.text == own_text(Member(large(), "large"))
    assert asked_large.answers == {"draft_model": kept.text} and asked_large.passes > 10
    between = kept.scores["draft_model"]
    for threshold, by in ((between - 1e-6, "draft_model"), (between + 1e-6, "large")):
        gate = Answerability(threshold)
        assert Cascade(large(), small, gate).ask(QUESTION, zoo.demo_image(), max_new_tokens=24).by == by
    drafted = Cascade(large(), small, Answerability(1.0), mmspec.load_drafter("tiny/eagle3", large()))
    fast = drafted.ask(QUESTION, zoo.demo_image(), max_new_tokens=24)
    assert fast.text == asked_large.text and fast.passes < asked_large.passes


@pytest.mark.product
def test_a_verdict_keeps_the_closest_answers_and_takes_one_of_them():
    panel = [*members(), Member(large(), "large")]
    chosen = Verdict(large(), panel, keep=2, decide="choose")
    found = chosen.ask(QUESTION, zoo.demo_image(), max_new_tokens=24)
    assert set(found.answers) == {"draft_model", "text_only", "large"} and len(found.kept) == 2
    answers = [own_text(one) for one in panel[:2]]
    assert [found.answers["draft_model"], found.answers["text_only"]] == answers
    nll = chosen.likelihoods(asked(), [one.write(asked(), large(), 24) for one in panel])
    scores = dict(zip(found.answers, disagreement(nll).tolist(), strict=True))
    assert found.scores == pytest.approx(scores) and found.kept == sorted(scores, key=scores.get)[:2]
    judged = {name: nll[2, list(found.answers).index(name)].item() for name in found.kept}
    assert found.by == min(judged, key=judged.get) and found.text == found.answers[found.by] and found.passes == 1


@pytest.mark.product
def test_a_written_verdict_reads_the_reasons_of_the_kept_members_alone(monkeypatch):
    heard = []
    from mmspec.selection import panel as inside

    def listen(target, drafter, **options):
        heard.append(target.tokenizer.decode(options["inputs"].token_ids()[0], skip_special_tokens=True))
        return mmspec.generate(target, drafter, **options)

    monkeypatch.setattr(inside, "generate", listen)
    written = Verdict(large(), list(members()), keep=1)
    found = written.ask(QUESTION, zoo.demo_image(), max_new_tokens=12)
    (name,) = found.kept
    assert list(found.reasons) == [name] and found.by == "verdict" and found.passes > 1
    assert f"Model 1: {found.reasons[name]}" in heard[0] and "Model 2" not in heard[0] and QUESTION in heard[0]
    assert f"Proposed answer: {found.answers[name]}" in heard[0]
    short = Verdict(large(), list(members()), reason=None).ask(QUESTION, zoo.demo_image(), max_new_tokens=12)
    assert not short.reasons and "Model 2" in heard[1]


def engine(cls, **settings):
    return cls(large(), None, None, None, Sampling(), 24, **settings)


@pytest.mark.product
def test_bench_measures_them_with_accuracy_and_says_that_they_are_lossy(tmp_path):
    names = ["tiny/draft_model", "tiny/text_only"]
    sides = [side("plain", large(), tokens=24)]
    for label, made in {
        "verdict": engine(VerdictEngine, members=names),
        "written": engine(VerdictEngine, members=names, decide="write", keep=1),
        "cascade": engine(CascadeEngine, threshold=0.0),
        "always large": engine(CascadeEngine, threshold=1.0),
    }.items():
        sides.append(Method(label, (), OmegaConf.create(dict.fromkeys(GROUPS)), engine=made))
    samples = [zoo.sample("questions", "test", index) for index in (100, 101)]
    source = Listed(
        *(
            Example(f"q{place}", one.prompt, (one.image,), "questions", None, None, (), (one.reference,))
            for place, one in enumerate(samples)
        )
    )
    source.metric = metrics_of({"questions": "conclusion"})
    bundle = measure(tmp_path / "b", source, large(), sides)
    records = {(record["side"], record["request"]): record for record in bundle.requests}
    assert len(records) == 10 and not any(one["failed"] for one in bundle.manifest["sides"])
    assert [one["lossless"] for one in bundle.manifest["sides"]] == [True, False, False, False, False]
    for request in (0, 1):
        assert records["always large", request]["token_ids"] == records["plain", request]["token_ids"]
        assert records["cascade", request]["passes"] == 0 < records["always large", request]["passes"]
    assert json.loads(json.dumps(bundle.manifest["sides"]))
    made = report(tmp_path / "b")
    headings, rows = made.table().cells()
    shown = {row[0]: dict(zip(headings, row, strict=True)) for row in rows}
    assert shown["plain"]["accuracy"] == shown["always large"]["accuracy"]
    assert all(shown[label]["same text as plain"].startswith("lossy") for label in ("verdict", "written", "cascade"))


def test_refusals():
    for make, message in [
        (lambda: Member(3, "x"), "Member 'x': 3 is no Target"),
        (lambda: Verdict(large(), [large()]), "members has 1 models"),
        (lambda: Verdict(large(), "tiny"), "members='tiny' must be a list"),
        (lambda: Verdict(large(), [Member(large(), "a"), Member(large(), "a")]), "two of the name 'a'"),
        (lambda: Verdict(large(), list(members()), decide="vote"), "Verdict: decide='vote' is unknown"),
        (lambda: Answerability(2), "Answerability: threshold=2"),
        (lambda: Answerability(of="max"), "Answerability: of='max' is unknown"),
        (lambda: engine(CascadeEngine, small="tiny/eagle3"), "is no Target and no draft model"),
    ]:
        with pytest.raises(MMSpecError, match=message):
            make()
    two = prepare(large(), [QUESTION] * 2, [[zoo.demo_image()]] * 2)
    with pytest.raises(MMSpecError, match="answers one question at a time, and there are 2"):
        Cascade(large(), members()[0]).answer(two)
