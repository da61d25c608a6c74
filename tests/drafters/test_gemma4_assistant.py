"""Gemma 4's assistants: what they draft is transformers' own forward pass, step by step."""

from __future__ import annotations

from functools import cache

import pytest
import torch
import transformers
from tiny_drafters import record_drafts
from tiny_requests import target_of
from toy_drafters import paths_of

import mmspec
from mmspec import MMSpecError
from mmspec.compressors import Hide
from mmspec.drafters import Gemma4AssistantDrafter
from mmspec.drafters.gemma4_assistant import new_assistant
from mmspec.inputs import prepare
from mmspec.settings import configuration
from mmspec.settings.building import build
from mmspec.training.teacher import Teacher
from mmspec.trees import Chain, DynamicTree

NEW, WINDOW = 16, 6
SHAPE = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "global_head_dim": 16, "vocab_size": 60}
SHAPE |= {"hidden_size_per_layer_input": 0, "vocab_size_per_layer_input": 0, "max_position_embeddings": 128}
SHAPE |= {"pad_token_id": 0, "eos_token_id": None, "bos_token_id": None}
KINDS = ["sliding_attention", "sliding_attention", "full_attention"]


KINDS_OF = {
    # The third and fourth layer are the last of their kinds.
    "own keys": ["full_attention", "sliding_attention", "sliding_attention", "full_attention"],
    # The first two own all keys and values, the last two read them, as in E2B and E4B.
    "shared keys": ["sliding_attention", "full_attention", "sliding_attention", "full_attention"],
}


def text_of(kind: str, **changes) -> transformers.Gemma4TextConfig:
    shared = {"num_kv_shared_layers": 2, "hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": 60}
    return transformers.Gemma4TextConfig(
        **{"hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 4, "layer_types": KINDS_OF[kind]}
        | {"sliding_window": WINDOW, "final_logit_softcapping": 30.0, **SHAPE}
        | (shared if kind == "shared keys" else {})
        | changes
    )


@cache
def target(kind: str = "own keys") -> mmspec.Target:
    """A Gemma 4 of text."""
    torch.manual_seed(3)
    return mmspec.Target(drawn(transformers.Gemma4ForCausalLM(text_of(kind))))


def assistant_of(**changes):
    """A random assistant."""
    torch.manual_seed(4)
    text = transformers.Gemma4TextConfig(
        **{"hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 3, "layer_types": KINDS}
        | {"sliding_window": 4, **SHAPE}
    )
    settings = {"backbone_hidden_size": 32, "num_centroids": 6, "centroid_intermediate_top_k": 3} | changes
    model = transformers.Gemma4AssistantForCausalLM(transformers.Gemma4AssistantConfig(text_config=text, **settings))
    if model.masked_embedding is not None:
        model.masked_embedding.token_ordering.copy_(torch.randperm(60))
    return drawn(model)


def drawn(model):
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.4 if "embed" in name else 0.25)
    return model.eval()


@cache
def requests(kind: str = "own keys") -> tuple[dict, list]:
    """A ragged batch, and what the model's own `generate` writes row by row."""
    generator, lengths = torch.Generator().manual_seed(5), (11, 4, 7)
    ids = torch.zeros(len(lengths), max(lengths), dtype=torch.long)
    mask = torch.zeros_like(ids)
    texts = []
    for row, length in enumerate(lengths):
        ids[row, :length] = torch.randint(1, 60, (length,), generator=generator)
        mask[row, :length] = 1
        out = target(kind).model.generate(ids[row : row + 1, :length], max_new_tokens=NEW, do_sample=False)
        texts.append(out[0, length:].tolist())
    return {"input_ids": ids, "attention_mask": mask}, texts


def step(model, history: list[int], path: list[int], position: int = -1, kind: str = "own keys") -> torch.Tensor:
    """Logits behind a path below the root, the last token of a history, by transformers' own forward passes."""
    ids = torch.tensor([history[:-1]])
    with torch.no_grad():
        read = target(kind).model.model(ids, use_cache=False, return_shared_kv_states=True)
        state, shared = read.last_hidden_state[:, -1:], dict(read.shared_kv_states)
        for token in [history[-1], *path]:
            embeds = target(kind).model.get_input_embeddings()(torch.tensor([[token]]))
            out = model(
                inputs_embeds=torch.cat([embeds, state], dim=-1),
                position_ids=torch.tensor([[len(history) + position]]),
                shared_kv_states=shared,
            )
            state = out.last_hidden_state
    return out.logits[0, 0]


@pytest.mark.parametrize(
    ("kind", "ordered"),
    [("own keys", False), ("own keys", True), ("shared keys", False)],
    ids=["plain head", "ordered head", "keys shared between layers"],
)
@pytest.mark.parametrize("tree", [Chain(4), DynamicTree(3, 3, 9)], ids=["chain", "wide"])
def test_what_it_drafts_is_transformers_own_pass(tree, kind, ordered, monkeypatch):
    model = assistant_of(use_ordered_embeddings=ordered)
    drafter = Gemma4AssistantDrafter(target(kind), model)
    drafts = record_drafts(monkeypatch, Gemma4AssistantDrafter)
    inputs, expected = requests(kind)
    out = mmspec.generate(target(kind), drafter, inputs=inputs, max_new_tokens=NEW, tree=tree)
    assert out.token_ids == expected, "the text is the target's own"
    compared = 0
    for draft in drafts[:: max(len(drafts) // 3, 1)]:
        for row in range(len(expected)):
            if not draft.active[row]:
                continue
            for node, (*above, token) in enumerate(paths_of(draft.tree, row)[1:], start=1):
                logits = step(model, draft.history[row], above, kind=kind)
                if ordered:  # what is out of reach is below everything else; how far is the batch's own
                    assert logits.argmax() == token or tree.max_nodes > 4
                    continue
                wanted = logits.log_softmax(-1)[token].item()
                assert draft.tree.log_probs[row, node].item() == pytest.approx(wanted, abs=2e-4)
                compared += 1
    assert compared > 20 or ordered


def test_position_and_window_would_be_seen():
    model, history = assistant_of(), list(range(1, 13))
    right = step(model, history, [7])
    assert (step(model, history, [7], position=0) - right).abs().max() > 1e-3
    assert (step(model, [*history[:1], 9, *history[2:]], [7]) - right).abs().max() > 1e-3
    near = model.config.get_text_config().sliding_window
    model.config.get_text_config().sliding_window = 128
    assert (step(model, history, [7]) - right).abs().max() > 1e-3
    model.config.get_text_config().sliding_window = near


def test_sampling_keeps_the_targets_text_for_a_seed():
    options = {"inputs": requests()[0], "max_new_tokens": NEW, "temperature": 1.0, "seed": 3}
    drafter = Gemma4AssistantDrafter(target(), assistant_of())
    plain, drafted = (mmspec.generate(target(), one, **options).token_ids for one in (None, drafter))
    assert plain == drafted


def lesson_for(kind: str = "own keys"):
    """What a target has written to the requests."""
    inputs, texts = requests(kind)
    return Teacher(target(kind)).study(prepare(target(kind), inputs=inputs), [texts[0][:9], texts[1][:5], texts[2][:7]])


@pytest.mark.parametrize("kind", KINDS_OF)
def test_unrolled_guesses_are_what_transformers_drafts(kind):
    """Slot by slot, at every root and step."""
    model, lesson, compared = assistant_of(), lesson_for(kind), 0
    ids = lesson.request.token_ids()
    for step_number, guess in enumerate(Gemma4AssistantDrafter(target(kind), model).unroll(lesson, 3)):
        for root, logits in zip(guess.roots.tolist(), guess.logits, strict=True):
            row, place = divmod(root, lesson.root_slots.shape[1])
            until = lesson.prompt.lengths[row] + place + 1
            wanted = step(model, ids[row][:until], ids[row][until : until + step_number], kind=kind)
            assert (logits - wanted).abs().max() < 2e-4 * wanted.abs().max().clamp(min=1)
            compared += 1
    assert compared == sum(count - 1 - number for count in (9, 5, 7) for number in range(3))


def test_an_assistant_is_trained_by_its_recipe():
    config = configuration.compose("train", ["recipe=gemma4_assistant", "recipe.drafter.layers=2"])
    drafter = build(config.recipe.drafter, target=target())
    objective = build(config.recipe.objective)
    optimizer = build(config.recipe.optimizer, params=list(drafter.trainable_parameters()))
    lesson, losses = lesson_for(), []
    for _ in range(8):
        loss, _ = objective(drafter, lesson)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.99 * losses[0]
    inputs, expected = requests()
    assert mmspec.generate(target(), drafter, inputs=inputs, max_new_tokens=NEW).token_ids == expected


def test_sizes_that_none_can_have_are_refused_in_one_line():
    for settings, message in (
        ({"layers": 1}, "new_assistant: layers=1 must be a whole number, 2 or more"),
        ({"hidden_size": 2.5}, "new_assistant: hidden_size=2.5 must be a whole number, 1 or more"),
    ):
        with pytest.raises(MMSpecError, match=message):
            new_assistant(target(), **settings)
    with pytest.raises(MMSpecError, match="reads the keys and values of a Gemma 4, and the target is a 'llama'"):
        new_assistant(target_of("llama", "sdpa"))
    with pytest.raises(MMSpecError, match="Gemma4AssistantDrafter takes no compressor"):
        Gemma4AssistantDrafter(target(), assistant_of()).with_compressor(Hide())


def test_a_published_folder_and_a_saved_one_draft_the_same(tmp_path, monkeypatch):
    model = assistant_of()
    model.save_pretrained(tmp_path / "theirs")
    published = mmspec.load_drafter(str(tmp_path / "theirs"), target())
    published.save_pretrained(tmp_path / "ours")
    saved = mmspec.load_drafter(str(tmp_path / "ours"), target())
    assert type(published) is type(saved) is Gemma4AssistantDrafter
    trees = []
    for drafter in (Gemma4AssistantDrafter(target(), model), published, saved):
        drafts = record_drafts(monkeypatch, Gemma4AssistantDrafter)
        mmspec.generate(target(), drafter, inputs=requests()[0], max_new_tokens=6, tree=Chain(3))
        trees.append([draft.tree.tokens.tolist() for draft in drafts])
        monkeypatch.undo()
    assert trees[0] == trees[1] == trees[2]


def test_what_does_not_fit_is_refused():
    other = assistant_of(backbone_hidden_size=16)
    with pytest.raises(MMSpecError, match="made for a hidden size of 16 and 60 tokens, and the target has 32 and 60"):
        Gemma4AssistantDrafter(target(), other)
    with pytest.raises(MMSpecError, match="reads the keys and values of a Gemma 4, and the target is a 'llama'"):
        Gemma4AssistantDrafter(target_of("llama", "sdpa"), assistant_of())
    with pytest.raises(MMSpecError, match="Gemma4ForCausalLM is no assistant of Gemma 4"):
        Gemma4AssistantDrafter(target(), target().model)
    narrow = assistant_of()
    for layer in narrow.model.layers:
        layer.self_attn.num_key_value_groups = 4
    with pytest.raises(MMSpecError, match="asks .* for 1 keys of width .*, and the target has 2 of width"):
        Gemma4AssistantDrafter(target(), narrow)
