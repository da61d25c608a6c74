"""Where an answer differs from plain decoding, and by how little the target preferred the other token.

In half precision passes of different shapes round differently, so a method that is lossless may write another text
than plain decoding, but only from a place on where the target is undecided: a near-tie. In float32 there is no excuse.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .errors import MMSpecError
from .inputs import Request
from .sampling import LogitsPipeline, NoiseTape, Sampling
from .target import Target
from .tree import DraftTree
from .verifiers import Greedy

TIE = 2.0
"""Steps of the number format, at the size of the larger of two logits, within which they count as a near-tie."""


class Divergence(MMSpecError):
    """A method that claims to be lossless wrote another text than plain decoding."""

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
    """The first difference of every row that has one.

    Args:
        target: who wrote both.
        request: what was asked.
        plain: token ids of plain decoding, per row.
        found: token ids of the method.
        sampling, seed: how both were drawn; greedily by default.
        tie: a difference is a near-tie if the scores of the two tokens lie within so many steps of the target's number
            format, at the size of the larger one. Passes of different shapes round differently, by about as much.

    Returns:
        Per row: `row`, `position` among the new tokens, `token`, `plain` (None where that answer had ended), `margin`
        (by how much the target's score of the plain token is above that of the other: in logits, over the temperature
        and with the same noise if it was sampled), `top2` (by how much its best score is above the second best) and
        `tie`. The scores are those of decoding token by token.
    """
    sampling = sampling or Sampling()
    differences = []
    for row, (ours, theirs) in enumerate(zip(plain, found, strict=True)):
        if ours == theirs:
            continue
        common = zip(ours, theirs, strict=False)
        position = next((i for i, (a, b) in enumerate(common) if a != b), min(len(ours), len(theirs)))
        a, b = (ids[position] if position < len(ids) else None for ids in (ours, theirs))
        difference = {"row": row, "position": position, "token": b, "plain": a}
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
    """The first difference of two greedy answers to one prompt, None if there is none.

    Returns:
        Of the difference what `divergences` says, whether rounding excuses it (`excused`), and both in words (`text`).
    """
    for one in divergences(target, request, plain, found, sampling):
        return one | {"excused": excused(target, one), "text": described(target, one)}
    return None


def complaint_of(target: Target, record: dict[str, Any]) -> str | None:
    """What is wrong with the answer of a method that is lossless, or None.

    In float32 every difference is wrong, and so is a repeat that differs; in half precision near-ties are not.

    Args:
        target: who answered.
        record: of the bundle, with `ids`, `repeat`, `repeatable` and `divergence`.
    """
    if target.arithmetic == torch.float32 and not record["repeatable"]:
        return f"answered {record['ids'][0]!r} differently in repeat {record['repeat'] + 1} with the same seed"
    for difference in record["divergence"] or []:
        if not excused(target, difference):
            prompt = record["ids"][difference["row"]]
            return f"is not lossless: on prompt {prompt!r} {described(target, difference)}"
    return None


def excused(target: Target, difference: dict[str, Any]) -> bool:
    """Whether a difference is no more than rounding: a near-tie in half precision, of the weights or of
    autocast."""
    return difference["tie"] and torch.finfo(target.arithmetic).bits < 32


def described(target: Target, difference: dict[str, Any]) -> str:
    """A difference in words."""
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
    """`[vocab]` the target's scores of what follows some new tokens of a row, as the loop compares them.

    The row is decoded token by token, as plain decoding did it; the others stand still. Truncation (top-k, top-p,
    min-p) is left out: both tokens passed.
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
    judge = Greedy().fork(context, pipeline, seed)
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
