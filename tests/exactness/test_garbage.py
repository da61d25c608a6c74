"""A drafter of garbage (NaN, infinities, nothing possible) costs speed, never text, and nobody gets what is no tree."""

from __future__ import annotations

import math

import models
import pytest
import torch
from refusals import refused
from tiny_drafters import blurred_drafter, eagle_drafter
from tiny_requests import target_of
from toy_drafters import ROWS, Toy, grow, paths_of, ranked
from toys import Scripted

import mmspec
from mmspec import MMSpecError, Target
from mmspec.commands.generate import summary_line
from mmspec.decoding.sampling import LogitsPipeline
from mmspec.decoding.stats import Round, Stats
from mmspec.drafters import Drafter, EagleDrafter, MedusaDrafter, TextOnlyDrafter
from mmspec.models.cache import TreeCache
from mmspec.models.cache_layer import SlotShape
from mmspec.tree import DraftTree
from mmspec.trees import Chain, ConfidenceTree, DynamicTree, Proposals, SageTree, StaticTree, TreeBuilder
from mmspec.verifiers import PointMassSampling, RejectionSampling

NAN, INF = math.nan, math.inf
SPOIL = {
    "nan": lambda logits: logits * NAN,
    "some nan": lambda logits: logits.index_fill(-1, torch.tensor([1, 3]), NAN),
    "inf": lambda logits: logits.index_fill(-1, torch.tensor([2]), INF),
    "nothing possible": lambda logits: torch.full_like(logits, -INF),
}
BUILDERS = {
    "chain": Chain(4),
    "static": StaticTree(["0", "1", "00", "01", "10", "11", "000", "001"]),
    "dynamic": DynamicTree(4, 3, 16),
    "confidence": ConfidenceTree(depth=4),
    "sage": SageTree(top_k=4),
}


class SpoiltToy(Toy):
    """Its logits are no distribution from some level on, in rows 0 and 2, below one token of two."""

    def __init__(self, kind: str, first: int):
        super().__init__(8, 1)
        self.spoil, self.first = SPOIL[kind], first

    def broken(self, row: int, path: tuple[int, ...]) -> bool:
        return row != 1 and len(path) >= self.first and (not path or path[0] % 2 == 0)

    def logits(self, row, path):
        logits = super().logits(row, path)
        return self.spoil(logits) if self.broken(row, path) else logits


@pytest.mark.parametrize("first", [0, 1, 2])
@pytest.mark.parametrize("kind", SPOIL)
@pytest.mark.parametrize("builder", BUILDERS)
def test_what_builders_hand_over_is_a_tree_whatever_the_logits_are(builder, kind, first):
    toy = SpoiltToy(kind, first)
    tree, _ = grow(BUILDERS[builder].fork(), toy)  # which validates it
    tree.account()
    wrong = [
        [any(toy.broken(row, path[:cut]) for cut in range(len(path))) for path in paths_of(tree, row)]
        for row in range(ROWS)
    ]
    log_probs = tree.log_probs if tree.valid is None else tree.log_probs.masked_fill(~tree.valid, 0)
    assert not log_probs.isnan().any()
    for row in range(ROWS):
        for path, value in zip(paths_of(tree, row), log_probs[row].tolist(), strict=True):
            if path and toy.broken(row, path[:-1]) and value:  # padding has 0
                assert value == -INF
    if builder in ("chain", "static"):  # which keep all guesses
        assert tree.unusable().sum(-1).tolist() == [sum(row) for row in wrong]
    else:
        unusable = tree.unusable().sum(-1)
        assert unusable[1] == 0 and (unusable >= torch.tensor([sum(row) for row in wrong])).all()


@pytest.mark.parametrize("kind", SPOIL)
def test_the_dynamic_tree_keeps_all_that_is_usable_before_what_is_not(kind):
    toy = SpoiltToy(kind, 1)
    tree, _ = grow(DynamicTree(2, 4, 14), toy)
    sound = [token for _, token in ranked(toy, 0, ())[:4]]
    good = {(), *((token,) for token in sound)}
    good |= {(first, token) for first in sound if first % 2 for _, token in ranked(toy, 0, (first,))[:4]}
    paths = paths_of(tree, 0)
    assert 5 < len(good) < len(paths) == 14 and good <= set(paths)


@pytest.mark.parametrize("kind", SPOIL)
def test_nothing_is_drawn_from_logits_that_are_no_distribution(kind):
    """Then q is 0 for every token, nothing is accepted, and the target draws from its own distribution untouched."""
    toy = SpoiltToy(kind, 0)
    proposals = Proposals(True, LogitsPipeline(1.0), [[9]] * ROWS, torch.Generator().manual_seed(0))
    tree, _ = grow(StaticTree(["0", "1", "00", "01"]), toy, proposals)
    assert tree.proposal == "sampled" and not tree.draft_probs.isnan().any()
    assert not tree.draft_probs[0].any() and tree.draft_probs[1].sum(-1) == pytest.approx(1)

    class Seen(RejectionSampling):
        def _draw(self, probs):
            self.bonus = probs
            return probs.argmax(-1)

    logits = torch.randn(ROWS, tree.num_nodes, 8, generator=torch.Generator().manual_seed(1))
    context = mmspec.target.Context.__new__(mmspec.target.Context)
    context.logits, context.history = logits[:, 0], [[9]] * ROWS
    verifier = Seen().fork_for(context, LogitsPipeline(1.0), 0)
    verdict = verifier.verify(tree, mmspec.outcome.Scores(logits))
    assert verdict.length[0] == 1
    torch.testing.assert_close(verifier.bonus[0], logits[0, 0].softmax(-1), rtol=1e-6, atol=0)


class Spoilt(TextOnlyDrafter):
    """A draft model that now and then has nothing to say: from the second level of a round on."""

    kind, calls = "nan", 0

    def draft(self, root):
        self.level = 0
        return super().draft(root)

    def expand(self, block):
        self.level += 1
        logits = super().expand(block)
        return SPOIL[self.kind](logits) if self.level > 1 and self.fails() else logits

    def fails(self) -> bool:
        self.calls += 1
        return self.calls % 3 > 0


def spoilt(target: Target, kind: str) -> Spoilt:
    drafter = Spoilt(target, models.blurred(target.model))
    drafter.kind = kind
    return drafter


@pytest.mark.parametrize("builder", BUILDERS)
@pytest.mark.parametrize(
    ("kind", "dtype", "temperature"),
    [
        ("nan", "float32", 0.8),
        ("nothing possible", "float32", 0.0),
        ("some nan", "bfloat16", 0.0),
        ("inf", "float16", 0.0),
    ],
)
def test_texts_stay_those_of_the_target(builder, kind, dtype, temperature):
    target = Target(models.llama().to(getattr(torch, dtype)))
    options = {"inputs": models.inputs_for("llama", [0] * 2, [9, 5]), "max_new_tokens": 8, "temperature": temperature}
    plain = mmspec.generate(target, **options)
    out = mmspec.generate(target, spoilt(target, kind), tree=BUILDERS[builder], trace=True, **options)
    assert out.token_ids == plain.token_ids
    assert out.stats.unusable_guesses == sum(sum(record.unusable) for record in out.stats.rounds) > 0
    assert out.stats.summary()["unusable_guesses"] == out.stats.unusable_guesses
    assert [one.unusable for one in out.trace] == [record.unusable[0] for record in out.stats.rounds][: len(out.trace)]
    assert plain.stats.unusable_guesses == 0


@pytest.mark.parametrize("kind", SPOIL)
def test_rejection_sampling_goes_on_with_the_targets_law(kind):
    """A drafter that says nothing usable at all leaves plain sampling, draw by draw."""
    target = target_of("llama", "sdpa")

    class Mute(Spoilt):
        def expand(self, block):
            return SPOIL[kind](TextOnlyDrafter.expand(self, block))

    drafter = Mute(target, models.llama(seed=5, layers=1))
    options = {"inputs": models.inputs_for("llama", [0], [9]), "max_new_tokens": 10, "temperature": 0.9, "seed": 4}
    rule = RejectionSampling()
    texts = [
        mmspec.generate(target, drafter, tree=tree, verifier=rule, **options)
        for tree in (Chain(3), StaticTree(["0", "1", "00"]))
    ]
    for out in texts:
        assert out.stats.num_accepted_draft_tokens == 0
        assert out.stats.unusable_guesses == out.stats.num_draft_tokens > 0
    assert [r.emitted for r in texts[0].stats.rounds] == [[1]] * 9


def test_the_line_under_an_answer_says_it():
    stats = Stats([Round([3], [0], [1], 3, unusable=[2])] * 2, [9], [3], {"score": 1.0})
    assert stats.unusable_guesses == 4
    assert "unusable guesses: 4, the drafter's logits are NaN or infinite" in summary_line(stats, None, False)
    stats.rounds = [Round([3], [0], [1], 3)] * 2
    assert "unusable" not in summary_line(stats, None, False)


def test_medusa_heads_of_nan_do_not_change_the_text():
    target = target_of("llama", "sdpa")
    drafter = MedusaDrafter(target, heads=3)
    drafter.medusa_head[1][-1].weight.data[:] = NAN
    inputs = models.inputs_for("llama", [0], [9])
    plain = mmspec.generate(target, inputs=inputs, max_new_tokens=8)
    out = mmspec.generate(target, drafter, inputs=inputs, max_new_tokens=8)
    assert out.token_ids == plain.token_ids and out.stats.unusable_guesses > 0


@pytest.mark.parametrize("rows", [(9,), (9, 20, 5)])
def test_one_spoilt_round_is_forgotten(rows):
    """NaN in the drafter's cache is gone with the round: also in ragged batches, whose rows see one another's slots."""
    target, drafter = target_of("llama", "sdpa"), eagle_drafter("llama", "sdpa").fork()

    class Once(EagleDrafter):
        calls = 0

        def expand(self, block):
            Once.calls += 1
            if Once.calls <= 2:
                self._drafted = [states * NAN for states in self._drafted]
            return super().expand(block)

    drafter.__class__ = Once
    inputs = models.inputs_for("llama", [0] * len(rows), list(rows))
    options = {"inputs": inputs, "max_new_tokens": 10}
    out = mmspec.generate(target, drafter, tree=DynamicTree(3, 3, 12), **options)
    assert out.token_ids == mmspec.generate(target, **options).token_ids
    assert all(out.stats.rounds[0].unusable) and not any(any(record.unusable) for record in out.stats.rounds[1:])


def test_dropped_entries_leave_clean_memory_behind():
    shape = SlotShape(1, 2, torch.float32, torch.device("cpu"))
    cache = TreeCache([(shape, shape)], 2)
    for counts, value in (([3, 1], 1.0), ([0, 2], NAN)):
        cache.begin(3)
        cache.layers[0].update(*[torch.full((2, 1, 3, 2), value)] * 2)
        cache.end()
        cache.commit(counts)
    keys = cache.layers[0].keys[:, 0, :, 0]
    assert keys[0, :3].tolist() == [1, 1, 1] and not keys[0, 3:].any()
    assert keys[1, 0] == 1 and keys[1, 1:3].isnan().all() and not keys[1, 3:].any()


def test_a_guess_that_overflows_in_half_precision_leaves_its_siblings_alone():
    """They see it with a weight of 0, and 0 times infinity is no number."""
    shape = SlotShape(1, 2, torch.float16, torch.device("cpu"))
    cache = TreeCache([(shape, shape)], 1)
    cache.begin(2)
    states = torch.tensor([[[[INF, -INF], [NAN, 2.0]]]], dtype=torch.float16)
    keys, values = cache.layers[0].update(states, states)
    cache.end()
    assert keys.tolist() == values.tolist() == [[[[65504.0, -65504.0], [0.0, 2.0]]]]


@pytest.mark.parametrize("verifier", [PointMassSampling(), RejectionSampling()], ids=["point mass", "rejection"])
@pytest.mark.parametrize("first", [0, 3])
def test_a_target_of_nan_is_told_in_words_where_a_token_is_drawn(verifier, first):
    """`generate` fails there too. Greedy decoding goes on with the argmax, as `generate` does."""

    def spoil(ids, scores):
        return scores * (NAN if ids.shape[1] >= 9 + first else 1.0)

    drafter = blurred_drafter("llama", "sdpa")
    options = {"inputs": models.inputs_for("llama", [0], [9]), "max_new_tokens": 6, "logits_processor": [spoil]}
    with pytest.raises(MMSpecError, match="the target's logits in row 0 are NaN or.*tokens"):
        mmspec.generate(drafter.target, drafter, tree=Chain(2), temperature=1.0, verifier=verifier, **options)


# What is no tree is refused.


class Own(Drafter):
    """A drafter whose tree is a function of the root."""

    def __init__(self, target, make):
        super().__init__(target)
        self.make = make

    def start(self, context):
        pass

    def draft(self, root):
        return self.make(root)


def tree_of(root, parents=(-1, 0, 0), tokens=(5, 6), depth=2, **fields):
    drafted = torch.tensor([tokens] * len(root))
    return DraftTree(torch.cat([root[:, None], drafted], 1), torch.tensor([parents] * len(root)), depth, **fields)


def sampled(value):
    def make(root):
        probs = torch.full((1, 1, models.VOCAB), 1 / models.VOCAB).index_fill(-1, torch.tensor([4]), value)
        return tree_of(root, expansion=torch.tensor([[0, -1, -1]]), draft_probs=probs)

    return make


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda root: None, "Own.draft returned a NoneType; it must return a DraftTree"),
        (lambda root: tree_of(root.repeat(2)), "tokens of shape (2, 3), but the batch has 1 rows"),
        (lambda root: tree_of(root, parents=(-1, 0)), "parents of shape (1, 2), but tokens of shape (1, 3)"),
        (lambda root: tree_of(root, valid=torch.ones(1, 3)), "valid of torch.float32 on cpu; they must be torch.bool"),
        (lambda root: tree_of(root, tokens=(5, 61)), "node 2 is token 61, but tokens go from 0 to 60"),
        (lambda root: tree_of(root, tokens=(-1, 5)), "node 1 is token -1, but tokens go from 0 to 60"),
        (lambda root: tree_of(root, parents=(-1, 2, 0)), "node 1 has parent 2, which does not stand before it"),
        (lambda root: tree_of(root, parents=(-1, 0, -1)), "node 2 has parent -1, which does not stand before it"),
        (lambda root: tree_of(root, parents=(0, 0, 1)), "node 0 must be the root"),
        (lambda root: tree_of(root, parents=(-1, 0, 1), depth=1), "node 2 lies deeper than max_depth 1"),
        (lambda root: tree_of(root, is_chain=True), "node 2 is not below the node before it"),
        (lambda root: tree_of((root + 1) % 60), "node 0 is token ... , but the newest token, its root, is"),
        (lambda root: tree_of(root, valid=torch.tensor([[True, False, True]])), "node 2 is valid, but a node before"),
        (lambda root: tree_of(root, draft_probs=torch.ones(1, 1, 61)), "need expansion"),
        (sampled(NAN), "node 0 was expanded to draft_probs that are no distribution"),
        (sampled(-0.1), "node 0 was expanded to draft_probs that are no distribution"),
        (sampled(3.0), "node 0 was expanded to draft_probs that are no distribution"),
    ],
)
def test_a_drafters_own_tree_that_is_none_is_refused_in_one_line(make, message):
    target = target_of("llama", "sdpa")
    refused(
        lambda: mmspec.generate(
            target, Own(target, make), inputs=models.inputs_for("llama", [0], [9]), max_new_tokens=4
        ),
        message,
    )


def test_a_drafters_own_tree_that_is_one_is_taken():
    target, inputs = target_of("llama", "sdpa"), models.inputs_for("llama", [0], [9])
    plain = mmspec.generate(target, inputs=inputs, max_new_tokens=6).token_ids
    out = mmspec.generate(target, Scripted(target, plain, siblings=1), inputs=inputs, max_new_tokens=6)
    assert out.token_ids == plain and out.stats.num_accepted_draft_tokens > 0


class CutsParents(TreeBuilder):
    """Keeps the second level without the first."""

    def build(self, growth):
        children = growth.expand(growth.expand(growth.root, 2), 2)
        return growth.keep(torch.cat([growth.root, children], dim=1))


def test_a_builder_that_cuts_parents_is_refused():
    target = target_of("llama", "sdpa")
    with pytest.raises(MMSpecError, match="row 0: node 1 was kept, but its parent was not"):
        mmspec.generate(
            target,
            blurred_drafter("llama", "sdpa"),
            inputs=models.inputs_for("llama", [0], [9]),
            tree=CutsParents(),
            max_new_tokens=4,
        )
