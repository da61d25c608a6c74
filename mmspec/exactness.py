"""Differences between an answer and plain decoding, with the margin by which the target preferred the plain token.

In half precision, passes of different shapes round differently. So a lossless method may write another text than plain
decoding, but only from a place on where the target is undecided: a near-tie. In float32 there is no such excuse.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .decoding.sampling import LogitsPipeline, NoiseTape, Sampling
from .errors import MMSpecError
from .inputs import Request
from .target import Target
from .tree import DraftTree
from .verifiers import Greedy

TIE = 2.0
"""Largest distance of two logits that counts as a near-tie, in steps of the number format at the size of the larger
one."""


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
            margin = float(scores[a] - scores[b])
            step = torch.finfo(target.arithmetic).eps * float(scores[[a, b]].abs().max())
            best, second = scores.topk(2).values.tolist()
            difference |= {"margin": margin, "top2": best - second, "tie": abs(margin) <= tie * step}
        differences.append(difference)
    return differences


def explained(
    target: Target,
    request: Request,
    plain: list[list[int]],
    found: list[list[int]],
    sampling: Sampling | None = None,
) -> dict[str, Any] | None:
    """Return the first difference of two greedy answers to one prompt; None if there is none.

    Returns:
        The fields of `divergences`, whether rounding explains the difference (`excused`), and both in words (`text`).
    """
    for one in divergences(target, request, plain, found, sampling):
        return one | {"excused": excused(target, one), "text": described(target, one)}
    return None


def complaint_of(target: Target, record: dict[str, Any]) -> str | None:
    """Return what is wrong with the answer of a lossless method, or None.

    In float32 every difference is wrong, and so is a repetition that differs; in half precision near-ties are not.

    Args:
        target: model that answered.
        record: record of the result bundle with `ids`, `repeat`, `repeatable` and `divergence`.
    """
    if target.arithmetic == torch.float32 and not record["repeatable"]:
        return f"answered {record['ids'][0]!r} differently in repeat {record['repeat'] + 1} with the same seed"
    for difference in record["divergence"] or []:
        if not excused(target, difference):
            prompt = record["ids"][difference["row"]]
            return f"is not lossless: on prompt {prompt!r} {described(target, difference)}"
    return None


def excused(target: Target, difference: dict[str, Any]) -> bool:
    """Return True if a difference is only rounding: a near-tie in half precision, of the weights or of autocast."""
    return difference["tie"] and torch.finfo(target.arithmetic).bits < 32


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
