"""The comparison of a model's passes over trees with its own `generate`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers.utils import logging

from ..context import Context
from ..errors import MMSpecError
from ..inputs import Request, prepare
from ..models.model import Model
from ..models.states import LAST
from ..outcome import Verdict
from ..tree import DraftTree
from .prompts import NAMES, TEXTS, joined, ordinary_tokens, text_lengths, turning_points, with_noise
from .report import CheckReport, Finding

SHAPES = ((-1, 0, 0, 1, 1, 2, 3), (-1, 0, 1, 0, 3))
"""Parents of the nodes of each round's tree."""
ACCEPTED = (5, 6, 0)
"""The node at which each row's path ends in the first round."""


@torch.no_grad()
def check_target(
    target: Model, inputs: Mapping[str, Any] | None = None, seed: int = 0, thorough: bool = True
) -> CheckReport:
    """Compare a target with its model's own `generate`.

    Args:
        target: the target to check.
        inputs: inputs of one row, from the model's processor, to check pictures, videos or sounds with; by default
            some of noise are made and given to the target's processor, if it has one.
        seed: number that tokens and noise are drawn from.
        thorough: also exceed a sliding window, and lengths at which positions are read in another way, which takes
            long rows.

    Raises:
        MMSpecError: for inputs of several rows, which cannot be told apart here.
    """
    generator, report = torch.Generator().manual_seed(seed), CheckReport([])
    tokens = ordinary_tokens(target)

    def text(count: int) -> list[int]:
        return tokens[torch.randint(len(tokens), (count,), generator=generator, device="cpu")].tolist()

    with _as_it_was(target), target.family.passing():
        lengths = text_lengths(target, thorough, report)
        rows = [prepare(target, inputs={"input_ids": [text(n)], **target.family.noise(generator)}) for n in lengths]
        report.findings += _compare(target, "text", rows, joined(target, rows), text)
        for length in turning_points(target, thorough, report):
            row = prepare(target, inputs={"input_ids": [text(length + TEXTS[0])]})
            report.findings += _compare(target, f"text behind {length} positions", [row], row, text)
        if inputs is not None:
            request = prepare(target, inputs=inputs)
            if request.batch_size > 1:
                raise MMSpecError(f"check takes inputs of one row, and these have {request.batch_size}; give one")
            kinds = [kind for kind, encoder in target.family.encoders.items() if encoder.samples in request.inputs]
            what = " and ".join(NAMES[kind] for kind in kinds) or "the inputs"
            report.findings += _compare(target, what, [request], request, text)
            report.kinds.update(kinds)
            return report
        for kind in target.family.kinds:
            if (found := with_noise(target, kind, generator, report)) is not None:
                report.findings += _compare(target, NAMES[kind], *found, text)
                report.kinds.add(kind)
    return report


def _compare(target: Model, what: str, rows: Sequence[Request], batch: Request, text) -> Iterator[Finding]:
    """Compare each row of the prompt, and then of a tree of each shape, with the model's own steps."""
    dtype = target.arithmetic
    context = Context(target, batch, Model.encode(target, batch), feature_layers=[LAST])
    written: list[list[int]] = [[] for _ in rows]  # after the prompt, the root last
    theirs = torch.stack([_steps(target, row, [])[0] for row in rows])
    yield Finding(f"{what}: the prompts as a batch", *_difference(context.logits, theirs), dtype)
    last = torch.stack([context.features[LAST][i, n - 1] for i, n in enumerate(batch.lengths)])
    own = target.family.head(last)
    yield Finding(f"{what}: logits from the last state", *_difference(own, context.logits), dtype)
    for row in range(context.batch_size):
        written[row] = text(1)
    context.admit(written)
    for number, shape in enumerate(SHAPES):
        drawn = torch.tensor([[root, *text(len(shape) - 1)] for *_, root in written], device=target.device)
        parents = torch.tensor(shape, device=target.device).expand(len(rows), -1)
        tree = DraftTree(drawn, parents, max_depth=len(shape) - 1)
        logits = context.score(tree).logits
        name = f"{what}: a tree of {len(shape)} nodes in round {number + 1}"
        yield Finding(name, *_tree_difference(target, rows, tree, logits, written), dtype)
        _accept(context, tree, written, text)


def _tree_difference(
    target: Model, rows: Sequence[Request], tree: DraftTree, logits: Tensor, written: list[list[int]]
) -> tuple[float, float]:
    """Return the largest error at any node, and the spread."""
    ours, theirs = [], []
    parents = tree.parents[0].tolist()
    for row, request in enumerate(rows):
        for leaf in sorted(set(range(len(parents))) - set(parents)):
            path, length = tree.path_to(torch.full((len(rows),), leaf, device=tree.tokens.device))
            nodes = path[row, : length[row]].tolist()
            steps = _steps(target, request, written[row][:-1] + tree.tokens[row, nodes].tolist())
            ours.append(logits[row, nodes])
            theirs.append(steps[-len(nodes) :])
    return _difference(torch.cat(ours), torch.cat(theirs))


def _accept(context: Context, tree: DraftTree, written: list[list[int]], text) -> None:
    """Commit another path in each row, with any bonus token."""
    ends = [ACCEPTED[row % len(ACCEPTED)] % tree.num_nodes for row in range(tree.batch_size)]
    path, length = tree.path_to(torch.tensor(ends, device=tree.tokens.device))
    bonus = torch.tensor([text(1)[0] for _ in ends], device=tree.tokens.device)
    for row, emitted in enumerate(context.commit(tree, Verdict(path, length, bonus))):
        written[row] += emitted


def _difference(ours: Tensor, theirs: Tensor) -> tuple[float, float]:
    """Return the largest error of any logit, and the spread of the logits."""
    ours, theirs = ours.float().to(theirs.device), theirs.float()
    seen = theirs.isfinite() & (theirs > torch.finfo(torch.float16).min)  # what a model masks by itself is no logit
    worst = (ours - theirs)[seen].abs().max()
    return float(worst if worst.isfinite() else torch.inf), float(theirs[seen].std())


def _steps(target: Model, request: Request, tokens: list[int]) -> Tensor:
    """Return the `[tokens + 1, vocab]` logits that `generate` has before each of the tokens that it must write, and
    after."""
    start = request.max_length

    def force(ids: Tensor, scores: Tensor) -> Tensor:
        number = ids.shape[1] - start
        if number < len(tokens):
            scores = torch.full_like(scores, -torch.inf)
            scores[:, tokens[number]] = 0
        return scores

    out = target.model.generate(
        **target.family.as_arguments(request.inputs),
        max_new_tokens=len(tokens) + 1,
        do_sample=False,
        num_beams=1,
        output_logits=True,
        return_dict_in_generate=True,
        logits_processor=[force],
        pad_token_id=0,
    )
    return torch.stack([step[0] for step in out.logits]).to(target.device)


@contextmanager
def _as_it_was(target: Model) -> Iterator[None]:
    """Restore at the end what a check changes: the offset that Qwen-VL's `generate` keeps on the model. Meanwhile
    `generate` warns of nothing: its settings are not looked at here."""
    inner = target.model.base_model
    kept, said = getattr(inner, "rope_deltas", None), logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(said)
        if hasattr(inner, "rope_deltas"):
            inner.rope_deltas = kept
