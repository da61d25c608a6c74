"""A copy for one request: what it shares and what it has of its own, members of members included."""

from __future__ import annotations

import copy
import random
from collections import OrderedDict, defaultdict, deque

import pytest
import torch
from models import inputs_for, llama
from tiny_requests import interleaved
from torch import nn

import mmspec
from mmspec import Target
from mmspec.drafters import Drafter, StepDrafter, TextOnlyDrafter
from mmspec.per_request import PerRequest
from mmspec.trees import Chain, StaticTree
from mmspec.verifiers import TreeWalk
from mmspec.verifiers.rules import Match


class Member(PerRequest):
    def __init__(self):
        self.seen = []


class Holder(PerRequest):
    shared = ("table",)

    def __init__(self):
        self.weight, self.model = torch.zeros(2), nn.Linear(1, 1)
        self.member = Member()
        self.same = self.member
        self.owner = self
        self.table = {"big": [1]}
        self.nested = {"deep": [deque([Member()]), (Member(), 1)], "count": defaultdict(list, a=[1])}
        self.order, self.names = OrderedDict(x=[1]), {"a"}
        self.random, self.generator = random.Random(1), torch.Generator().manual_seed(1)


def test_everything_that_changes_is_copied_and_weights_are_shared():
    original = Holder()
    copied = original.fork()
    assert copied.weight is original.weight and copied.model is original.model and copied.table is original.table
    assert copied.member is not original.member and copied.same is copied.member and copied.owner is copied
    copied.member.seen.append(1)
    copied.nested["deep"][0][0].seen.append(1)
    copied.nested["deep"][1][0].seen.append(1)
    copied.nested["count"]["a"].append(2)
    copied.nested["count"]["b"].append(2)
    copied.order["x"].append(2)
    copied.names.add("b")
    assert (
        not original.member.seen and not original.nested["deep"][0][0].seen and not original.nested["deep"][1][0].seen
    )
    assert original.nested["count"] == {"a": [1]} and original.order == {"x": [1]} and original.names == {"a"}


def test_random_generators_go_on_from_where_they_stood_and_apart():
    original = Holder()
    original.random.random()
    one, two = original.fork(), original.fork()
    assert one.random.random() == two.random.random() == original.random.random()
    first = torch.rand(3, generator=one.generator)
    for other in (two, original):
        assert torch.rand(3, generator=other.generator).equal(first)


def test_drafters_in_lists_of_modules_keep_their_weights_and_lose_their_state():
    target = Target(llama())
    members = [TextOnlyDrafter(target, llama(seed=seed), tree=StaticTree(["0"])) for seed in (1, 2)]
    mixture = Mixture(target, members)
    forked = mixture.fork(Chain(2))
    assert [id(p) for p in forked.parameters()] == [id(p) for p in mixture.parameters()]
    assert list(forked.state_dict()) == list(mixture.state_dict())
    for ours, theirs in zip(mixture.members, forked.members, strict=True):
        assert ours is not theirs and ours.tree is not theirs.tree and ours.model is theirs.model
        theirs.session = "of the request"
        assert not hasattr(ours, "session")
    assert mixture.tree.length == 5 and forked.tree.length == 2


def test_adaptive_rules_and_compressors_are_the_requests_own():
    class Counting(Match):
        def __init__(self):
            self.counts = {}

    walk = TreeWalk(Counting())
    target = Target(llama())
    mmspec.generate(target, verifier=walk, inputs=inputs_for("llama", [0]), max_new_tokens=2)
    one = walk.fork()
    one.rule.counts["x"] = 1
    assert not walk.rule.counts
    compressor = mmspec.compressors.Prune()
    drafter = Drafter(target)
    drafter.compressor = compressor
    assert drafter.fork().compressor is not compressor


class Mixture(StepDrafter):
    """The mean of what several draft models say."""

    def __init__(self, target, members, tree=None):
        super().__init__(target, tree)
        self.members = nn.ModuleList(members)

    def start(self, context):
        super().start(context)
        for member in self.members:
            member.start(context)

    def expand_root(self, root):
        return self.mean([member.expand_root(root) for member in self.members])

    def expand(self, block):
        return self.mean([member.expand(block) for member in self.members])

    def observe(self, tree, scores, verdict):
        super().observe(tree, scores, verdict)
        for member in self.members:
            member.observe(tree, scores, verdict)

    def mean(self, logits):
        return torch.stack([one.softmax(-1) for one in logits]).mean(0).log()


class Shallow(Mixture):
    """As copies were before: the members are everybody's."""

    def fork(self, tree=None):
        drafter = copy.copy(self)
        drafter.tree = (tree or self.tree).fork()
        return drafter


@pytest.mark.parametrize("tree", [Chain(4), StaticTree(["0", "1", "00", "10", "000"])], ids=["chain", "static"])
def test_two_drafters_mixed_in_interleaved_batches_guess_as_alone(tree):
    """Text is exact even where the members' caches are mixed up; what falls is the acceptance, and nothing says so."""
    target = Target(llama())
    members = [TextOnlyDrafter(target, model) for model in (target.model, llama(seed=3))]
    requests = [
        {"inputs": inputs_for("llama", [0, 0], [9, 4]), "max_new_tokens": 24},
        {"inputs": inputs_for("llama", [0, 0], [6, 11]), "max_new_tokens": 24},
    ]
    plain = [mmspec.generate(target, **request).token_ids for request in requests]
    mixture = Mixture(target, members, tree)
    alone = [mmspec.generate(target, mixture, **request) for request in requests]
    together = interleaved(target, mixture, requests)
    assert [out.token_ids for out in together] == [out.token_ids for out in alone] == plain
    taus = [out.stats.mean_acceptance_length for out in alone]
    assert [out.stats.mean_acceptance_length for out in together] == taus and min(taus) > 1.3
    try:  # the control must be found out
        mixed_up = interleaved(target, Shallow(target, members, tree), requests)
    except (RuntimeError, ValueError):  # what is unread does not fit what one of the caches holds
        return
    assert [out.token_ids for out in mixed_up] == plain
    assert [out.stats.mean_acceptance_length for out in mixed_up] != taus
