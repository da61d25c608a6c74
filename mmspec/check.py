"""The self-check of a target: does it score trees as its own `generate` would score their paths, step by step?

    python -m mmspec.check MODEL

Nothing is known here about any family. The model's `generate` is made to write given tokens, one pass each, and tells
its logits before every one; the target reads the same prompts as one batch and the same tokens as branches of trees,
over two rounds, in which every row accepts another path.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .errors import MMSpecError, first_line
from .families.frequencies import STATIC
from .inputs import Request, prepare
from .outcome import Verdict
from .states import LAST
from .tree import DraftTree

if TYPE_CHECKING:
    from .target import Context, Target

TOLERANCE = {torch.float32: 3e-3, torch.float16: 0.05, torch.bfloat16: 0.25}
"""The largest error of a logit that rounding may cause, in standard deviations of the logits [OUR]. A wrong mask or a
wrong position costs some tenths to several."""
TEXTS = (5, 12, 21)
"""Text tokens of the rows that are checked without pictures."""
PICTURES = ((1, 0, 2), (1, 2), (1, 0), (1,))
"""Pictures per row; the first of these that the processor takes is checked."""
LONGEST = 1024
"""A sliding window, or a length at which positions are read in another way, is exceeded by a longer row, if it has no
more tokens than this."""
SHAPES = ((-1, 0, 0, 1, 1, 2, 3), (-1, 0, 1, 0, 3))
"""Parents of the nodes of each round's tree."""
ACCEPTED = (5, 6, 0)
"""The node at which each row's path ends in the first round."""
ROOM = 16
"""Tokens behind a prompt that the rounds reach at most."""


@dataclass
class Finding:
    """One comparison.

    Args:
        what: is compared.
        error: the largest difference of any logit.
        spread: standard deviation of the logits.
        dtype: that the target computes in.
    """

    what: str
    error: float
    spread: float
    dtype: torch.dtype

    @property
    def relative(self) -> float:
        """The error in standard deviations of the logits."""
        return self.error / self.spread if self.spread else float(self.error > 0)

    @property
    def ok(self) -> bool:
        return self.relative <= TOLERANCE.get(self.dtype, TOLERANCE[torch.bfloat16])


@dataclass
class Report:
    """What a self-check found.

    Args:
        findings: all comparisons.
        notes: what was not checked, and why.
    """

    findings: list[Finding]
    notes: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        return all(finding.ok for finding in self.findings)

    @property
    def saw_pictures(self) -> bool:
        return any(finding.what.startswith("pictures") for finding in self.findings)

    def raise_if_wrong(self, target: Target) -> None:
        """
        Raises:
            MMSpecError: if anything differs by more than rounding.
        """
        wrong = [f"{f.what} by {f.relative:.2g} standard deviations" for f in self.findings if not f.ok]
        if wrong:
            raise MMSpecError(
                f"{type(target.model).__name__} does not pass the self-check: its logits differ from those of its own "
                f"generate, {'; '.join(wrong)}. It would write wrong tokens, so it is refused. It may need a family of "
                "its own in mmspec/families, which is one small file; `python -m mmspec.check MODEL` shows all"
            )

    def __str__(self) -> str:
        width = max(len(finding.what) for finding in self.findings)
        lines = [f"{f.what:<{width}}  {f.relative:9.2e}  {'ok' if f.ok else 'WRONG'}" for f in self.findings]
        return "\n".join([f"{'error in standard deviations':>{width + 11}}", *lines, *self.notes])


@torch.no_grad()
def check_target(
    target: Target, inputs: Mapping[str, Any] | None = None, seed: int = 0, thorough: bool = True
) -> Report:
    """Compare a target with its model's own `generate`.

    Args:
        target: to check.
        inputs: of one row, from the model's processor, to check pictures or videos with; by default pictures of noise
            are made and given to the target's processor, if it has one.
        seed: of tokens and pictures.
        thorough: also exceed a sliding window, and lengths at which positions are read in another way, which takes
            long rows.

    Raises:
        MMSpecError: for inputs of several rows, which cannot be told apart here.
    """
    generator, report = torch.Generator().manual_seed(seed), Report([])
    tokens = _ordinary_tokens(target)

    def text(count: int) -> list[int]:
        return tokens[torch.randint(len(tokens), (count,), generator=generator, device="cpu")].tolist()

    with _as_it_was(target), target.family.passing():
        rows = [prepare(target, inputs={"input_ids": [text(n)]}) for n in _lengths(target, thorough, report)]
        report.findings += _compare(target, "text", rows, _joined(target, rows), text)
        for length in _turning_points(target, thorough, report):
            row = prepare(target, inputs={"input_ids": [text(length + TEXTS[0])]})
            report.findings += _compare(target, f"text behind {length} positions", [row], row, text)
        if inputs is not None:
            request = prepare(target, inputs=inputs)
            if request.batch_size > 1:
                raise MMSpecError(f"check takes inputs of one row, and these have {request.batch_size}; give one")
            report.findings += _compare(target, "pictures", [request], request, text)
        elif target.family.image_token_id is not None:
            pictured = _pictured(target, generator, report)
            if pictured is not None:
                report.findings += _compare(target, "pictures", *pictured, text)
    target.pictures_checked |= report.ok and report.saw_pictures
    return report


def _compare(target: Target, what: str, rows: Sequence[Request], batch: Request, text) -> Iterator[Finding]:
    """The prompt, then a tree of each shape, each row against the model's own steps."""
    dtype = target.arithmetic
    context = target.prefill(batch, target.encode(batch), feature_layers=[LAST])
    written = [[] for _ in rows]  # after the prompt, the root last
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
    target: Target, rows: Sequence[Request], tree: DraftTree, logits: Tensor, written: list[list[int]]
) -> tuple[float, float]:
    """The largest error at any node, and the spread."""
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
    ours, theirs = ours.float().to(theirs.device), theirs.float()
    seen = theirs.isfinite() & (theirs > torch.finfo(torch.float16).min)  # what a model masks by itself is no logit
    worst = (ours - theirs)[seen].abs().max()
    return float(worst if worst.isfinite() else torch.inf), float(theirs[seen].std())


def _steps(target: Target, request: Request, tokens: list[int]) -> Tensor:
    """`[tokens + 1, vocab]` logits that `generate` has before each of the tokens that it must write, and after."""
    start = request.max_length

    def force(ids: Tensor, scores: Tensor) -> Tensor:
        number = ids.shape[1] - start
        if number < len(tokens):
            scores = torch.full_like(scores, -torch.inf)
            scores[:, tokens[number]] = 0
        return scores

    out = target.model.generate(
        **request.inputs,
        max_new_tokens=len(tokens) + 1,
        do_sample=False,
        num_beams=1,
        output_logits=True,
        return_dict_in_generate=True,
        logits_processor=[force],
        pad_token_id=0,
    )
    return torch.stack([step[0] for step in out.logits]).to(target.device)


def _ordinary_tokens(target: Target) -> Tensor:
    """Tokens that neither stand for anything else nor end a text."""
    special = {*target.family.placeholders, *target.eos_token_ids}
    for name, value in target.model.config.to_dict().items():
        if name.endswith(("_token_id", "_token_index")) and isinstance(value, int):
            special.add(value)
    tokenizer = target.tokenizer
    vocab = target.vocab_size if tokenizer is None else min(target.vocab_size, len(tokenizer))
    special |= set(getattr(tokenizer, "all_special_ids", ()))
    return torch.tensor([token for token in range(vocab) if token not in special], device="cpu")


def _lengths(target: Target, thorough: bool, report: Report) -> tuple[int, ...]:
    """Text tokens of the rows: with the last one a sliding window is exceeded, but no row gets to a point at which the
    rotary frequencies change."""
    windows = [window for window in target.windows.values() if window is not None]
    switch = min((switch.length for switch in target.family.switches), default=LONGEST + 2 * ROOM)
    most, lengths = min(switch - ROOM, LONGEST + TEXTS[0] if thorough else TEXTS[-1]), TEXTS
    if windows and min(windows) >= TEXTS[-1]:
        if min(windows) + TEXTS[0] <= most:
            lengths = (*TEXTS[:-1], min(windows) + TEXTS[0])
        else:
            report.notes.append(f"not checked: text that is longer than the sliding window of {min(windows)} tokens")
    return tuple(length for length in lengths if length <= most) or TEXTS[:1]


def _turning_points(target: Target, thorough: bool, report: Report) -> list[int]:
    """Lengths behind which a text of its own is to be checked: where the rotary frequencies change, or queries are
    scaled by their position."""
    points = {switch.length: switch.settles for switch in target.family.switches}
    ropes = getattr(target.family.text_config, "rope_parameters", None) or {}
    for rope in [ropes, *(value for value in ropes.values() if isinstance(value, dict))]:
        length = rope.get("original_max_position_embeddings")
        if length and (rope.get("rope_type") not in STATIC or "llama_4_scaling_beta" in rope):
            points.setdefault(int(length), True)
    checked = []
    for length, settles in sorted(points.items()):
        if settles and thorough and length <= LONGEST:
            checked.append(length)
        else:
            why = "" if settles else ", which is refused"
            report.notes.append(f"not checked: text behind {length} positions{why}")
    return checked


def _joined(target: Target, rows: Sequence[Request]) -> Request:
    """Rows of text as one batch."""
    width = max(row.max_length for row in rows)
    ids = torch.zeros(len(rows), width, dtype=torch.long, device=target.device)
    mask = torch.zeros_like(ids)
    for number, row in enumerate(rows):
        ids[number, : row.max_length] = row.inputs["input_ids"][0]
        mask[number, : row.max_length] = 1
    return prepare(target, inputs={"input_ids": ids, "attention_mask": mask})


def _pictured(target: Target, generator: torch.Generator, report: Report) -> tuple[list[Request], Request] | None:
    """Rows with pictures of noise, alone and as a batch, as the processor writes them; None if it cannot."""
    from PIL import Image

    if target.processor is None:
        report.notes.append("not checked: pictures, for there is no processor; give check the inputs= of one")
        return None

    def noise(height: int, width: int) -> Image.Image:
        pixels = torch.randint(256, (height, width, 3), generator=generator, dtype=torch.uint8, device="cpu")
        return Image.fromarray(pixels.numpy())

    for counts in PICTURES:
        prompts = [f"What is in picture {number}?" for number in range(len(counts))]
        images = [[noise(96 + 32 * index, 128) for index in range(count)] for count in counts]
        try:
            rows = [prepare(target, [prompt], [shown]) for prompt, shown in zip(prompts, images, strict=True)]
            return rows, prepare(target, prompts, images)
        except Exception as error:  # processors raise errors of many kinds
            report.notes.append(f"not checked: rows with {', '.join(map(str, counts))} pictures ({first_line(error)})")
    return None


@contextmanager
def _as_it_was(target: Target) -> Iterator[None]:
    """Show pictures that were not checked yet, and leave what a check changes: the offset that Qwen-VL's `generate`
    keeps on the model."""
    from .target import CHECKING

    inner = target.model.base_model
    kept = getattr(inner, "rope_deltas", None)
    checking = CHECKING.set(True)
    try:
        yield
    finally:
        CHECKING.reset(checking)
        if hasattr(inner, "rope_deltas"):
            inner.rope_deltas = kept


if __name__ == "__main__":
    from .cli import main

    sys.exit(main(["check", *sys.argv[1:]]))
