"""Pairs of rows that are judged as one: pictures of Janus, and text under classifier-free guidance."""

from __future__ import annotations

import pytest
import torch
from models import MODELS, PAD, VISION_START, blurred, inputs_for, llama, one_row, reference
from refusals import refused
from tiny_janus import CODES, START, TOKENS, janus, processor
from toys import Scripted, cut
from transformers import DynamicCache

import mmspec
from mmspec import MMSpecError, Target
from mmspec.compat import CACHE
from mmspec.decoding.negative_prompts import guidance_of
from mmspec.decoding.token_space import TokenSpace
from mmspec.drafters import (
    EagleDrafter,
    EarlyExitDrafter,
    JacobiDrafter,
    NGramDrafter,
    TextOnlyDrafter,
)
from mmspec.inputs import prepare
from mmspec.models.guidance import Guidance, Pairs
from mmspec.models.session import ModelSession
from mmspec.target import Context
from mmspec.tree import DraftTree
from mmspec.trees import Chain, DynamicTree
from mmspec.verifiers import RejectionSampling, TreeWalk
from mmspec.verifiers.rules import Distance

ROWS = ([7, 3, 11, 23], [9, 10, 8], [23, 5, 25, 6, 27, 41, 29])


def padded(rows) -> dict[str, torch.Tensor]:
    """Rows as processors pad them, on the left."""
    width = max(map(len, rows))
    ids = torch.tensor([[PAD] * (width - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    return {"input_ids": ids, "attention_mask": mask}


def prompts(rows=ROWS) -> dict[str, torch.Tensor]:
    """What Janus' processor makes of a text that a picture is to be drawn of."""
    return padded([[START, *row, VISION_START] for row in rows])


def own_loop(model, inputs, scale=5.0) -> list[list[int]]:
    """What the model's own loop draws."""
    own = {CACHE: DynamicCache()}  # the one that transformers 5.17 would make, it cannot make
    return model.generate(
        inputs=inputs["input_ids"],
        attention_mask=inputs["attention_mask"],
        generation_mode="image",
        guidance_scale=scale,
        do_sample=False,
        **own,
    ).tolist()


@pytest.fixture(scope="module")
def painter() -> Target:
    return Target(janus(), writes="image")


@pytest.fixture(scope="module")
def expected(painter) -> list[list[int]]:
    return own_loop(painter.model, prompts())


@pytest.fixture(scope="module")
def writer() -> Target:
    return Target(llama())


DRAFTERS = {
    "none": lambda target: None,
    "ngram": lambda target: NGramDrafter(target, length=4),
    "jacobi": lambda target: JacobiDrafter(target, window=4),
    "whole model, chain": lambda target: EarlyExitDrafter(target, layers=3, tree=Chain(4)),
    "whole model, tree": lambda target: EarlyExitDrafter(target, layers=3, tree=DynamicTree(3, 2, 6)),
    "two layers and a block": lambda target: EarlyExitDrafter(target, layers=2, imitation="block", tree=Chain(4)),
    "two layers, tree": lambda target: EarlyExitDrafter(target, layers=2, tree=DynamicTree(3, 2, 6)),
    "a draft model": lambda target: TextOnlyDrafter(target, blurred(target.model, 0.1), tree=Chain(4)),
    "a head": lambda target: EagleDrafter(target, tree=DynamicTree(3, 2, 6)),
}


@pytest.mark.parametrize("name", DRAFTERS)
def test_pictures_are_those_of_the_models_own_loop(painter, expected, name):
    out = mmspec.generate(painter, DRAFTERS[name](painter), inputs=prompts())
    assert out.token_ids == expected and out.finish_reason == ["length"] * 3
    assert all(len(row) == TOKENS and max(row) < CODES for row in out.token_ids) and out.text == [None] * 3
    # A wrong mask, position or entry of either half would show.
    if name in ("whole model, chain", "two layers and a block"):
        assert out.stats.mean_acceptance_length == 5


def test_a_draft_model_is_led_as_the_target_is(painter, writer, expected):
    """A copy of the target as its own draft model is always right, away from the same other prompts."""
    out = mmspec.generate(painter, TextOnlyDrafter(painter, painter.model, tree=Chain(4)), inputs=prompts())
    assert out.token_ids == expected and out.stats.mean_acceptance_length == 5
    options = {"inputs": inputs_for("llama", [0, 0], [9, 4]), "guidance_scale": 1.7, "max_new_tokens": 16}
    drafter = TextOnlyDrafter(writer, writer.model, tree=Chain(4))
    led = mmspec.generate(writer, drafter, **options, negative_prompt=padded([[1, 2], [3, 4, 5, 6]]))
    assert led.stats.mean_acceptance_length == 5
    refused(lambda: TextOnlyDrafter(painter, janus(codes=32)), "target vocab is 40 but the drafter's is")


def test_the_scale_and_the_attention_matter(painter, expected):
    inputs = prompts()
    assert (stronger := own_loop(painter.model, inputs, 9.0)) != expected
    assert mmspec.generate(painter, JacobiDrafter(painter), inputs=inputs, guidance_scale=9.0).token_ids == stronger
    eager = Target(janus("eager"), writes="image")
    assert mmspec.generate(eager, EarlyExitDrafter(eager, layers=2), inputs=inputs).token_ids == expected
    painter.model.generation_config.guidance_scale = 9.0
    try:
        assert mmspec.generate(painter, inputs=inputs).token_ids == stronger
        assert mmspec.generate(painter, inputs=inputs, model_settings=False).token_ids != stronger
    finally:
        painter.model.generation_config.guidance_scale = None


@pytest.mark.parametrize("mistake", ["positions", "other prompts", "swapped", "entries"])
def test_a_planted_mistake_shows(painter, expected, mistake, monkeypatch):
    """Each of these would be a plausible slip, and the comparison with the model's own loop sees it."""
    positions, combine, keep = Pairs.positions, Guidance.combine, ModelSession.keep

    def shifted(self, index):
        return positions(self, index) + (torch.arange(len(index)) >= len(index) // 2)[:, None]

    def keep_wrong(self, counts, path=None, kept=None):
        keep(self, [*counts, *counts], None if path is None else torch.cat([path, path.clamp(max=1)]))

    if mistake == "positions":
        monkeypatch.setattr(Pairs, "positions", shifted)
    elif mistake == "other prompts":
        unguided = painter.family.unguided
        monkeypatch.setattr(
            painter.family, "unguided", lambda inputs: unguided({**inputs, "input_ids": inputs["input_ids"] + 1})
        )
    elif mistake == "swapped":
        monkeypatch.setattr(Guidance, "combine", lambda self, logits: combine(self, torch.cat(logits.chunk(2)[::-1])))
    else:
        monkeypatch.setattr(Pairs, "keep", keep_wrong)
    drafter = DRAFTERS["whole model, tree"](painter)
    assert mmspec.generate(painter, drafter, inputs=prompts()).token_ids != expected


@pytest.mark.parametrize("name", ["ngram", "jacobi", "two layers, tree"])
def test_a_seed_draws_one_picture_whatever_drafts(painter, name):
    options = {"inputs": prompts(), "temperature": 1.0, "top_k": 20, "seed": 3}
    plain = mmspec.generate(painter, **options)
    out = mmspec.generate(painter, DRAFTERS[name](painter), **options)
    assert out.token_ids == plain.token_ids and out.stats.num_accepted_draft_tokens
    assert plain.token_ids != mmspec.generate(painter, **{**options, "seed": 4}).token_ids


def test_drawn_proposals_and_several_requests_at_once(painter, expected):
    for drafter in (JacobiDrafter(painter, 4), EarlyExitDrafter(painter, layers=2, tree=Chain(3))):
        drawn = mmspec.generate(painter, drafter, inputs=prompts(), temperature=1.0, verifier=RejectionSampling())
        assert [len(row) for row in drawn.token_ids] == [TOKENS] * 3 and drawn.stats.num_accepted_draft_tokens
    streams = [mmspec.stream(painter, drafter, inputs=prompts(ROWS[row : row + 1])) for row in range(3)]
    written = [[], [], []]
    while any(streams):
        for row, stream in enumerate(streams):
            piece = next(stream, None) if stream else None
            written[row] += piece.token_ids if piece else []
            streams[row] = stream if piece else None
    assert written == expected


def test_the_processor_writes_the_prompt_and_shows_the_picture(painter):
    target = Target(painter.model, processor(), writes="image")
    made = target.processor(text=["a cab", "the bed ."], padding=True, generation_mode="image")
    out = mmspec.generate(target, JacobiDrafter(target), prompt=["a cab", "the bed ."])
    assert out.token_ids == own_loop(target.model, made)
    first, second = target.draw(out.token_ids)
    assert first.size == second.size == (8, 8) and first.mode == "RGB"
    decoded = target.model.decode_image_tokens(torch.tensor(out.token_ids))
    for shown, bare in zip(decoded, painter.draw(out.token_ids), strict=True):
        assert torch.equal(shown, bare)
    options = {"prompt": ["a cab", "the bed ."], "negative_prompt": ["bad", "big"]}
    other = mmspec.generate(target, **options).token_ids
    assert other != out.token_ids
    four = mmspec.generate(target, **options, temperature=1e-4, num_return_sequences=2).token_ids
    assert four == [row for row in other for _ in range(2)]
    refused(lambda: target.draw([out.token_ids[0], out.token_ids[1][:3]]), "draw: picture 1 has 3 of 16 tokens")
    refused(lambda: mmspec.generate(target, prompt="a cab", images=[first]), "1 images were given but")


def test_rules_find_what_the_ids_mean_on_the_target(painter):
    space = painter.space
    assert space.codes == (0, CODES - 1) and space.codebook.shape == (CODES, 8)
    assert space.grid == (4, 4) and space.length == TOKENS and space.bins is None
    with pytest.raises(MMSpecError, match=r"Distance needs to know.*or set target\.space = TokenSpace\(bins="):
        mmspec.generate(painter, inputs=prompts(), verifier=TreeWalk(Distance(2)))
    robot = Target(llama())
    robot.space = TokenSpace(bins=(10, 40))
    inputs = inputs_for("llama", [0])
    text = reference(robot.model, inputs, 12)[0]
    near = [token + 1 if 10 <= token < 40 else token for token in text]
    lines = {"given": TreeWalk(Distance(1, (10, 40))), "of the target": TreeWalk(Distance(1))}
    outs = [
        mmspec.generate(robot, Scripted(robot, [near]), inputs=inputs, verifier=verifier, max_new_tokens=12)
        for verifier in lines.values()
    ]
    assert outs[0].token_ids == outs[1].token_ids and outs[0].token_ids != [text]


def test_what_is_wrong_is_said_in_a_line(painter):
    for name, value, message in [
        ("guidance_scale", "much", r"guidance_scale='much' must be a number"),
        ("guidance_scale", float("nan"), r"guidance_scale=nan must be a number"),
        ("max_new_tokens", 17, r"max_new_tokens=17: what this target writes has 16 tokens"),
        ("repetition_penalty", 1.2, r"RepetitionPenaltyLogitsProcessor looks at earlier tokens"),
        ("negative_prompt", padded([[1], [2]]), r"negative_prompt has 2 rows, and the batch has 3"),
    ]:
        with pytest.raises(MMSpecError, match=message) as error:
            mmspec.generate(painter, inputs=prompts(), **{name: value})
        assert "\n" not in str(error.value)
    with pytest.raises(MMSpecError, match="negative_prompt= is what guidance leads away from: give"):
        mmspec.generate(Target(llama()), inputs=inputs_for("llama", [0]), negative_prompt=padded([[1]]))
    refused(lambda: Target(llama(), writes="image"), "writes='image': model type 'llama' does not; ... of type janus")
    refused(lambda: Target(painter.model).draw([[1] * TOKENS]), "writes text here, and no picture")
    lacking = Target(janus(), writes="image")
    lacking.model.generation_config.generation_kwargs = None
    refused(lambda: mmspec.generate(lacking, inputs=prompts()), "need generation_kwargs ... in model.generation_config")


# The same model, which writes text.


def test_janus_reads_pictures_and_writes_text_without_guidance():
    target = Target(janus())
    target.model.generation_config.guidance_scale = 5.0  # as the published ones have it, for pictures
    generator = torch.Generator().manual_seed(0)
    rows = [[START, VISION_START, *[60] * TOKENS, 7, 3, 11], [START, 9, 10, 8, 3]]
    inputs = padded(rows) | {"pixel_values": torch.randn(1, 3, 16, 16, generator=generator)}
    theirs = target.model.generate(**inputs, max_new_tokens=12, do_sample=False)[:, inputs["input_ids"].shape[1] :]
    for drafter in (
        None,
        EarlyExitDrafter(target, layers=2, tree=DynamicTree(3, 2, 6)),
        EagleDrafter(target, tree=Chain(3)),
    ):
        assert mmspec.generate(target, drafter, inputs=inputs, max_new_tokens=12).token_ids == theirs.tolist()


# Text under guidance.


def test_guided_text_is_that_of_generate(writer):
    inputs = inputs_for("llama", [0, 0, 0], [9, 4, 13])
    theirs = reference(writer.model, inputs, 12, guidance_scale=1.7)
    assert theirs != reference(writer.model, inputs, 12)
    for name in ("none", "jacobi", "whole model, chain", "two layers, tree", "a draft model"):
        out = mmspec.generate(writer, DRAFTERS[name](writer), inputs=inputs, max_new_tokens=12, guidance_scale=1.7)
        assert out.token_ids == theirs, name
        assert out.stats.mean_acceptance_length > 3.5 or name != "whole model, chain"
    ends = [theirs[0][5], theirs[2][9]]  # rows that have ended leave the passes, both of a pair
    cut_off = [cut(row, 12, ends) for row in theirs]
    assert len({len(row) for row in cut_off}) > 1
    for name in ("none", "a head"):
        out = mmspec.generate(
            writer, DRAFTERS[name](writer), inputs=inputs, max_new_tokens=12, guidance_scale=1.7, eos_token_id=ends
        )
        assert out.token_ids == cut_off, name


def test_guided_text_away_from_prompts_of_another_length(writer):
    inputs, negative = (
        inputs_for("llama", [0, 0], [9, 4]),
        padded([[5, 6, 7, 8, 20, 21, 30, 31, 32, 33, 34, 35], [9, 41]]),
    )
    theirs = []
    for row in range(2):
        other = one_row(negative, row)["input_ids"]
        theirs += reference(writer.model, one_row(inputs, row), 12, guidance_scale=2.0, negative_prompt_ids=other)
    for drafter in (
        None,
        EarlyExitDrafter(writer, layers=2, tree=DynamicTree(3, 2, 6)),
        EagleDrafter(writer, tree=Chain(3)),
    ):
        options = {"inputs": inputs, "max_new_tokens": 12, "guidance_scale": 2.0, "negative_prompt": negative}
        assert mmspec.generate(writer, drafter, **options).token_ids == theirs


@pytest.mark.parametrize("name", ["llava", "qwen_vl"])
def test_guided_text_about_pictures(name):
    """The pictures are the prompt's, and the other prompts see none. (Of Qwen-VL, `generate` is not guided itself.)"""
    target, inputs = Target(MODELS[name]()), inputs_for(name, [1, 0], [9, 4])
    options = {"inputs": inputs, "max_new_tokens": 8, "guidance_scale": 1.7}
    plain = mmspec.generate(target, **options).token_ids
    if name == "llava":
        assert plain == reference(target.model, inputs, 8, guidance_scale=1.7)
    request = prepare(target, inputs=inputs)
    vision, guidance = target.encode(request), guidance_of(target, request, 1.7, None, None)
    both = target.prefill(request, vision, guidance=guidance)
    apart = [target.prefill(request, vision), target.prefill(guidance.other)]  # as if there were two models
    torch.testing.assert_close(both.logits, guidance.combine(torch.cat([one.logits for one in apart])))
    root = both.logits.argmax(-1)
    assert root.tolist() == [row[0] for row in plain]
    for context in (both, *apart):
        context.admit(root[:, None].tolist())
    tree = DraftTree.root_only(root)
    theirs = guidance.combine(torch.cat([one.score(tree).logits for one in apart]))
    torch.testing.assert_close(both.score(tree).logits, theirs)
    drafter = EarlyExitDrafter(target, layers=len(target.family.layers), tree=Chain(3))
    out = mmspec.generate(target, drafter, **options)
    assert out.token_ids == plain and out.stats.mean_acceptance_length > 3
    sampled = {"temperature": 1e-4, "num_return_sequences": 2}
    assert mmspec.generate(target, drafter, **options, **sampled).token_ids == [row for row in plain for _ in range(2)]


def test_no_guidance_is_the_usual_path(writer, monkeypatch):
    """A scale of 1 reads no second row: the very same passes, so the same bits."""
    inputs, seen = inputs_for("llama", [0, 0], [9, 4]), []
    read = Context.read
    monkeypatch.setattr(Context, "read", lambda self, *a, **k: seen.append(read(self, *a, **k)) or seen[-1])
    outs, passes = [], []
    for options in ({}, {"guidance_scale": 1}):
        outs.append(mmspec.generate(writer, inputs=inputs, max_new_tokens=8, **options).token_ids)
        passes.append([one.logits for one in seen])
        seen.clear()
    assert outs[0] == outs[1]
    assert all(torch.equal(ours, same) for ours, same in zip(*passes, strict=True))


@torch.inference_mode()
def test_a_branch_on_some_entries_sees_all_of_the_other_prompts(painter, expected):
    request = prepare(painter, inputs=prompts())
    other = painter.family.unguided(request.inputs)
    guidance = Guidance(5.0, prepare(painter, inputs=prompts()), painter.family.guided_logits)
    guidance.other.inputs.update(other)
    context = painter.prefill(request, guidance=guidance)
    root = context.logits.argmax(-1)
    assert root.tolist() == [row[0] for row in expected]
    context.admit(root[:, None].tolist())
    branch = context.branch(entries=[list(range(n)) for n in context.entries])
    assert branch.pending == context.pending == [1, 1, 1] and branch.cache.rows == 6
    block = (root[:, None], torch.ones(3, 1, 1, dtype=torch.bool), torch.zeros(3, 1, dtype=torch.long))
    assert branch.read(*block).logits.argmax(-1)[:, 0].tolist() == [row[1] for row in expected]
    fewer = context.branch(entries=[list(range(1, n)) for n in context.entries])
    assert fewer.pending == [1, 1, 1]
    assert not torch.allclose(fewer.read(*block).logits, context.read(*block).logits)
