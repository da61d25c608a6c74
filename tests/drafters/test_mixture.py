"""Mixtures: what is drafted and drawn is q_bar, members that share a model read together, and weights are learnt from
what the target said."""

from __future__ import annotations

from types import SimpleNamespace

import models
import pytest
import torch
from full_recompute import recompute
from laws import Enumeration, TableModel, g_test, random_tables, zeroed
from refusals import refused
from test_mixture_weights import by_hand
from tiny_drafters import blurred_drafter, eagle3_drafter, record_drafts, shared_vision_drafter, text_drafter
from tiny_requests import RAGGED, case, target_of
from toy_law import ALPHA, exact_law, sample, toy

import mmspec
from mmspec import Target
from mmspec.compressors import Hide, Pool
from mmspec.drafters import (
    CaptionedDrafter,
    EarlyExitDrafter,
    GridWeights,
    MedusaDrafter,
    MixtureDrafter,
    NGramDrafter,
    SkippingDrafter,
    StepDrafter,
    TextOnlyDrafter,
)
from mmspec.drafters.mixture import abreast
from mmspec.mixtures import mixture_of_views
from mmspec.trees import BestFirstTree, Chain, DynamicTree, Growth, StaticTree
from mmspec.verifiers import RejectionSampling

NEW = 14
TREES = {"chain": Chain(3), "static": StaticTree([[0], [1], [0, 0], [1, 0]]), "dynamic": DynamicTree(3, 3, 9)}
WEIGHTS = [0.3, 0.7]


# The law.


class TableDrafter(StepDrafter):
    """Guesses what tables prescribe."""

    def __init__(self, target, tables, rows: int):
        super().__init__(target)
        self.of = TableModel(tables, rows)

    def expand_root(self, root):
        return self.of.expand_root()

    def expand(self, block):
        return self.of.expand(block)


class MixedEnumeration(Enumeration):
    """All outcomes of a round of which a `MixtureDrafter` drafts.

    Args:
        seen: the member whose q the verifier sees, which is wrong; None for the mixture's.
    """

    def __init__(self, *arguments, seen: int | None = None):
        self.seen = seen
        super().__init__(*arguments)

    def _tree(self, draft, builder, proposals, rows):
        target = SimpleNamespace(vocab_size=draft[0][0].shape[-1], device=torch.device("cpu"), family=None)
        members = [TableDrafter(target, tables, rows) for tables in draft]
        mixture = MixtureDrafter(target, members, WEIGHTS)
        root = torch.zeros(rows, dtype=torch.long)
        mixture.start(SimpleNamespace(history=[[0]] * rows))
        tree = builder.build(Growth(root, lambda: mixture.expand_root(root), mixture.expand, proposals))
        if self.seen is not None:
            alone = TableModel(draft[self.seen], rows)
            first = alone.expand_root()[:, None].softmax(-1)
            tree.draft_probs = torch.cat([first, tree.draft_probs[:, 1:]], dim=1)
        return tree


SHAPES = {
    "chain": Chain(2),
    "siblings": StaticTree(["0", "1"]),
    "two levels": StaticTree(["0", "1", "00", "01", "10"]),
}


def said(kind: str):
    """Tables of the target and of two members."""
    p, one, other = (random_tables(3, 2, seed) for seed in (1, 2, 3))
    if kind == "a member lacks a token":
        one = zeroed(one, [0])
    if kind == "members share no token":
        one, other = zeroed(one, [0]), zeroed(other, [1, 2])
    if kind == "a member is the target":
        one = p
    return p, [one, other]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    "kind", ["random", "a member lacks a token", "members share no token", "a member is the target"]
)
def test_rejection_sampling_of_a_mixture_is_lossless(kind, shape):
    p, members = said(kind)
    outcome = MixedEnumeration(RejectionSampling(), p, members, SHAPES[shape])
    assert outcome.error() < 1e-7  # weights are numbers of single precision
    mixed = sum(w * tables[0] for w, tables in zip(WEIGHTS, members, strict=True))
    torch.testing.assert_close(outcome.tree.draft_probs[:, 0], mixed.expand(len(outcome.tree.tokens), -1))


@pytest.mark.parametrize("seen", [0, 1])
def test_a_verifier_that_sees_one_members_guesses_would_be_wrong(seen):
    p, members = said("members share no token")
    assert MixedEnumeration(RejectionSampling(), p, members, Chain(2), seen=seen).error() > 1e-2


@pytest.mark.parametrize("tree", [Chain(2), StaticTree(["0", "1", "00", "01", "10"])], ids=["chain", "static"])
def test_sampled_text_follows_the_exact_law_while_weights_are_learnt(tree):
    target = Target(toy(0))
    mixture = MixtureDrafter(target, [TextOnlyDrafter(target, toy(seed)) for seed in (1, 2)])
    assert g_test(sample(target, mixture, tree, verifier=RejectionSampling(), seed=5), exact_law(target.model)) > ALPHA


# What is drafted.


def views_of(name: str, weights="matches", together: bool = True) -> MixtureDrafter:
    """A model that reads pictures with three views of them."""
    model = shared_vision_drafter(name, "sdpa")
    views = [model, model.with_compressor(Hide(packed=True)), model.with_compressor(Pool(2))]
    return MixtureDrafter(model.target, views, weights, together=together)


@pytest.mark.parametrize("tree", TREES)
@pytest.mark.parametrize("name", models.VISUAL)
def test_members_that_read_together_guess_what_they_guess_alone(name, tree, monkeypatch):
    """In rows that end at different times, with one, no and two pictures, and several axes of positions."""
    inputs, expected = case(name, "sdpa", *RAGGED, NEW)
    stop = expected[1][6]
    drafter, drafts = views_of(name), []
    for drafter.together in (True, False):
        with monkeypatch.context() as patch:
            drafts.append(record_drafts(patch, MixtureDrafter))
            out = mmspec.generate(
                drafter.target, drafter, inputs=inputs, max_new_tokens=NEW, tree=TREES[tree], eos_token_id=stop
            )
        assert out.token_ids == [ids[: ids.index(stop) + 1] if stop in ids else ids for ids in expected]
    assert {len(ids) for ids in out.token_ids} != {NEW}
    assert len(drafts[0]) == len(drafts[1]) > 3
    for one, other in zip(*drafts, strict=True):
        assert one.active == other.active
        for row in [row for row, active in enumerate(one.active) if active]:
            assert one.tree.tokens[row].equal(other.tree.tokens[row])
            torch.testing.assert_close(one.tree.log_probs[row], other.tree.log_probs[row], rtol=0, atol=1e-4)


@pytest.mark.parametrize("together", [True, False])
def test_views_of_one_model_take_one_pass_a_level(together):
    drafter = views_of("llava", together=together)
    inputs, expected = case("llava", "sdpa", *RAGGED, NEW)
    model, passes = drafter.members[0].model, []
    hook = model.register_forward_pre_hook(lambda *_: passes.append(1))
    out = mmspec.generate(drafter.target, drafter, inputs=inputs, max_new_tokens=NEW, tree=Chain(4))
    hook.remove()
    assert out.token_ids == expected
    rounds = len(out.stats.rounds)
    assert len(passes) == 3 + 4 * rounds * (1 if together else 3)


def test_the_first_tree_has_the_mixture_of_the_members_probabilities(monkeypatch):
    """Against full passes of both models, in the vocabulary of a head that proposes a third of the tokens."""
    target, weights = target_of("llava", "sdpa"), [0.75, 0.25]
    drafts = {}
    members = {"text": text_drafter("llava", "sdpa"), "head": eagle3_drafter("llava", "sdpa")}
    inputs, _ = case("llava", "sdpa", *RAGGED, NEW)
    shape = StaticTree([[n] for n in range(18)])
    for name, drafter in {**members, "both": MixtureDrafter(target, [*members.values()], weights)}.items():
        with monkeypatch.context() as patch:
            found = record_drafts(patch, StepDrafter)
            mmspec.generate(target, drafter, inputs=inputs, max_new_tokens=2, tree=shape)
        drafts[name] = found[0].tree
    for row in range(len(inputs["input_ids"])):
        said = {
            name: dict(zip(tree.tokens[row, 1:].tolist(), tree.log_probs[row, 1:].exp().tolist(), strict=True))
            for name, tree in drafts.items()
        }
        sure = [token for token in said["both"] if token in said["text"]]
        assert len(sure) > 5
        outside = [token for token in sure if token % 3 != 1]
        assert outside, "the head cannot propose them"
        for token in sure:
            if token % 3 != 1 or token in said["head"]:
                mixed = weights[0] * said["text"][token] + weights[1] * said["head"].get(token, 0.0)
                assert abs(said["both"][token] - mixed) < 1e-5


def test_a_member_of_weight_one_is_alone_and_one_of_weight_zero_is_not_heard():
    inputs, expected = case("llava", "sdpa", *RAGGED, NEW)
    alone, broken = blurred_drafter("llava", "sdpa"), text_drafter("llava", "sdpa")
    broken.model.get_output_embeddings().weight.data.fill_(float("nan"))
    outs = [
        mmspec.generate(drafter.target, drafter, inputs=inputs, max_new_tokens=NEW, tree=Chain(4))
        for drafter in (alone, MixtureDrafter(alone.target, [alone, broken], [1.0, 0.0]))
    ]
    assert outs[0].token_ids == outs[1].token_ids == expected
    assert outs[0].stats.num_accepted_draft_tokens == outs[1].stats.num_accepted_draft_tokens > 0
    spoilt = MixtureDrafter(alone.target, [alone, broken])  # one that counts and gives no distribution
    assert mmspec.generate(alone.target, spoilt, inputs=inputs, max_new_tokens=NEW).token_ids == expected


@pytest.mark.parametrize("place", [0, 1])
@pytest.mark.parametrize("tree", [Chain(4), DynamicTree(3, 3, 8)], ids=["chain", "dynamic"])
def test_members_that_are_layers_of_the_target_read_what_they_read_alone(tree, place):
    """All layers of the target, whose guesses are right, beside fewer of them, in the same entries of its cache."""
    target = target_of("llama", "sdpa")
    inputs, expected = case("llama", "sdpa", *RAGGED, NEW)
    weights = [float(number == place) for number in range(2)]
    members = [EarlyExitDrafter(target, layers=1 + 2 * (number == place)) for number in range(2)]
    mixed, alone = (
        mmspec.generate(target, drafter, inputs=inputs, max_new_tokens=NEW, tree=tree)
        for drafter in (MixtureDrafter(target, members, weights), members[place])
    )
    assert mixed.token_ids == alone.token_ids == expected
    assert [one.emitted for one in mixed.stats.rounds] == [one.emitted for one in alone.stats.rounds]
    assert mixed.stats.num_accepted_draft_tokens > 20


@pytest.mark.parametrize("tree", [Chain(3), BestFirstTree(6), StaticTree(["0", "1", "00", "01"])], ids=repr)
def test_a_mixture_of_independent_heads_is_independent(tree):
    target = target_of("llava", "sdpa")
    heads = [models.redraw(MedusaDrafter(target, heads=depth), seed).eval() for depth, seed in ((3, 1), (2, 2))]
    mixture = MixtureDrafter(target, heads)
    assert mixture.independent and mixture.cheap_levels and mixture.max_depth == 2
    inputs, expected = case("llava", "sdpa", *RAGGED, NEW)
    assert mmspec.generate(target, mixture, inputs=inputs, max_new_tokens=NEW, tree=tree).token_ids == expected


# What is learnt.


@pytest.mark.parametrize("rule", ["matches", "kl", "inverse_tv"])
def test_weights_are_fitted_to_what_the_target_said_at_the_places_of_earlier_blocks(rule, monkeypatch):
    """From full passes of all models over the text; three members, two rows, chains of three."""
    gamma, target = 3, Target(models.llama())
    members = [models.blurred(target.model, amount, seed) for amount, seed in ((0.6, 1), (0.9, 2), (1.2, 3))]
    mixture = MixtureDrafter(target, [TextOnlyDrafter(target, model) for model in members], rule)
    inputs = models.inputs_for("mistral", [0, 0], [7, 12])
    used, now = [], type(mixture.weights).now

    def noted(self):
        used.append(now(self))
        return used[-1]

    monkeypatch.setattr(type(mixture.weights), "now", noted)
    drafts = record_drafts(monkeypatch, MixtureDrafter)
    out = mmspec.generate(target, mixture, inputs=inputs, max_new_tokens=18, tree=Chain(gamma))
    assert len(used) == len(drafts) > 5
    for row in range(2):
        single = models.one_row(inputs, row)
        prompt, text = single["input_ids"].shape[1], out.token_ids[row]
        spoken = [
            recompute(model, single, [text]).logits[0, prompt - 1 : -1].softmax(-1)
            for model in (target.model, *members)
        ]
        begun = [len(draft.history[row]) - prompt for draft in drafts if draft.active[row]]  # tokens with the root
        places: list[int] = []
        for number, start in enumerate(begun):
            if places and number % 3 == 2:
                p, *q = (each[places].tolist() for each in spoken)
                expected = by_hand(rule, p, [list(each) for each in zip(*q, strict=True)])
                torch.testing.assert_close(used[number][row], torch.tensor(expected), rtol=1e-2, atol=1e-4)
            end = begun[number + 1] if number + 1 < len(begun) else len(text)
            places += range(start, start + min(end - start, gamma))
    assert any((weights - 1 / 3).abs().max() > 0.05 for weights in used[1:])


def test_requests_do_not_hear_each_other():
    """Two at once, and one after another."""
    drafter = views_of("llava")
    inputs, expected = case("llava", "sdpa", *RAGGED, NEW)
    streams = [
        mmspec.stream(drafter.target, drafter, inputs=inputs, max_new_tokens=NEW, tree=Chain(4)) for _ in range(2)
    ]
    texts: list[list[list[int]]] = [[[] for _ in expected] for _ in streams]
    while streams:
        for number, stream in [*enumerate(streams)]:
            piece = next(stream, None)
            if piece is None:
                streams = [other for other in streams if other is not stream]
            else:
                texts[number % 2][piece.row] += piece.token_ids
    assert mmspec.generate(drafter.target, drafter, inputs=inputs, max_new_tokens=NEW).token_ids == expected
    assert not hasattr(drafter.weights, "_sums")


# What is refused, and the views of a model.


def test_what_cannot_be_mixed_is_refused():
    target = target_of("llava", "sdpa")
    text = TextOnlyDrafter(target, models.llama(layers=1))
    for members, message in [
        ([text], "members has 1 drafters, and two at least make a mixture"),
        ([text, NGramDrafter(target)], "members[1]= ... gives no logits to mix"),
        ([text, text], "members[1], a TextOnlyDrafter, stands there twice"),
        ([text, text_drafter("mistral", "sdpa")], "members[1], a TextOnlyDrafter, was made for another target"),
    ]:
        refused(lambda members=members: MixtureDrafter(target, members), message)
    early, block = EarlyExitDrafter(target, layers=1), EarlyExitDrafter(target, layers=1, imitation="block")
    refused(lambda: MixtureDrafter(target, [text, block]), "imitation='block' has to read every node ... choose")
    skipping = SkippingDrafter(target, skipped=(2,))
    refused(lambda: MixtureDrafter(target, [early, skipping]), "SkippingDrafter and a EarlyExitDrafter would overwrite")
    refused(lambda: MixtureDrafter(target, [text, SkippingDrafter(target)]), "say what it skips, such as skipped=")
    both = [text, text.fork()]
    refused(lambda: MixtureDrafter(target, both, [1.0]), "MixtureDrafter: weights=[1.0] must be one for each of the 2")
    refused(lambda: MixtureDrafter(target, both, [1.0, 2]), "MixtureDrafter: weights=[1.0, 2] must be numbers of 0 or")
    refused(lambda: MixtureDrafter(target, text), "members= ... must be a list of two or more drafters")
    refused(lambda: MixtureDrafter(target, both, together="no"), "together='no' must be true or false")
    refused(
        lambda: MixtureDrafter(target, both).with_compressor(Pool(2)), "have views of their own, so Pool has no place"
    )
    refused(lambda: MixtureDrafter(target, both).save_pretrained("nowhere"), "save its members")


def test_a_member_with_another_vocabulary_is_refused():
    target = SimpleNamespace(vocab_size=4, device=torch.device("cpu"), family=None)
    members = [TableDrafter(target, random_tables(vocab, 1, 0), 1) for vocab in (4, 3)]
    mixture = MixtureDrafter(target, members)
    mixture.start(SimpleNamespace(history=[[0]]))
    refused(
        lambda: mixture.expand_root(torch.zeros(1, dtype=torch.long)),
        "member 1, a TableDrafter, speaks of 3 tokens and the target of 4",
    )


@pytest.fixture(scope="module")
def embedded():
    return mmspec.load_target("tiny")


@pytest.mark.product
def test_views_of_the_embedded_model_with_captions(embedded):
    """Two pictures, one and none in a batch; the caption of another picture changes what is guessed, not the text."""
    one, two = (mmspec.zoo.sample(task, "test", 3) for task in ("scenes", "documents"))
    request = {
        "prompt": [one.prompt, "Describe the first picture, then read out the second one.", "Say something."],
        "images": [[one.image], [one.image, two.image], []],
        "max_new_tokens": 8,
    }
    expected = mmspec.generate(embedded, None, **request).token_ids
    drafter = mixture_of_views(
        embedded, "tiny/draft_model", ["whole", "text", "captioned", Pool(4)], ["tiny/text_only"]
    )
    assert isinstance(drafter.members[2], CaptionedDrafter) and len(drafter.members) == 5
    accepted = []
    for captions in (["a red circle", ["a red circle", "a page"], None], ["a page", ["a page", "two cats"], None]):
        out = mmspec.generate(embedded, drafter, extras={"captions": captions}, tree=Chain(3), **request)
        assert out.token_ids == expected
        accepted.append(out.stats.num_accepted_draft_tokens)
    assert min(accepted) > 0
    drawn = {**request, "num_return_sequences": 2, "temperature": 1.0, "seed": 2}
    copies = mmspec.generate(embedded, drafter, extras={"captions": captions}, tree=Chain(3), **drawn)
    assert copies.token_ids == mmspec.generate(embedded, None, **drawn).token_ids
    for wrong in (None, ["a red circle", "only one", None], ["a", ["b", "c"], "none is there"]):
        extras = {} if wrong is None else {"extras": {"captions": wrong}}
        with pytest.raises(mmspec.MMSpecError, match="CaptionedDrafter reads a text for each of them"):
            mmspec.generate(embedded, drafter, **extras, **request)


def test_captions_stand_where_the_pictures_were(embedded):
    from mmspec.inputs import prepare

    sample = mmspec.zoo.sample("scenes", "test", 3)
    captioned = CaptionedDrafter(embedded, mmspec.load_drafter("tiny/text_only", embedded).model)
    request = prepare(
        embedded, [sample.prompt], [[sample.image, sample.image]], extras={"captions": [["one dog", "two cats"]]}
    )
    read, vision = captioned.prompt_of(request, embedded.encode(request))
    text = embedded.tokenizer.decode(read.inputs["input_ids"][0])
    assert vision is None and text.index("image: one dog") < text.index("image: two cats") < text.index(sample.prompt)


def test_mixtures_of_views_are_refused_where_there_are_none(embedded):
    refused(lambda: mixture_of_views(embedded, "tiny/eagle3"), "is a Eagle3Drafter that reads no pictures")
    for part in ("views", "others"):
        for wrong in ("whole", None):
            call = lambda part=part, wrong=wrong: mixture_of_views(embedded, "tiny/draft_model", **{part: wrong})  # noqa: E731
            refused(call, f"{part}={wrong!r} must be a list")
    refused(
        lambda: mixture_of_views(embedded, "tiny/draft_model", ["blurred"]), "views='blurred' is none of whole, text"
    )


def test_guided_requests_are_read_alone(embedded):
    """Pairs of prompts are rows of one batch already."""
    drafter = mixture_of_views(embedded, "tiny/draft_model", ["whole", "text"])
    sample = mmspec.zoo.sample("scenes", "test", 3)
    request = {"prompt": sample.prompt, "images": [sample.image], "max_new_tokens": 12}
    request |= {"guidance_scale": 1.5, "negative_prompt": "Say nothing."}
    expected = mmspec.generate(embedded, None, **request).token_ids
    made = []
    original = abreast.Abreast.__init__
    try:
        abreast.Abreast.__init__ = lambda self, *arguments: made.append(1) or original(self, *arguments)
        assert mmspec.generate(embedded, drafter, tree=Chain(4), **request).token_ids == expected
    finally:
        abreast.Abreast.__init__ = original
    assert not made


def test_the_default_rule_is_tabeds():
    drafter = views_of("llava")
    assert isinstance(drafter.weights, GridWeights) and drafter.weights.measure == "matches"
    assert drafter.weights.parts == 10 and drafter.weights.window is None
