"""Block drafters: what they guess, whatever happened before, is one explicit block; so is training."""

from __future__ import annotations

import models
import pytest
import torch
from blocks import GRID, VARIANTS, build, drafter_of, reference_at
from heads import ANSWERS, FAMILIES, TOLERANCE, error, expect_loaded_as_saved, guesses_of, inputs_of, lesson_of
from scripted_rounds import Script, Told, expect_true_features_only, guesses_compared
from tiny_drafters import record_drafts
from tiny_requests import RAGGED, case, target_of

import mmspec
from mmspec import MMSpecError, Target
from mmspec.drafters import BlockDrafter, DFlashDrafter
from mmspec.drafters.block.fusion import weights_at_first
from mmspec.inputs import prepare
from mmspec.training import Objective
from mmspec.training.losses import CrossEntropy
from mmspec.trees import Chain, DynamicTree

NEW = 14


@pytest.mark.parametrize(("name", "variant"), GRID)
def test_unrolled_guesses_are_those_of_an_explicit_block(name, variant):
    drafter, lesson = drafter_of(name, variant), lesson_of(name)
    guesses, steps = guesses_of(drafter, lesson, 4), min(4, drafter.settings.drafts)
    assert len(guesses) == sum(max(n - 1 - i, 0) for n in ANSWERS for i in range(steps))
    for row, answer in enumerate(lesson.answers):
        for root in range(len(answer) - 1):
            chain = answer[root + 1 : -1][: steps - 1]
            for step, logits in enumerate(reference_at(name, drafter, row, root, chain)):
                assert error(guesses[row, root, step], logits) < TOLERANCE, (row, root, step)


@pytest.mark.parametrize("wrong", ["anchor", "normed", "places"])
@pytest.mark.parametrize("variant", ["dflash", "dflash, shifted", "dflash, pool"])
def test_the_yardstick_tells_mistakes_apart(variant, wrong):
    """A block that sees the anchor's own state, say, guesses something else."""
    drafter, lesson = drafter_of("llava", variant), lesson_of("llava")
    mistaken = reference_at("llava", drafter, 0, 2, lesson.answers[0][3:4], wrong)
    for step, logits in enumerate(mistaken):
        assert error(guesses_of(drafter, lesson, 2)[0, 2, step], logits) > 10 * TOLERANCE


@pytest.mark.parametrize(("name", "variant"), GRID)
@pytest.mark.parametrize("width", [1, 2])
def test_training_sees_what_decoding_does(name, variant, width):
    """At every root and depth, after rounds that accepted nothing, one token or several."""
    assert guesses_compared(drafter_of(name, variant), lesson_of(name), name, width) > 25


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("variant", ["dflash", "dflash, shifted", "dflash, windows", "dflash, pool"])
def test_its_cache_holds_the_targets_states_only(name, variant):
    """After rounds of all kinds it is that of a drafter which read the whole text as its prompt; no block stays."""
    expect_true_features_only(drafter_of(name, variant), name, inputs_of(name), lesson_of(name).answers)


def test_a_prompt_may_be_a_single_token():
    drafter = drafter_of("llama", "dflash")
    inputs = {"input_ids": torch.tensor([[7]])}
    plain = mmspec.generate(drafter.target, inputs=inputs, max_new_tokens=NEW)
    assert mmspec.generate(drafter.target, drafter, inputs=inputs, max_new_tokens=NEW).token_ids == plain.token_ids


# Layouts, and what a slot sees.


def hidden_of(drafter: BlockDrafter, lesson) -> torch.Tensor:
    drafter._prepare()
    return drafter._unrolled(lesson, lesson.anchors[0])[0]


def test_the_layout_changes_which_slots_guess_and_nothing_else():
    lesson = lesson_of("llava")
    same, shifted = (build(lesson.target, "dflash", layout=layout) for layout in ("same", "shifted"))
    ours, theirs = hidden_of(same, lesson), hidden_of(shifted, lesson)
    assert same.max_depth == 8 and shifted.max_depth == 9
    assert ours.equal(theirs[:, :, 1:])


def test_a_causal_slot_knows_nothing_of_those_behind_it():
    lesson = lesson_of("llava")
    for causal in (False, True):
        short, long = (build(lesson.target, "dflash", block_size=size, causal=causal) for size in (4, 7))
        difference = error(hidden_of(short, lesson), hidden_of(long, lesson)[:, :, :3])
        assert (difference < 1e-5) == causal


def test_a_window_as_long_as_the_text_is_none():
    lesson = lesson_of("llava")
    full, wide, narrow = (
        build(lesson.target, "dflash", causal_windows=False, windows=windows) for windows in (None, [64, 64], [5, 5])
    )
    assert error(hidden_of(full, lesson), hidden_of(wide, lesson)) < 1e-6
    assert error(hidden_of(full, lesson), hidden_of(narrow, lesson)) > 1e-2


def test_a_block_sees_no_other_block_in_training(monkeypatch):
    """Nor the anchor's own state, and nothing behind it."""
    lesson, drafter, inputs = lesson_of("llama"), build(target_of("llama", "sdpa"), "dflash"), []
    make = DFlashDrafter.block_inputs

    def recording(self, *arguments, **named):
        inputs.append(make(self, *arguments, **named).detach().requires_grad_())
        return inputs[0]

    monkeypatch.setattr(DFlashDrafter, "block_inputs", recording)
    lesson = mmspec.lesson.replace(lesson, features={n: f.clone().requires_grad_() for n, f in lesson.features.items()})
    hidden = hidden_of(drafter, lesson)
    hidden[0, 2].square().sum().backward()
    reached = inputs[0].grad[0].any(-1).unflatten(0, (-1, drafter.settings.block_size)).any(-1)
    assert reached.tolist() == [number == 2 for number in range(len(reached))]
    seen = lesson.features[drafter.taps[0]].grad.any(-1)
    before = lesson.prompt.lengths[0] + 2
    assert seen[0, :before].all() and not seen[0, before:].any() and not seen[1:].any()


def test_positions_of_several_axes_matter_where_there_is_a_picture():
    section = {"head": {"rope_parameters": models.MROPE["rope_parameters"]}}
    for pictures, differ in (([0], False), ([1], True)):
        inputs = models.inputs_for("qwen_vl", pictures, [9])
        target, texts = target_of("qwen_vl", "sdpa"), []
        for rope in ("1d", "mrope"):
            drafter = build(target, "dflash", rope=rope, **section).eval()
            script = Script(drafter, inputs, [[4, 5, 6, 7, 8, 9]], Told(1, 3))
            texts.append(torch.cat([logits for _ in range(2) for logits in script.round([1])[0].logits]))
        assert (error(*texts) > 1e-3) == differ
    assert guesses_compared(build(target, "dflash", rope="mrope", **section).eval(), lesson_of("qwen_vl"), "qwen_vl", 2)


# Drafting.


@pytest.mark.parametrize("layout", ["same", "shifted"])
@pytest.mark.parametrize("tree", [None, DynamicTree(5, 2, 13)], ids=["chain", "tree"])
def test_slots_that_know_the_answer_are_accepted_to_the_last(layout, tree, monkeypatch):
    """Whichever slot speaks of which token: one that is shifted by a place would be refused."""
    inputs, expected = case("llava", "sdpa", *RAGGED, 25)
    drafter = build(target_of("llava", "sdpa"), "dflash", layout=layout, block_size=5).eval()
    prompts = prepare(drafter.target, inputs=inputs).lengths

    def knowing(self, states, unread):
        slots = torch.zeros(len(states), 5, models.VOCAB)
        for place, row in enumerate(self.session.cache.rows_present):
            written = len(self.context.history[row]) - prompts[row]
            for slot in range(5):
                number = written - 1 + slot + (layout == "shifted")  # the anchor is the newest one
                slots[place, slot, expected[row][min(number, len(expected[row]) - 1)]] = 9.0
        return slots

    monkeypatch.setattr(DFlashDrafter, "_pass", knowing)
    monkeypatch.setattr(DFlashDrafter, "logits", lambda self, hidden: hidden)
    out = mmspec.generate(drafter.target, drafter, inputs=inputs, max_new_tokens=25, tree=tree)
    assert out.token_ids == expected
    full = {"same": 4, "shifted": 5}[layout] + 1
    emitted = [record.emitted[0] for record in out.stats.rounds]
    assert set(emitted[:-1]) == {full}


def test_the_marginals_are_what_every_node_is_expanded_with():
    drafter = drafter_of("llava", "dflash")
    script = Script(drafter, inputs_of("llava"), lesson_of("llava").answers, Told(2, 3))
    builder, _ = script.round([0] * 4)
    assert drafter.independent and drafter.cheap_levels
    for depth, logits in enumerate(builder.logits):
        assert logits.equal(script.session.marginals(3)[:, depth, None].expand_as(logits))


@pytest.mark.parametrize("variant", ["dflash, shifted", "dflash, open windows"])
def test_the_mask_is_never_proposed(variant, monkeypatch):
    """Although its row of the head is the best."""
    drafter = build(Target(models.llava()), variant)
    mask = drafter.settings.mask_token_id
    drafter.target.model.get_output_embeddings().weight.data[mask] = 100 * torch.ones(32)
    drafts = record_drafts(monkeypatch, DFlashDrafter)
    inputs, _ = case("llava", "sdpa", *RAGGED, NEW)
    mmspec.generate(drafter.target, drafter, inputs=inputs, max_new_tokens=NEW, tree=DynamicTree(3, 4, 12))
    assert drafts and not any((draft.tree.tokens[:, 1:] == mask).any() for draft in drafts)


# Training.


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_weight_is_trained(variant):
    drafter, lesson = build(target_of("llava", "sdpa"), variant), lesson_of("llava")
    for guess in drafter.unroll(lesson, 9):
        total = guess.logits.logsumexp(-1).sum()
        (total if guess.confidence is None else total + guess.confidence.sum()).backward(retain_graph=True)
    for name, parameter in drafter.named_parameters():
        assert parameter.grad.isfinite().all() and parameter.grad.abs().max() > 1e-6, name


def test_chosen_anchors_guess_as_all_do():
    drafter, lesson = drafter_of("llava", "dflash"), lesson_of("llava")
    torch.manual_seed(3)
    some, everything = lesson.at_roots(3), guesses_of(drafter, lesson, 4)
    chosen = guesses_of(drafter, some, 4)
    for row, answer in enumerate(lesson.answers):
        roots = {root for at, root, _ in chosen if at == row}
        assert len(roots) == min(3, len(answer) - 1)
        assert {key for key in chosen if key[0] == row} == {
            (row, root, step) for root in roots for step in range(4) if root + step < len(answer) - 1
        }
    assert all(error(logits, everything[key]) < TOLERANCE for key, logits in chosen.items())
    other = lesson.at_roots(3)
    assert not other.chosen.equal(some.chosen)


def test_drawn_anchors_count_for_all_of_them():
    """An objective that takes as many as there are is that of all; fewer are as much on the average."""
    drafter, lesson = drafter_of("llava", "dflash"), lesson_of("llava")

    def sums(anchors: int | None, seed: str = "") -> torch.Tensor:
        with torch.no_grad():
            total, marks = Objective([CrossEntropy()], steps=4, decay=0.8, anchors=anchors)(drafter, lesson, seed)
        return torch.cat([total[None], marks])

    everything = sums(None)
    assert error(sums(max(ANSWERS)), everything) < 1e-5
    some = [sums(2, str(seed)) for seed in range(60)]
    assert sums(2, "7").equal(some[7]) and not some[8].equal(some[7])
    firsts = torch.stack(some).mean(0)[:2] / everything[:2]
    assert (firsts - 1).abs().max() < 0.1
    with pytest.raises(MMSpecError, match="anchors=0 must be a positive integer, or None for all"):
        Objective([CrossEntropy()], anchors=0)


def test_what_is_saved_is_what_is_loaded(tmp_path):
    for number, variant in enumerate(VARIANTS):
        expect_loaded_as_saved(drafter_of("llava", variant), tmp_path / str(number))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"block_size": 1}, "block_size=1 leaves no slot to guess in"),
        ({"layers": 0}, "layers=0 must be a positive integer"),
        ({"block_size": 10**6}, "block_size=1000000 is more than a pass can guess, 1024"),
        ({"windows": [4]}, r"windows=\[4\] must be one for each of the 2 layers"),
        ({"windows": [0, 4]}, "windows=0 must be a positive integer"),
        ({"feature_layers": [3]}, r"feature_layers=\[3\] must be layers of the target, from 0 to 2, or -1"),
        ({"feature_layers": []}, r"feature_layers=\[\] must be layers"),
        ({"mask_token_id": 61}, "mask_token_id=61 is none of the target's 61 tokens"),
        ({"layout": "1+N"}, "layout='1[+]N' is unknown"),
        ({"norms_turned": True, "qk_norm": False}, "norms_turned=True is about norms that qk_norm=False leaves out"),
        ({"logit_cap": -1}, "logit_cap=-1 must be a number of at least 0"),
        ({"logit_scale": 0}, "logit_scale=0 must be a number above 0"),
        ({"embedding_scale": -8}, "embedding_scale=-8 must be a number above 0"),
        ({"selector_rank": 0}, "selector_rank=0 must be a positive integer"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings, message):
    with pytest.raises(MMSpecError, match=f"DFlashDrafter: {message}"):
        DFlashDrafter(target_of("llava", "sdpa"), **settings)


def test_trees_end_where_the_block_does():
    drafter = drafter_of("llava", "dflash, shifted")
    inputs, expected = case("llava", "sdpa", *RAGGED, NEW)
    out = mmspec.generate(drafter.target, drafter, inputs=inputs, max_new_tokens=NEW, tree=Chain(9))
    assert out.token_ids == expected and max(record.depth for record in out.stats.rounds) == 4
    assert isinstance(drafter.tree, Chain) and drafter.tree.length == 4


def test_first_weights_of_a_mix_are_on_meta_whatever_loaded_models_before(monkeypatch):
    """PyTorch notes the functions that a device applies to when one is first used, perhaps within transformers, where
    `linspace` is another one."""
    constructors = torch.utils._device._device_constructors
    constructors.cache_clear()
    try:
        with monkeypatch.context() as patch:
            real = torch.linspace
            patch.setattr(torch, "linspace", lambda *args, **kwargs: real(*args, **{"device": "cpu"} | kwargs))
            with torch.device("meta"):
                torch.empty(1)
        with torch.device("meta"):
            assert weights_at_first(3, 4).is_meta
    finally:
        constructors.cache_clear()
    assert weights_at_first(3, 5).argmax(1).tolist() == [0, 2, 4] and weights_at_first(1, 3).argmax(1).tolist() == [0]
