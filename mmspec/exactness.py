"""Differences between an answer and plain decoding, with the margin by which the target preferred the plain token.

In half precision, passes of different shapes round differently. So a lossless method may write another text than plain
decoding, but only from a place on where the target is undecided: a near-tie. In float32 there is no such excuse.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from copy import copy
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

import torch
from torch import Tensor

from .decoding.sampling import LogitsPipeline, NoiseTape, Sampling
from .drafters import Drafter
from .errors import MMSpecError
from .generation import generate, tree_for
from .inputs import Request, append
from .models.states import LAST
from .node_by_node import Deviation
from .target import Target
from .tree import DraftTree
from .verifiers import Greedy

TIE = 2.0
"""Largest distance of two logits that counts as a near-tie, in steps of the number format at the size of the larger
one."""


ROUNDS_AS_MUCH = 8.0
"""Times the rounding of another pass that a tree pass may be off: the largest of many nodes beside a mean [OUR]."""

QUARTER_STEP = 0.25
"""Least rounding, in steps of the number format at the size of the logits: two passes may agree by chance."""


class Divergence(MMSpecError):
    """An error: a method that claims to be lossless wrote another text than plain decoding."""

    exit_code = 1


def divergences(
    target: Target,
    request: Request,
    plain: list[list[int]],
    found: list[list[int]],
    sampling: Sampling | None = None,
    seed: int = 0,
    tie: float = TIE,
) -> list[dict[str, Any]]:
    """Return the first difference of every row that has one.

    Args:
        target: model that wrote both texts.
        request: request that was answered.
        plain: token ids of plain decoding, per row.
        found: token ids of the method, per row.
        sampling, seed: settings and seed with which both were drawn; greedy by default.
        tie: a difference is a near-tie if the scores of the two tokens are at most so many steps apart, in steps of the
            target's number format at the size of the larger one. Passes of different shapes round differently by about
            as much.

    Returns:
        Per row: `row`, `position` among the new tokens, `token`, `plain` (None where the plain answer had ended),
            `margin` (score of the plain token minus score of the other: in logits, or over the temperature and with the
            same noise if it was sampled), `top2` (best score minus second best) and `tie`. The scores are those of
            decoding token by token.
    """
    sampling = sampling or Sampling()
    differences = []
    for row, (ours, theirs) in enumerate(zip(plain, found, strict=True)):
        if ours == theirs:
            continue
        common = zip(ours, theirs, strict=False)
        position = next((i for i, (a, b) in enumerate(common) if a != b), min(len(ours), len(theirs)))
        a, b = (ids[position] if position < len(ids) else None for ids in (ours, theirs))
        difference: dict[str, Any] = {"row": row, "position": position, "token": b, "plain": a}
        difference |= {"margin": None, "top2": None, "tie": False}
        if a is not None and b is not None:
            scores = next_scores(target, request, row, ours[:position], sampling, seed)
            margin, near = _margin(target, scores, a, b, tie)
            best, second = scores.topk(2).values.tolist()
            difference |= {"margin": margin, "top2": best - second, "tie": near}
        differences.append(difference)
    return differences


def departures(target: Target, request: Request, written: list[int], tie: float = TIE) -> Iterator[dict[str, Any]]:
    """Yield where a text is not what the target prefers after the tokens before it.

    The target reads the text in one pass, whoever has written it. Where the pass prefers another token, it decodes up
    to there token by token, which has the last word.

    Args:
        target: the model that is to have written it.
        request: a prompt of one row.
        written: token ids of a greedy answer, up to the first placeholder of a picture if there is one.
        tie: see `divergences`.

    Yields:
        `position` among the new tokens, `token`, `plain` (what the target prefers), `margin` and `tie`, as in
            `divergences`; `row` is 0.
    """
    ids = _before_pictures(target, written)
    if not ids:
        return
    with torch.inference_mode():
        preferred = target.family.head(_read(target, request, ids)[:-1]).argmax(-1).tolist()
    for position, (token, other) in enumerate(zip(ids, preferred, strict=True)):
        if token == other:
            continue
        scores = next_scores(target, request, 0, ids[:position], Sampling(), 0)
        best = int(scores.argmax())
        if best != token:
            margin, near = _margin(target, scores, best, token, tie)
            yield {"row": 0, "position": position, "token": token, "plain": best, "margin": margin, "tie": near}


def _before_pictures(target: Target, written: list[int]) -> list[int]:
    """Return a text up to its first placeholder: what a target wrote has no pictures, and a pass would look for
    them."""
    return list(takewhile(lambda token: token not in target.family.placeholders, written))


def _read(target: Target, request: Request, written: list[int]) -> Tensor:
    """Return the last states `[1 + tokens, hidden]` behind a prompt of one row and behind every token of a text, from
    one pass over both."""
    whole = append(request, [written])
    context = target.prefill(whole, target.encode(whole), feature_layers=(LAST,))
    return context.features[LAST][0, request.lengths[0] - 1 :]


def _margin(target: Target, scores: Tensor, preferred: int, other: int, tie: float) -> tuple[float, bool]:
    """Return by how much one token is preferred to another, and whether that is a near-tie."""
    margin = float(scores[preferred] - scores[other])
    step = torch.finfo(target.arithmetic).eps * float(scores[[preferred, other]].abs().max())
    return margin, abs(margin) <= tie * step


@dataclass(frozen=True)
class Attribution:
    """The cause of the differences between a method and plain decoding.

    Args:
        cause: `rounding` if every tree pass was as near to plain decoding as another pass of ordinary shape is, `fault`
            if one was not: a wrong mask, position or cache entry, say.
        ratio: the largest distance of a tree pass from plain decoding, in units of `rounding`.
        worst: the node where that was, or the first one that rounding does not explain.
        rounding: the distance from plain decoding of one pass over the whole text: what a pass of another shape makes
            of it. Root mean square over tokens and vocabulary, in logits.
        rule: new token at which the text is another than plain decoding's even though plain decoding's own logits
            decided: then the rule that accepts tokens is the fault. None where they are the same.
    """

    cause: str
    ratio: float
    worst: Deviation | None
    rounding: float
    rule: int | None = None

    def excuses(self, target: Target, difference: dict[str, Any]) -> bool:
        """Return True if a difference of texts (see `divergences`) is rounding: in half precision, where no tree pass
        is a fault, and the target preferred the plain token by no more than rounding moves logits."""
        if self.cause == "fault" or not in_half(target) or difference["margin"] is None:
            return False
        return difference["tie"] or abs(difference["margin"]) <= ROUNDS_AS_MUCH * self.rounding

    def __str__(self) -> str:
        if self.rule is not None:
            return f"the rule that accepts tokens is WRONG: by plain decoding's own scores it leaves it at {self.rule}"
        if self.worst is None:
            return "nothing was drafted, so nothing can differ"
        place = f"round {self.worst.round}, node {self.worst.node} at depth {self.worst.depth}"
        passes = "tree passes round as any pass does" if self.cause == "rounding" else "a tree pass is WRONG"
        return f"{passes}: at most {self.ratio:.1f} times the rounding of another pass ({place})"


def attribute(target: Target, drafter: Drafter, request: Request, **options: Any) -> Attribution:
    """Find out whether a method differs from plain decoding by rounding, or by a fault.

    The request is decoded with `node_by_node`: every tree is scored by its own pass and by the passes of plain
    decoding, whose logits decide. How far the two may be apart is told by a third way of reading the same text that
    nothing of speculation has touched: one pass over all of it. A wrong mask, position or cache entry moves logits by
    much more, at the node where it is and at all later ones that see it. And if the text is still another one than that
    of plain decoding, whose logits decided, then the rule that accepts tokens is at fault. This measure is our own.

    Args:
        target: the model.
        drafter: the drafter of the method.
        request: one prompt, as `mmspec.inputs.prepare` makes it.
        options: further arguments of `mmspec.generate`, such as `tree`, `verifier` and `max_new_tokens`.

    Raises:
        MMSpecError: see `mmspec.generate`; and for a batch.
    """
    tree: Any = copy(tree_for(drafter, options.get("tree")))
    if getattr(tree, "remember", False):
        tree.remember = False  # rounds that are scored twice teach nothing about the time of others
    out = generate(target, drafter, inputs=request, **options | {"tree": tree, "node_by_node": True})
    plain = generate(target, None, inputs=request, **{**options, "tree": None, "verifier": None}).token_ids[0]
    twice = out.scored_twice
    rule = None
    if (ours := out.token_ids[0]) != plain:
        both = enumerate(zip(ours, plain, strict=False))
        rule = next((i for i, (a, b) in both if a != b), min(len(ours), len(plain)))
    cause = "rounding" if rule is None else "fault"
    if not any(one.depth for one in twice.deviations) or not twice.written:
        return Attribution(cause, 0.0, None, 0.0, rule)
    rounding = _rounding(target, request, ours, twice.written)
    worst = max(twice.deviations, key=lambda one: one.difference)
    ratio = worst.difference / rounding
    if ratio <= ROUNDS_AS_MUCH:
        return Attribution(cause, ratio, worst, rounding, rule)
    first = next(one for one in twice.deviations if one.difference > ROUNDS_AS_MUCH * rounding)
    return Attribution("fault", ratio, first, rounding)


@torch.inference_mode()
def _rounding(target: Target, request: Request, tokens: list[int], written: list[Tensor]) -> float:
    """Return how far one pass over a text is from decoding it token by token, see `Attribution`."""
    tokens = _before_pictures(target, tokens)
    length = min(len(tokens), len(written))
    plain = torch.stack(written[: max(length, 1)]).float()
    least = QUARTER_STEP * torch.finfo(target.arithmetic).eps * float(plain.square().mean().sqrt())
    if not length:
        return least
    logits = target.family.head(_read(target, request, tokens[:length])[1:]).float()
    return max(least, float((logits - plain).square().mean().sqrt()))


def explained(
    target: Target,
    request: Request,
    plain: list[list[int]],
    found: list[list[int]],
    sampling: Sampling | None = None,
    attributed: Callable[[], Attribution] | None = None,
) -> dict[str, Any] | None:
    """Return the first difference of two greedy answers to one prompt; None if there is none.

    Args:
        target, request, plain, found, sampling: see `divergences`.
        attributed: function that finds the cause (`attribute`), called if there is a difference.

    Returns:
        The fields of `divergences`, whether rounding explains the difference (`excused`), and both in words (`text`);
            with `attributed` also the `cause`, and then that decides too.
    """
    for one in divergences(target, request, plain, found, sampling):
        answer = one | {"excused": excused(target, one), "text": described(target, one)}
        if attributed is not None:
            attribution = attributed()
            answer["cause"] = attribution.cause
            answer["excused"] = attribution.excuses(target, one)
            answer["text"] += f"; {attribution}"
        return answer
    return None


def complaint_of(target: Target, record: dict[str, Any]) -> str | None:
    """Return what is wrong with the answer of a lossless method, or None.

    In float32 every difference is wrong, and so is a repetition that differs; in half precision near-ties are not.

    Args:
        target: model that answered.
        record: record of the result bundle with `ids`, `repeat`, `repeatable` and `divergence`, whose entries may say
            what was found about their cause: `excused`, and in words `attribution`.
    """
    if target.arithmetic == torch.float32 and not record["repeatable"]:
        return f"answered {record['ids'][0]!r} differently in repeat {record['repeat'] + 1} with the same seed"
    for difference in record["divergence"] or []:
        if not difference.get("excused", excused(target, difference)):
            prompt = record["ids"][difference["row"]]
            cause = f"; {difference['attribution']}" if difference.get("attribution") else ""
            return f"is not lossless: on prompt {prompt!r} {described(target, difference)}{cause}"
    return None


def excused(target: Target, difference: dict[str, Any]) -> bool:
    """Return True if a difference is only rounding: a near-tie in half precision, of the weights or of autocast."""
    return difference["tie"] and in_half(target)


def in_half(target: Target) -> bool:
    """Return True if a target computes in half precision."""
    return torch.finfo(target.arithmetic).bits < 32


def described(target: Target, difference: dict[str, Any]) -> str:
    """Return a difference in words."""
    ours, theirs = (_shown(target, difference[name]) for name in ("token", "plain"))
    margin, dtype = difference["margin"], str(target.arithmetic).removeprefix("torch.")
    margin = "one of the two had ended" if margin is None else f"the target prefers the latter by {margin:.3g}"
    tie = ", a near-tie" if difference["tie"] else ""
    return (
        f"at new token {difference['position']} it wrote {ours} where plain decoding wrote {theirs} "
        f"({margin}, in {dtype}{tie})"
    )


def _shown(target: Target, token: int | None) -> str:
    if token is None:
        return "nothing"
    return f"{token} {target.tokenizer.decode([token])!r}" if target.tokenizer is not None else str(token)


def next_scores(
    target: Target, request: Request, row: int, written: list[int], sampling: Sampling, seed: int
) -> Tensor:
    """Return the target's scores, `[vocab]`, of the token after some new tokens of a row, as the loop compares them.

    The row is decoded token by token, as in plain decoding; the other rows do not move. Truncation (top-k, top-p,
    min-p) is left out: both tokens passed it.
    """
    context = target.prefill(request, target.encode(request), request.max_length + len(written))
    pipeline = LogitsPipeline(
        sampling.temperature,
        repetition_penalty=sampling.repetition_penalty,
        generation_config=target.model.generation_config,
        eos_token_ids=target.eos_token_ids,
        of_family=target.family.processors(target.model.generation_config),
    )
    pipeline.begin(request.lengths)
    judge = Greedy().fork_for(context, pipeline, seed)
    scores = judge.processed_first(context)
    kept = [int(index == row) for index in range(request.batch_size)]
    for token in written:
        context.admit([[token] if index == row else [] for index in range(request.batch_size)])
        tree = DraftTree.root_only(torch.full_like(scores[:, 0], token, dtype=torch.long))
        scores = judge.processed(tree, context.score(tree))[:, 0]
        context.keep(kept)
    scores = scores[row].float()
    if not pipeline.greedy:
        noise = NoiseTape(request.batch_size, scores.shape[-1], seed, scores.device)
        scores = scores + noise.peek(len(written) + 1)[row, -1]
    return scores
