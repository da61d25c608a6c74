"""Point proposals: the target draws, and a draft is kept where it guessed the draw. Its law, and its coupling to plain
sampling: with one seed every deterministic drafter writes the same text."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from laws import ForcedNoise, TableModel, point_tree, random_tables, sequence_law, zeroed
from models import VISUAL, inputs_for, llama, llava, one_row

import mmspec
from mmspec import Target
from mmspec.decoding.sampling import LogitsPipeline
from mmspec.drafters import NGramDrafter, TextOnlyDrafter, as_drafter
from mmspec.tree import DraftTree
from mmspec.trees import Chain, DynamicTree, StaticTree
from mmspec.verifiers import Greedy, PointMassSampling, RejectionSampling

EXACT = 1e-9

TARGETS = {
    "random": random_tables(3, 2, seed=1),
    "lacks_a_token": zeroed(random_tables(3, 2, seed=1), [2]),
    "certain": zeroed(random_tables(3, 2, seed=1), [1, 2]),
}


def emitted_by_point_mass(tree: DraftTree, target) -> dict[tuple[int, ...], float]:
    """Law of the emitted tokens, all sequences of draws enumerated by forcing the noise."""
    vocab, depth = target[0].shape[-1], len(target)
    sequences = torch.cartesian_prod(*[torch.arange(vocab)] * depth).view(-1, depth)
    rows = len(sequences)
    context = SimpleNamespace(logits=torch.zeros(rows, vocab), history=[[0]] * rows)
    verifier = PointMassSampling().fork_for(context, LogitsPipeline(1.0), seed=0)
    verifier.noise = ForcedNoise(sequences, vocab)
    verdict = verifier.verify(tree, TableModel(target, rows).score(tree))
    lengths, emitted = verdict.host(tree)
    assert verifier.noise.consumed == lengths
    law: dict[tuple[int, ...], float] = {}
    for tokens, sequence, weight in zip(emitted, sequences.tolist(), sequence_law(target).flatten(), strict=True):
        if not weight:  # forcing an impossible draw has no effect
            continue
        assert tokens == sequence[: len(tokens)]
        law[tuple(tokens)] = law.get(tuple(tokens), 0.0) + weight.item()
    return law


def emitted_by_eagle2(tree: DraftTree, target) -> dict[tuple[int, ...], float]:
    """EAGLE-2's rule, written down on its own: try the children in turn, accept x with probability p(x), else strike x
    from p and renormalise; without an accepted child draw from what is left."""
    tokens, parents = tree.tokens[0].tolist(), tree.parents[0].tolist()
    law: dict[tuple[int, ...], float] = {}

    def visit(node: int, path: tuple[int, ...], weight: float) -> None:
        p = target[len(path)][path].tolist()
        for child in [i for i, parent in enumerate(parents) if parent == node]:
            total = sum(p)
            if total == 0:
                return
            accept = p[tokens[child]] / total
            visit(child, (*path, tokens[child]), weight * accept)
            weight *= 1 - accept
            p[tokens[child]] = 0.0
        for token, rest in enumerate(p):
            if rest and weight:
                emitted = (*path, token)
                law[emitted] = law.get(emitted, 0.0) + weight * rest / sum(p)

    visit(0, (), 1.0)
    return law


POINT_TREES = {
    "chain": {(0,): 2, (0, 0): 1},
    "siblings": {(0,): 2, (1,): 0, (2,): 1},
    "two_levels": {(0,): 1, (1,): 0, (0, 0): 2, (0, 1): 1, (1, 0): 2},
    "same_token_below_both": {(0,): 1, (1,): 2, (0, 0): 0, (1, 0): 0, (1, 1): 1},
}


@pytest.mark.parametrize("name", POINT_TREES)
@pytest.mark.parametrize("kind", TARGETS)
def test_point_mass_sampling_equals_the_rule_of_eagle2_and_the_target(name, kind):
    target = TARGETS[kind]
    paths = POINT_TREES[name]
    ours = emitted_by_point_mass(point_tree(paths, paths, rows=27), target)
    theirs = emitted_by_eagle2(point_tree(paths, paths, rows=1), target)
    for emitted in ours.keys() | theirs.keys():
        assert ours.get(emitted, 0.0) == pytest.approx(theirs.get(emitted, 0.0), abs=EXACT)
    law = torch.zeros(3, 3, 3, dtype=torch.float64)
    for emitted, weight in ours.items():
        part = torch.tensor(weight, dtype=torch.float64)
        for depth in range(len(emitted), 3):
            part = part[..., None] * target[depth][emitted]
        law[emitted] += part
    assert (law - sequence_law(target)).abs().max() < EXACT


def test_rejection_sampling_treats_point_trees_as_point_mass_sampling_does():
    target = TARGETS["random"]
    paths = POINT_TREES["two_levels"]
    context = SimpleNamespace(logits=torch.zeros(27, 3), history=[[0]] * 27)
    tree = point_tree(paths, paths, rows=27)
    scores = TableModel(target, 27).score(tree)
    verdicts = []
    for verifier in (PointMassSampling(), RejectionSampling()):
        verifier = verifier.fork_for(context, LogitsPipeline(1.0), seed=5)
        verdicts.append(verifier.verify(tree, scores))
    assert verdicts[0].host(tree) == verdicts[1].host(tree)


def test_greedy_emits_the_argmax_path_whatever_is_drafted():
    target = TARGETS["random"]
    best = [int(target[0].argmax())]
    for depth in (1, 2):
        best.append(int(target[depth][tuple(best)].argmax()))
    context = SimpleNamespace(logits=torch.zeros(1, 3), history=[[0]])
    verifier = Greedy().fork_for(context, LogitsPipeline(), seed=0)
    for tokens in torch.cartesian_prod(*[torch.arange(3)] * 5).tolist():
        paths = dict(zip([(0,), (1,), (0, 0), (0, 1), (1, 0)], tokens, strict=True))
        tree = point_tree(paths, paths, rows=1)
        emitted = verifier.verify(tree, TableModel(target, 1).score(tree)).host(tree)[1][0]
        assert emitted == best[: len(emitted)]
        possible = {path for path in paths if [paths[path[: i + 1]] for i in range(len(path))] == best[: len(path)]}
        assert len(emitted) == 1 + max(map(len, possible), default=0)


# Coupling: with one seed, every deterministic drafter writes the text of plain sampling, token for token.

TREES = {
    "chain": Chain(3),
    "static": StaticTree(["0", "1", "2", "00", "01", "10", "000"]),
    "dynamic": DynamicTree(depth=3, top_k=3, total=12),
}
SAMPLING = [{"temperature": 0.3}, {"temperature": 1.0, "top_p": 0.8, "repetition_penalty": 1.2}]


@pytest.mark.parametrize("options", SAMPLING, ids=str)
@pytest.mark.parametrize("family", ["llama", "llava"])
def test_every_deterministic_drafter_writes_the_text_of_plain_sampling(family, options):
    images = [1, 0, 2] if family in VISUAL else [0, 0, 0]
    inputs = inputs_for(family, images, [9, 4, 12])
    target = Target({"llama": llama, "llava": llava}[family]())
    options = {**options, "inputs": inputs, "max_new_tokens": 12, "seed": 5}
    plain = mmspec.generate(target, **options)
    assert plain.token_ids != mmspec.generate(target, **{**options, "seed": 6}).token_ids
    twin = as_drafter(target, target.model)
    stranger = TextOnlyDrafter(target, llama(seed=7))
    assert mmspec.generate(target, NGramDrafter(target, min_ngram=1), **options).token_ids == plain.token_ids
    accepted = 0
    for tree in TREES.values():
        for drafter in (twin, stranger):
            out = mmspec.generate(target, drafter, tree=tree, **options)
            assert out.token_ids == plain.token_ids
            accepted += out.stats.num_accepted_draft_tokens
    assert accepted > 0
    # Noise belongs to the number of the row, so the first row may be had alone, and no other one may.
    alone = {**options, "inputs": one_row(inputs, 0)}
    assert mmspec.generate(target, **alone).token_ids[0] == plain.token_ids[0]
    assert mmspec.generate(target, twin, tree=TREES["static"], **alone).token_ids[0] == plain.token_ids[0]
    third = {**options, "inputs": one_row(inputs, 2)}
    assert mmspec.generate(target, **third).token_ids[0] != plain.token_ids[2]


def test_equal_prompts_in_a_batch_sample_different_texts():
    target, one = Target(llama()), inputs_for("llama", [0])
    inputs = {name: value.repeat(3, 1) for name, value in one.items()}
    texts = mmspec.generate(target, inputs=inputs, max_new_tokens=12, temperature=1.0, seed=5).token_ids
    assert len(set(map(tuple, texts))) == 3
