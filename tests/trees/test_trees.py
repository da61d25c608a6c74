"""Tree builders on a toy drafter, against naive list-based versions of the published procedures."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from laws import draw_probability, g_test
from toy_drafters import KNOWN, ROOT, ROWS, VOCAB, Toy, grow, paths_of, ranked

from mmspec import MMSpecError
from mmspec.decoding.sampling import LogitsPipeline
from mmspec.trees import Chain, DynamicTree, Proposals, StaticTree, TreeBuilder
from mmspec.trees.static import PRESETS


def naive_eagle2(toy: Toy, row: int, depth: int, top_k: int, total: int) -> list[tuple[int, ...]]:
    """The procedure of EAGLE-2 with lists: paths in order of creation, the root first."""
    created: list[tuple[float, tuple[int, ...]]] = []
    frontier = [(0.0, ())]
    for _ in range(depth):
        children = []
        for score, path in frontier:
            children += [(score + lp, (*path, token)) for lp, token in ranked(toy, row, path)[:top_k]]
        created += children
        frontier = sorted(children, reverse=True)[:top_k]  # the release expands them in this order
    kept = sorted(created, reverse=True)[: total - 1]
    return [(), *[path for score, path in created if (score, path) in kept]]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("depth", "top_k", "total"), [(1, 3, 4), (3, 2, 6), (4, 3, 20), (5, 4, 24), (3, 8, 60)])
def test_dynamic_tree_equals_eagle2_written_with_lists(depth, top_k, total, seed):
    toy = Toy(8, seed)
    tree, _ = grow(DynamicTree(depth, top_k, total), toy)
    for row in range(ROWS):
        assert paths_of(tree, row) == naive_eagle2(toy, row, depth, top_k, total)
    assert tree.max_depth == depth and tree.proposal == "point"


@pytest.mark.parametrize("kind", ["random", "ties", "certain", "impossible"])
@pytest.mark.parametrize(("depth", "top_k", "total"), [(3, 2, 5), (4, 3, 9), (5, 5, 24), (3, 5, 500), (2, 3, 1)])
@pytest.mark.parametrize("seed", range(2))
def test_dynamic_tree_is_connected_and_keeps_the_best(kind, depth, top_k, total, seed):
    """Ties are the hard part: a child as likely as its parent must not be kept without it."""
    toy = Toy(5, seed, kind)
    tree, growth = grow(DynamicTree(depth, top_k, total), toy)
    assert tree.num_nodes == min(total, growth.tokens.shape[1])
    for row in range(ROWS):
        paths = paths_of(tree, row)
        assert len(set(paths)) == len(paths)
        for path in paths[1:]:
            assert path[-1] in [token for _, token in ranked(toy, row, path[:-1])]
        score = dict(zip(paths_of(growth, row), growth.path_log_probs[row].tolist(), strict=True))
        left_out = [value for path, value in score.items() if path not in paths]
        assert min(score[path] for path in paths) >= max(left_out, default=-math.inf)


@pytest.mark.parametrize("length", [1, 4])
def test_chain_follows_the_likeliest_token(length):
    toy = Toy(7, 0)
    tree, _ = grow(Chain(length), toy)
    assert tree.is_chain and tree.num_nodes == length + 1 and tree.max_depth == length
    for row in range(ROWS):
        path = ()
        for node in range(1, length + 1):
            log_prob, token = ranked(toy, row, path)[0]
            path = (*path, token)
            assert paths_of(tree, row)[node] == path
            assert tree.log_probs[row, node].item() == pytest.approx(log_prob, abs=1e-5)


STATIC = {
    "eagle1": "eagle1",
    "digits": ["1", "0", "00", "10", "2", "100"],
    "lists": [[0], [0, 0], [1], [0, 1], [1, 0], [1, 1], [1, 1, 0]],
    "one": [[0]],
}


class NodeByNode(TreeBuilder):
    """A chain grown as any other tree."""

    def __init__(self, length: int):
        self.length = length

    def build(self, growth):
        node = growth.root
        for _ in range(self.length):
            node = growth.expand(node, 1)
        return growth.keep(torch.arange(self.length + 1).expand(ROWS, -1))


@pytest.mark.parametrize("kind", ["random", "certain"])
@pytest.mark.parametrize("drawn", [False, True])
@pytest.mark.parametrize("length", [1, 2, 5])
def test_a_chain_is_what_growing_it_node_by_node_gives(kind, drawn, length):
    """Everything that verifiers and drafters look at, and nothing is looked at by name of the tree."""
    trees = []
    for builder in (Chain(length), NodeByNode(length)):
        generator = torch.Generator().manual_seed(3)
        pipeline = LogitsPipeline(0.8) if drawn else None
        proposals = Proposals(drawn, pipeline, [[ROOT]] * ROWS, generator)
        trees.append(grow(builder, Toy(12, 5, kind), proposals)[0])
    chain, other = trees
    assert chain.is_chain and not other.is_chain and chain.max_depth == other.max_depth == length
    for name in ("tokens", "parents", "depth", "ancestors", "expansion", "log_probs"):
        assert getattr(chain, name).equal(getattr(other, name)), name
    assert (chain.draft_probs is None) == (other.draft_probs is None) == (not drawn)
    assert not drawn or chain.draft_probs.equal(other.draft_probs)


@pytest.mark.parametrize("name", STATIC)
def test_static_tree_takes_the_ranks_it_is_told(name):
    builder = StaticTree(STATIC[name])
    wanted = {tuple(map(int, path)) for path in PRESETS.get(name, STATIC[name])}
    toy = Toy(6, 1)
    tree, _ = grow(builder, toy)
    for row in range(ROWS):
        paths = {()}
        for ranks in wanted:
            path = ()
            for rank in ranks:
                path = (*path, ranked(toy, row, path)[rank][1])
            paths.add(path)
        assert set(paths_of(tree, row)) == paths and tree.num_nodes == len(paths)


def test_eagle1_preset_has_its_25_nodes():
    tree, _ = grow(StaticTree("eagle1"), Toy(6, 2))
    assert tree.drafted.tolist() == [25] * ROWS and tree.max_depth == 5
    per_level = [int((tree.depth[0] == level).sum()) for level in range(6)]
    assert per_level == [1, 4, 8, 8, 3, 2]
    assert StaticTree().paths == StaticTree("eagle1").paths


@pytest.mark.parametrize(
    ("paths", "message"),
    [
        ("eagel1", r"StaticTree preset 'eagel1' is unknown\. Did you mean 'eagle1'\?"),
        ([[0], [1, 0]], r"path \[1, 0\] has no parent; add \[1\]"),
        ([[0], [2]], r"path \[2\] skips a rank; add \[1\]"),
        (["0", "00", "02"], r"path \[0, 2\] skips a rank; add \[0, 1\]"),
        ([], "needs at least one path"),
        ([[]], "is not a path of child ranks"),
        ([[0], [-1]], "is not a path of child ranks"),
        (["0", "0a"], "'0a' is not a path of child ranks"),
        ([0, 1], "0 is not a path of child ranks"),
        (3, r"paths=3 must be a preset \(medusa, eagle1, v5e0\) or paths of child ranks"),
    ],
)
def test_static_tree_refuses_broken_templates(paths, message):
    with pytest.raises(MMSpecError, match=message):
        StaticTree(paths)


def test_static_tree_wider_than_the_vocabulary_is_refused():
    with pytest.raises(MMSpecError, match="StaticTree asks for 4 children but the drafter's vocabulary is smaller"):
        grow(StaticTree("eagle1"), Toy(3, 0))


# Children drawn from q.


@pytest.mark.parametrize("options", [{}, {"temperature": 0.5}, {"top_k": 3}], ids=str)
def test_children_are_drawn_without_replacement_from_the_processed_q(options):
    pipeline = LogitsPipeline(**{"temperature": 1.0, **options})
    logits = torch.tensor([1.0, 0.3, -0.5, 0.9, -1.0])
    count, samples = 2, 4000
    proposals = Proposals(True, pipeline, generator=torch.Generator().manual_seed(0))
    tokens, log_probs, q, *_ = proposals.choose(logits.expand(1, samples, 5), count, lambda: [])
    want = pipeline(logits[None, None], lambda: [])[0, 0].softmax(-1)
    torch.testing.assert_close(q, want.expand(1, samples, 5))
    torch.testing.assert_close(log_probs(), q.gather(-1, tokens).log())
    law = torch.zeros(5, 5, dtype=torch.float64)
    for order in itertools.permutations(range(5), count):
        law[order] = draw_probability(want.double()[None], torch.tensor([order]))[0]
    assert g_test([tuple(pair) for pair in tokens[0].tolist()], law) > 1e-4
    with_replacement = want.double()[:, None] * want.double()
    assert g_test([tuple(pair) for pair in tokens[0].tolist()], with_replacement) < 1e-4, "the test is blind"


def test_children_beyond_the_support_of_q_come_last_and_have_probability_zero():
    proposals = Proposals(True, LogitsPipeline(1.0, top_k=2), generator=torch.Generator().manual_seed(0))
    tokens, log_probs, *_ = proposals.choose(torch.tensor([0.0, 3.0, 1.0, 2.0]).expand(1, 500, 4), 3, lambda: [])
    assert all(set(row[:2]) == {1, 3} and row[2] in (0, 2) for row in tokens[0].tolist())
    assert (log_probs()[0, :, 2] == float("-inf")).all()


@pytest.mark.parametrize("builder", [Chain(3), StaticTree(["0", "1", "2", "00", "01", "10", "100"])])
def test_drawn_trees_carry_the_q_of_every_expanded_node(builder):
    toy = Toy(6, 3)
    proposals = Proposals(True, LogitsPipeline(1.0), generator=torch.Generator().manual_seed(1))
    tree, _ = grow(builder, toy, proposals)
    assert tree.proposal == "sampled"
    for row in range(ROWS):
        paths = paths_of(tree, row)
        inner = {parent for parent in tree.parents[row, 1:].tolist()}
        for node in range(tree.num_nodes):
            entry = tree.expansion[row, node].item()
            assert entry >= 0 if node in inner else entry == -1
            if entry >= 0:
                torch.testing.assert_close(tree.draft_probs[row, entry], toy.logits(row, paths[node]).softmax(-1))


def test_processors_judge_every_drafted_node_with_its_own_prefix():
    seen = []

    class Spy:
        def __call__(self, ids, scores):
            seen.extend(map(tuple, ids.tolist()))
            return scores

    history = [[5, 4, ROOT], [3, ROOT], [ROOT]]
    proposals = Proposals(True, LogitsPipeline(1.0, logits_processor=[Spy()]), history)
    tree, _ = grow(StaticTree(["0", "1", "00", "10", "100"]), Toy(6, 4), proposals)
    wanted = [
        (*history[row], *path)
        for row in range(ROWS)
        for path, entry in zip(paths_of(tree, row), tree.expansion[row].tolist(), strict=True)
        if entry >= 0
    ]
    assert sorted(seen) == sorted(wanted)


# A drafter that knows fewer tokens than its target.


@pytest.mark.parametrize("builder", [Chain(3), DynamicTree(3, 3, 10), StaticTree(["0", "1", "2", "00", "01", "10"])])
def test_nodes_hold_the_targets_tokens_whatever_the_drafter_numbers_them(builder):
    """The toy finds its logits by the path, so a wrong token below the root would also change what follows."""
    toy = Toy(len(KNOWN), 5)
    tree, growth = grow(builder, toy, None, KNOWN, VOCAB)
    assert growth.logits.shape[-1] == len(KNOWN) and tree.draft_probs is None
    for row in range(ROWS):
        paths = paths_of(tree, row)
        assert len(set(paths)) == len(paths)
        for node, path in enumerate(paths[1:], start=1):
            number = KNOWN.tolist().index(path[-1])
            wanted = toy.logits(row, path[:-1]).log_softmax(-1)[number]
            assert tree.log_probs[row, node].item() == pytest.approx(wanted.item(), abs=1e-5)
            siblings = sum(other[:-1] == path[:-1] for other in paths[1:])
            best = toy.logits(row, path[:-1]).topk(siblings).indices
            assert path[-1] in KNOWN[best]


@pytest.mark.parametrize("builder", [Chain(3), StaticTree(["0", "1", "2", "00", "01", "10"])])
def test_drawn_nodes_carry_a_q_over_the_targets_tokens(builder):
    """Processors judge tokens by their number in the target's vocabulary."""
    toy, seen = Toy(len(KNOWN), 5), []

    def ban_three(ids, scores):
        seen.append(scores.clone())
        scores[:, 3] = float("-inf")
        return scores

    pipeline = LogitsPipeline(0.5, logits_processor=[ban_three])
    proposals = Proposals(True, pipeline, [[ROOT]] * ROWS, torch.Generator().manual_seed(0))
    tree, _ = grow(builder, toy, proposals, KNOWN, VOCAB)
    unknown = [token for token in range(VOCAB) if token not in KNOWN]
    assert all((scores[:, unknown] == float("-inf")).all() and scores.shape[-1] == VOCAB for scores in seen)
    assert tree.draft_probs.shape[-1] == VOCAB
    for row in range(ROWS):
        paths = paths_of(tree, row)
        for node in range(tree.num_nodes):
            entry = tree.expansion[row, node].item()
            if entry >= 0:
                q = torch.zeros(VOCAB)
                q[KNOWN] = (toy.logits(row, paths[node]) / 0.5).masked_fill(KNOWN == 3, float("-inf")).softmax(-1)
                torch.testing.assert_close(tree.draft_probs[row, entry], q)
        assert {path[-1] for path in paths[1:]} <= set(KNOWN.tolist()) - {3}
