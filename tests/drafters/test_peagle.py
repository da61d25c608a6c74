"""P-EAGLE: what it guesses, whatever happened before, is one explicit pass; so is training, of as many depths as are
kept."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import models
import originals
import pytest
import torch
from blocks import drafter_like
from heads import ANSWERS, FEW, TOLERANCE, compressor, error, expect_loaded_as_saved, guesses_of, inputs_of, lesson_of
from scripted_rounds import Script, Told, expect_true_features_only, guesses_compared
from tiny_drafters import record_drafts
from tiny_requests import RAGGED, case, target_of
from yardstick import sequence_of

import mmspec
from mmspec import MMSpecError, Target
from mmspec.compressors.base import compressor_of
from mmspec.drafters import PEagleDrafter
from mmspec.inputs import prepare
from mmspec.lesson import Guess
from mmspec.training import Objective
from mmspec.training.losses import CrossEntropy
from mmspec.trees import BestFirstTree, Chain, DynamicTree
from mmspec.verifiers import Gated, Greedy
from mmspec.verifiers.gates import Every

NEW = 14
FAMILIES = ("llava", "qwen_vl", "llama")
# Every switch is on somewhere and off somewhere.
VARIANTS = {
    "plain": {"layers": 3, "depths": 5},
    "3.1, fewer tokens": {"layers": 2, "depths": 4, "fc_norm": True, "draft_vocab_size": 20, "mask_token_id": 4},
    "one layer": {"layers": 1, "depths": 4, "visual": True, "norm_before_fc": True, "norm_before_residual": True}
    | {"feature_layers": [0, 1, 2], "mask_token_id": 3}
    | {"head": {"num_key_value_heads": 1, "rope_parameters": {"rope_type": "default", "rope_theta": 50.0}}},
    "pool": {"layers": 2, "depths": 4, **compressor("pool.Pool", size=2)},
}
# The plain one with all families, the others with one by default.
GRID = [
    pytest.param(
        name, variant, marks=[] if variant == "plain" or (row + column) % len(FAMILIES) == 0 else [pytest.mark.slow]
    )
    for row, name in enumerate(FAMILIES)
    for column, variant in enumerate(VARIANTS)
]


def build(target: Target, variant: str, **changes) -> PEagleDrafter:
    """A drafter with random weights, and a mask that weighs as much as a state."""
    settings = {**VARIANTS[variant], **changes}
    return drafter_like(PEagleDrafter, target, {**settings, "compressor": compressor_of(settings.get("compressor"))})


@cache
def drafter_of(name: str, variant: str) -> PEagleDrafter:
    return build(target_of(name, "sdpa"), variant).eval()


def expected(name: str, drafter: PEagleDrafter, row: int, root: int, depths: int, wrong: str = "") -> list:
    """What one explicit pass guesses behind the answer's token number `root`."""
    settings, table = drafter.settings, drafter.target.model.get_input_embeddings().weight.detach()
    explicit = originals.Parallel(
        drafter.state_dict(),
        eps=drafter.head.rms_norm_eps,
        base=drafter.head.rope_parameters["rope_theta"],
        layers=settings.feature_layers,
        norm_before_residual=settings.norm_before_residual,
        mask=settings.mask_token_id,
        wrong=wrong,
    )
    true = sequence_of(name, drafter, row, root)
    return explicit.guesses(true.features, true.embeds, torch.tensor(true.places), table, depths)


@pytest.mark.parametrize(("name", "variant"), GRID)
def test_unrolled_guesses_are_those_of_an_explicit_pass(name, variant):
    drafter, lesson = drafter_of(name, variant), lesson_of(name)
    guesses = guesses_of(drafter, lesson, 9)
    assert len(guesses) == sum(max(n - 1 - i, 0) for n in ANSWERS for i in range(drafter.settings.depths))
    with torch.no_grad():
        for row, answer in enumerate(lesson.answers):
            for root in range(len(answer) - 1):
                depths = min(drafter.settings.depths, len(answer) - 1 - root)
                for step, logits in enumerate(expected(name, drafter, row, root, depths)):
                    assert error(guesses[row, root, step], logits) < TOLERANCE, (row, root, step)


@pytest.mark.parametrize("wrong", ["later", "alone", "places", "state"])
def test_the_yardstick_tells_mistakes_apart(wrong):
    """A depth that sees a later one, say, or none above it, guesses something else; depth 0 does not."""
    drafter, lesson = drafter_of("llava", "plain"), lesson_of("llava")
    guesses = guesses_of(drafter, lesson, 4)
    with torch.no_grad():
        first, *mistaken = expected("llava", drafter, 0, 2, 4, wrong)
    assert error(guesses[0, 2, 0], first) < TOLERANCE
    assert max(error(guesses[0, 2, step + 1], logits) for step, logits in enumerate(mistaken)) > 10 * TOLERANCE


@pytest.mark.parametrize(("name", "variant"), GRID)
@pytest.mark.parametrize("width", [1, 2])
def test_training_sees_what_decoding_does(name, variant, width):
    """At every root and depth, in a ragged batch, after rounds that accepted nothing, one token or several."""
    assert guesses_compared(drafter_of(name, variant), lesson_of(name), name, width) > 25


@pytest.mark.parametrize(("name", "variant"), [("llava", "plain"), ("qwen_vl", "pool"), ("llama", "one layer")])
def test_its_cache_holds_depth_0_only(name, variant):
    """After rounds of all kinds it is that of a drafter which read the whole text as its prompt."""
    expect_true_features_only(drafter_of(name, variant), name, inputs_of(name), lesson_of(name).answers)


def test_masks_that_stay_would_be_seen(monkeypatch):
    """A cache with one of them behind every round is another than that of the text alone."""
    expand = PEagleDrafter.expand_root

    def leaking(self, root):
        session, keep = self.session, self.session.keep

        def keeping(counts, kept=None):
            keep([count + 1 if count else 0 for count in counts])
            session._ahead = [ahead - bool(count) for ahead, count in zip(session._ahead, counts, strict=True)]

        session.keep = keeping
        logits = expand(self, root)
        session.keep = keep
        return logits

    monkeypatch.setattr(PEagleDrafter, "expand_root", leaking)
    with pytest.raises(AssertionError):
        expect_true_features_only(drafter_of("llava", "plain"), "llava", inputs_of("llava"), lesson_of("llava").answers)


def test_a_prompt_may_be_a_single_token():
    drafter, inputs = drafter_of("llama", "plain"), {"input_ids": torch.tensor([[7]])}
    plain = mmspec.generate(drafter.target, inputs=inputs, max_new_tokens=NEW)
    assert mmspec.generate(drafter.target, drafter, inputs=inputs, max_new_tokens=NEW).token_ids == plain.token_ids


def test_positions_of_several_axes_matter_where_there_is_a_picture():
    section = {"head": {"rope_parameters": models.MROPE["rope_parameters"]}}
    target = target_of("qwen_vl", "sdpa")
    for pictures, differ in (([0], False), ([1], True)):
        inputs, texts = models.inputs_for("qwen_vl", pictures, [9]), []
        for rope in ("1d", "mrope"):
            script = Script(build(target, "plain", rope=rope, **section).eval(), inputs, [[4, 5, 6, 7, 8]], Told(1, 3))
            texts.append(torch.cat([logits for _ in range(2) for logits in script.round([1])[0].logits]))
        assert (error(*texts) > 1e-3) == differ
    assert guesses_compared(build(target, "plain", rope="mrope", **section).eval(), lesson_of("qwen_vl"), "qwen_vl", 2)


# What a depth sees.


def test_a_depth_knows_nothing_of_deeper_ones_nor_of_what_comes_later():
    lesson, (short, long) = lesson_of("llava"), (build(target_of("llava", "sdpa"), "plain", depths=n) for n in (3, 6))
    ours, theirs = guesses_of(short, lesson, 3), guesses_of(long, lesson, 6)
    assert all(error(theirs[key], logits) < 1e-6 for key, logits in ours.items())
    features = {n: states.clone().requires_grad_() for n, states in lesson.features.items()}
    chains = [guess for guess in short.unroll(replace(lesson, features=features), 3)]
    sum(guess.logits[guess.roots == 2].square().sum() for guess in chains).backward()
    root = lesson.prompt.lengths[0] + 2  # the third token of the first row's answer
    for layer in short.settings.feature_layers:
        seen = features[layer].grad.any(-1)
        assert seen[0, :root].all() and not seen[0, root:].any() and not seen[1:].any()


def test_no_chain_sees_the_masks_of_another(monkeypatch):
    drafter, lesson, masks = build(target_of("llama", "sdpa"), "plain"), lesson_of("llama"), []
    unrolled = PEagleDrafter._unrolled

    def recording(self, lesson, order, counts):
        made = [part.expand(len(order), sum(counts[1:]), -1).detach().clone().requires_grad_() for part in self._mask]
        masks.append((made, order, counts))
        self._mask = made
        return unrolled(self, lesson, order, counts)

    monkeypatch.setattr(PEagleDrafter, "_unrolled", recording)
    *_, last = drafter.unroll(lesson, 3)
    last.logits[last.roots == 2].square().sum().backward()
    (made, order, counts), reached = masks[0], []
    for depth, part in enumerate(made[0].grad.any(-1).split(counts[1:], dim=1)):
        reached += [(row, int(order[row, place]), depth + 1) for row, place in part.nonzero().tolist()]
    assert reached == [(0, 2, 1), (0, 2, 2)]


# Drafting.


@pytest.mark.parametrize("tree", [None, DynamicTree(5, 2, 13)], ids=["chain", "tree"])
def test_depths_that_know_the_answer_are_accepted_to_the_last(tree, monkeypatch):
    """One that spoke of the token before or behind its own would be refused."""
    inputs, answers = case("llava", "sdpa", *RAGGED, 25)
    drafter = build(target_of("llava", "sdpa"), "plain").eval()
    prompts = prepare(drafter.target, inputs=inputs).lengths

    def knowing(self, hidden):
        guesses = torch.zeros(*hidden.shape[:2], models.VOCAB)
        for row, (history, answer) in enumerate(zip(self.context.history, answers, strict=True)):
            for depth in range(hidden.shape[1]):
                guesses[row, depth, answer[min(len(history) - prompts[row] + depth, len(answer) - 1)]] = 9.0
        return guesses

    monkeypatch.setattr(PEagleDrafter, "logits", knowing)
    tree = tree or Chain(5)
    out = mmspec.generate(drafter.target, drafter, inputs=inputs, max_new_tokens=25, tree=tree)
    assert out.token_ids == answers
    assert {record.emitted[0] for record in out.stats.rounds[:-1]} == {6}


def test_the_marginals_are_what_every_node_is_expanded_with():
    drafter = drafter_of("llava", "plain")
    script = Script(drafter, inputs_of("llava"), lesson_of("llava").answers, Told(2, 3))
    builder, _ = script.round([0] * 4)
    assert drafter.independent and drafter.cheap_levels and drafter.max_depth == 5
    for depth, logits in enumerate(builder.logits):
        assert logits.equal(script.session.marginals(3)[:, depth, None].expand_as(logits))
    assert isinstance(drafter.native_tree(), Chain) and drafter.native_tree().length == 5


@pytest.mark.parametrize("tree", [BestFirstTree(12), Chain(9), DynamicTree(8, 3, 20)], ids=["best", "chain", "dynamic"])
def test_trees_end_where_the_depths_do(tree):
    drafter, (inputs, answers) = drafter_of("llava", "3.1, fewer tokens"), case("llava", "sdpa", *RAGGED, NEW)
    out = mmspec.generate(drafter.target, drafter, inputs=inputs, max_new_tokens=NEW, tree=tree)
    assert out.token_ids == answers and 1 < max(record.depth for record in out.stats.rounds) <= 4


def test_the_mask_is_never_proposed(monkeypatch):
    """Although its row of the head is the best."""
    drafter = build(target_of("llava", "sdpa"), "3.1, fewer tokens").eval()
    drafter.lm_head.weight.data[FEW == 4] = 100.0
    drafts, (inputs, _) = record_drafts(monkeypatch, PEagleDrafter), case("llava", "sdpa", *RAGGED, NEW)
    mmspec.generate(drafter.target, drafter, inputs=inputs, max_new_tokens=NEW, tree=DynamicTree(3, 4, 12))
    assert drafts and not any((draft.tree.tokens[:, 1:] == 4).any() for draft in drafts)


def test_rounds_without_the_target_are_refused():
    drafter = drafter_of("llava", "plain")
    with pytest.raises(MMSpecError, match="PEagleDrafter drafts from the target's hidden states.*leave the gate out"):
        mmspec.generate(drafter.target, drafter, verifier=Gated(Greedy(), Every(2)), inputs=inputs_of("llava"))


# Training.


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_weight_is_trained(variant):
    drafter, lesson = build(target_of("llava", "sdpa"), variant), lesson_of("llava")
    guesses = list(drafter.unroll(lesson, 9))
    sum(guess.logits.logsumexp(-1).sum() for guess in guesses).backward()
    for name, parameter in drafter.named_parameters():
        assert parameter.grad.isfinite().all() and parameter.grad.abs().max() > 1e-6, name


def test_a_thinned_lesson_asks_for_fewer_the_deeper_and_they_guess_as_all_do():
    drafter, lesson = drafter_of("llava", "plain"), lesson_of("llava")
    everything = guesses_of(drafter, lesson, 5)
    torch.manual_seed(3)
    thin = lesson.thinned(5, 0.6, 0.3)
    guesses = guesses_of(drafter, thin, 5)
    assert all(error(logits, everything[key]) < TOLERANCE for key, logits in guesses.items())
    for row, answer in enumerate(lesson.answers):
        roots = len(answer) - 1
        reach = thin.reach[row, :roots].tolist()
        for step in range(5):
            assert sum(n > step for n in reach) == -(-roots * max(6**step, 3 * 10 ** (step - 1)) // 10**step)
            kept = {root for at, root, depth in guesses if (at, depth) == (row, step)}
            assert kept == {root for root in range(roots - step) if reach[root] > step}
    assert not lesson.thinned(5, 0.6, 0.3).reach.equal(thin.reach)
    few = lesson.at_roots(4).thinned(2, 0.5, 0.0)
    assert few.drafted(0)[0].sum(1).tolist() == [4, 1, 4, 4] and few.drafted(1)[0].sum(1).max() <= 2


class Knowing:
    """Guesses what was written."""

    draft_vocabulary = None

    def unroll(self, lesson, steps, detach):
        for step in range(steps):
            valid, places = lesson.drafted(step)
            logits = 0.1 * torch.nn.functional.one_hot(lesson.tokens[places], models.VOCAB)
            yield Guess(logits, None, places, valid.flatten().nonzero()[:, 0])


def test_kept_tokens_count_alike_and_right_guesses_as_if_all_were_kept():
    lesson = lesson_of("llava")

    def sums(seed: str, **settings) -> torch.Tensor:
        total, marks = Objective([CrossEntropy()], steps=4, **settings)(Knowing(), lesson, seed)
        return torch.cat([total[None], marks])

    everything, some = sums(""), [sums(str(seed), keep=0.5, keep_least=0.3) for seed in range(200)]
    assert sums("7", keep=0.5, keep_least=0.3).equal(some[7]) and len({one[0].item() for one in some}) > 1
    means = torch.stack(some).mean(0)
    right = [sum(max(n - 1 - step, 0) for n in ANSWERS) for step in range(4)]
    assert everything[2:].tolist() == right
    assert (means[2:] / everything[2:] - 1).abs().max() < 0.1
    kept = [
        sum(-(-(n - 1) * max(0.5**step, 0.3) // 1) * max(n - 1 - step, 0) / (n - 1) for n in ANSWERS)
        for step in range(4)
    ]
    assert (means[0] / everything[0]).item() == pytest.approx(sum(kept) / sum(right), rel=0.05)
    for settings, message in ({"keep": 0.0}, "keep=0.0"), ({"keep": 0.5, "keep_least": 2.0}, "keep_least=2.0"):
        with pytest.raises(MMSpecError, match=f"Objective: {message} must be a number"):
            Objective([CrossEntropy()], **settings)


def test_what_is_saved_is_what_is_loaded(tmp_path):
    for number, variant in enumerate(VARIANTS):
        expect_loaded_as_saved(drafter_of("llava", variant), tmp_path / str(number))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"layers": 0}, "layers=0 must be a positive integer"),
        ({"depths": 0}, "depths=0 must be a positive integer"),
        ({"depths": 10**6}, "depths=1000000 are more than a pass can guess, 1024: use fewer"),
        ({"mask_token_id": 61}, "mask_token_id=61 is none of the 61 tokens that have an embedding"),
        ({"fc_norm": True, "norm_before_fc": True}, "fc_norm and norm_before_fc are two ways"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings, message):
    with pytest.raises(MMSpecError, match=f"PEagleDrafter: {message}"):
        PEagleDrafter(target_of("llava", "sdpa"), **settings)
