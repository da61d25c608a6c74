"""What every tree builder keeps to: the contract of a tree, rows that do not know of each other, the target's text."""

from __future__ import annotations

import pytest
import torch
from covering import covering
from hypothesis import given
from hypothesis import strategies as st
from tiny_drafters import blurred_drafter, eagle3_drafter
from tiny_requests import RAGGED, case, target_of
from toy_drafters import ROOT, Seeded, rows_of, shape, tree_of, verdict

import mmspec
from mmspec import MMSpecError
from mmspec.trees import BestFirstTree, Chain, ConfidenceTree, DynamicTree, SageTree, StaticTree
from mmspec.verifiers import PointMassSampling, RejectionSampling

KINDS = ["random", "ties", "certain", "impossible"]
BUILDERS = st.one_of(
    st.builds(Chain, st.integers(1, 4)),
    st.builds(DynamicTree, st.integers(1, 4), st.integers(1, 5), st.integers(1, 30)),
    st.builds(BestFirstTree, st.integers(1, 30), st.sampled_from([None, 1, 3]), depth=st.integers(1, 5)),
    st.builds(
        ConfidenceTree,
        certainty=st.sampled_from([0.0, 0.3, 0.8, 1.0]),
        branches=st.integers(1, 6),
        beam=st.integers(1, 6),
        depth=st.integers(1, 5),
        total=st.integers(1, 40),
        graded=st.booleans(),
    ),
    st.builds(
        SageTree,
        min_depth=st.integers(1, 3),
        max_depth=st.integers(3, 6),
        min_width=st.integers(1, 3),
        max_width=st.integers(3, 8),
        max_nodes=st.integers(1, 30),
        top_k=st.integers(2, 12),
        threshold=st.sampled_from([0.0, 0.1, 0.5, 1.0]),
        window=st.integers(1, 3),
    ),
)


@given(BUILDERS, st.integers(0, 50), st.sampled_from(KINDS), st.integers(1, 9))
def test_every_tree_keeps_the_contract(builder, seed, kind, vocab):
    """Topological, one root, within the budget, likeliest children first and none skipped, no token twice; what rows of
    fewer nodes are filled up with is no node."""
    builder = builder.fork()
    for number in range(3):
        toy = Seeded(vocab, *(seed + 1000 * number + row for row in range(3)), kind=kind)
        tree = tree_of(builder, toy)
        assert tree.proposal == "point"
        for row in range(3):
            nodes = shape(tree, row)
            assert len(nodes) <= builder.max_nodes and len(set(nodes)) == len(nodes)
            assert max(map(len, nodes), default=0) <= tree.max_depth
            for parent in {(), *nodes}:
                children = [path[-1] for path in nodes if path[:-1] == parent]
                log_probs = toy.logits(row, parent).log_softmax(-1)
                assert log_probs[children].tolist() == pytest.approx(log_probs.topk(len(children)).values.tolist())
        own = torch.ones_like(tree.tokens, dtype=torch.bool) if tree.valid is None else tree.valid
        assert (tree.parents[~own] == 0).all() and (tree.tokens[~own] == ROOT).all()
        assert (tree.depth[~own] == 1).all() and (tree.expansion[~own] == -1).all()
        assert tree.depth.equal(tree.ancestors.sum(-1) - 1)
        inner = {(row, parent) for row in range(3) for parent in tree.parents[row, 1:][own[row, 1:]].tolist()}
        assert all(tree.expansion[row, node] >= 0 for row, node in inner)
        builder.observe(tree, None, verdict(tree, [min(number, int(tree.drafted[0])), None, int(tree.drafted[2])]))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "builder",
    [ConfidenceTree(certainty=0.4, depth=4), SageTree(window=2), BestFirstTree(20, depth=4)],
    ids=["conf", "sage", "best"],
)
def test_each_row_of_a_batch_has_the_tree_that_it_has_alone(builder, kind):
    def drawn(seeds: list[int]) -> tuple[list, list]:
        """Four rounds, in each of which a node of a row's own is accepted; the trees, and what was drafted per row."""
        own, trees = builder.fork(), []
        for number in range(4):
            trees.append(tree_of(own, Seeded(14, *(100 * number + seed for seed in seeds), kind=kind)))
            drafted = trees[-1].drafted.tolist()
            accepted = [max(0, n - 2 * seed) for n, seed in zip(drafted, seeds, strict=True)]
            own.observe(trees[-1], None, verdict(trees[-1], accepted))
        return trees, list(zip(*map(rows_of, trees), strict=True))

    trees, together = drawn([1, 2, 3, 4])
    assert together == [drawn([seed])[1][0] for seed in (1, 2, 3, 4)]
    fixed = isinstance(builder, BestFirstTree)  # but where guesses are impossible
    assert kind != "random" or fixed or any(tree.valid is not None for tree in trees), "all rows had trees of one size"


VARIANTS = {
    "confidence": ConfidenceTree(),
    "confidence, small": ConfidenceTree(certainty=0.3, total=7),
    "confidence, literal": ConfidenceTree(graded=False, beam=2),
    "best first": BestFirstTree(12, depth=4),
    "sage": SageTree(),
    "sage, small": SageTree(max_nodes=9, window=2),
    "sage, nothing passes": SageTree(threshold=1.0),
}


@pytest.mark.parametrize(("name", "variant"), covering(["llava", "qwen_vl", "gemma3"], VARIANTS, strength=1))
def test_text_is_that_of_plain_decoding(name, variant):
    inputs, expected = case(name, "sdpa", *RAGGED, 14)
    settings = {"inputs": inputs, "max_new_tokens": 14}
    sampled = settings | {"temperature": 0.8, "seed": 3, "verifier": PointMassSampling()}
    plain = mmspec.generate(target_of(name, "sdpa"), **sampled)
    for drafter in (blurred_drafter(name, "sdpa"), eagle3_drafter(name, "sdpa")):
        out = mmspec.generate(drafter.target, drafter, tree=VARIANTS[variant], **settings)
        assert out.token_ids == expected and out.stats.lossless
        assert variant == "sage, nothing passes" or out.stats.num_accepted_draft_tokens
        out = mmspec.generate(drafter.target, drafter, tree=VARIANTS[variant], **sampled)
        assert out.token_ids == plain.token_ids


@pytest.mark.parametrize(
    "builder", [DynamicTree(), ConfidenceTree(), BestFirstTree()], ids=lambda builder: type(builder).__name__
)
def test_trees_that_choose_by_probability_refuse_to_be_drawn(builder):
    drafter = blurred_drafter("llava", "sdpa")
    options = {"inputs": case("llava", "sdpa", *RAGGED, 14)[0], "temperature": 1.0, "max_new_tokens": 2}
    message = f"{type(builder).__name__} keeps the likeliest nodes.*use PointMassSampling, or Chain"
    with pytest.raises(MMSpecError, match=message):
        mmspec.generate(drafter.target, drafter, tree=builder, verifier=RejectionSampling(), **options)
    for drawn in (Chain(2), StaticTree(["0", "1"]), SageTree()):
        mmspec.generate(drafter.target, drafter, tree=drawn, verifier=RejectionSampling(), **options)


@pytest.mark.parametrize("value", [0, -1, 1.5, True, "3"])
@pytest.mark.parametrize(
    "setting",
    [
        (Chain, "length"),
        (DynamicTree, "total"),
        (ConfidenceTree, "beam"),
        (SageTree, "window"),
        (BestFirstTree, "budget"),
    ],
)
def test_sizes_must_be_positive_integers(setting, value):
    cls, name = setting
    with pytest.raises(MMSpecError, match=f"{cls.__name__}: {name}={value!r} must be a positive integer"):
        cls(**{name: value})


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ConfidenceTree(certainty=1.1), r"ConfidenceTree: certainty=1\.1 must be .* from 0 to 1"),
        (lambda: SageTree(threshold=1.5), r"SageTree: threshold=1\.5 must be .* from 0 to 1"),
        (lambda: SageTree(min_depth=9), "SageTree: min_depth=9 is larger than max_depth=8"),
        (lambda: SageTree(max_width=1), "SageTree: min_width=2 is larger than max_width=1"),
        (lambda: SageTree(top_k=1), "SageTree: top_k=1 must be .* 2 or more"),
    ],
)
def test_settings_that_make_no_sense_are_refused(make, message):
    with pytest.raises(MMSpecError, match=message):
        make()
