"""Trace: the tree that every round drafted, both models' probabilities, and the tokens that were kept."""

from __future__ import annotations

import io
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from ..errors import MMSpecError
from .node import Node
from .svg import draw

if TYPE_CHECKING:
    from rich.tree import Tree

    from ..outcome import Scores, Verdict
    from ..tree import DraftTree


@dataclass
class RoundTrace:
    """One round of one row.

    Args:
        number: number of the round, from 1; round 0 is the pass over the prompt, which drafts nothing.
        row: index of the row in the batch.
        nodes: the drafted tree with the root first and parents before children, then the bonus token below the last
            accepted node. There is no bonus token where the target was not asked.
        entropy: entropy of the target's distribution after the root, in nats; NaN where the target was not asked.
        unusable: number of the drafter's guesses from logits that do not form a distribution, see `DraftTree.unusable`.
        settled: True if the target was not asked, see `Verifier.skim`. The kept tokens were then emitted without its
            scores.
    """

    number: int
    row: int
    nodes: list[Node]
    entropy: float
    unusable: int = 0
    settled: bool = False

    @property
    def accepted(self) -> int:
        """Number of drafted tokens that were kept."""
        return sum(node.accepted and node.parent >= 0 and not node.bonus for node in self.nodes)

    @property
    def drafted(self) -> int:
        """Number of drafted tokens."""
        return sum(node.parent >= 0 and not node.bonus for node in self.nodes)

    @property
    def title(self) -> str:
        """Sentence that describes the round."""
        unseen = ", without asking the target" if self.settled else ""
        return f"round {self.number}: {self.accepted} of {self.drafted} drafted tokens kept{unseen}"

    @property
    def depth(self) -> int:
        """Number of levels in the drafted tree."""
        return max(node.depth for node in self.nodes if not node.bonus)

    def children(self, parent: int) -> list[int]:
        """Return the indices of a node's children, the bonus token last."""
        return [number for number, node in enumerate(self.nodes) if node.parent == parent]

    def rich(self) -> Tree:
        """Return the tree for a terminal: kept tokens in bold green, the bonus token in bold, the rest dim."""
        from rich.text import Text
        from rich.tree import Tree

        def label(node: Node) -> Text:
            style = "bold" if node.bonus or node.parent < 0 else "bold green" if node.accepted else "dim"
            text = Text(repr(node.text), style=style)
            figures = [f"{who} {p:.2f}" for who, p in (("q", node.drafter), ("p", node.target)) if p is not None]
            notes = [*figures, *(["bonus"] if node.bonus else [])]
            return text.append(f"  {'  '.join(notes)}", style="not bold dim") if notes else text

        def grow(branch: Tree, number: int) -> Tree:
            for child in self.children(number):
                grow(branch.add(label(self.nodes[child])), child)
            return branch

        return grow(Tree(label(self.nodes[0])), 0)

    def __str__(self) -> str:
        from rich.console import Console

        # Text without styles wherever it is printed: in a terminal and in a notebook rich would write escape codes.
        text = io.StringIO()
        console = Console(file=text, width=120, color_system=None, force_jupyter=False, highlight=False)
        unusable = f", {self.unusable} guesses unusable" if self.unusable else ""
        console.print(f"{self.title}{unusable}")
        console.print(self.rich())
        return text.getvalue().rstrip("\n")

    def svg(self) -> str:
        """Return the tree as an SVG picture, from left to right."""
        return draw(self.nodes, self.title)

    def _repr_svg_(self) -> str:
        return self.svg()


class Trace:
    """The rounds of one call of `generate(trace=True)`.

    `trace[3]` is the third round of the first row, `trace.row(2)` all rounds of the third row.

    Args:
        tokenizer: decodes the tokens; None shows their ids.
    """

    def __init__(self, tokenizer: Any = None):
        self.tokenizer = tokenizer
        self._rounds: list[RoundTrace] = []
        self._number = 0

    def record(self, tree: DraftTree, scores: Scores | None, verdict: Verdict, active: list[bool]) -> None:
        """Record a round before it is committed.

        Args:
            tree: the drafted tree.
            scores: the target's scores of the tree; None if the target was not asked.
            verdict: the verifier's decision.
            active: per row, False once it has finished.
        """
        self._number += 1
        batch = torch.arange(tree.batch_size, device=tree.tokens.device)
        last = verdict.path[batch, (verdict.length - 1).clamp(min=0)]
        if scores is None:
            target = bonus = None
            entropy = [math.nan] * tree.batch_size
        else:
            log_p = scores.logits.float().log_softmax(-1)
            target = log_p[batch[:, None], tree.parents.clamp(min=0), tree.tokens].exp().tolist()
            root = log_p[:, 0]
            entropy = (-(root.exp() * root.masked_fill(root == -torch.inf, 0)).sum(-1)).tolist()
            bonus = log_p[batch, last, verdict.bonus].exp().tolist()
        drafter = None if tree.log_probs is None else tree.log_probs.float().exp().tolist()
        kept = [set(path[:n]) for path, n in zip(verdict.path.tolist(), verdict.length.tolist(), strict=True)]
        valid = None if tree.valid is None else tree.valid.tolist()
        unusable = [guesses for _, guesses in tree.account()]
        rows = zip(tree.tokens.tolist(), tree.parents.tolist(), tree.depth.tolist(), strict=True)
        for row, (tokens, parents, depths) in enumerate(rows):
            if not active[row]:
                continue
            nodes = [
                Node(
                    token,
                    self._text(token),
                    parents[number],
                    depths[number],
                    drafter[row][number] if drafter is not None and number else None,
                    target[row][number] if target is not None and number else None,
                    number in kept[row],
                )
                for number, token in enumerate(tokens)
                if valid is None or valid[row][number]
            ]
            if bonus is not None:
                end, token = int(last[row]), int(verdict.bonus[row])
                nodes.append(Node(token, self._text(token), end, depths[end] + 1, None, bonus[row], True, bonus=True))
            traced = RoundTrace(self._number, row, nodes, entropy[row], unusable[row], settled=scores is None)
            self._rounds.append(traced)

    def _text(self, token: int) -> str:
        return str(token) if self.tokenizer is None else self.tokenizer.decode([token])

    def row(self, row: int) -> list[RoundTrace]:
        """Return all rounds of a row, in order."""
        return [one for one in self._rounds if one.row == row]

    def __getitem__(self, number: int) -> RoundTrace:
        """Return a round of the first row, counted from 1; -1 is the last one.

        Raises:
            MMSpecError: if there is no such round.
        """
        rounds = self.row(0)
        if number < 0:
            number += len(rounds) + 1
        if not 1 <= number <= len(rounds):
            raise MMSpecError(f"round {number} does not exist: the first row has rounds 1 to {len(rounds)}")
        return rounds[number - 1]

    def __iter__(self) -> Iterator[RoundTrace]:
        return iter(self.row(0))

    def __len__(self) -> int:
        """Return the number of rounds of the first row."""
        return len(self.row(0))

    def __repr__(self) -> str:
        return f"Trace of {len(self)} rounds; trace[1] is the first of them"
