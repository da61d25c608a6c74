"""Tests for authors of drafters, trees, verifiers and compressors: is the text still that of the target?

from mmspec.testing import check_lossless

def test_my_drafter():
    assert check_lossless(MyDrafter(mmspec.load_target("tiny"))).accepted > 0
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from . import zoo
from .compressors import VisualCompressor
from .context import Context
from .decoding.sampling import LogitsPipeline, Sampling
from .decoding.wellformed import refuse_malformed
from .drafters import Drafter
from .errors import MMSpecError
from .exactness import complaint_of, divergences
from .generation import generate
from .inputs import Request, prepare
from .target import Target
from .tree import DraftTree, ancestor_mask
from .trees import TreeBuilder
from .verifiers import Verifier

SEED = 3

QUESTIONS = (
    ("Describe the picture.", ("scenes",)),
    ("Describe the first picture, then read out the second one, line by line.", ("scenes", "documents")),
    ("Say what there is to say without a picture.", ()),
)
"""Questions that are asked, each with the kinds of its pictures."""


@dataclass(frozen=True)
class Checked:
    """The numbers of a check that passed. With `accepted == 0` it proves little: no drafted token was in the text.

    Args:
        tokens: number of new tokens that were compared with plain decoding.
        drafted: number of nodes that the drafter proposed.
        accepted: number of drafted nodes that are in the text.
    """

    tokens: int
    drafted: int
    accepted: int


def check_lossless(
    drafter: Drafter,
    tree: TreeBuilder | None = None,
    verifier: Verifier | None = None,
    compressor: VisualCompressor | None = None,
    *,
    max_new_tokens: int = 24,
    temperatures: Sequence[float] = (0.0, 0.7),
) -> Checked:
    """Compare the text of a combination with plain decoding, token by token, and check every drafted tree.

    Three questions are asked: about one picture, about two and about none (all three without pictures if the target
    takes none). They are asked alone and as the rows of one ragged batch, each at every temperature. Sampled text can
    be compared because the default verifier ties its draws to a seed and a position. Your own rule that samples is
    compared only if it asks for point proposals, and it has to tie its draws as
    `mmspec.decoding.sampling.NoiseTape` does; `temperatures=[0.0]` leaves sampling out.

    Args:
        drafter: drafter made for the target that answers. The target must be in float32 and have a processor.
        tree: tree builder; by default the drafter's own.
        verifier: verifier; by default the lossless one of each temperature.
        compressor: visual compressor of the drafter; by default its own.
        max_new_tokens: number of new tokens in each text.
        temperatures: temperatures to check; 0 is greedy decoding.

    Raises:
        AssertionError: at the first token that differs, naming the prompt, the position and both tokens.
        MMSpecError: for a tree that is not well formed, see `watched`, and where the check would prove nothing: half
            precision, a verifier that does not claim to be lossless or is exact in distribution only, a drafter that
            drafts nothing.
    """
    if not isinstance(drafter, Drafter):
        raise MMSpecError(f"drafter={drafter!r} is no Drafter: pass an instance, such as MyDrafter(target)")
    target = drafter.target
    if torch.finfo(target.dtype).bits < 32:
        raise MMSpecError(
            f"the target is in {target.dtype}, in which near-ties flip whatever a drafter does: load it in float32"
        )
    temperatures = _comparable(drafter.target, verifier, temperatures)
    if compressor is not None:
        drafter = drafter.with_compressor(compressor)
    names = [type(part).__name__ for part in (drafter, tree, verifier, compressor) if part is not None]
    drafter = watched(drafter)
    tokens = drafted = accepted = 0
    for request in _requests(target):
        for temperature in temperatures:
            options: dict[str, Any] = {"max_new_tokens": max_new_tokens, "temperature": temperature, "seed": SEED}
            plain = generate(target, None, inputs=request, **options).token_ids
            out = generate(target, drafter, inputs=request, tree=tree, verifier=verifier, **options)
            if out.token_ids != plain:
                sampling = Sampling(temperature)
                assert request.conversations is not None  # see `_requests`
                differences = divergences(target, request, plain, out.token_ids, sampling, SEED, tie=0.0)
                record = {
                    "ids": [row[-1].texts[-1] for row in request.conversations],
                    "repeat": 0,
                    "repeatable": True,
                    "divergence": differences,
                }
                rows = "alone" if request.batch_size == 1 else f"in a batch of {request.batch_size}"
                complaint = complaint_of(target, record)
                raise AssertionError(f"{' with '.join(names)} {complaint}, {rows}, temperature {temperature}")
            tokens += sum(map(len, out.token_ids))
            drafted += out.stats.num_draft_tokens
            accepted += out.stats.num_accepted_draft_tokens
    if not drafted:
        raise MMSpecError(f"{' with '.join(names)} drafted nothing for any prompt, so there was nothing to check")
    return Checked(tokens, drafted, accepted)


def watched(drafter: Drafter) -> Drafter:
    """Return the same drafter with a check of every tree that it proposes, before the target sees the tree.

    Drafting then raises an `MMSpecError` for a tree that breaks an invariant of `DraftTree`, does not have the newest
    token as root, holds a token outside the target's vocabulary, has invalid probabilities, or states a shape that its
    parents do not have. `generate` itself checks all but the last of these, for trees that `Growth` did not make.
    """
    drafter = drafter.fork()
    own = type(drafter)
    drafter.__class__ = type(own.__name__, (_Watched, own), {})  # errors name it as before
    return drafter


class _Watched(Drafter):
    """Checks the trees of the drafter's own class, which comes next in the order of base classes."""

    def start(self, context: Context) -> None:
        self._watched = context
        super().start(context)

    def draft(self, root: Tensor) -> DraftTree:
        tree = super().draft(root)
        _inspect(tree, root, self._watched.active, self.target.vocab_size, type(self).__name__)
        return tree


def _inspect(tree: DraftTree, root: Tensor, active: list[bool], vocabulary: int, own: str) -> None:
    """Raise an `MMSpecError` for the first fault of a tree below `root`, `[batch]`."""
    refuse_malformed(tree, root, active, vocabulary, own)
    tree.account()
    nodes = torch.ones_like(tree.tokens, dtype=torch.bool) if tree.valid is None else tree.valid
    ancestors = ancestor_mask(tree.parents, tree.max_depth)
    shapes = {"ancestors": (tree.ancestors != ancestors).any(-1), "depth": tree.depth != ancestors.sum(-1) - 1}
    if tree.log_probs is not None:
        shapes["log_probs"] = tree.log_probs.isnan()
    for name, wrong in shapes.items():
        if (wrong & nodes).any():
            row, node = (wrong & nodes).nonzero()[0].tolist()
            why = "is NaN" if name == "log_probs" else "is not what the parents say"
            raise MMSpecError(f"{own} drafted an invalid tree: in row {row} its {name} {why} at node {node}")


def _comparable(target: Target, verifier: Verifier | None, temperatures: Sequence[float]) -> list[float]:
    """Return the temperatures at which a rule's text can be compared token by token."""
    if verifier is None:
        return list(temperatures)
    name = type(verifier).__name__
    if not verifier.lossless:
        raise MMSpecError(f"{name} does not claim to be lossless, so it may change the text: there is nothing to check")
    if verifier.proposal != "point":
        raise MMSpecError(
            f"{name} draws its proposals: its text follows the target's distribution but is another text, so comparing "
            "tokens proves nothing; leave verifier out to check the drafter, the tree and the compressor"
        )
    fitting = []
    for temperature in temperatures:
        try:
            verifier.check(target, LogitsPipeline(temperature))
        except MMSpecError:
            continue
        fitting.append(temperature)
    if not fitting:
        raise MMSpecError(f"{name} serves none of the temperatures {list(temperatures)}: give one that it does")
    return fitting


def _requests(target: Target) -> list[Request]:
    """Return the questions as requests: each alone, then all of them as a batch."""
    prompts = [prompt for prompt, _ in QUESTIONS]
    rows = [[zoo.sample(kind, "test", number).image for number, kind in enumerate(kinds)] for _, kinds in QUESTIONS]
    if "image" not in target.family.encoders:
        rows = [[] for _ in rows]
    alone = [prepare(target, [prompt], [images]) for prompt, images in zip(prompts, rows, strict=True)]
    return [*alone, prepare(target, prompts, rows)]
