"""The self-check passes on every family, and sees every mistake that a family could make."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from mistakes import no_tree_mask, sequential_positions
from refusals import refused
from tiny_families import FAMILIES, UNLISTED
from tiny_requests import target_of
from tiny_training import small_model

import mmspec
from mmspec import cli
from mmspec.check import check_target
from mmspec.drafters import EagleDrafter, NGramDrafter
from mmspec.errors import MMSpecError
from mmspec.families import Unlisted
from mmspec.families.base import Family
from mmspec.families.gemma3 import Gemma3
from mmspec.families.paligemma import PaliGemma
from mmspec.families.qwen3_vl import Qwen3VL
from mmspec.families.rope import MultiAxisRope
from mmspec.target import Target
from mmspec.trees import DynamicTree


def shown(name: str) -> dict | None:
    """A row with all that a family can be shown, pictures twice."""
    kinds = list(FAMILIES[name].kinds)
    return FAMILIES[name].inputs([[*kinds, *kinds[:1]]], [7]) if kinds else None


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_passes(name):
    report = check_target(target_of(name), shown(name))
    assert report.ok, f"\n{report}"
    assert report.kinds == set(FAMILIES[name].kinds)


MASKS = ("llava", "qwen2_5_vl", "gemma3", "paligemma", "qwen2_audio", "mistral, sliding window")
"""A family for each kind of mask, positions and tower; eager attention takes the masks in another form."""


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[] if name in MASKS else [pytest.mark.slow])
        for name, tiny in FAMILIES.items()
        if tiny.attention == "sdpa"
    ],
)
def test_every_family_passes_on_eager_attention(name):
    report = check_target(Target(FAMILIES[name].build("eager")), shown(name))
    assert report.ok, f"\n{report}"


def without_types(cls):
    """The prompt is causal throughout."""

    def patch(monkeypatch, target):
        monkeypatch.setattr(cls, "prefill_inputs", lambda self, inputs, vision=None, visual=None: {})

    return patch


def from_zero(monkeypatch, target):
    """What follows the prompt stands at its index, although the prompt begins at 1."""
    positions = PaliGemma.positions
    monkeypatch.setattr(
        PaliGemma, "positions", lambda self, inputs: (positions(self, inputs)[0], Family.positions(self, inputs)[1])
    )


def without_deep_features(monkeypatch, target):
    monkeypatch.setattr(Qwen3VL, "prefill_inputs", Family.prefill_inputs)


def without_delta(monkeypatch, target):
    """Text behind a picture stands at its index."""
    positions = MultiAxisRope.positions
    monkeypatch.setattr(
        MultiAxisRope, "positions", lambda self, inputs: (positions(self, inputs)[0], 0 * positions(self, inputs)[1])
    )


def kinds_mixed_up(monkeypatch, target):
    """Videos before all pictures, wherever they stand."""

    def mistaken(parts, rows, placeholders):
        image, video = parts["image"], parts["video"]
        return dataclasses.replace(image, embeds=video.embeds + image.embeds, features=None, kinds=None, deep=None)

    monkeypatch.setattr("mmspec.families.media.in_order", mistaken)


COMMON = [(mistake, name, "text") for name in FAMILIES for mistake in (sequential_positions, no_tree_mask)]
MISTAKES = [
    *[one for one in COMMON if one[1] in MASKS],  # with the others slow
    (without_types(Gemma3), "gemma3", "pictures"),
    *[(without_types(PaliGemma), name, "pictures") for name in ("paligemma2",)],
    *[(from_zero, name, "text") for name in ("paligemma", "paligemma2")],
    (without_deep_features, "qwen3_vl", "pictures"),
    *[(without_delta, name, "pictures") for name in ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")],
    *[(kinds_mixed_up, name, "pictures") for name in ("llava_onevision", "qwen2_vl")],
]


@pytest.mark.parametrize(
    ("mistake", "name", "where"),
    [
        *[pytest.param(*one, id=f"{one[0].__name__}-{one[1]}-{one[2]}") for one in MISTAKES],
        *[pytest.param(*one, marks=pytest.mark.slow) for one in COMMON if one not in MISTAKES],
    ],
)
def test_a_mistake_is_seen(mistake, name, where, monkeypatch):
    mistake(monkeypatch, target_of(name))
    report = check_target(target_of(name), shown(name))
    assert [f for f in report.findings if not f.ok and f.what.startswith(where)], f"\n{report}"
    refused(lambda: report.raise_if_wrong(target_of(name)), "does not pass the self-check")


# Families that are not listed.


def unlisted(name: str, **options) -> Target:
    model = FAMILIES[name].build(FAMILIES[name].attention)
    model.config.model_type = "another"
    return Target(model, **options)


@pytest.mark.parametrize("name", ["llava", "llava_next", "qwen2_vl", "internvl", "smolvlm", "mistral3"])
def test_what_is_built_like_others_works_without_a_family(name):
    target = unlisted(name)
    assert isinstance(target.family, Unlisted)
    refused(lambda: target.encode(_request(target, shown(name))), "of no listed family, and how it reads pictures was")
    assert target.check(shown(name)).kinds == set(FAMILIES[name].kinds)
    assert target.encode(_request(target, shown(name))) is not None


@pytest.mark.parametrize("name", ["qwen3_vl", "gemma3"])
def test_what_reads_pictures_in_a_way_of_its_own_is_refused(name):
    target = unlisted(name)
    refused(lambda: target.check(shown(name)), "does not pass the self-check ... pictures")
    refused(lambda: target.encode(_request(target, shown(name))), "was not checked")


@pytest.mark.parametrize("name", ["vipllava", "glm4v", "idefics2", "qwen3_asr"])
def test_real_models_without_a_family_are_exact(name):
    """Checked, and held against `generate` as the others are."""
    tiny = UNLISTED[name]
    target = Target(tiny.build(tiny.attention))
    inputs = tiny.inputs([[tiny.kinds[0]] * 2])
    assert target.check(inputs).kinds == set(tiny.kinds)
    expected = target.model.generate(**inputs, max_new_tokens=10, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    for drafter in (NGramDrafter(target), EagleDrafter(target)):
        tree = None if drafter.tree is None else DynamicTree(6, 2, 3)
        out = mmspec.generate(target, drafter, inputs=inputs, max_new_tokens=10, tree=tree)
        assert out.token_ids == [expected.tolist()]


def test_a_head_that_does_less_than_its_configuration_says():
    """Aya Vision's language model would scale its logits, and the outer model does not."""
    model = UNLISTED["aya_vision"].build()
    target = Target(model)
    assert model.config.text_config.logit_scale != 1 and target.family.logit_scale == 1
    assert target.check(UNLISTED["aya_vision"].inputs([["image", "image"]])).kinds == {"image"}


def test_a_head_that_is_misread_is_refused(monkeypatch):
    monkeypatch.setattr(Family, "compare_head", lambda self, hidden, logits: None)
    refused(lambda: Target(UNLISTED["aya_vision"].build()), "AyaVision ... logits from the last state")


def test_what_reads_text_in_a_way_of_its_own_is_refused_when_it_is_loaded():
    refused(lambda: unlisted("paligemma2"), "PaliGemmaForConditionalGeneration does not pass the self-check")
    assert unlisted("paligemma2", check=False).family.verified is False


def test_a_language_model_that_is_not_listed_checks_itself(monkeypatch):
    model = FAMILIES["llama"].build("sdpa")
    model.config.model_type = "another"
    assert not Target(model).family.verified
    no_tree_mask(monkeypatch)
    refused(lambda: Target(model), "LlamaForCausalLM does not pass the self-check")
    assert Target(FAMILIES["llama"].build("sdpa")).family.verified, "a listed one does not take the time"


def test_a_model_that_lacks_what_is_read_is_refused():
    model = FAMILIES["llava"].build("sdpa")
    model.config.model_type, model.config.image_token_id = "another", None
    refused(lambda: Target(model), "'another' is ... that no family ... not got an image_token_id in its config")


# As a command, and what is not checked.


def test_several_rows_cannot_be_told_apart():
    with pytest.raises(MMSpecError, match="inputs of one row, and these have 2"):
        check_target(target_of("llava"), FAMILIES["llava"].inputs([["image"], []]))


def test_what_was_not_checked_is_said():
    report = check_target(target_of("llava"))
    assert not report.kinds and "there is no processor" in str(report)
    quick = check_target(target_of("mistral, sliding window"), thorough=False)
    assert not quick.notes, "a window of 12 is exceeded anyway"


def test_a_request_for_a_check_leaves_the_model_as_it_was():
    target = target_of("qwen2_5_vl")
    target.model.model.rope_deltas = theirs = torch.tensor([[-123]])
    check_target(target, shown("qwen2_5_vl"))
    assert target.model.model.rope_deltas is theirs


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A small model with its processor."""
    folder = tmp_path_factory.mktemp("model")
    for part in small_model():
        part.save_pretrained(folder)
    return str(folder)


def test_the_command_prints_every_comparison(folder, capsys):
    assert cli.main(["check", folder]) == 0
    printed = capsys.readouterr().out
    assert "LlavaForConditionalGeneration as Llava (listed)" in printed
    assert printed.count(" ok") == 8 and printed.rstrip().endswith("exact")


def test_the_command_fails_where_something_is_wrong(folder, capsys, monkeypatch):
    no_tree_mask(monkeypatch)
    assert cli.main(["check", folder]) == 1
    assert "WRONG: mmspec does not read this model as it is" in capsys.readouterr().out
    assert cli.main(["check"]) == cli.USAGE_ERROR


def _request(target: Target, inputs: dict):
    from mmspec.inputs import prepare

    return prepare(target, inputs=inputs)
