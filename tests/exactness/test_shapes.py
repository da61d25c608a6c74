"""Shapes of methods that are not one drafter and one scoring pass: drafting with the target's own layers or entries,
rounds that are settled without it, guesses read off its verification, drafting while it scores."""

from __future__ import annotations

import threading
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from laws import g_test
from models import MODELS, VOCAB, inputs_for, llama, qwen_vl
from refusals import refused
from transformers import DynamicCache, SuppressTokensLogitsProcessor

import mmspec
from mmspec import MMSpecError, Target
from mmspec.compat import CACHE
from mmspec.drafters import (
    EarlyExitDrafter,
    JacobiDrafter,
    NGramDrafter,
    SessionDrafter,
    TextOnlyDrafter,
)
from mmspec.tree import DraftTree
from mmspec.trees import Chain, DynamicTree, StaticTree
from mmspec.verifiers import Gated, Greedy, PointMassSampling, RejectionSampling
from mmspec.verifiers.gates import Confident, Every

TREES = [Chain(4), StaticTree(["0", "1", "00", "10", "000"]), DynamicTree(3, 2, 6)]
NAMES = ["chain", "static", "dynamic"]


@pytest.fixture(scope="module")
def target():
    return Target(llama(layers=3))


def ragged(new: int = 24, **options):
    return {"inputs": inputs_for("llama", [0, 0, 0], [9, 4, 13]), "max_new_tokens": new, **options}


@pytest.fixture(scope="module")
def plain(target):
    return mmspec.generate(target, **ragged()).token_ids


# The target's first layers, on its own cache.


@pytest.mark.parametrize("tree", TREES, ids=NAMES)
@pytest.mark.parametrize("layers", [1, 3])
def test_the_first_layers_draft_on_the_shared_cache(target, plain, layers, tree):
    out = mmspec.generate(target, EarlyExitDrafter(target, layers=layers, tree=tree), **ragged())
    assert out.token_ids == plain
    if layers == 3:
        every_guess_is_right(out, tree)


def every_guess_is_right(out, tree) -> None:
    """A mistake of mask, position or entry would show. (A dynamic tree may not keep its deepest level.)"""
    whole = [record for record in out.stats.rounds if all(record.emitted)][:-1]
    least = {"Chain": 5, "StaticTree": 4, "DynamicTree": 3}[type(tree).__name__]
    assert whole and all(emitted >= least for record in whole for emitted in record.emitted)


def test_the_first_layers_of_a_model_that_sees():
    target = Target(qwen_vl())
    inputs = inputs_for("qwen_vl", [1, 0, 2])
    expected = mmspec.generate(target, inputs=inputs, max_new_tokens=16).token_ids
    out = mmspec.generate(
        target,
        EarlyExitDrafter(target, layers=len(target.family.layers)),
        inputs=inputs,
        max_new_tokens=16,
        tree=Chain(3),
    )
    assert out.token_ids == expected and out.stats.mean_acceptance_length > 3


def test_the_cache_may_grow_while_the_first_layers_draft(target, plain, monkeypatch):
    monkeypatch.setattr("mmspec.models.cache.CHUNK", 8)
    monkeypatch.setattr("mmspec.target.AHEAD", 1)
    out = mmspec.generate(target, EarlyExitDrafter(target, layers=3), **ragged())
    assert out.token_ids == plain and out.stats.mean_acceptance_length > 4


def test_layers_share_every_weight_and_leave_the_model_as_it_was(target):
    part = target.first_layers(2)
    assert len(part.family.layers) == 2 and len(target.family.layers) == 3
    ours = {id(p) for p in part.model.parameters()}
    assert ours < {id(p) for p in target.model.parameters()}
    assert target.model.config.num_hidden_layers == 3 and part.model.config.num_hidden_layers == 2
    for layers in (0, 4, -1):
        with pytest.raises(MMSpecError, match=f"layers={layers} must lie between 1 and the 3 of LlamaForCausalLM"):
            EarlyExitDrafter(target, layers=layers)


# The target on some of its own entries.


class Sparse(SessionDrafter):
    """The target without every n-th token of the prompt."""

    def __init__(self, target, without: int = 0, tree=None):
        super().__init__(target, tree)
        self.without = without

    def start(self, context):
        super().start(context)
        entries = [[i for i in range(n) if not self.without or i % self.without] for n in context.cache.lengths_list]
        self.session = context.branch(entries=entries)


@pytest.mark.parametrize("tree", TREES, ids=NAMES)
def test_the_target_drafts_on_a_subset_of_its_own_entries(target, plain, tree):
    whole = mmspec.generate(target, Sparse(target, 0, tree), **ragged())
    assert whole.token_ids == plain
    every_guess_is_right(whole, tree)
    some = mmspec.generate(target, Sparse(target, 3, tree), **ragged())
    assert some.token_ids == plain
    assert 1 < some.stats.mean_acceptance_length < whole.stats.mean_acceptance_length


def test_what_cannot_branch(target):
    context = target.prefill(mmspec.inputs.prepare(target, inputs=inputs_for("llama", [0])))
    for options in ({}, {"layers": 1, "entries": [[0]]}):
        with pytest.raises(MMSpecError, match=r"give one of layers=, entries= and skipped="):
            context.branch(**options)
    refused(lambda: context.branch(entries=[[0], [0]]), "entries must have one list of indices for each of the 1 rows")
    windowed = Target(MODELS["mistral"]())
    context = windowed.prefill(mmspec.inputs.prepare(windowed, inputs=inputs_for("mistral", [0])))
    refused(lambda: context.branch(entries=[[0]]), "sliding windows, whose distances are counted in entries")


# Rounds that are settled without the target.


def drafters(target):
    return {
        "model": TextOnlyDrafter(target, llama(seed=3), tree=Chain(3)),
        "static": TextOnlyDrafter(target, llama(seed=3), tree=TREES[1]),
        "own": EarlyExitDrafter(target, layers=2, tree=Chain(3)),
        "ngram": NGramDrafter(target),
    }


@pytest.mark.parametrize("name", ["static", "own", "ngram"])
def test_every_verified_token_is_the_targets_own_given_what_is_before_it(target, name):
    out = mmspec.generate(target, drafters(target)[name], verifier=Gated(Greedy(), Every(2)), trace=True, **ragged())
    assert not out.stats.lossless and out.stats.num_unverified_tokens > 0
    settled = [record.settled for record in out.stats.rounds]
    assert not settled[0] and any(settled) and not any(a and b for a, b in pairwise(settled))
    prompts = mmspec.inputs.prepare(target, inputs=ragged()["inputs"]).token_ids()
    for row, (prompt, new) in enumerate(zip(prompts, out.token_ids, strict=True)):
        ids = torch.tensor([prompt + new])
        own = target.model(ids).logits[0].argmax(-1)[len(prompt) - 1 :].tolist()
        place, checked = 1, 0
        for record in out.stats.rounds:
            for number in range(place, place + record.emitted[row]):
                if not record.settled:
                    assert new[number] == own[number], (row, number)
                    checked += 1
            place += record.emitted[row]
        assert new[0] == own[0] and checked > 3 and place == len(new)


@pytest.mark.parametrize("gate", [Every(0), Confident(1.0)], ids=["every", "confident"])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_gate_that_never_opens_is_not_there(target, gate, temperature):
    drafter, inner = drafters(target)["model"], PointMassSampling() if temperature else Greedy()
    alone = mmspec.generate(target, drafter, **ragged(temperature=temperature))
    gated = mmspec.generate(target, drafter, verifier=Gated(inner, gate), **ragged(temperature=temperature))
    assert gated.token_ids == alone.token_ids and gated.stats.lossless
    assert gated.stats.num_unverified_tokens == 0
    assert gated.stats.mean_acceptance_length == alone.stats.mean_acceptance_length


def test_a_gate_by_confidence_lets_pass_what_the_drafter_is_sure_of(target):
    drafter = drafters(target)["model"]
    few, many = (
        mmspec.generate(target, drafter, verifier=Gated(Greedy(), Confident(threshold, 12)), **ragged()).stats
        for threshold in (0.3, 0.01)
    )
    assert many.num_unverified_tokens > few.num_unverified_tokens
    assert many.num_spec_steps < few.num_spec_steps
    assert many.mean_acceptance_length > few.mean_acceptance_length


def test_bad_gates(target):
    for make, message in {
        (lambda: Every(1)): r"Every: rounds=1 must be a whole number, 2 or more",
        (lambda: Confident(0)): "Confident: threshold=0 must be a number above 0 and at most 1",
        (lambda: Gated(Every(2), Every(2))): "Gated: inner=<mmspec ... is no Verifier; pass an instance",
        (lambda: Gated(Greedy(), Every)): "Gated: gate=<class ... > is no Gate; pass an instance, such as Every(",
    }.items():
        refused(make, message)
    with pytest.raises(MMSpecError, match="Confident reads the probabilities of a draft"):
        mmspec.generate(target, NGramDrafter(target), verifier=Gated(Greedy(), Confident()), **ragged())


# Guesses read off p at all positions.


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_jacobi_windows_are_exact_and_right_more_often_than_never(target, temperature):
    options = ragged(40, temperature=temperature, seed=5)
    alone = mmspec.generate(target, **options)
    out = mmspec.generate(target, JacobiDrafter(target, 6), **options)
    assert out.token_ids == alone.token_ids and out.stats.lossless
    if not temperature:
        assert out.stats.mean_acceptance_length > 1.05


def test_the_next_window_is_what_the_target_said_behind_the_last_one(target):
    seen = []

    class Noted(JacobiDrafter):
        def observe(self, tree, scores, verdict):
            super().observe(tree, scores, verdict)
            said, length = scores.logits.argmax(-1), verdict.length.tolist()
            for row, n in enumerate(length):
                known = said[row, n:].tolist()
                assert self._guesses[row].tolist()[: len(known)] == known[: self.window]
                seen.append(len(known))

    mmspec.generate(target, Noted(target, 5), **ragged())
    assert len(set(seen)) > 1


def test_windows_drawn_from_the_target_leave_its_law_alone(target):
    """Speculative Jacobi decoding: four tokens of a thousand rows of one prompt, each one of three."""
    rows, prompt, few = 1000, inputs_for("llama", [0], [9])["input_ids"], [5, 6, 7]
    out = mmspec.generate(
        target,
        JacobiDrafter(target, 4),
        inputs={"input_ids": prompt.expand(rows, -1)},
        max_new_tokens=4,
        temperature=1.0,
        logits_processor=SuppressTokensLogitsProcessor([token for token in range(VOCAB) if token not in few]),
        verifier=RejectionSampling(),
        seed=1,
    )
    assert out.stats.lossless and out.stats.mean_accepted_draft_tokens > 0.4
    law, texts = torch.ones(1, dtype=torch.float64), [[]]
    for _ in range(4):
        ids = torch.cat([prompt.expand(len(texts), -1), torch.tensor(texts, dtype=torch.long)], 1)
        with torch.no_grad():
            law = (law[:, None] * target.model(input_ids=ids).logits[:, -1, few].double().softmax(-1)).flatten()
        texts = [[*text, token] for text in texts for token in few]
    assert g_test([tuple(map(few.index, row)) for row in out.token_ids], law.view(3, 3, 3, 3)) > 1e-3


# Drafting while the target scores.


class Ahead(TextOnlyDrafter):
    """While a chain is scored, drafts the next one below its last node, in the hope that all of it is accepted and the
    bonus is the best guess there. What was read in vain is dropped."""

    def start(self, context):
        super().start(context)
        self._prepared = None

    def draft(self, root):
        prepared, self._prepared = self._prepared, None
        self.used.append(prepared is not None)
        return super().draft(root) if prepared is None else prepared

    def anticipate(self, tree):
        self.threads.add(threading.current_thread().name)
        read = int((tree.expansion[0] >= 0).sum()) - 1  # drafted nodes that are read already; the root is kept
        tokens, guesses = tree.tokens[:, 1 + read :], []
        for _ in range(tree.num_nodes):  # the bonus, and a chain as long as this one
            earlier, new = self.session.cache.speculative, tokens.shape[1]
            visible = torch.ones(new, earlier + new, dtype=torch.bool).tril(earlier).expand(len(tokens), -1, -1)
            depth = torch.arange(earlier, earlier + new).expand(len(tokens), -1)
            tokens = self.session.read(tokens, visible, depth).logits[:, -1:].argmax(-1)
            guesses.append(tokens)
        self._guesses = torch.cat(guesses, dim=1)

    def observe(self, tree, scores, verdict):
        active = torch.tensor(self.context.active)
        right = (verdict.length == tree.num_nodes) & (self._guesses[:, 0] == verdict.bonus)
        if right[active].all():
            self.session.keep((tree.num_nodes * active).tolist())
            expansion = torch.full_like(tree.tokens, -1).index_fill(1, torch.tensor([0]), 0)
            self._prepared = DraftTree.chain(self._guesses, expansion=expansion)
        else:
            self.session.keep((verdict.length - 1).clamp(min=0).tolist())


@pytest.mark.parametrize("right", [True, False], ids=["right", "wrong"])
def test_a_drafter_works_on_the_next_window_while_the_target_scores(target, plain, right):
    """Right guesses (the target drafts for itself) are used, wrong ones dropped; the text is exact both times."""
    model = target.model if right else llama(seed=3)
    drafter = Ahead(target, model, tree=Chain(3))
    drafter.used, drafter.threads = [], set()
    Ahead.shared = ("used", "threads")
    out = mmspec.generate(target, drafter, **ragged())
    assert out.token_ids == plain
    assert all(name.startswith("anticipate") for name in drafter.threads) and drafter.threads
    if right:  # all but the first chain, and the last, after a row has ended
        assert sum(drafter.used) >= len(drafter.used) - 2 and out.stats.mean_acceptance_length > 3.5
    else:
        alone = mmspec.generate(target, TextOnlyDrafter(target, model, tree=Chain(3)), **ragged())
        assert out.stats.mean_acceptance_length == alone.stats.mean_acceptance_length
    record = out.stats.rounds[0]
    assert 0 < record.anticipated <= sum(record.seconds.values()) + 0.05


def test_what_goes_wrong_beside_the_target_is_raised(target):
    class Broken(NGramDrafter):
        def anticipate(self, tree):
            raise MMSpecError("the other side broke")

    refused(lambda: mmspec.generate(target, Broken(target), **ragged()), "the other side broke")


# What is emitted unread, and what is committed.


class Tailed(Greedy):
    """Adds a token of its own behind what the target supplies."""

    def verify(self, tree, scores):
        verdict = super().verify(tree, scores)
        return replace(verdict, tail=verdict.bonus[:, None], bonus=torch.full_like(verdict.bonus, 7))


def test_a_tail_is_emitted_and_read_with_the_next_pass(target):
    request = ragged(11, eos_token_id=[])
    out = mmspec.generate(target, verifier=Tailed(), **request)
    prompts = mmspec.inputs.prepare(target, inputs=request["inputs"]).token_ids()
    for prompt, new in zip(prompts, out.token_ids, strict=True):
        own = target.model(torch.tensor([prompt + new])).logits[0].argmax(-1)[len(prompt) - 1 :].tolist()
        assert new[2::2] == [7] * 5 and new[1::2] == own[1:-1:2] and new[0] == own[0]


def test_keys_and_values_of_a_layer_are_the_models_own(target):
    request = mmspec.inputs.prepare(target, inputs=inputs_for("llama", [0], [9]))
    context, cache = target.prefill(request), DynamicCache()
    target.model(request.inputs["input_ids"], use_cache=True, **{CACHE: cache})
    for number, layer in enumerate(cache.layers):
        keys, values = context.keys_values(number)
        torch.testing.assert_close(keys, layer.keys)
        torch.testing.assert_close(values, layer.values)
