"""Draft models: whatever they read, their proposals are the draft model's own; vocabularies; refusals."""

from __future__ import annotations

import models
import pytest
import torch
import transformers
from covering import covering
from full_recompute import paths_of, recompute, start
from PIL import Image
from tiny_drafters import DRAFT_MODELS, NEED_PICTURES, blurred_drafter, record_drafts, text_drafter
from tiny_requests import RAGGED, case, target_of
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

import mmspec
from mmspec.drafters import DraftModelDrafter, OwnEncoderDrafter, SharedVisionDrafter, TextOnlyDrafter, VisualProjector
from mmspec.errors import MMSpecError
from mmspec.inputs import prepare
from mmspec.target import Target
from mmspec.trees import Chain, DynamicTree, StaticTree

NEW = 16
TREES = [Chain(3), StaticTree([[0], [1], [0, 0], [1, 0], [1, 1], [1, 1, 0]]), DynamicTree(3, 3, 9)]


@torch.no_grad()
def draft_logits(drafter: DraftModelDrafter, single: dict, continuations: list[list[int]]):
    """Logits of a full pass of the draft model over a row's prompt and its continuations, and the prompt's length."""
    ids = single["input_ids"]
    visual = ids == models.IMAGE
    if isinstance(drafter, OwnEncoderDrafter):
        return recompute(drafter.model, single, continuations).logits, ids.shape[1]
    if isinstance(drafter, TextOnlyDrafter) or not visual.any():
        ids = ids[~visual][None]
        blind = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        return recompute(drafter.model, blind, continuations).logits, ids.shape[1]
    vision = drafter.target.encode(prepare(drafter.target, inputs=single))
    embed = drafter.model.get_input_embeddings()
    prompt = embed(ids.masked_fill(visual, 0))
    prompt[visual] = torch.cat([drafter.projector(features) for features in vision.features])
    rows = []
    for tokens in continuations:
        embeds = torch.cat([prompt, embed(torch.tensor([tokens]))], dim=1)
        rows.append(drafter.model(inputs_embeds=embeds, use_cache=False).logits[0])
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True), ids.shape[1]


def assert_own_proposals(drafter: DraftModelDrafter, inputs: dict, drafts: list, chain: bool = False) -> int:
    """Every node was proposed with the probability that the draft model gives it after its path; returns how many."""
    nodes = 0
    for draft in drafts:
        for row in [row for row, active in enumerate(draft.active) if active]:
            single, paths = models.one_row(inputs, row), paths_of(draft.tree, row)
            emitted = draft.history[row][single["input_ids"].shape[1] :]
            tokens = [draft.tree.tokens[row, path].tolist() for path in paths]
            logits, prompt = draft_logits(drafter, single, [emitted + path[1:] for path in tokens])
            for number, path in enumerate(paths):
                first = prompt + len(emitted) - 1
                log_probs = logits[number, first : first + len(path) - 1].log_softmax(-1)
                expected = log_probs.gather(1, torch.tensor(tokens[number][1:])[:, None])[:, 0]
                assert (draft.tree.log_probs[row, path[1:]] - expected).abs().max() < 1e-4
                assert not chain or (expected - log_probs.amax(-1)).abs().max() < 1e-4
                nodes += len(path) - 1
    return nodes


def reads(name: str, label: str, tree) -> bool:
    return name in models.VISUAL or label not in NEED_PICTURES


@pytest.mark.parametrize(("name", "label", "tree"), covering(models.MODELS, DRAFT_MODELS, TREES, fits=reads))
def test_proposals_are_the_draft_models_own(name, label, tree, monkeypatch):
    """Whatever was accepted or refused before, in rows that end at different times."""
    drafter = DRAFT_MODELS[label](name, "sdpa")
    inputs, expected = case(name, "sdpa", *RAGGED, NEW)
    stop = expected[1][6]
    drafts = record_drafts(monkeypatch, DraftModelDrafter)
    out = mmspec.generate(drafter.target, drafter, inputs=inputs, max_new_tokens=NEW, tree=tree, eos_token_id=stop)
    assert out.token_ids == [ids[: ids.index(stop) + 1] if stop in ids else ids for ids in expected]
    assert {len(ids) for ids in out.token_ids} != {NEW}
    assert assert_own_proposals(drafter, inputs, drafts, chain=isinstance(tree, Chain)) > 20


@pytest.mark.parametrize(("name", "attention"), [("llava", "eager"), ("mistral", "eager"), ("gemma3", "eager")])
def test_proposals_on_the_eager_back_end(name, attention, monkeypatch):
    drafter = blurred_drafter(name, attention)
    inputs, _ = case(name, attention, *RAGGED, NEW)
    drafts = record_drafts(monkeypatch, DraftModelDrafter)
    mmspec.generate(drafter.target, drafter, inputs=inputs, max_new_tokens=NEW, tree=DynamicTree(3, 3, 9))
    assert assert_own_proposals(drafter, inputs, drafts) > 20


def test_a_shared_tower_twin_of_the_target_is_always_right():
    """The target's language model behind a copy of its projector: what it sees is what the target sees."""
    target = target_of("llava", "sdpa")
    twin, theirs = models.llama(), target.model.model
    twin.model.load_state_dict(theirs.language_model.state_dict())
    twin.lm_head.load_state_dict(target.model.lm_head.state_dict())
    projector = VisualProjector(16, models.TEXT["hidden_size"])
    projector.inner.load_state_dict(theirs.multi_modal_projector.linear_1.state_dict())
    projector.outer.load_state_dict(theirs.multi_modal_projector.linear_2.state_dict())
    inputs, expected = case("llava", "sdpa", *RAGGED, NEW)
    for drafter in (SharedVisionDrafter(target, twin, projector), TextOnlyDrafter(target, twin)):
        out = mmspec.generate(target, drafter, inputs=inputs, max_new_tokens=1 + 3 * 5, tree=Chain(4))
        assert out.token_ids == [ids[: 1 + 3 * 5] for ids in expected]
        assert (out.stats.mean_acceptance_length == 5) == drafter.reads_pictures


@pytest.mark.parametrize("module", [torch.nn.Linear(16, 32), torch.nn.ZeroPad1d((0, 16))], ids=["weights", "none"])
def test_any_module_may_be_the_projector(module):
    target = target_of("llava", "sdpa")
    inputs, expected = case("llava", "sdpa", *RAGGED, NEW)
    drafter = SharedVisionDrafter(target, models.llama(seed=6), module)
    assert mmspec.generate(target, drafter, inputs=inputs, max_new_tokens=NEW).token_ids == expected


@pytest.mark.parametrize("label", DRAFT_MODELS)
@pytest.mark.parametrize("name", models.VISUAL)
def test_only_a_drafter_that_sees_depends_on_the_picture(name, label):
    """The same tokens before another picture: its drafts change if it looks at pictures."""
    drafter, trees = DRAFT_MODELS[label](name, "sdpa"), []
    inputs = models.inputs_for(name, [1], [6])
    for pixels in (inputs["pixel_values"], -inputs["pixel_values"]):
        context = start(drafter.target, {**inputs, "pixel_values": pixels})
        context.history[0][-1] = 5
        session = drafter.fork(Chain(3))
        with torch.inference_mode():
            session.start(context)
            trees.append(session.draft(torch.tensor([5])))
    change = (trees[0].log_probs - trees[1].log_probs).abs().max()
    assert change > 1e-3 if drafter.reads_pictures else change == 0


@pytest.mark.parametrize("name", models.VISUAL)
def test_a_blind_model_counts_positions_of_its_own(name):
    """Its prompt is shorter by the visual tokens, and so is its cache."""
    drafter = text_drafter(name, "sdpa")
    inputs = models.inputs_for(name, [2, 1], [5, 9])
    context = start(drafter.target, inputs)
    session = drafter.fork()
    with torch.inference_mode():
        session.start(context)
    visual = (inputs["input_ids"] == models.IMAGE).sum(-1)
    assert visual.min() > 0
    assert torch.equal(session.session.cache.lengths, context.lengths - visual)


def test_rows_that_have_finished_take_no_more_room(monkeypatch):
    drafter, lengths = blurred_drafter("llama", "sdpa"), []
    inputs, expected = case("llama", "sdpa", *RAGGED, NEW)
    observe = DraftModelDrafter.observe

    def recording(self, *arguments):
        observe(self, *arguments)
        lengths.append(self.session.cache.lengths_list)

    monkeypatch.setattr(DraftModelDrafter, "observe", recording)
    options = {"inputs": inputs, "max_new_tokens": NEW, "tree": Chain(2)}
    out = mmspec.generate(drafter.target, drafter, eos_token_id=expected[1][2], **options)
    assert len(out.token_ids[1]) <= 3 < len(lengths) and max(map(len, out.token_ids)) == NEW
    assert lengths[-1][1] == lengths[2][1] and lengths[-1] != lengths[2]


# Vocabularies.


def tokenizer(size: int) -> transformers.PreTrainedTokenizerFast:
    words = Tokenizer(WordLevel({f"w{i}": i for i in range(size)}, unk_token="w0"))
    return transformers.PreTrainedTokenizerFast(tokenizer_object=words, pad_token="w0", unk_token="w0")


def llama_of(vocab: int, seed: int = 0):
    config = transformers.LlamaConfig(**{**models.TEXT, "vocab_size": vocab, "num_hidden_layers": 1})
    return models.rescale(transformers.LlamaForCausalLM._from_config(config, attn_implementation="sdpa"), seed)


@pytest.mark.parametrize("sees", [False, True])
@pytest.mark.parametrize("rows", [models.VOCAB + 3, models.VOCAB - 6])
def test_embedding_tables_may_be_padded_differently(sees, rows):
    """One tokenizer, tables of different height: padding is never proposed, and what the target emits can be read."""
    target = Target(target_of("llava", "sdpa").model, tokenizer(50))
    draft = llama_of(rows)
    if rows > models.VOCAB:
        draft.lm_head.weight.data[models.VOCAB :] += 10 * draft.lm_head.weight.data.abs().max()
    if sees:
        drafter = SharedVisionDrafter(target, draft, models.redraw(VisualProjector(16, 32), 0), tokenizer(50))
    else:
        drafter = TextOnlyDrafter(target, draft, tokenizer(50))
    inputs, expected = case("llava", "sdpa", *RAGGED, NEW)
    assert max(map(max, expected)) >= models.VOCAB - 6, "the target is to emit a token that the smaller table lacks"
    for tree in TREES:
        out = mmspec.generate(target, drafter, inputs=inputs, max_new_tokens=NEW, tree=tree)
        assert out.token_ids == expected


@pytest.mark.parametrize(
    ("ours", "theirs", "message"),
    [
        (None, None, "target vocab is 61 but the drafter's is 64: they must share a tokenizer"),
        (50, None, "target vocab is 61 but the drafter's is 64: they must share a tokenizer"),
        (50, 49, r"the draft model's tokenizer \(49 tokens\) is not the target's \(50 tokens\)"),
    ],
)
def test_a_drafter_of_another_vocabulary_is_refused(ours, theirs, message):
    target = Target(target_of("llama", "sdpa").model, ours and tokenizer(ours))
    with pytest.raises(MMSpecError, match=message):
        TextOnlyDrafter(target, llama_of(64), processor=theirs and tokenizer(theirs))


def test_tokenizers_of_one_size_are_compared_word_by_word():
    target = Target(target_of("llama", "sdpa").model, tokenizer(50))
    other = tokenizer(49)
    other.add_tokens(["something else"])
    assert len(other.get_vocab()) == 50
    with pytest.raises(MMSpecError, match="they must share one"):
        TextOnlyDrafter(target, llama_of(models.VOCAB), processor=other)


# Other bad input.


def test_a_recurrent_draft_model_is_refused():
    config = transformers.MambaConfig(**{**models.TEXT, "state_size": 4})
    with pytest.raises(MMSpecError, match="recurrent state"):
        TextOnlyDrafter(target_of("llama", "sdpa"), transformers.MambaForCausalLM(config))


def test_a_prompt_of_pictures_alone_leaves_a_blind_model_nothing_to_read():
    drafter = text_drafter("llava", "sdpa")
    inputs = models.inputs_for("llava", [1])
    alone = {**inputs, "input_ids": torch.full((1, 4), models.IMAGE), "attention_mask": torch.ones(1, 4)}
    with pytest.raises(MMSpecError, match="without its images is empty"):
        mmspec.generate(drafter.target, drafter, inputs=alone, max_new_tokens=4)


@pytest.mark.parametrize("label", DRAFT_MODELS)
@pytest.mark.parametrize("name", models.VISUAL[:2])
def test_inside_generate_a_draft_model_sees_what_it_sees_outside(name, label):
    drafter = DRAFT_MODELS[label](name, "sdpa")
    inputs, expected = case(name, "sdpa", *RAGGED, NEW)
    options = {"max_new_tokens": NEW, "do_sample": False, "custom_generate": mmspec.hf.custom_generate(drafter)}
    assert drafter.target.model.generate(**inputs, **options)[:, -NEW:].tolist() == expected
    outside = mmspec.generate(drafter.target, drafter, inputs=inputs, max_new_tokens=NEW)
    rounds = [record.accepted for record in drafter.last_output.stats.rounds]
    assert rounds == [record.accepted for record in outside.stats.rounds]


@pytest.mark.parametrize("label", DRAFT_MODELS)
def test_pictures_that_the_caller_encoded_mean_nothing_to_another_model(label):
    drafter = DRAFT_MODELS[label]("llava", "sdpa")
    inputs, expected = case("llava", "sdpa", *RAGGED, NEW)
    model = drafter.target.model
    encoded = {"image": model.model.get_image_features(inputs["pixel_values"], return_dict=True)}
    inputs = {name: value for name, value in inputs.items() if name != "pixel_values"}
    options = {"max_new_tokens": NEW, "do_sample": False, "custom_generate": mmspec.hf.custom_generate(drafter)}
    if isinstance(drafter, TextOnlyDrafter):
        out = model.generate(**inputs, mm_encoder_outputs=encoded, **options)
        assert out[:, -NEW:].tolist() == expected
    else:
        with pytest.raises(
            MMSpecError, match=f"(?s){type(drafter).__name__} reads.*(pass them as|instead of mm_encoder_outputs)"
        ):
            model.generate(**inputs, mm_encoder_outputs=encoded, **options)


class Reader:
    """A processor without files: words are numbers, a picture is its pixels."""

    chat_template, image_token = None, " <image> "

    def __init__(self, name: str):
        self.name, self.tokenizer = name, tokenizer(models.VOCAB)

    def __call__(self, text, images=None, return_tensors="pt", padding=True, **_):
        picture = [models.VISION_START] + [models.IMAGE] * 4 + [models.VISION_END]
        rows = [[t for w in line.split() for t in (picture if w == "<image>" else [int(w)])] for line in text]
        width = max(map(len, rows))
        ids = torch.tensor([[0] * (width - len(row)) + row for row in rows])
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
        types = {"gemma3": "token_type_ids", "qwen_vl": "mm_token_type_ids"}.get(self.name)
        inputs = {"input_ids": ids, "attention_mask": mask, **({types: (ids == models.IMAGE).int()} if types else {})}
        if images:
            flat = [torch.tensor(list(image.resize((16, 16)).tobytes())) / 255 - 0.5 for row in images for image in row]
            pixels = torch.stack(flat).view(-1, 16, 16, 3).permute(0, 3, 1, 2)
            inputs["pixel_values"] = pixels
            if self.name == "qwen_vl":
                inputs["pixel_values"] = pixels.repeat(1, 2, 1, 1).reshape(-1, 96)
                inputs["image_grid_thw"] = torch.tensor([[1, 4, 4]] * len(flat))
        return inputs


@pytest.mark.parametrize(("name", "other"), [("qwen_vl", "llava"), ("llava", "qwen_vl"), ("gemma3", "gemma3")])
def test_a_draft_model_of_another_family_reads_the_prompt_by_its_own_processor(name, other, monkeypatch):
    target = Target(target_of(name, "sdpa").model, Reader(name))
    drafter = OwnEncoderDrafter(target, models.MODELS[other](seed=4), processor=Reader(other))
    prompts = ["11 12 13 14", "21 22"]
    red, blue, white = (Image.new("RGB", (20, 20), colour) for colour in ("red", "blue", "white"))
    images = [[red], [blue, white]]
    inputs = Reader(name)(["<image> 11 12 13 14", "<image> <image> 21 22"], images)
    expected = models.reference(target.model, inputs, NEW)
    drafts = record_drafts(monkeypatch, DraftModelDrafter)
    out = mmspec.generate(target, drafter, prompts, images, max_new_tokens=NEW, tree=StaticTree([[0], [1], [1, 0]]))
    assert out.token_ids == expected
    read = prepare(drafter.draft_target, prompts, images).inputs
    assert assert_own_proposals(drafter, read, drafts) > 20
    with pytest.raises(MMSpecError, match=r"needs the prompt and the media; call generate\(prompt="):
        mmspec.generate(target, drafter, inputs=models.inputs_for(name, [1]), max_new_tokens=4)


class Talker(Reader):
    """The same with a chat template: who speaks is a number too."""

    chat_template = "roles as numbers"

    def apply_chat_template(self, messages, **_) -> str:
        words = []
        for message in messages:
            words.append("31" if message["role"] == "user" else "32")
            words += ["<image>" if part["type"] == "image" else part["text"] for part in message["content"]]
        return " ".join(words)


def test_a_draft_model_with_its_own_processor_reads_the_whole_conversation(monkeypatch):
    target = Target(target_of("qwen_vl", "sdpa").model, Talker("qwen_vl"))
    drafter = OwnEncoderDrafter(target, models.MODELS["llava"](seed=4), processor=Talker("llava"))
    red = Image.new("RGB", (20, 20), "red")
    request = prepare(target, [("11 12", "13", "14")], [[red]])
    read = prepare(drafter.draft_target, messages=request.conversations)
    written = Reader("llava")(["31 <image> 11 12 32 13 31 14"], [[red]])
    assert torch.equal(read.inputs["input_ids"], written["input_ids"])
    drafts = record_drafts(monkeypatch, DraftModelDrafter)
    out = mmspec.generate(target, drafter, inputs=request, max_new_tokens=NEW, tree=Chain())
    assert out.token_ids == models.reference(target.model, request.inputs, NEW)
    assert assert_own_proposals(drafter, read.inputs, drafts, chain=True) > 5
