"""Published drafters as loaded: what they guess is what the original computes, and the target's text is its own."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache

import models
import originals
import published
import pytest
import torch
from heads import TOLERANCE, error, guesses_of, inputs_of, lesson_of
from published_drafters import load_written, original, text_of, written
from scripted_rounds import decode, guesses_compared
from tiny_drafters import record_drafts
from tiny_requests import RAGGED, case

import mmspec
from mmspec.compressors import Hide, Pool, Prune
from mmspec.drafters import (
    DreamDrafter,
    Eagle3Drafter,
    EagleDrafter,
    HiVisDrafter,
    MsdDrafter,
    MtpDrafter,
    PEagleDrafter,
    ViSpecDrafter,
)
from mmspec.inputs import prepare
from mmspec.trees import Chain, DynamicTree

# Format to the targets that it is loaded for, the class, and options that tell what was recognised.
LOADED = {
    "eagle": (("llava", "llama"), EagleDrafter, {"bias": True, "input_norm": False}),
    "eagle, qwen": (("qwen_vl",), EagleDrafter, {"bias": False}),
    "msd": (("llava",), MsdDrafter, {"input_norm": False}),
    "msd, qwen": (("qwen_vl",), MsdDrafter, {"input_norm": True}),
    "vispec": (("llava", "qwen_vl"), ViSpecDrafter, {"queries": 3, "heads": 4, "use_summary": True}),
    "hivis": (("llava", "qwen_vl"), HiVisDrafter, {"steps": 3}),
    "hivis, old": (("qwen_vl",), HiVisDrafter, {"steps": 1, "packed": False}),
    "dream": (("llava",), DreamDrafter, {"first_token": "mean", "tree_masked": False}),
    "mtp": (("qwen_vl", "llava"), MtpDrafter, {"gate": True, "head_norms": True, "turned": 4, "rope": "mrope"}),
    "mtp, speculators": (
        ("llava", "llama"),
        MtpDrafter,
        {"gate": False, "head_norms": True, "turned": None, "rope": "1d"},
    ),
    "mtp, appended": (("llava", "llama"), MtpDrafter, {"layers": 3, "output_norm": "own", "recursive": False}),
    "mtp, mimo": (("llava",), MtpDrafter, {"layers": 2, "states_first": True, "shared_fusion": False}),
    "mtp, shared": (("qwen_vl",), MtpDrafter, {"layers": 2, "shared_fusion": True, "output_norm": "shared"}),
    "eagle3": (("llava", "qwen_vl"), Eagle3Drafter, {"feature_layers": [1, 1, 2], "rope": "1d", "visual": False}),
    "eagle3, speculators": (
        ("qwen_vl",),
        Eagle3Drafter,
        {"feature_layers": [1, 0, 2], "fc_norm": True, "norm_output": True, "norm_before_residual": False},
    ),
    "eagle3, other width": (
        ("llava", "llama"),
        Eagle3Drafter,
        {"feature_layers": [0, 1, 2], "norm_before_fc": True, "norm_before_residual": True, "own_embedding": 64}
        | {"draft_vocab_size": None},
    ),
    "eagle3, mrope": (("qwen_vl", "llava"), Eagle3Drafter, {"rope": "mrope"}),
    "eagle3, interleaved": (("qwen_vl",), Eagle3Drafter, {"rope": "mrope"}),
    "peagle": (
        ("llava",),
        PEagleDrafter,
        {"layers": 3, "depths": 5, "mask_token_id": 9, "norm_before_residual": True, "own_embedding": models.VOCAB}
        | {"draft_vocab_size": len(published.DRAFTED), "feature_layers": [1, 1, 2]},
    ),
    "peagle, vLLM": (
        ("qwen_vl", "llama"),
        PEagleDrafter,
        {"layers": 1, "depths": 8, "mask_token_id": 7, "fc_norm": True, "draft_vocab_size": None, "rope": "1d"},
    ),
}
OWN_EMBEDDING = ("eagle3, other width", "peagle")
CASES = [(format, name) for format, (names, _, _) in LOADED.items() for name in names]


@pytest.fixture(scope="module")
def load(tmp_path_factory):
    """Loads a checkpoint of a format for a target, once."""

    @cache
    def load(format: str, name: str):
        return load_written(tmp_path_factory.mktemp("checkpoint"), *written(format, name), name)

    return load


@pytest.mark.parametrize(("format", "name"), CASES)
def test_a_published_drafter_is_recognised_and_says_what_it_is(load, format, name):
    _, cls, options = LOADED[format]
    drafter = load(format, name)
    config = drafter.config()
    assert type(drafter) is cls and not drafter.training
    assert {option: config[option] for option in options} == options
    assert config["head"]["intermediate_size"] == published.INTERMEDIATE
    assert config["head"]["rms_norm_eps"] == published.EPS
    assert config["head"]["rope_parameters"]["rope_theta"] == published.BASE
    assert config["head"]["attention_bias"] == ("qwen" in format or format.startswith(("vispec", "hivis")))
    assert config.get("own_embedding") is None or format in OWN_EMBEDDING, "the target's own is read"
    if format.startswith("hivis"):
        assert config["packed"] == (name == "llava")
        assert list(config["compressor"]["margin"]) == ([0, 0] if name == "llava" else [1, 2])
    assert not any(parameter.is_meta for parameter in [*drafter.parameters(), *drafter.buffers()])


@pytest.mark.parametrize(("format", "name"), CASES)
def test_its_guesses_are_those_of_the_original(load, format, name):
    """At several roots of every row of a ragged batch with 0, 1 and 2 pictures, three levels deep."""
    lesson, compared = lesson_of(name), 0
    guesses = guesses_of(load(format, name), lesson, 3)
    reference = original(format, name)
    for row, answer in enumerate(lesson.answers):
        for root in {0, 3, len(answer) - 2} & set(range(len(answer) - 1)):
            with torch.no_grad():
                expected = reference.draft(text_of(name, row, root), answer[root + 1 : -1][:2])
            for level, logits in enumerate(expected):
                assert error(guesses[row, root, level], logits) < TOLERANCE, (row, root, level)
                compared += 1
    assert compared > 18 or "mimo" in format or "shared" in format  # which have two levels


def alter(drafter, **values) -> None:
    """Give a drafter other settings or parts than it was loaded with; axes -1 are its own the other way round."""
    for name, value in values.items():
        if name in vars(drafter.settings):
            drafter.settings = replace(drafter.settings, **{name: value})
        else:
            setattr(drafter, name, drafter.axes.flip(0) if value == -1 else value)


MISTAKES = {
    "delimiters shown": ("hivis", "qwen_vl", {"compressor": Hide()}),
    "gap closed": ("hivis", "qwen_vl", {"compressor": Hide(True, (1, 2))}),
    "gap left": ("hivis", "llava", {"compressor": Hide()}),
    "one axis": ("eagle3, mrope", "qwen_vl", {"axes": None}),
    "other order of axes": ("eagle3, mrope", "qwen_vl", {"axes": -1}),
    "layers off by one": ("eagle3", "llava", {"taps": (0, 0, 1)}),
    "normed state": ("eagle3", "llava", {"norm_output": True}),
    "visual embeddings": ("eagle3", "llava", {"visual": True}),
    "first token alone": ("dream", "llava", {"first_token": "nothing"}),
    "fusion not normed": ("mtp", "llava", {"pre_fc_norm_hidden": torch.nn.Identity()}),
    "states first": ("mtp, speculators", "llava", {"states_first": True}),
    "embeddings first": ("mtp, mimo", "llava", {"states_first": False}),
    "no norm between": ("mtp, appended", "llava", {"output_norm": "none"}),
    "one axis of a turned half": ("mtp", "qwen_vl", {"axes": None}),
    "another mask": ("peagle", "llava", {"mask_token_id": 10}),
    "another residual": ("peagle", "llava", {"norm_before_residual": False}),
    "no summary": ("vispec", "llava", {"use_summary": False}),
}


@pytest.mark.parametrize(("format", "name", "change"), MISTAKES.values(), ids=list(MISTAKES))
def test_the_original_tells_mistakes_apart(load, format, name, change):
    """What each option of the loader is for would be seen if it were another."""
    drafter, lesson, row = load(format, name).fork(), lesson_of(name), 0
    alter(drafter, **change)
    with torch.no_grad():
        expected = original(format, name).draft(text_of(name, row, 0), lesson.answers[row][1:2])
    guesses = guesses_of(drafter, lesson, 2)
    assert max(error(guesses[row, 0, level], logits) for level, logits in enumerate(expected)) > 10 * TOLERANCE


@pytest.mark.parametrize(("format", "name"), CASES)
@pytest.mark.parametrize("width", [1, 2])
def test_decoding_sees_what_training_does(load, format, name, width):
    """After rounds that accepted nothing, one token or several. A tree whose memory is not masked sees more."""
    drafter = load(format, name)
    if format == "dream" and width > 1:
        drafter = drafter.fork()
        drafter.settings = replace(drafter.settings, tree_masked=True)
    assert guesses_compared(drafter, lesson_of(name), name, width) > (15 if drafter.max_depth == 2 else 25)


@pytest.mark.parametrize("compressor", [Hide(), Hide(packed=True), Pool(2), Prune(0.5)], ids=repr)
def test_positions_of_several_axes_go_with_what_is_left_of_a_picture(load, compressor):
    name, compared = "qwen_vl", 0
    drafter, lesson = load("eagle3, mrope", name).with_compressor(compressor), lesson_of(name)
    guesses = guesses_of(drafter, lesson, 3)
    for roots, builder, _ in decode(drafter, name, 1):
        for row, root in roots.items():
            for step in range(min(3, len(lesson.answers[row]) - 1 - root)):
                assert error(builder.logits[step][row, 0], guesses[row, root, step]) < TOLERANCE
                compared += 1
    inputs, expected = case(name, "sdpa", *RAGGED, 12)
    assert mmspec.generate(drafter.target, drafter, inputs=inputs, max_new_tokens=12).token_ids == expected
    assert compared > 15


@pytest.mark.parametrize("tree_masked", [False, True])
def test_dreams_memory_is_masked_as_its_option_says(load, tree_masked):
    """Without the mask a node sees the stand-ins of nodes that are not its ancestors, and siblings before it."""
    name, compared = "llava", 0
    drafter = load("dream", name).fork()
    drafter.settings = replace(drafter.settings, tree_masked=tree_masked)
    reference = original("dream", name)
    for roots, builder, tree in decode(drafter, name, width=2, depth=3):
        for row, root in roots.items():
            # Nodes stand level by level, two children to each.
            tokens = tree.tokens[row].tolist()
            levels = [[(tokens[1], 0), (tokens[2], 0)], [(tokens[number], (number - 3) // 2) for number in range(3, 7)]]
            with torch.no_grad():
                right = reference.levels(text_of(name, row, root), levels, tree_masked)
                other = reference.levels(text_of(name, row, root), levels, not tree_masked)
            for level, (logits, wrong) in enumerate(zip(right, other, strict=True)):
                for number in range(2**level):
                    assert error(builder.logits[level][row, number], logits[number]) < TOLERANCE
                    compared += 1
                assert (level < 1) or error(builder.logits[level][row, 2**level - 1], wrong[-1]) > 10 * TOLERANCE
    assert compared > 30


def released_tree(reference, text: originals.Text, depth: int, top_k: int, total: int) -> dict[tuple, float]:
    """The tree that DREAM's release would verify: paths of tokens below the root, and their log-probabilities."""
    levels, frontier, created = [], [((), 0.0)], []
    for level in range(depth):
        logits, children = reference.levels(text, levels, tree_masked=False)[level], []
        for number, (path, score) in enumerate(frontier):
            best = logits[number].log_softmax(-1).topk(top_k)
            for value, token in zip(best.values.tolist(), best.indices.tolist(), strict=True):
                children.append(((*path, token), score + value, number))
        created += children
        children.sort(key=lambda child: -child[1])
        # The likeliest is expanded first, so every other one of its level sees it.
        levels.append([(path[-1], number) for path, _, number in children[:top_k]])
        frontier = [(path, score) for path, score, _ in children[:top_k]]
    created.sort(key=lambda child: -child[1])
    return {path: score for path, score, _ in created[: total - 1]}


@torch.inference_mode()
def test_dreams_levels_are_expanded_in_the_order_of_the_release(load):
    """The likeliest first: where siblings see each other, the order decides what a node remembers."""
    name, shape = "llava", (4, 4, 24)
    drafter, lesson = load("dream", name).fork(DynamicTree(*shape)), lesson_of(name)
    target, prompt = drafter.target, prepare(drafter.target, inputs=inputs_of(name))
    context = target.prefill(prompt, target.encode(prompt), feature_layers=drafter.feature_layers)
    for history, answer in zip(context.history, lesson.answers, strict=True):
        history.append(answer[0])
    drafter.start(context)
    tree = drafter.draft(torch.tensor([answer[0] for answer in lesson.answers])).validate()
    for row in range(len(lesson.answers)):
        found, paths = {}, [()]
        for node in range(1, tree.num_nodes):
            parent = int(tree.parents[row, node])
            paths.append((*paths[parent], int(tree.tokens[row, node])))
            found[paths[-1]] = found.get(paths[parent], 0.0) + float(tree.log_probs[row, node])
        expected = released_tree(original("dream", name), text_of(name, row, 0), *shape)
        assert max(map(len, expected)) >= 3
        assert found == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(("format", "name"), CASES)
def test_greedy_text_is_the_targets_own(load, format, name):
    drafter = load(format, name)
    for rows, tree in ((RAGGED, None), (((1,), (9,)), Chain(3))):
        inputs, expected = case(name, "sdpa", *rows, 12)
        out = mmspec.generate(drafter.target, drafter, inputs=inputs, max_new_tokens=12, tree=tree)
        assert out.token_ids == expected


@pytest.mark.parametrize(("format", "name"), CASES)
def test_what_was_loaded_can_be_saved_and_loaded_again(load, format, name, tmp_path):
    drafter = load(format, name)
    drafter.save_pretrained(tmp_path, source=format)
    again = mmspec.load_drafter(str(tmp_path), drafter.target)
    assert type(again) is type(drafter)
    assert json.dumps(again.config()) == json.dumps(drafter.config())
    ours, theirs = drafter.state_dict(), again.state_dict()
    assert ours.keys() == theirs.keys() and all(theirs[key].equal(value) for key, value in ours.items())


@pytest.mark.parametrize("format", ["eagle3", "eagle3, speculators"])
def test_d2t_is_added_to_a_draft_token(load, format, monkeypatch):
    """Read as a table of the target's tokens it would name others, and acceptance would be at its floor."""
    name = "qwen_vl"
    drafter, drafted = load(format, name), published.DRAFTED
    table = drafter.d2t.tolist()
    assert drafter.draft_vocabulary.tolist() == drafted != table
    trees, lesson = record_drafts(monkeypatch, Eagle3Drafter), lesson_of(name)
    mmspec.generate(drafter.target, drafter, inputs=inputs_of(name), max_new_tokens=3, tree=Chain(1))
    for row in range(len(lesson.answers)):
        text, tree = text_of(name, row, 0), trees[0]
        root = tree.history[row][-1]
        text = originals.Text(**{**vars(text), "ids": [*text.ids[:-1], root]})
        with torch.no_grad():
            choice = int(original(format, name).draft(text, [])[0].argmax())
        assert tree.tree.tokens[row, 1] == drafted[choice]
        assert table[choice] != drafted[choice] or not choice


def test_other_widths_train_everything_but_the_embedding(load):
    drafter = load("eagle3, other width", "llava")
    trained = {id(parameter) for parameter in drafter.trainable_parameters()}
    assert {name for name, p in drafter.named_parameters() if id(p) not in trained} == {"embed_tokens.weight"}
