"""Exact laws of what a verifier emits, by enumerating every random outcome, and a test of samples against a law.

A distribution over token sequences is a list of tables: `tables[d]` has shape `[vocab] * (d + 1)` and holds the
probability of the next token after each sequence of `d` tokens. Depth 0 is what follows the root of a tree.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace

import torch
from torch import Tensor

from mmspec.decoding.sampling import LogitsPipeline
from mmspec.outcome import Scores
from mmspec.tree import DraftTree
from mmspec.trees import Growth, Proposals, TreeBuilder
from mmspec.trees.proposals import Children
from mmspec.verifiers import RejectionSampling

Tables = list[Tensor]


def random_tables(vocab: int, depth: int, seed: int, sharpness: float = 1.5) -> Tables:
    """A random distribution over sequences of `depth + 1` tokens, in float64."""
    generator = torch.Generator().manual_seed(seed)
    shapes = [[vocab] * (d + 1) for d in range(depth + 1)]
    return [(sharpness * torch.randn(shape, generator=generator, dtype=torch.float64)).softmax(-1) for shape in shapes]


def zeroed(tables: Tables, tokens: list[int]) -> Tables:
    """The tables without some tokens, renormalised."""
    result = []
    for table in tables:
        table = table.clone()
        table[..., tokens] = 0
        result.append(table / table.sum(-1, keepdim=True))
    return result


def sequence_law(tables: Tables) -> Tensor:
    """`[vocab] * len(tables)`: the probability of every sequence."""
    law = torch.ones((), dtype=torch.float64)
    for table in tables:
        law = law[..., None] * table
    return law


def processed(tables: Tables, pipeline: LogitsPipeline) -> Tables:
    """The tables after a pipeline whose processors look at the scores alone."""
    return [pipeline(t.log().reshape(1, -1, t.shape[-1]), lambda: []).softmax(-1).view_as(t) for t in tables]


class TableModel:
    """Gives a tree's nodes the logits that tables prescribe: as a drafter (`expand_root`, `expand`) and as a target."""

    def __init__(self, tables: Tables, rows: int):
        self.tables, self.rows = tables, rows
        self.paths: list[Tensor] = []

    def logits(self, path: Tensor) -> Tensor:
        """`[rows, depth]` tokens below the root to `[rows, vocab]`."""
        table = self.tables[path.shape[1]]
        return (table[tuple(path.unbind(1))] if path.shape[1] else table.expand(self.rows, -1)).log()

    def expand_root(self) -> Tensor:
        self.paths = [torch.zeros(self.rows, 0, dtype=torch.long)]
        return self.logits(self.paths[0])

    def expand(self, block) -> Tensor:
        assert (block.parents == block.parents[:1]).all(), "the shape of a drawn tree must not depend on the tokens"
        for parent, token in zip(block.parents[0].tolist(), block.tokens.unbind(1), strict=True):
            self.paths.append(torch.cat([self.paths[parent], token[:, None]], dim=1))
        new = block.tokens.shape[1]
        return torch.stack([self.logits(path) for path in self.paths[-new:]], dim=1)

    def score(self, tree: DraftTree) -> Scores:
        """Logits of every node, for a tree of one shape in all rows."""
        paths: list[Tensor] = []
        for node, parent in enumerate(tree.parents[0].tolist()):
            below = [paths[parent], tree.tokens[:, node : node + 1]] if node else [tree.tokens[:, :0]]
            paths.append(torch.cat(below, dim=1))
        return Scores(torch.stack([self.logits(path) for path in paths], dim=1))


@dataclass
class EveryDraw(Proposals):
    """Draws without replacement, one outcome per row: row r takes the r-th combination of orders at all nodes.

    Once a distribution has run dry, the smallest tokens left follow, as the Gumbel trick would also pick something.
    """

    sampled: bool = True
    calls: list[tuple[int, int, int]] = field(default_factory=list)
    index: Tensor | None = None
    weight: Tensor | None = None

    def choose(self, logits: Tensor, count: int, paths: Callable, vocabulary: Tensor | None = None):
        rows, nodes, vocab = logits.shape
        q = self.pipeline(logits, lambda: []).softmax(-1)
        orders = torch.tensor(list(itertools.permutations(range(vocab), count)))
        self.calls.append((vocab, nodes, count))
        if self.index is None:  # the dry run, which only counts
            self.index, self.weight = torch.zeros(rows, dtype=torch.long), torch.ones(rows, dtype=torch.float64)
        tokens = []
        for node in range(nodes):
            chosen = orders[self.index % len(orders)]
            self.index = self.index // len(orders)
            self.weight = self.weight * draw_probability(q[:, node], chosen)
            tokens.append(chosen)
        tokens = torch.stack(tokens, dim=1)
        return Children(tokens, lambda: q.gather(-1, tokens).log(), q, q[..., 0])


def draw_probability(q: Tensor, tokens: Tensor) -> Tensor:
    """Probability of drawing `[rows, count]` tokens in this order without replacement from `[rows, vocab]`."""
    weight = torch.ones(len(q), dtype=q.dtype)
    left = q.clone()
    free = torch.ones_like(q, dtype=torch.bool)
    for token in tokens.unbind(1):
        total = left.sum(-1)
        share = left.gather(1, token[:, None])[:, 0] / total.clamp(min=1e-300)
        smallest = (free.long().argmax(-1) == token).to(q.dtype)
        weight = weight * torch.where((left > 0).any(-1), share, smallest)
        left = left.scatter(1, token[:, None], 0.0)
        free = free.scatter(1, token[:, None], False)
    return weight


class Coin:
    """Stands for a uniform number u in `u * q < p`: says in each row what was decided, and weighs it."""

    def __init__(self, outcome: Tensor, book: Callable[[Tensor], None]):
        self.outcome, self.book = outcome, book

    def __mul__(self, q: Tensor) -> Coin:
        self.q = q
        return self

    def __lt__(self, p: Tensor) -> Tensor:
        heads = torch.where(self.q > 0, (p / self.q.clamp(min=1e-300)).clamp(max=1.0), (p > 0).to(p.dtype))
        self.book(torch.where(self.outcome, heads, 1 - heads))
        return self.outcome


class Enumeration:
    """All outcomes of one round of a `RejectionSampling`, in the rows of one batch.

    Args:
        verifier: the verifier, or a wrong one that is to be found out.
        target, draft: what both models say, before the pipeline.
        builder: of the tree.
        pipeline: of target and drafter.
    """

    def __init__(self, verifier: RejectionSampling, target: Tables, draft: Tables, builder: TreeBuilder, pipeline=None):
        self.pipeline = pipeline or LogitsPipeline(temperature=1.0)
        self.target, self.vocab = target, target[0].shape[-1]
        dry = EveryDraw(pipeline=self.pipeline)
        coins = _siblings_tried(self._tree(draft, builder, dry, 1))
        orders = math.prod(math.perm(vocab, count) ** nodes for vocab, nodes, count in dry.calls)
        rows = orders * 2**coins
        index = torch.arange(rows)
        draws = EveryDraw(pipeline=self.pipeline, index=index // 2**coins, weight=torch.ones(rows, dtype=torch.float64))
        self.tree = self._tree(draft, builder, draws, rows)
        self.weight = draws.weight
        outcomes = [(index >> slot) % 2 == 1 for slot in range(coins)]
        context = SimpleNamespace(logits=torch.zeros(rows, self.vocab, dtype=torch.float64), history=[[0]] * rows)
        verifier = verifier.fork_for(context, self.pipeline, seed=0)
        verifier._uniform = lambda like: Coin(outcomes.pop(0), self._weigh)
        verifier._draw = self._draw
        verdict = verifier.verify(self.tree, TableModel(target, rows).score(self.tree))
        self.path, self.length = verdict.path, verdict.length

    def _tree(self, draft: Tables, builder: TreeBuilder, proposals: Proposals, rows: int) -> DraftTree:
        model = TableModel(draft, rows)
        root = torch.zeros(rows, dtype=torch.long)
        return builder.build(Growth(root, model.expand_root, model.expand, proposals))

    def _weigh(self, factor: Tensor) -> None:
        self.weight = self.weight * factor

    def _draw(self, probs: Tensor) -> Tensor:
        self.bonus = probs
        return probs.argmax(-1)

    def law(self, where: Tensor | None = None) -> Tensor:
        """`[vocab] * (depth + 1)`: the law of the text, if the target itself writes what follows the round; or the part
        of it that comes from some of the outcomes, `[rows]`."""
        torch.testing.assert_close(self.weight.sum(), torch.ones((), dtype=torch.float64), rtol=0, atol=1e-12)
        weight = self.weight if where is None else self.weight * where
        tables = processed(self.target, self.pipeline)
        law = torch.zeros([self.vocab] * len(tables), dtype=torch.float64)
        tokens = self.tree.tokens.gather(1, self.path.clamp(min=0))
        for accepted in range(len(tables)):
            rows = self.length == accepted + 1
            prefix = torch.zeros(int(rows.sum()), dtype=torch.long)
            for token in tokens[rows, 1 : accepted + 1].unbind(1):
                prefix = prefix * self.vocab + token
            part = torch.zeros(self.vocab**accepted, self.vocab, dtype=torch.float64)
            part.index_add_(0, prefix, weight[rows, None] * self.bonus[rows])
            part = part.view([self.vocab] * (accepted + 1))
            for table in tables[accepted + 1 :]:
                part = part[..., None] * table
            law += part
        return law

    def error(self) -> float:
        """The largest difference from the target's law."""
        return (self.law() - sequence_law(processed(self.target, self.pipeline))).abs().max().item()


def _siblings_tried(tree: DraftTree) -> int:
    """Uniform numbers that a walk through the tree may ask for: per level, the most children of any node."""
    children: dict[int, int] = {}
    for parent in tree.parents[0, 1:].tolist():
        children[parent] = children.get(parent, 0) + 1
    depth = tree.depth[0].tolist()
    return sum(max(n for node, n in children.items() if depth[node] == d) for d in {depth[node] for node in children})


class ForcedNoise:
    """Noise that makes the choice after `d` tokens be token `d` of a row's prescribed sequence."""

    def __init__(self, sequences: torch.Tensor, vocab: int):
        self.noise = 1e9 * torch.nn.functional.one_hot(sequences, vocab).double()
        self.consumed: list[int] = []

    def peek(self, count: int) -> torch.Tensor:
        return self.noise[:, :count]

    def consume(self, counts: list[int]) -> None:
        self.consumed = counts


def point_tree(paths, draws, rows: int) -> DraftTree:
    """A tree whose node `path` holds the token `draws[path]`, the same in all rows."""
    paths = sorted(paths, key=lambda path: (len(path), path))
    index = {(): 0, **{path: i + 1 for i, path in enumerate(paths)}}
    tokens = torch.tensor([[0, *(draws[path] for path in paths)]]).expand(rows, -1)
    parents = torch.tensor([[-1, *(index[path[:-1]] for path in paths)]]).expand(rows, -1)
    return DraftTree(tokens, parents, max(map(len, paths))).validate()


def g_test(samples: list[tuple[int, ...]], law: Tensor) -> float:
    """p-value of the likelihood-ratio test of samples (tuples of tokens) against their law.

    Outcomes with an expected count below 5 are merged. A sample outside the law's support gives 0.
    """
    counts = torch.zeros(law.shape, dtype=torch.float64)
    for sample in samples:
        counts[sample] += 1
    counts, expected = counts.flatten(), law.flatten().double() * len(samples)
    if (counts[expected == 0] > 0).any():
        return 0.0
    rare = expected < 5
    observed = torch.cat([counts[~rare], counts[rare].sum()[None]])
    expected = torch.cat([expected[~rare], expected[rare].sum()[None]])
    if expected[-1] < 5:  # too little even together: join the smallest other one
        smallest = expected[:-1].argmin()
        observed[smallest] += observed[-1]
        expected[smallest] += expected[-1]
        observed, expected = observed[:-1], expected[:-1]
    statistic = 2 * torch.special.xlogy(observed, observed / expected).sum()
    freedom = len(observed) - 1
    assert freedom > 0, "nothing to test"
    return torch.special.gammaincc(torch.tensor(freedom / 2, dtype=torch.float64), statistic.clamp(min=0) / 2).item()
