"""Gemma 4's assistants behind pictures and videos: they draft what transformers' own pass says, and the text is the
target's."""

from __future__ import annotations

from functools import cache

import models
import pytest
import torch
from tiny_drafters import record_drafts
from tiny_families import FAMILIES
from toy_drafters import paths_of

import mmspec
from mmspec import Target
from mmspec.drafters import Gemma4AssistantDrafter
from mmspec.drafters.gemma4_assistant import new_assistant
from mmspec.inputs import prepare
from mmspec.training.teacher import Teacher
from mmspec.trees import Chain, DynamicTree

NEW = 14
ROWS, LENGTHS = [["image"], ["image", "image"], [], ["video"], ["video", "image"]], [9, 5, 14, 7, 6]
SETTINGS = {
    "shared keys": {},  # and an embedding for every layer, as E2B and E4B
    "own keys": {"num_kv_shared_layers": 0, "hidden_size_per_layer_input": 0},
}


@cache
def target(kind: str) -> Target:
    return Target(models.gemma4(**SETTINGS[kind]))


@cache
def assistant(kind: str) -> Gemma4AssistantDrafter:
    return models.redraw(new_assistant(target(kind), layers=3), 20).eval()


def single(row: int) -> dict:
    return FAMILIES["gemma4"].inputs([ROWS[row]], [LENGTHS[row]], seed=row)


@cache
def requests(kind: str) -> tuple[dict, list[list[int]]]:
    """A ragged batch, and what the model's own `generate` writes row by row."""
    texts = []
    for row in range(len(ROWS)):
        ids = target(kind).model.generate(**single(row), max_new_tokens=NEW, do_sample=False)
        texts.append(ids[0, single(row)["input_ids"].shape[1] :].tolist())
    return FAMILIES["gemma4"].inputs(ROWS, LENGTHS), texts


@torch.no_grad()
def step(kind: str, row: int, written: list[int], path: list[int]) -> torch.Tensor:
    """Logits behind a path below the root, the last token that was written, by transformers' own forward passes."""
    model, inputs = target(kind).model, single(row)
    before = torch.tensor([written[:-1]], dtype=torch.long)
    for name in ("input_ids", "attention_mask", "mm_token_type_ids"):
        more = {"input_ids": before, "attention_mask": torch.ones_like(before)}.get(name, torch.zeros_like(before))
        inputs[name] = torch.cat([inputs[name], more], dim=1)
    read = model.model(**inputs, use_cache=False, return_shared_kv_states=True)
    state, shared = read.last_hidden_state[:, -1:], dict(read.shared_kv_states)
    for token in [written[-1], *path]:
        embeds = model.get_input_embeddings()(torch.tensor([[token]]))
        out = assistant(kind).model(
            inputs_embeds=torch.cat([embeds, state], dim=-1),
            position_ids=torch.tensor([[inputs["input_ids"].shape[1]]]),
            shared_kv_states=shared,
        )
        state = out.last_hidden_state
    return out.logits[0, 0]


@pytest.mark.parametrize(
    ("kind", "tree"), [("shared keys", DynamicTree(3, 3, 9)), ("own keys", Chain(4))], ids=SETTINGS
)
def test_drafts_behind_pictures_are_transformers_own_pass(kind, tree, monkeypatch):
    drafts = record_drafts(monkeypatch, Gemma4AssistantDrafter)
    inputs, expected = requests(kind)
    out = mmspec.generate(target(kind), assistant(kind), inputs=inputs, max_new_tokens=NEW, tree=tree)
    assert out.token_ids == expected, "the text is the target's own"
    compared, prompts = set(), prepare(target(kind), inputs=inputs).lengths
    for draft in (drafts[1], drafts[len(drafts) // 2]):
        for row in range(len(ROWS)):
            if not draft.active[row]:
                continue
            for node, (*above, token) in enumerate(paths_of(draft.tree, row)[1:], start=1):
                logits = step(kind, row, draft.history[row][prompts[row] :], above)
                wanted = logits.log_softmax(-1)[token].item()
                assert draft.tree.log_probs[row, node].item() == pytest.approx(wanted, abs=5e-4)
                compared.add(row)
    assert compared == set(range(len(ROWS)))


def test_another_picture_gives_other_drafts():
    """The keys that it reads are those of the picture."""
    inputs, guesses = single(1), []
    for pixels in (inputs["pixel_values"], 1 - inputs["pixel_values"]):
        request = prepare(target("shared keys"), inputs=inputs | {"pixel_values": pixels})
        lesson = Teacher(target("shared keys")).study(request, [[3, 4, 5]])
        guesses.append(next(iter(assistant("shared keys").unroll(lesson, 1))).logits)
    assert (guesses[0] - guesses[1]).abs().max() > 1e-2


@pytest.mark.parametrize("kind", SETTINGS)
def test_unrolled_guesses_behind_pictures_are_transformers_own(kind):
    inputs, texts = requests(kind)
    lesson = Teacher(target(kind)).study(prepare(target(kind), inputs=inputs), [text[:6] for text in texts])
    compared = 0
    for number, guess in enumerate(assistant(kind).unroll(lesson, 2)):
        for root, logits in list(zip(guess.roots.tolist(), guess.logits, strict=True))[::3]:
            row, place = divmod(root, lesson.root_slots.shape[1])
            wanted = step(kind, row, texts[row][: place + 1], texts[row][place + 1 : place + 1 + number])
            assert (logits - wanted).abs().max() < 5e-4 * wanted.abs().max().clamp(min=1)
            compared += 1
    assert compared >= 12


@pytest.mark.parametrize("kind", SETTINGS)
def test_a_sampled_text_is_the_plain_one_for_a_seed(kind):
    options = {"inputs": requests(kind)[0], "max_new_tokens": NEW, "temperature": 1.0, "seed": 5}
    plain, drafted = (mmspec.generate(target(kind), one, **options).token_ids for one in (None, assistant(kind)))
    assert plain == drafted and plain != requests(kind)[1]
