"""Draft models that see less of the pictures: what they propose is theirs on the shorter prompt, in training too."""

from __future__ import annotations

from functools import cache

import models
import pytest
import torch
from covering import covering
from full_recompute import paths_of, recompute, start
from heads import TOLERANCE, error, guesses_of, inputs_of, lesson_of
from scripted_rounds import decode
from tiny_drafters import DRAFT_MODELS, blurred_drafter, record_drafts, shared_vision_drafter, text_drafter
from tiny_requests import RAGGED, case, target_of

import mmspec
from mmspec import MMSpecError
from mmspec.compressors import Conv, Elastic, Hide, Pool, Prune
from mmspec.drafters import DraftModelDrafter, OwnEncoderDrafter, SharedVisionDrafter, TextOnlyDrafter
from mmspec.inputs import prepare
from mmspec.lesson import WIDTHS
from mmspec.training.teacher import Teacher
from mmspec.trees import Chain, DynamicTree

COMPRESSORS = {"hide": Hide(), "packed": Hide(packed=True), "pool": Pool(2), "prune": Prune(0.5)}
SEEING = [(name, label) for name in models.VISUAL for label in ("own model", "shared vision")]
GRID = covering(models.VISUAL, ("own model", "shared vision"), COMPRESSORS)


@cache
def drafter_of(name: str, label: str, compressor: str | None = None) -> DraftModelDrafter:
    drafter = DRAFT_MODELS[label](name, "sdpa")
    return drafter if compressor is None else drafter.with_compressor(COMPRESSORS[compressor])


# A second formulation: one row, without a cache, with the kept entries written down.


def kept_of(picture: list[int], compressor: str) -> list[list[int]]:
    """The tokens that each entry is the mean of; pictures have two columns."""
    return {
        "hide": [],
        "packed": [],
        "prune": [[token] for token in picture[1::2]],
        "pool": [picture[i : i + 4] for i in range(0, len(picture), 4)],
    }[compressor]


@torch.no_grad()
def logits_of(drafter: DraftModelDrafter, compressor: str, single: dict, tokens: list[int]) -> torch.Tensor:
    """`[len(tokens) + 1, vocab]` of the draft model after a row's prompt and after each token behind it."""
    ids = torch.tensor([single["input_ids"][0].tolist() + tokens])
    embeds, positions = embeds_of(drafter, single, tokens), torch.arange(ids.shape[1])[None]
    if isinstance(drafter, OwnEncoderDrafter) and hasattr(drafter.model.model, "get_rope_index"):
        seen, grid = (ids == models.IMAGE).int(), single.get("image_grid_thw")
        everything = {"mm_token_type_ids": seen, "image_grid_thw": grid, "attention_mask": torch.ones_like(ids)}
        positions = drafter.model.model.get_rope_index(ids, **everything)[0][:, 0]
    entries, picture = [], []
    for place, token in enumerate(ids[0].tolist()):
        if token == models.IMAGE:
            picture.append(place)
        else:
            entries += [*(kept_of(picture, compressor) if picture else []), [place]]
            picture = []
    embeds = torch.stack([embeds[group].mean(0) for group in entries])
    positions = torch.stack([positions[:, group].double().mean(1) for group in entries], dim=1).round().long()
    if compressor == "packed":
        positions = torch.arange(len(entries)).expand_as(positions)
    extra = {"attention_mask": torch.ones(1, len(entries))}  # without, gaps between positions would part texts
    if drafter.model.config.model_type == "gemma3":
        extra["token_type_ids"] = torch.tensor([[int(ids[0, group[0]] == models.IMAGE) for group in entries]])
    positions = positions[:, None] if len(positions) == 3 else positions
    out = drafter.model(inputs_embeds=embeds[None], position_ids=positions, use_cache=False, **extra)
    return out.logits[0, -len(tokens) - 1 :]


def embeds_of(drafter: DraftModelDrafter, single: dict, tokens: list[int]) -> torch.Tensor:
    """`[length, hidden]` what the draft model would read of everything."""
    model, read = drafter.model, []
    if isinstance(drafter, OwnEncoderDrafter):
        hook = model.get_decoder().register_forward_pre_hook(
            lambda _, args, kwargs: read.append(kwargs["inputs_embeds"]), with_kwargs=True
        )
        recompute(model, single, [tokens])
        hook.remove()
        return read[0][0]
    ids = torch.tensor(single["input_ids"][0].tolist() + tokens)
    embeds, visual = model.get_input_embeddings()(ids.masked_fill(ids == models.IMAGE, 0)), ids == models.IMAGE
    if visual.any():
        target = drafter.target
        vision = target.encode(prepare(target, inputs=single))
        embeds[visual] = torch.cat([drafter.projector(features) for features in vision.features])
    return embeds


@pytest.mark.parametrize(("name", "label", "compressor"), GRID)
def test_text_is_the_targets_and_proposals_are_its_own(name, label, compressor, monkeypatch):
    """After rounds of all kinds, beside rows with none and with two pictures."""
    drafter = drafter_of(name, label, compressor)
    inputs, expected = case(name, "sdpa", *RAGGED, 14)
    drafts = record_drafts(monkeypatch, DraftModelDrafter)
    tree = DynamicTree(2, 3, 5)
    assert mmspec.generate(drafter.target, drafter, inputs=inputs, max_new_tokens=14, tree=tree).token_ids == expected
    nodes = 0
    for draft in drafts[:: max(len(drafts) // 3, 1)]:
        for row in [0, 1, 2]:
            if not draft.active[row]:
                continue
            single, path = models.one_row(inputs, row), paths_of(draft.tree, row)[0]
            emitted = draft.history[row][single["input_ids"].shape[1] :]
            tokens = draft.tree.tokens[row, path].tolist()
            logits = logits_of(drafter, compressor, single, emitted + tokens[1:-1])[-len(path) + 1 :]
            wanted = logits.log_softmax(-1).gather(1, torch.tensor(tokens[1:])[:, None])[:, 0]
            assert (draft.tree.log_probs[row, path[1:]] - wanted).abs().max() < 1e-4
            nodes += len(path) - 1
    assert nodes > 5


@pytest.mark.parametrize(("name", "label", "compressor"), GRID)
def test_training_sees_what_decoding_does(name, label, compressor):
    drafter, lesson, compared = drafter_of(name, label, compressor), lesson_of(name), 0
    guesses = guesses_of(drafter, lesson, 3)
    for roots, builder, _ in decode(drafter, name, width=1, depth=3):
        for row, root in roots.items():
            for step in range(min(builder.depth, len(lesson.answers[row]) - 1 - root)):
                assert error(builder.logits[step][row, 0], guesses[row, root, step]) < TOLERANCE
                compared += 1
    assert compared > 15


@pytest.mark.parametrize(("name", "label"), SEEING)
def test_gaps_between_positions_do_not_part_a_text(name, label):
    """Not even where no padding is needed: without a mask, transformers takes them for texts packed into one row."""
    drafter, inputs = drafter_of(name, label, "hide"), models.inputs_for(name, [1], [14])
    request, teacher = prepare(drafter.target, inputs=inputs), Teacher(drafter.target)
    answer = [5, 6, 7, 8] * 16
    guesses = []
    for width in (WIDTHS, WIDTHS + 1):  # the second is padded
        lesson = teacher.study(request, [answer[: width - request.lengths[0]]])
        assert (min(lesson.request.lengths) == lesson.embeds.shape[1]) == (width == WIDTHS)
        guesses.append(guesses_of(drafter, lesson, 1))
    assert max(error(logits, guesses[1][key]) for key, logits in guesses[0].items()) < TOLERANCE


@pytest.mark.parametrize(("name", "label"), SEEING)
@pytest.mark.parametrize("compressor", [Prune(1.0), Pool(1)], ids=["prune", "pool"])
def test_what_keeps_everything_changes_nothing(name, label, compressor):
    drafter, lesson = drafter_of(name, label), lesson_of(name)
    other = drafter.with_compressor(compressor)
    ours, theirs = guesses_of(other, lesson, 2), guesses_of(drafter, lesson, 2)
    assert ours.keys() == theirs.keys()
    assert max(error(ours[key], theirs[key]) for key in ours) < TOLERANCE
    trees = []
    for session in (drafter.fork(Chain(3)), other.fork(Chain(3))):
        context = start(drafter.target, inputs_of(name))
        with torch.inference_mode():
            session.start(context)
            trees.append(session.draft(torch.tensor([history[-1] for history in context.history])))
    assert trees[0].tokens.equal(trees[1].tokens)
    assert (trees[0].log_probs - trees[1].log_probs).abs().max() < TOLERANCE


@pytest.mark.parametrize(("name", "label"), SEEING)
def test_its_prompt_is_shorter_and_what_follows_keeps_its_place(name, label):
    drafter = drafter_of(name, label)
    inputs = models.inputs_for(name, [2, 0, 1], [5, 9, 6])
    visual = (inputs["input_ids"] == models.IMAGE).sum(-1)
    context = start(drafter.target, inputs)

    def state(drafter):
        session = drafter.fork()
        with torch.inference_mode():
            session.start(context)
        return session.session.cache.lengths, session.session.position_offset

    lengths, position_offset = state(drafter)
    for compressor, packed in (("hide", False), ("packed", True)):
        short, shifted = state(drafter_of(name, label, compressor))
        assert short.equal(lengths - visual)
        assert (short + shifted).equal(short if packed else lengths + position_offset)


@pytest.mark.parametrize("name", models.VISUAL)
def test_a_blind_model_takes_no_compressor(name):
    target = target_of(name, "sdpa")
    with pytest.raises(MMSpecError, match="a TextOnlyDrafter .* reads no pictures, so there is nothing for Pool to"):
        text_drafter(name, "sdpa").with_compressor(Pool(2))
    with pytest.raises(MMSpecError, match="nothing for Hide to compress"):
        TextOnlyDrafter(target, models.llama(layers=1), compressor=Hide())


def test_one_that_learns_is_trained_and_saved_with_its_model(tmp_path):
    plain, lesson = shared_vision_drafter("llava", "sdpa"), lesson_of("llava")
    drafter = SharedVisionDrafter(plain.target, plain.model, plain.projector, compressor=Conv(2))
    pooled = guesses_of(plain.with_compressor(Pool(2)), lesson, 1)
    assert max(error(logits, pooled[key]) for key, logits in guesses_of(drafter, lesson, 1).items()) < TOLERANCE
    weight = drafter.compressor.conv.weight
    assert any(parameter is weight for parameter in drafter.trainable_parameters())
    next(iter(drafter.unroll(lesson))).logits.square().sum().backward()
    assert weight.grad.abs().max() > 0
    drafter.zero_grad()
    with torch.no_grad():
        weight.add_(0.1)
    drafter.save_pretrained(tmp_path)
    loaded = mmspec.load_drafter(str(tmp_path), plain.target)
    ours, theirs = guesses_of(drafter, lesson, 2), guesses_of(loaded, lesson, 2)
    assert all(error(theirs[key], logits) < TOLERANCE for key, logits in ours.items())


def test_a_vision_tower_of_its_own_stays_as_it_is_but_the_compressor_learns():
    plain = blurred_drafter("llava", "sdpa")
    drafter = OwnEncoderDrafter(plain.target, plain.model, compressor=Conv(2))
    names = {id(parameter): name for name, parameter in drafter.named_parameters()}
    trained = {names[id(parameter)] for parameter in drafter.trainable_parameters()}
    assert {"compressor.conv.weight", "compressor.conv.bias"} < trained
    assert not any("vision_tower" in name for name in trained)


def test_a_gate_has_nothing_to_look_at():
    plain = drafter_of("llava", "shared vision")
    drafter = SharedVisionDrafter(plain.target, plain.model, plain.projector, compressor=Elastic())
    with pytest.raises(MMSpecError, match="its gate reads the target's states, and this drafter has none"):
        mmspec.generate(drafter.target, drafter, inputs=inputs_of("llava"), max_new_tokens=2)
