"""Toy drafters that grow trees without a model, and what their trees look like."""

from __future__ import annotations

import torch

from mmspec.outcome import Verdict
from mmspec.trees import Growth, Proposals, TreeBuilder

ROWS, ROOT = 3, 9
KNOWN, VOCAB = torch.tensor([2, 3, 7, 11, 12, 19]), 20
"""Target tokens that a drafter with a reduced vocabulary knows, and the size of the target's."""

Path = tuple[int, ...]


class Toy:
    """A drafter whose logits are a function of row and path; checks what it is told about every block."""

    def __init__(self, vocab: int, seed: int, kind: str = "random", rows: int = ROWS):
        self.vocab, self.seed, self.kind = vocab, seed, kind
        self.serial: list[list[Path]] = [[()] for _ in range(rows)]

    def logits(self, row: int, path: Path) -> torch.Tensor:
        key = (self.seed, row, len(path), *path)
        generator = torch.Generator().manual_seed(abs(hash(key)) % 2**32)
        if self.kind == "ties":  # few distinct values: equal siblings, equal cousins
            return torch.randint(0, 2, (self.vocab,), generator=generator).float()
        if self.kind == "certain":  # one token of log-probability exactly 0, the rest at -1000
            logits = torch.full((self.vocab,), -1000.0)
            logits[torch.randint(0, self.vocab, (), generator=generator)] = 0.0
            return logits
        if self.kind == "impossible":  # all but one token ruled out
            logits = torch.full((self.vocab,), float("-inf"))
            logits[torch.randint(0, self.vocab, (), generator=generator)] = 0.0
            return logits
        return 2 * torch.randn(self.vocab, generator=generator)

    def expand_root(self) -> torch.Tensor:
        return torch.stack([self.logits(row, ()) for row in range(len(self.serial))])

    def expand(self, block) -> torch.Tensor:
        rows = []
        for row, known in enumerate(self.serial):
            first, logits = len(known), []
            for node, (token, parent) in enumerate(
                zip(block.tokens[row].tolist(), block.parents[row].tolist(), strict=True)
            ):
                assert parent < first, "a block's parents must have been expanded before"
                path = (*known[parent], token)
                known.append(path)
                assert block.depth[row, node] == len(path) - 1
                seen = {known[1:][i] for i in block.visible[row, node].nonzero().flatten().tolist()}
                assert seen == {path[:n] for n in range(1, len(path) + 1)}, "must see its ancestors and itself"
                logits.append(self.logits(row, path))
            rows.append(torch.stack(logits))
        return torch.stack(rows)


class Marginal(Toy):
    """A drafter whose levels do not depend on each other."""

    def __init__(self, vocab: int, seed: int, kind: str = "random", rows: int = ROWS, levels: int = 5):
        super().__init__(vocab, seed, kind, rows)
        self.independent, self.max_depth, self.levels = True, levels, 0

    def logits(self, row: int, path: Path) -> torch.Tensor:
        return super().logits(row, (0,) * len(path))

    def confidence(self) -> None:
        """It makes no estimates."""

    def marginals(self, depth: int) -> torch.Tensor:
        rows = range(len(self.serial))
        return torch.stack([torch.stack([self.logits(row, (0,) * level) for level in range(depth)]) for row in rows])


class Ranked(Toy):
    """Gives every node of a row the same distribution. If it falls, a node's tokens are its ranks."""

    def __init__(self, *rows: list[float]):
        self.rows = [torch.tensor(row) for row in rows]
        self.serial = [[()] for _ in rows]

    def logits(self, row: int, path: Path) -> torch.Tensor:
        return self.rows[row].log()


class Seeded(Toy):
    """Random distributions, which depend on the path and on the row's own seed."""

    def __init__(self, vocab: int, *seeds: int, kind: str = "random"):
        self.toys = [Toy(vocab, seed, kind) for seed in seeds]
        self.serial = [[()] for _ in seeds]

    def logits(self, row: int, path: Path) -> torch.Tensor:
        return self.toys[row].logits(0, path)


def falling(*values: float) -> list[float]:
    """A distribution over ten tokens without ties: the rest is shared out, falling a little."""
    rest = 10 - len(values)
    left = 1 - sum(values)
    return [*values, *(left * 2 * (rest - i) / (rest * (rest + 1)) for i in range(rest))]


def grow(builder: TreeBuilder, toy: Toy, proposals: Proposals | None = None, *vocabulary):
    """The tree that a builder grows on a toy, and the `Growth` that it came from."""
    root = torch.full((len(toy.serial),), ROOT)
    growth = Growth(root, toy.expand_root, toy.expand, proposals or Proposals(), *vocabulary)
    tree = builder.build(growth).validate()
    assert (tree.tokens[:, 0] == ROOT).all()
    return tree, growth


def tree_of(builder: TreeBuilder, toy: Toy, proposals: Proposals | None = None, *vocabulary):
    return grow(builder, toy, proposals, *vocabulary)[0]


def paths_of(tree, row: int) -> list[Path]:
    """The token path of every node."""
    paths: list[Path] = []
    for token, parent in zip(tree.tokens[row].tolist(), tree.parents[row].tolist(), strict=True):
        paths.append((*paths[parent], token) if parent >= 0 else ())
    return paths


def shape(tree, row: int) -> list[Path]:
    """The token paths of a row's own nodes but the root."""
    return paths_of(tree, row)[1 : 1 + int(tree.drafted[row])]


def rows_of(tree) -> list[tuple[list[int], list[int]]]:
    """Tokens and parents of each row's own nodes."""
    counts = (1 + tree.drafted).tolist()
    return [(tree.tokens[row, :n].tolist(), tree.parents[row, :n].tolist()) for row, n in enumerate(counts)]


def verdict(tree, nodes) -> Verdict:
    """The path to a node of each row was accepted; None for a row that has finished."""
    path, length = tree.path_to(torch.tensor([node or 0 for node in nodes]))
    length = length * torch.tensor([node is not None for node in nodes])
    return Verdict(path, length, torch.zeros(len(nodes), dtype=torch.long))


def ranked(toy: Toy, row: int, path: Path) -> list[tuple[float, int]]:
    """Log-probability and token of all children, the best first."""
    log_probs = toy.logits(row, path).double().log_softmax(-1).tolist()
    return sorted(((lp, token) for token, lp in enumerate(log_probs)), reverse=True)


def grown(builder: TreeBuilder, toy: Toy, proposals: Proposals | None = None, *vocabulary, drafter=None):
    """The tree that a builder grows with a toy; `drafter` is the toy where a builder may ask it."""
    root = torch.full((len(toy.serial),), ROOT)
    growth = Growth(root, toy.expand_root, toy.expand, proposals or Proposals(), *(vocabulary or (None, None)), drafter)
    return builder.build(growth).validate()
