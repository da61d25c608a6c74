"""NodeByNode: trees scored twice, as ever and one node at a time by the passes of plain decoding, for debugging."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .context import Context
from .errors import MMSpecError
from .inputs import Request
from .models.model import Model
from .outcome import Scores, Verdict
from .tree import DraftTree


@dataclass(frozen=True)
class Deviation:
    """The distance of a tree pass from plain decoding at one node.

    Args:
        round: number of the round, from 1.
        node: number of the node in its tree.
        depth: its distance from the root.
        position: index, among the new tokens, of the token that follows the node.
        difference: root mean square, over the vocabulary, of the difference of the logits.
    """

    round: int
    node: int
    depth: int
    position: int
    difference: float


class NodeByNode(Context):
    """One request on a target whose trees are scored twice.

    The first time as ever: one pass with a mask, positions, and the cache in which earlier rounds have left what they
    accepted. The second time by a plain context beside it, which reads every path token by token, keeps each token
    before it reads the next, and forgets them at the end of the path. The plain logits decide, so the text is plain
    decoding's own, bit for bit, in any precision, and the distances of the tree passes are noted. It takes as long as
    it sounds.

    Args:
        target, request, arguments: see `Context`.

    Attributes:
        deviations: one for every node so far.
        written: logits `[vocab]` of the plain context before every new token but the first.

    Raises:
        MMSpecError: for a batch, whose rows plain decoding reads beside others than a draft does.
    """

    def __init__(self, target: Model, request: Request, *arguments: Any):
        if request.batch_size != 1:
            raise MMSpecError(
                f"node_by_node=True decodes one prompt at a time, and this batch has {request.batch_size}: ask for "
                "each row alone"
            )
        super().__init__(target, request, *arguments)
        self._plain = Context(target, request, *arguments[:2])  # it keeps no features
        self._round = 0
        self.deviations: list[Deviation] = []
        self.written: list[Tensor] = []

    @torch.inference_mode()
    def score(self, tree: DraftTree) -> Scores:
        """Return the plain context's logits at every node, with the features of the tree pass."""
        scores = super().score(tree)
        self._logits = self._plain_logits(tree)
        difference = (scores.logits.float() - self._logits.float()).square().mean(-1).sqrt()[0].tolist()
        self._round += 1
        newest = len(self.history[0]) - self.request.lengths[0]
        depths = tree.depth[0].tolist()
        self.deviations += [
            Deviation(self._round, node, depth, newest + depth, distance)
            for node, (depth, distance) in enumerate(zip(depths, difference, strict=True))
        ]
        scores.logits = self._logits.clone()  # a rule that writes into them must not change what is kept here
        return scores

    def _plain_logits(self, tree: DraftTree) -> Tensor:
        """Return `[1, nodes, vocab]` logits, read along one path after the other."""
        tokens, parents = tree.tokens[0].tolist(), tree.parents[0].tolist()
        found: dict[int, Tensor] = {}
        for token in self._behind():
            self._read(token)
        for leaf in sorted(set(range(len(parents))) - set(parents)):
            path = [leaf]
            while parents[path[0]] >= 0:
                path.insert(0, parents[path[0]])
            for node in path:
                found[node] = self._read(tokens[node])
            self._plain.take_back([len(path)])
        return torch.cat([found[node] for node in range(len(tokens))], dim=1)

    def _behind(self) -> list[int]:
        """Return the tokens before the root that the plain context has not read yet: a gate has emitted them."""
        return self.history[0][self._plain.entries[0] : -1]

    def _read(self, token: int) -> Tensor:
        """Read and keep a token as plain decoding does; return the `[1, 1, vocab]` logits after it."""
        root = DraftTree.root_only(torch.tensor([token], device=self.logits.device))
        logits = self._plain.read(root.tokens, root.ancestors, root.depth).logits
        self._plain.keep([1])
        return logits

    @torch.inference_mode()
    def commit(self, tree: DraftTree, verdict: Verdict) -> list[list[int]]:
        """Keep the accepted path here as ever, and let the plain context read it; see `Context.commit`."""
        emitted = super().commit(tree, verdict)
        if not verdict.settled and verdict.lengths[0]:
            path = verdict.path[0, : verdict.lengths[0]]
            for node in path.tolist():
                self._read(int(tree.tokens[0, node]))
                self.written.append(self._logits[0, node])
        return emitted
