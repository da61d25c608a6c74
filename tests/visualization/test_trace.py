"""The trace against what the loop emitted, and its probabilities against plain passes of both models."""

from __future__ import annotations

import math

import models
import pytest
import torch
from full_recompute import recompute
from tiny_drafters import blurred_drafter
from tiny_requests import target_of
from toys import Scripted, byte_tokenizer

import mmspec
from mmspec import MMSpecError, Target
from mmspec.drafters import NGramDrafter
from mmspec.trees import Chain, ConfidenceTree, DynamicTree, StaticTree
from mmspec.verifiers import Gated, Greedy, RejectionSampling
from mmspec.verifiers.gates import Every
from mmspec.visualization import Node, RoundTrace

pytestmark = pytest.mark.product

LENGTH = 14
INPUTS = models.inputs_for("llama", [0, 0, 0], [9, 5, 12])
TREES = {
    "chain": Chain(3),
    "dynamic": DynamicTree(depth=3, top_k=3, total=9),
    "padded": ConfidenceTree(certainty=0.3, branches=3, depth=3, total=40),
}


@pytest.fixture(scope="module")
def target():
    return target_of("llama", "sdpa")


@pytest.fixture(scope="module")
def drafter():
    return blurred_drafter("llama", "sdpa")


def prompt(row: int) -> list[int]:
    return models.one_row(INPUTS, row)["input_ids"][0].tolist()


def emitted(one: RoundTrace) -> list[int]:
    """Accepted tokens and the bonus, read off the nodes by walking up from the bonus."""
    if one.settled:
        return [node.token for node in one.nodes[1:] if node.accepted]
    return path_to(one, len(one.nodes) - 1)


def path_to(one: RoundTrace, number: int) -> list[int]:
    path = []
    while number > 0:
        path.insert(0, one.nodes[number].token)
        number = one.nodes[number].parent
    return path


def written(out, row: int) -> list[int]:
    """The first token, and whatever the trace says that rounds emitted."""
    return [out.token_ids[row][0], *(token for one in out.trace.row(row) for token in emitted(one))]


def after(model, row: int, tokens: list[int]) -> torch.Tensor:
    """`[vocab]` logits after the prompt of a row and some tokens, by one pass without a cache."""
    return recompute(model, models.one_row(INPUTS, row), [tokens]).logits[0, -1]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("tree", TREES)
def test_a_ragged_batch_that_ends_row_by_row_is_traced_as_it_was_written(target, drafter, tree, temperature):
    options = {"inputs": INPUTS, "max_new_tokens": LENGTH, "temperature": temperature, "seed": 4}
    ends = [mmspec.generate(target, **options).token_ids[0][5]]
    plain = mmspec.generate(target, eos_token_id=ends, **options)
    out = mmspec.generate(target, drafter, tree=TREES[tree], eos_token_id=ends, trace=True, **options)
    assert out.token_ids == plain.token_ids and out.finish_reason[0] == "eos"
    for row, text in enumerate(out.token_ids):
        whole, rounds = written(out, row), out.trace.row(row)
        assert whole[: len(text)] == text and len(whole) - len(text) < len(emitted(rounds[-1]))
        records = [record for record in out.stats.rounds if record.emitted[row]]
        assert [one.number for one in rounds] == list(range(1, len(records) + 1))
        assert [one.drafted for one in rounds] == [record.drafted[row] for record in records]
        assert [one.accepted for one in rounds[:-1]] == [record.accepted[row] for record in records[:-1]]
        assert all(one.row == row and one.depth == max(n.depth for n in one.nodes[:-1]) for one in rounds)
        begins = [text[0], *(emitted(one)[-1] for one in rounds)]
        assert [one.nodes[0].token for one in rounds] == begins[:-1]
    assert len(out.trace.row(0)) < len(out.stats.rounds), "no row had finished before another"


@pytest.mark.parametrize("tree", TREES)
def test_nodes_are_a_tree_whose_kept_ones_are_a_path(target, drafter, tree):
    out = mmspec.generate(target, drafter, inputs=INPUTS, max_new_tokens=LENGTH, tree=TREES[tree], trace=True)
    sizes = set()
    for row in range(3):
        for one in out.trace.row(row):
            root, *drafted, bonus = one.nodes
            assert (root.parent, root.depth, root.accepted, root.bonus) == (-1, 0, True, False)
            assert (root.drafter, root.target, bonus.drafter) == (None, None, None)
            for number, node in enumerate([*drafted, bonus], start=1):
                above = one.nodes[node.parent]
                assert 0 <= node.parent < number and node.depth == above.depth + 1
                assert above.accepted or not node.accepted
                assert number in one.children(node.parent) and node.bonus == (node is bonus)
            kept = [node.depth for node in drafted if node.accepted]
            assert sorted(kept) == list(range(1, one.accepted + 1)) and bonus.depth == one.accepted + 1
            if tree == "chain":
                assert [node.parent for node in drafted] == [0, 1, 2]
            sizes.add(one.drafted)
    assert (len(sizes) > 1) == (tree == "padded"), "rows of a padded tree have different numbers of nodes"


@pytest.mark.parametrize("tree", ["dynamic", "padded"])
def test_probabilities_are_those_of_plain_passes(target, drafter, tree):
    out = mmspec.generate(target, drafter, inputs=INPUTS, max_new_tokens=8, tree=TREES[tree], trace=True)
    for row in range(3):
        past = [out.token_ids[row][0]]
        for one in out.trace.row(row)[:2]:
            truth = after(target.model, row, past).softmax(-1)
            assert one.entropy == pytest.approx(-(truth * truth.log()).sum().item(), abs=1e-4)
            for number, node in enumerate(one.nodes[1:], start=1):
                before = past + path_to(one, number)[:-1]
                p = after(target.model, row, before).softmax(-1)[node.token]
                assert node.target == pytest.approx(p.item(), abs=1e-5)
                if not node.bonus:
                    q = after(drafter.model, row, before).softmax(-1)[node.token]
                    assert node.drafter == pytest.approx(q.item(), abs=1e-5)
            past += emitted(one)


def test_drawn_children_carry_the_probability_of_the_draw(target, drafter):
    options = {"verifier": RejectionSampling(), "tree": StaticTree([[0], [1], [0, 0]]), "temperature": 0.5}
    out = mmspec.generate(target, drafter, inputs=INPUTS, max_new_tokens=8, trace=True, **options)
    again = mmspec.generate(target, drafter, inputs=INPUTS, max_new_tokens=8, **options)
    assert out.token_ids == again.token_ids
    past = [out.token_ids[0][0]]
    for one in out.trace:
        for number, node in enumerate(one.nodes[1:-1], start=1):
            before = past + path_to(one, number)[:-1]
            q = (after(drafter.model, 0, before) / 0.5).softmax(-1)[node.token]
            p = after(target.model, 0, before).softmax(-1)[node.token]
            assert (node.drafter, node.target) == (pytest.approx(q.item(), abs=1e-5), pytest.approx(p.item(), abs=1e-5))
        past += emitted(one)


def test_drafters_that_know_no_probabilities_have_none(target):
    options = {"inputs": INPUTS, "max_new_tokens": LENGTH}
    texts = mmspec.generate(target, **options).token_ids
    scripted = Scripted(target, texts, right=2, length=3, siblings=1)
    for drafter in (scripted, NGramDrafter(target)):
        out = mmspec.generate(target, drafter, trace=True, **options)
        assert [written(out, row)[:LENGTH] for row in range(3)] == texts == out.token_ids
        nodes = [node for one in out.trace for node in one.nodes[1:]]
        assert all(node.drafter is None and 0 <= node.target <= 1 for node in nodes)
    one = mmspec.generate(target, scripted, trace=True, **options).trace[1]
    assert one.accepted == 2 and one.drafted == 6 and one.depth == 3
    assert [node.accepted for node in one.nodes] == [True, False, True, False, True, False, False, True]


def test_plain_decoding_has_rounds_of_a_root_and_a_bonus(target):
    out = mmspec.generate(target, inputs=INPUTS, max_new_tokens=5, trace=True)
    assert [len(one.nodes) for one in out.trace] == [2] * 4
    assert (out.trace[1].drafted, out.trace[1].accepted, out.trace[1].depth) == (0, 0, 0)
    assert [node.token for one in out.trace for node in one.nodes[1:]] == out.token_ids[0][1:]


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_tracing_changes_no_text(target, drafter, temperature):
    options = {"inputs": INPUTS, "max_new_tokens": LENGTH, "temperature": temperature, "tree": TREES["dynamic"]}
    with_, without = (mmspec.generate(target, drafter, trace=trace, **options) for trace in (True, False))
    assert with_.token_ids == without.token_ids
    assert [r.accepted for r in with_.stats.rounds] == [r.accepted for r in without.stats.rounds]
    with pytest.raises(MMSpecError, match=r"not kept: call generate\(\.\.\., trace=True\)"):
        _ = without.trace


def test_rounds_are_found_by_number(target, drafter):
    trace = mmspec.generate(target, drafter, inputs=INPUTS, max_new_tokens=LENGTH, trace=True).trace
    rounds = trace.row(0)
    assert list(trace) == rounds and len(trace) == len(rounds) > 2
    assert trace[1] is rounds[0] and trace[2] is rounds[1] and trace[-1] is rounds[-1]
    assert repr(trace) == f"Trace of {len(rounds)} rounds; trace[1] is the first of them"
    for number in (0, len(rounds) + 1, -len(rounds) - 1):
        with pytest.raises(MMSpecError, match=f"the first row has rounds 1 to {len(rounds)}"):
            trace[number]


def test_nodes_say_their_text_or_their_number_without_a_tokenizer(target):
    tokenizer = byte_tokenizer()
    reader = Target(target.model, tokenizer)
    texts = []
    for one_target in (reader, target):
        trace = mmspec.generate(one_target, inputs=INPUTS, max_new_tokens=9, trace=True).trace
        texts.append([(node.token, node.text) for one in trace for node in one.nodes])
    assert all(text == tokenizer.decode([token]) for token, text in texts[0])
    assert all(text == str(token) for token, text in texts[1])


def hand_made() -> RoundTrace:
    nodes = [
        Node(5, " a", -1, 0, accepted=True),
        Node(6, " [bold]", 0, 1, drafter=0.75, target=0.5, accepted=True),
        Node(7, "no", 0, 1, drafter=0.25),
        Node(8, "\n", 1, 2, target=0.125, accepted=True, bonus=True),
    ]
    return RoundTrace(3, 0, nodes, math.log(2))


def test_the_tree_in_a_terminal(monkeypatch):
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE"):
        monkeypatch.setenv(name, "1")  # what makes rich write escape codes into a file
    assert str(hand_made()).splitlines() == [
        "round 3: 1 of 2 drafted tokens kept",
        "' a'",
        "├── ' [bold]'  q 0.75  p 0.50",
        "│   └── '\\n'  p 0.12  bonus",
        "└── 'no'  q 0.25",
    ]
    tree = hand_made().rich()
    assert [str(branch.label.style) for branch in tree.children] == ["bold green", "dim"]
    assert str(tree.label.style) == str(tree.children[0].children[0].label.style) == "bold"


def test_rounds_that_were_settled_without_the_target_are_traced_under_their_numbers(target, drafter):
    options = {"inputs": INPUTS, "max_new_tokens": LENGTH, "trace": True, "verifier": Gated(Greedy(), Every(2))}
    out = mmspec.generate(target, drafter, **options)
    records = out.stats.rounds
    for row in range(3):
        whole, rounds = written(out, row), out.trace.row(row)
        assert whole[: len(out.token_ids[row])] == out.token_ids[row]  # the last round may be cut
        assert [one.number for one in rounds] == list(range(1, len(rounds) + 1))
        assert [one.settled for one in rounds] == [record.settled for record in records[: len(rounds)]]
    second = out.trace[2]
    assert second.settled and math.isnan(second.entropy) and second.accepted == second.drafted == records[1].drafted[0]
    assert all(node.target is None and not node.bonus for node in second.nodes)
    assert str(second).startswith(f"round 2: {second.drafted} of {second.drafted} drafted tokens kept, without asking")
    assert "without asking the target" in second.svg() and "NOT lossless" in out._repr_html_()
