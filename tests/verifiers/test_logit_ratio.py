"""LogitRatio on a whole text: what is emitted is what was read, within the bound, and exact where it must be."""

from __future__ import annotations

from functools import cache
from types import SimpleNamespace

import pytest
import torch
from refusals import refused

import mmspec
from mmspec import zoo
from mmspec.drafters import ReferenceDrafter
from mmspec.inputs import prepare
from mmspec.tree import DraftTree
from mmspec.verifiers import TreeWalk
from mmspec.verifiers.rules import LogitRatio
from mmspec.verifiers.rules.base import Judged

NEW, LOW = 64, 0.05  # the embedded model is so sure that no higher ratio changes much


@cache
def asked():
    """A page, and a reference of it with a fifth of its characters wrong."""
    target = mmspec.load_target("tiny")
    image, prompt, text = zoo.sample("documents", "test", 100)
    return target, prompt, image, zoo.misread(text, 0.2)


@cache
def written(strict=(), **rule):
    rule["strict"] = strict
    target, prompt, image, wrong = asked()
    drafter = ReferenceDrafter(target, references=wrong, least=0)
    return mmspec.generate(target, drafter, prompt, [image], verifier=TreeWalk(LogitRatio(**rule)), max_new_tokens=NEW)


def logits_of(ids: list[int]) -> torch.Tensor:
    """The target's logits for the place of every token of a text, in one pass over prompt and text."""
    target, prompt, image, _ = asked()
    inputs = prepare(target, prompt, [image]).inputs
    length = inputs["input_ids"].shape[1]
    whole = torch.cat([inputs["input_ids"], torch.tensor([ids])], 1)
    inputs = inputs | {"input_ids": whole, "attention_mask": torch.ones_like(whole)}
    with torch.inference_mode():
        return target.model(**inputs).logits[0, length - 1 : -1].float()


def within(ids: list[int], ratio: float) -> bool:
    """Whether every token is the favourite behind those before it, or near it and within the bound."""
    logits = logits_of(ids)
    best, own = logits.amax(-1), logits.gather(-1, torch.tensor(ids)[:, None])[:, 0]
    near = (own >= ratio * best - 1e-3) & (best > 0)
    log_p = logits.log_softmax(-1)
    gap = log_p.amax(-1) - log_p.gather(-1, torch.tensor(ids)[:, None])[:, 0]
    return bool((near | (own >= best - 1e-3)).all() and (gap <= (1 - ratio) * best.clamp(min=0) + 1e-3).all())


def test_what_is_emitted_is_what_was_read_and_within_the_bound():
    """Against a pass over the emitted text. Text that had the favourites in the place of what was accepted, as the
    release emits it, would be found out; so would a stricter ratio."""
    target, prompt, image, _ = asked()
    out, plain = written(ratio=LOW), mmspec.generate(target, None, prompt, [image], max_new_tokens=NEW)
    ids = out.token_ids[0]
    assert ids != plain.token_ids[0] and not out.stats.lossless
    assert within(ids, LOW) and not within(ids, 0.95)
    favourites = logits_of(ids).argmax(-1).tolist()
    assert favourites != ids and not within(favourites, 0.95)
    assert len(out.stats.rounds) < len(written(ratio=1.0).stats.rounds)
    assert written(ratio=1.0).token_ids == plain.token_ids and written(ratio=1.0).stats.lossless


def judged(logits, tokens, answer=(0,)) -> tuple[DraftTree, Judged]:
    """A chain of tokens with the same scores in every place."""
    tree = DraftTree.chain(torch.tensor([[answer[-1], *tokens]]))
    scores = torch.tensor(logits).expand(1, len(tokens) + 1, -1)
    at = Judged(tree, scores, scores.argmax(-1), lambda: None, lambda: [len(answer) - 1], answers=lambda: [[*answer]])
    return tree, at


def test_a_margin_lets_pass_what_the_target_is_unsure_of():
    unsure, sure = [5.0, 4.0, 0.1, -1.0], [5.0, 1.0, 0.1, -1.0]
    for logits, rule, passing in (
        (unsure, LogitRatio(0.7, margin=2.0), [0, 1, 2]),
        (sure, LogitRatio(0.7, margin=2.0), [0]),
        (unsure, LogitRatio(0.7), [0, 1]),
        (unsure, LogitRatio(1.0), [0]),
        ([-1.0, -1.1, -2.0, -3.0], LogitRatio(0.1, margin=9.0), [0]),  # no logit is positive
    ):
        found = [token for token in range(4) if rule.accept(judged(logits, [token])[1])[0, 1]]
        assert found == passing, (logits, vars(rule))
    assert LogitRatio(1.0).lossless and not LogitRatio(1.0, margin=0.5).lossless


@pytest.mark.parametrize(
    ("answer", "tokens", "passing"),
    [
        ([0], [1, 3, 1, 3, 1], [True, False, False, False, True]),  # 3 opens and closes: it is exact itself
        ([0, 3, 0], [1, 1, 3, 1], [False, False, False, True]),  # opened in the answer
        ([0, 3], [1], [False]),  # opened by the root
        ([3, 0, 3], [1], [True]),  # opened and closed
    ],
)
def test_between_strict_tokens_only_the_targets_choice_passes(answer, tokens, passing):
    rule = LogitRatio(0.5)
    rule._ends = [3]
    assert rule.accept(judged([5.0, 4.0, 0.0, 4.0], tokens, answer)[1])[0, 1:].tolist() == passing


def test_strict_texts_are_tokens_of_the_target():
    target = asked()[0]
    another = SimpleNamespace(speller=SimpleNamespace(encode=lambda text, **_: [7]))
    rule = LogitRatio(strict=iter(["A", "\n"]))
    rule.check(target)
    rule.check(another)  # a request to another target has begun meanwhile
    for one, tokens in ((target, [target.tokenizer.encode(text)[0] for text in ("A", "\n")]), (another, [7, 7])):
        own = rule.fork()
        own.start(SimpleNamespace(target=one))
        assert own._ends == tokens
    refused(lambda: LogitRatio(strict=["quantum"]).check(target), "strict has 'quantum', which is ... tokens")
    for wrong in ("$", b"$", 3, [""], [1]):
        refused(lambda wrong=wrong: LogitRatio(strict=wrong), f"strict={wrong!r} must be a list of texts")
    refused(
        lambda: LogitRatio(margin=-1),
        "margin=-1 must be a number",
    )


def test_every_second_line_is_exact_between_line_breaks():
    """Line breaks begin and end it, so the second, fourth, ... line are the target's own."""
    (end,) = asked()[0].tokenizer.encode("\n")

    def exact(ids: list[int]) -> bool:
        best = logits_of(ids).argmax(-1).tolist()
        inside = [ids[:place].count(end) % 2 == 1 for place in range(len(ids))]
        return all(one == other for one, other, strictly in zip(ids, best, inside, strict=True) if strictly)

    free, strict = (written(ratio=LOW, strict=texts).token_ids[0] for texts in ((), ("\n",)))
    assert exact(strict) and not exact(free)
