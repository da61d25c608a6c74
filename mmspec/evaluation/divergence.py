"""Where an answer differs from plain decoding, and by how little the target preferred the other token."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..errors import MMSpecError
from ..inputs import Request, append
from ..sampling import LogitsPipeline, NoiseTape
from ..target import Target
from ..verifiers import Greedy
from .engines import Sampling


class Divergence(MMSpecError):
    """A method that claims to be lossless wrote another text than plain decoding."""

    exit_code = 1


def divergences(
    target: Target,
    request: Request,
    plain: list[list[int]],
    found: list[list[int]],
    sampling: Sampling,
    seed: int,
    tie: float,
) -> list[dict[str, Any]]:
    """The first difference of every row that has one.

    Args:
        target: who wrote both.
        request: what was asked.
        plain: token ids of plain decoding, per row.
        found: token ids of the method.
        sampling, seed: how both were drawn.
        tie: a difference is a near-tie if the scores of the two tokens lie within so many steps of the target's number
            format, at the size of the larger one. Passes of different shapes round differently, by about as much.

    Returns:
        Per row: `row`, `position` among the new tokens, `token`, `plain` (None where that answer had ended), `margin`
        (by how much the target's score of the plain token is above that of the other: in logits, over the temperature
        and with the same noise if it was sampled) and `tie`.
    """
    differences = []
    for row, (ours, theirs) in enumerate(zip(plain, found, strict=True)):
        if ours == theirs:
            continue
        common = zip(ours, theirs, strict=False)
        position = next((i for i, (a, b) in enumerate(common) if a != b), min(len(ours), len(theirs)))
        a, b = (ids[position] if position < len(ids) else None for ids in (ours, theirs))
        difference = {"row": row, "position": position, "token": b, "plain": a, "margin": None, "tie": False}
        if a is not None and b is not None:
            scores = next_scores(target, request, row, ours[:position], sampling, seed)
            margin = float(scores[a] - scores[b])
            step = torch.finfo(target.dtype).eps * float(scores[[a, b]].abs().max())
            difference |= {"margin": margin, "tie": abs(margin) <= tie * step}
        differences.append(difference)
    return differences


def complaint_of(target: Target, record: dict[str, Any]) -> str | None:
    """What is wrong with the answer of a method that is lossless, or None.

    In float32 every difference is wrong, and so is a repeat that differs; in half precision near-ties are not.

    Args:
        target: who answered.
        record: of the bundle, with `ids`, `repeat`, `repeatable` and `divergence`.
    """
    dtype = str(target.dtype).removeprefix("torch.")
    if dtype == "float32" and not record["repeatable"]:
        return f"answered {record['ids'][0]!r} differently in repeat {record['repeat'] + 1} with the same seed"
    for difference in record["divergence"] or []:
        if dtype != "float32" and difference["tie"]:
            continue
        ours, theirs = (_shown(target, difference[name]) for name in ("token", "plain"))
        margin = difference["margin"]
        margin = "one of the two had ended" if margin is None else f"the target prefers the latter by {margin:.3g}"
        return (
            f"is not lossless: on prompt {record['ids'][difference['row']]!r} at new token {difference['position']} it "
            f"wrote {ours} where plain decoding wrote {theirs} ({margin}, in {dtype})"
        )
    return None


def _shown(target: Target, token: int | None) -> str:
    if token is None:
        return "nothing"
    return f"{token} {target.tokenizer.decode([token])!r}" if target.tokenizer is not None else str(token)


def next_scores(
    target: Target, request: Request, row: int, written: list[int], sampling: Sampling, seed: int
) -> Tensor:
    """`[vocab]` the target's scores of what follows some new tokens of a row, as the loop compares them.

    One pass over the prompt and all that was written. Truncation (top-k, top-p, min-p) is left out: both tokens passed.
    """
    answers = [written if index == row else [] for index in range(request.batch_size)]
    request = append(request, answers)
    context = target.prefill(request, target.encode(request))
    pipeline = LogitsPipeline(
        sampling.temperature,
        repetition_penalty=sampling.repetition_penalty,
        generation_config=target.model.generation_config,
        eos_token_ids=target.eos_token_ids,
    )
    scores = Greedy().fork(context, pipeline, seed).processed_first(context)[row].float()
    if not pipeline.greedy:
        noise = NoiseTape(request.batch_size, scores.shape[-1], seed, scores.device)
        scores = scores + noise.peek(len(written) + 1)[row, -1]
    return scores
