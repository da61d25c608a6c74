"""DraftTree: order, depth, ancestors and paths against naive walks; what `validate` refuses; drawing."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from refusals import refused

from mmspec.tree import DraftTree, ancestor_mask


@st.composite
def parent_lists(draw):
    """A batch of parent lists, all of one width."""
    nodes = draw(st.integers(1, 12))
    row = st.tuples(*[st.integers(0, node - 1) for node in range(1, nodes)])
    return [[-1, *parents] for parents in draw(st.lists(row, min_size=1, max_size=3))]


def climb(parents: list[int], node: int) -> list[int]:
    """The path from the root to a node, by walking up."""
    path = []
    while node >= 0:
        path.append(node)
        node = parents[node]
    return path[::-1]


def tree_of(rows: list[list[int]], slack: int = 0, **fields) -> DraftTree:
    parents = torch.tensor(rows)
    depth = max(len(climb(row, node)) - 1 for row in rows for node in range(len(row)))
    tokens = torch.arange(parents.numel()).view_as(parents) + 100
    return DraftTree(tokens, parents, depth + slack, **fields)


@given(parent_lists(), st.integers(0, 3))
def test_derived_arrays_equal_a_walk_up_the_tree(rows, slack):
    tree = tree_of(rows, slack).validate()
    assert (tree.batch_size, tree.num_nodes) == (len(rows), len(rows[0]))
    assert tree.drafted.tolist() == [len(row) - 1 for row in rows]
    for row, parents in enumerate(rows):
        for node in range(len(parents)):
            path = climb(parents, node)
            assert tree.depth[row, node] == len(path) - 1
            assert tree.ancestors[row, node].nonzero().flatten().tolist() == path
            assert path == sorted(path), "topological order: sorted ancestors are the path"


@given(parent_lists(), st.integers(0, 3), st.randoms(use_true_random=False))
def test_path_to_any_node_of_each_row(rows, slack, random):
    tree = tree_of(rows, slack)
    nodes = [random.randrange(len(row)) for row in rows]
    path, length = tree.path_to(torch.tensor(nodes))
    assert path.shape == (len(rows), tree.max_depth + 1)
    for row, node in enumerate(nodes):
        expected = climb(rows[row], node)
        assert length[row] == len(expected)
        assert path[row].tolist() == expected + [-1] * (tree.max_depth + 1 - len(expected))


@given(parent_lists())
def test_the_mask_is_derived_from_the_parents_alone(rows):
    tree = tree_of(rows)
    assert torch.equal(tree.ancestors, ancestor_mask(tree.parents, max_depth=20))


def test_the_mask_needs_as_many_generations_as_the_tree_is_deep():
    chain = torch.tensor([[-1, 0, 1, 2]])
    assert not torch.equal(ancestor_mask(chain, 2), ancestor_mask(chain, 3))


@given(st.integers(1, 3), st.integers(1, 9))
def test_a_chain_is_a_tree_of_width_one(batch, nodes):
    tokens = torch.arange(batch * nodes).view(batch, nodes)
    chain = DraftTree.chain(tokens).validate()
    general = tree_of([list(range(-1, nodes - 1))] * batch)
    assert chain.is_chain and chain.max_depth == general.max_depth == nodes - 1
    for name in ("parents", "depth", "ancestors", "drafted"):
        assert torch.equal(getattr(chain, name), getattr(general, name)), name
    last = torch.full((batch,), nodes - 1)
    assert torch.equal(chain.path_to(last)[0], general.path_to(last)[0])


def test_root_only_is_plain_decoding():
    tree = DraftTree.root_only(torch.tensor([7, 9])).validate()
    assert tree.tokens.tolist() == [[7], [9]] and tree.drafted.tolist() == [0, 0]
    assert tree.is_chain and tree.max_depth == 0 and tree.proposal == "point"


def test_drafted_counts_valid_nodes_only():
    tree = tree_of([[-1, 0, 0, 1], [-1, 0, 0, 0]], valid=torch.tensor([[True] * 4, [True, True, False, False]]))
    assert tree.validate().drafted.tolist() == [3, 1]


def test_proposal_follows_from_draft_probs():
    assert tree_of([[-1, 0]], draft_probs=torch.full((1, 1, 5), 0.2)).proposal == "sampled"


@pytest.mark.parametrize(
    ("rows", "fields", "message"),
    [
        ([[-1, 0], [0, 0]], {}, "row 1: node 0 must be the root (parent -1), its parent is 0"),
        ([[-1, 0, 0], [-1, 0, 2]], {}, "row 1: parent 2 of node 2 does not stand before it"),
        ([[-1, 2, 0]], {}, "row 0: parent 2 of node 1 does not stand before it"),
        ([[-1, 0, -1]], {}, "row 0: parent -1 of node 2 does not stand before it"),
        ([[-1, 0, 1, 2]], {}, "row 0: depth 3 exceeds max_depth 2"),
        ([[-1, 0, 1]], {"valid": [[True, False, True]]}, "a valid node hangs below a node that is not valid"),
        ([[-1, 0, 1]], {"valid": [[False, False, False]]}, "a valid node hangs below a node that is not valid"),
        ([[-1, 0, 0]], {"valid": [[True, False, True]]}, "padding nodes must stand behind all valid nodes"),
    ],
)
def test_validate_names_what_is_wrong(rows, fields, message):
    parents = torch.tensor(rows)
    fields = {name: torch.tensor(value) for name, value in fields.items()}
    refused(lambda: DraftTree(torch.zeros_like(parents), parents, 2, **fields).validate(), message)


def test_draw_shows_nodes_in_reading_order_below_their_parents():
    tree = tree_of(
        [[-1, 0, 0, 1, 2, 1], [-1, 0, 1, 2, 3, 4]],
        valid=torch.tensor([[True] * 5 + [False], [True] * 6]),
        likelihood=lambda: torch.tensor([[0.0, 0.5, 0.25, 1.0, 0.125, 1.0]] * 2).clamp(min=1e-9).log(),
    )
    words = {100: "a", 101: "b", 102: "c", 103: "d", 104: "e"}
    assert tree.draw(words.get).splitlines() == [
        "0: 'a'",
        "  1: 'b'  p=0.500",
        "    3: 'd'  p=1.000",
        "  2: 'c'  p=0.250",
        "    4: 'e'  p=0.125",
    ]
    assert tree.draw(row=1).splitlines()[-1] == f"{'  ' * 5}5: '111'  p=1.000"
