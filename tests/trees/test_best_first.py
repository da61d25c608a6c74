"""BestFirstTree: against a heap and against brute force, ties included; from marginals and level by level; its law."""

from __future__ import annotations

import heapq
import itertools
from types import SimpleNamespace

import models
import pytest
import torch
from blocks import drafter_of
from laws import Enumeration, ForcedNoise, TableModel, random_tables, sequence_law
from tiny_requests import RAGGED, case, target_of
from toy_drafters import KNOWN, ROWS, VOCAB, Marginal, Path, Toy, grown, rows_of, shape

import mmspec
from mmspec import MMSpecError
from mmspec.decoding.sampling import LogitsPipeline
from mmspec.drafters import MedusaDrafter
from mmspec.speed.operations import counting
from mmspec.tree import DraftTree
from mmspec.trees import BestFirstTree, DynamicTree, Growth, Proposals, StaticTree, TreeBuilder
from mmspec.trees.marginal_paths import LEVELS, SPANS, likeliest
from mmspec.verifiers import PointMassSampling, RejectionSampling

LOWEST_TIE = 1 / 4
"""Steps of log-probabilities that tie often, and whose sums are exact."""


def log_probs_of(kind: str, levels: int, ranks: int, seed: int) -> torch.Tensor:
    """`[ROWS, levels, ranks]` log-probabilities, falling with the rank, in float64."""
    generator = torch.Generator().manual_seed(seed)
    if kind == "ties":
        steps = torch.randint(0, 4, (ROWS, levels, ranks), generator=generator)
        return (-LOWEST_TIE * steps.double()).sort(-1, descending=True).values
    logits = 3 * torch.randn(ROWS, levels, ranks + 3, generator=generator, dtype=torch.float64)
    found = logits.log_softmax(-1).sort(-1, descending=True).values[..., :ranks]
    if kind == "impossible":
        found[..., 1:].masked_fill_(torch.rand(ROWS, levels, ranks - 1, generator=generator) < 0.4, float("-inf"))
        found = found.sort(-1, descending=True).values
    return found


def order_of(table: list[list[float]], path: Path):
    """What paths are ordered by, the best first: their score; depth; then the same of the path to the last level of the
    span above, and the ranks behind it."""
    length = max(LEVELS, -(-len(table) // SPANS))
    score = 0.0
    for level, rank in enumerate(path):
        score += table[level][rank]
    last = (len(path) - 1) // length * length
    return -score, len(path), order_of(table, path[:last]) if last > 0 else (), path[last:]


def by_heap(table: list[list[float]], budget: int) -> list[Path]:
    """DDTree's algorithm 1, with a heap: pop the best path, push its next sibling and its first child."""
    heap, found = [(order_of(table, (0,)), (0,))], []
    while heap and len(found) < budget:
        _, path = heapq.heappop(heap)
        found.append(path)
        *above, rank = path
        pushed = [(*path, 0)] if len(path) < len(table) else []
        pushed += [(*above, rank + 1)] if rank + 1 < len(table[0]) else []
        for new in pushed:
            heapq.heappush(heap, (order_of(table, new), new))
    return found


def ranks_of(paths, row: int, ranks: int) -> list[Path]:
    """The ranks of every path that was found, in their order."""
    found: list[Path] = []
    for parent, guess in zip(paths.parents[row].tolist(), paths.guesses[row].tolist(), strict=True):
        found.append((*found[parent], guess % ranks) if parent >= 0 else ())
    assert [len(path) for path in found] == paths.depth[row].tolist()
    return found[1:]


SIZES = [(1, 5, 4), (2, 3, 12), (3, 4, 30), (4, 6, 40), (5, 8, 25), (7, 20, 63), (9, 2, 40), (13, 3, 33), (16, 9, 90)]


@pytest.mark.parametrize("kind", ["random", "ties", "impossible"])
@pytest.mark.parametrize(("levels", "ranks", "budget"), SIZES)
def test_the_paths_are_those_that_a_heap_pops_one_by_one(levels, ranks, budget, kind):
    for seed in range(12):
        log_probs = log_probs_of(kind, levels, ranks, seed)
        paths = likeliest(log_probs, budget)
        for row, table in enumerate(log_probs.tolist()):
            wanted = by_heap(table, budget)
            found = ranks_of(paths, row, ranks)
            if kind == "impossible":  # which of them fill up the rest is all the same
                possible = [path for path in wanted if order_of(table, path)[0] < float("inf")]
                assert found[: len(possible)] == possible and len(set(found)) == len(wanted)
            else:
                assert found == wanted


@pytest.mark.parametrize("kind", ["random", "ties"])
@pytest.mark.parametrize(("levels", "ranks"), [(1, 6), (2, 5), (3, 3), (5, 2)])
def test_no_tree_of_that_size_is_likelier(levels, ranks, kind):
    """All paths are listed. Of equal ones the shallower is kept, and a larger budget keeps what a smaller one does."""
    everything = [path for n in range(1, levels + 1) for path in itertools.product(range(ranks), repeat=n)]
    log_probs = log_probs_of(kind, levels, ranks, 7)
    for row, table in enumerate(log_probs.tolist()):
        scores = sorted(order_of(table, path)[:2] for path in everything)
        before: set[Path] = set()
        for budget in (1, 2, 5, 9, 17, 40):
            found = ranks_of(likeliest(log_probs, budget), row, ranks)
            assert [order_of(table, path)[:2] for path in found] == scores[:budget]
            assert before <= set(found)
            before = set(found)


def test_all_connected_trees_of_a_size_are_enumerated():
    """Proposition 1 of DDTree: the sum of the paths' probabilities is the largest."""
    log_probs = log_probs_of("random", 3, 3, 3)[:1]
    table, budget = log_probs[0].tolist(), 5
    probability = lambda path: torch.tensor(-order_of(table, path)[0]).exp().item()  # noqa: E731

    def trees(size: int) -> set[frozenset[Path]]:
        if not size:
            return {frozenset()}
        return {
            tree | {(*above, rank)}
            for tree in trees(size - 1)
            for above in [(), *tree]
            for rank in range(3)
            if len(above) < 3 and (*above, rank) not in tree
        }

    best = max(sum(map(probability, tree)) for tree in trees(budget))
    found = ranks_of(likeliest(log_probs, budget), 0, 3)
    assert sum(map(probability, found)) == pytest.approx(best, abs=1e-12)


def test_rounding_never_separates_a_child_from_its_parent():
    """In float32, with probabilities so close to 1 that sums round."""
    generator = torch.Generator().manual_seed(0)
    for levels in (6, 11, 16):
        log_probs = -(10 ** torch.empty(40, levels, 12).uniform_(-9, 1, generator=generator)).sort(-1).values
        paths = likeliest(log_probs, 48)
        steps = torch.arange(49)
        assert (paths.parents[:, 1:] >= 0).all() and (paths.parents < steps).all()
        above = paths.depth.gather(1, paths.parents.clamp(min=0))
        assert paths.depth[:, 1:].equal(above[:, 1:] + 1)


def chance(toy: Toy, row: int, path: Path) -> float:
    """The log-probability of a path's last token."""
    return toy.logits(row, path[:-1]).double().log_softmax(-1)[path[-1]].item()


def score(toy: Toy, row: int, path: Path) -> float:
    return sum(chance(toy, row, path[: n + 1]) for n in range(len(path)))


def worth(toy: Toy, row: int, paths: list[Path], length: int) -> list[float]:
    """The scores of all paths of a length, rounded."""
    return sorted(round(score(toy, row, path), 4) for path in paths if len(path) == length)


@pytest.mark.parametrize("kind", ["random", "ties", "certain"])
@pytest.mark.parametrize("options", [{}, {"top_k": 2}, {"depth": 3}])
def test_marginals_give_the_tree_that_the_nodes_give_one_by_one(options, kind):
    for budget in (1, 4, 11, 40):
        builder = BestFirstTree(budget, **options)
        toy = Marginal(6, 5, kind)
        tree = grown(builder, toy, drafter=toy)
        other = Toy(6, 5, kind)
        other.logits = toy.logits
        levels = min(builder.depth, 5)
        node_by_node = grown(BestFirstTree(budget, **{**options, "depth": levels}), other)
        assert tree.num_nodes == node_by_node.num_nodes and tree.max_depth == levels and tree.expansion is None
        for row in range(ROWS):
            found, wanted = shape(tree, row), shape(node_by_node, row)
            assert len(set(found)) == len(found)
            if kind == "ties":
                assert [worth(toy, row, found, length) for length in range(6)] == [
                    worth(toy, row, wanted, length) for length in range(6)
                ]
            else:
                assert set(found) == set(wanted)
                log_probs = [chance(toy, row, path) for path in found]
                assert tree.log_probs[row, 1:].tolist() == pytest.approx(log_probs, abs=1e-5)
        assert not tree.unusable().any() and tree.depth.equal(tree.ancestors.sum(-1) - 1)


@pytest.mark.parametrize("levels", [4, 7, 15])
def test_a_tree_of_marginals_costs_few_operations_whatever_the_budget(levels):
    """And none of them waits for the device, nor copies to it. The drafter's own are not counted."""
    logits = torch.randn(2, levels, 500)
    drafter = SimpleNamespace(independent=True, max_depth=levels, marginals=lambda depth: logits[:, :depth])
    found = set()
    for budget in (4, 32, 64, 100):
        for _ in range(2):  # what does not depend on the probabilities is worked out the first time
            growth = Growth(torch.zeros(2, dtype=torch.long), lambda: logits[:, 0], None, Proposals(), drafter=drafter)
            with counting() as counts:
                tree = BestFirstTree(budget).build(growth)
        assert tree.num_nodes == budget + 1 and not counts.reads and not counts.copies
        found.add(counts.operations)
    assert max(found) <= 30 and len(found) <= 2


def test_a_reduced_vocabulary_and_barred_tokens():
    toy = Marginal(len(KNOWN), 3)
    tree = grown(BestFirstTree(12), toy, Proposals(barred=torch.tensor([3, 19])), KNOWN, VOCAB, drafter=toy)
    plain = grown(BestFirstTree(12), toy, None, KNOWN, VOCAB, drafter=toy)
    assert not torch.isin(tree.tokens, torch.tensor([3, 19])).any() and torch.isin(plain.tokens[:, 1:], KNOWN).all()
    assert torch.isin(plain.tokens, torch.tensor([3, 19])).any()


def test_guesses_that_are_none_come_last_and_are_counted():
    toy = Marginal(6, 1)
    logits = toy.marginals(5)
    logits[1, 2] = float("nan")
    toy.marginals = lambda depth: logits[:, :depth]
    tree = grown(BestFirstTree(20), toy, drafter=toy)
    assert tree.unusable()[1].equal(tree.depth[1, 1:] > 2) and not tree.unusable()[[0, 2]].any()
    assert rows_of(tree)[0] == rows_of(grown(BestFirstTree(20), Marginal(6, 1), drafter=Marginal(6, 1)))[0]


def test_tempered_probabilities_make_another_tree():
    """Warm ones are flatter, so that the tree is wider; at temperature 0 there are none."""
    toy = Marginal(8, 2)
    trees = {}
    for tempered, temperature in ((False, 3.0), (True, 3.0), (True, 1.0), (True, 0.0)):
        proposals = Proposals(pipeline=LogitsPipeline(temperature))
        trees[tempered, temperature] = grown(BestFirstTree(15, tempered=tempered), toy, proposals, drafter=toy)
    assert rows_of(trees[True, 1.0]) == rows_of(trees[True, 0.0]) == rows_of(trees[False, 3.0])
    warm, plain = trees[True, 3.0], trees[False, 3.0]
    assert int((warm.depth == 1).sum()) > int((plain.depth == 1).sum())
    wanted = (toy.marginals(5)[0] / 3).log_softmax(-1).max(-1).values
    assert warm.log_probs[0, 1].item() == pytest.approx(wanted[0].item(), abs=1e-5)


# Level by level.


@pytest.mark.parametrize("kind", ["random", "ties", "certain", "impossible"])
@pytest.mark.parametrize("budget", [1, 2, 7, 30])
def test_levels_that_depend_on_each_other(kind, budget):
    """Against all paths there are, and EAGLE-2's tree that is wide enough to miss none."""
    vocab, depth = 4, 4
    toy = Toy(vocab, 11, kind)
    tree = grown(BestFirstTree(budget, depth=depth), toy)
    wide = grown(DynamicTree(depth, top_k=max(budget, vocab), total=budget + 1), Toy(vocab, 11, kind))
    everything = [path for n in range(1, depth + 1) for path in itertools.product(range(vocab), repeat=n)]
    for row in range(ROWS):
        possible = [path for path in everything if score(toy, row, path) > float("-inf")]
        ordered = sorted((-round(score(toy, row, path), 4), len(path)) for path in possible)
        found = shape(tree, row)
        assert sorted((-round(score(toy, row, path), 4), len(path)) for path in found) == ordered[:budget]
        assert kind in ("ties", "impossible") or set(found) == set(shape(wide, row))


def test_no_more_nodes_are_expanded_than_can_have_children_in_the_tree():
    class Counted(Toy):
        def expand(self, block):
            self.blocks = [*getattr(self, "blocks", []), block.tokens.shape[1]]
            return super().expand(block)

    toy = Counted(6, 4, rows=1)
    tree = grown(BestFirstTree(12), toy)
    inner = len(set(tree.parents[0, 1:].tolist()) - {0})
    assert inner <= sum(toy.blocks) < 2 * 12 and len(toy.blocks) + 1 >= int(tree.depth.max())
    sure = Counted(6, 4, "certain", rows=1)
    chain = grown(BestFirstTree(5), sure)
    assert chain.parents.tolist() == [[-1, 0, 1, 2, 3, 4]]
    assert sure.blocks == [4, 1, 1, 1], "with one level drafted, nothing says that its four best are not the tree"


# In requests.


def medusa(name: str) -> MedusaDrafter:
    return models.redraw(MedusaDrafter(target_of(name, "sdpa"), heads=4, layers=1), seed=6).eval()


@pytest.mark.parametrize("name", ["llava", "qwen_vl"])
@pytest.mark.parametrize("options", [{}, {"top_k": 8}, {"tempered": True}])
def test_the_text_is_the_targets(name, options):
    inputs, expected = case(name, "sdpa", *RAGGED, 14)
    settings = {"inputs": inputs, "max_new_tokens": 14}
    sampled = {**settings, "temperature": 0.9, "seed": 3, "verifier": PointMassSampling()}
    plain = mmspec.generate(target_of(name, "sdpa"), **sampled)
    drafter, tree = medusa(name), BestFirstTree(12, **options)
    out = mmspec.generate(drafter.target, drafter, tree=tree, **settings)
    assert out.token_ids == expected and out.stats.lossless and out.stats.num_accepted_draft_tokens
    assert mmspec.generate(drafter.target, drafter, tree=tree, **sampled).token_ids == plain.token_ids
    with pytest.raises(MMSpecError, match="BestFirstTree keeps the likeliest nodes.*use PointMassSampling, or Chain"):
        mmspec.generate(drafter.target, drafter, tree=tree, **{**sampled, "verifier": RejectionSampling()})


@pytest.mark.parametrize("variant", ["dflash", "dspark"])
def test_block_drafters_too(variant):
    """From the marginals of a block, and level by level where a head corrects them by the tokens above."""
    drafter = drafter_of("llava", variant)
    assert drafter.cheap_levels and drafter.independent is (variant == "dflash")
    inputs, expected = case("llava", "sdpa", *RAGGED, 14)
    settings, tree = {"inputs": inputs, "max_new_tokens": 14}, BestFirstTree(10)
    out = mmspec.generate(drafter.target, drafter, tree=tree, **settings)
    assert out.token_ids == expected and out.stats.lossless and out.stats.num_draft_tokens
    sampled = {**settings, "temperature": 0.9, "seed": 3, "verifier": PointMassSampling()}
    plain = mmspec.generate(drafter.target, **sampled)
    assert mmspec.generate(drafter.target, drafter, tree=tree, **sampled).token_ids == plain.token_ids


def independent_tables(vocab: int, depth: int, seed: int) -> list[torch.Tensor]:
    """Distributions that depend on the place alone."""
    last = random_tables(vocab, depth, seed)
    rows = [table.reshape(-1, vocab)[0] for table in last]
    return [row.expand([vocab] * level + [vocab]) for level, row in enumerate(rows)]


@pytest.mark.parametrize("seed", [1, 5])
def test_the_law_of_a_round_is_the_targets(seed):
    """All sequences of the target's draws are enumerated: each is what is written, as far as the round goes."""
    vocab, target = 3, random_tables(3, 2, seed)
    model = TableModel(independent_tables(vocab, 1, seed + 20), rows=1)
    drafter = SimpleNamespace(independent=True, max_depth=2)
    drafter.marginals = lambda depth: torch.stack([table.reshape(-1, vocab)[:1] for table in model.tables], 1).log()
    growth = Growth(torch.zeros(1, dtype=torch.long), model.expand_root, None, Proposals(), drafter=drafter)
    one = BestFirstTree(5).build(growth)
    sequences = torch.cartesian_prod(*[torch.arange(vocab)] * 3)
    rows = len(sequences)
    tree = DraftTree(one.tokens.expand(rows, -1), one.parents.expand(rows, -1), one.max_depth, grown=True)
    context = SimpleNamespace(logits=torch.zeros(rows, vocab), history=[[0]] * rows)
    verifier = PointMassSampling().fork_for(context, LogitsPipeline(1.0), seed=0)
    verifier.noise = ForcedNoise(sequences, vocab)
    verdict = verifier.verify(tree, TableModel(target, rows).score(tree))
    lengths, emitted = verdict.host(tree)
    assert len(set(lengths)) > 1
    law = torch.zeros(vocab, vocab, vocab, dtype=torch.float64)
    for tokens, weight in zip(emitted, sequence_law(target).flatten().tolist(), strict=True):
        rest = torch.tensor(weight, dtype=torch.float64)
        for level in range(len(tokens), 3):  # what the target itself writes behind the round
            rest = rest[..., None] * target[level][tuple(tokens)].reshape([-1] + [vocab] * (level - len(tokens) + 1))[0]
        law[tuple(tokens)] += rest
    assert (law - sequence_law(target)).abs().max() < 1e-9


def test_children_that_are_drawn_and_then_chosen_by_value_are_not_lossless():
    """What is refused for a reason: of two drawn children the likelier one is kept."""

    class Choosy(TreeBuilder):
        def build(self, growth):
            children = growth.expand(growth.root, 2)
            best = growth.newest_path_log_probs.argmax(-1, keepdim=True)
            return growth.keep(torch.cat([growth.root, children.gather(1, best)], dim=1))

    target, draft = random_tables(3, 1, 1), random_tables(3, 1, 8)
    assert Enumeration(RejectionSampling(), target, draft, StaticTree(["0", "1"])).error() < 1e-9
    assert Enumeration(RejectionSampling(), target, draft, Choosy()).error() > 1e-2


@pytest.mark.parametrize("wrong", [{"budget": 0}, {"top_k": 0}, {"top_k": 1.5}, {"tempered": 1}, {"depth": -1}])
def test_settings_out_of_range(wrong):
    ((name, value),) = wrong.items()
    with pytest.raises(MMSpecError, match=f"BestFirstTree: {name}={value}"):
        BestFirstTree(**wrong)
