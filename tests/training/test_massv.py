"""MASSV's two stages: eyes for a text model, of which the first stage trains the projector alone."""

from __future__ import annotations

import pytest
import torch
from refusals import refused
from tiny_training import Answered, adam, settings, target

import mmspec
from mmspec.drafters import SharedVisionDrafter
from mmspec.training import Objective, losses
from mmspec.training.beginnings import cut_shared_vision, cut_text_only, give_eyes
from mmspec.training.trainer import Trainer
from mmspec.zoo import sample

pytestmark = pytest.mark.usefixtures("fresh_accelerator")


@pytest.fixture(scope="module")
def blind(tmp_path_factory):
    folder = tmp_path_factory.mktemp("blind")
    cut_text_only(target(), 2).save_pretrained(folder)
    return str(folder)


def trained(drafter, folder, **options) -> SharedVisionDrafter:
    aim = Objective([losses.CrossEntropy()])
    Trainer(drafter, aim, Answered(), folder, settings(steps=2, validate_every=2), adam, **options).run()
    return mmspec.load_drafter(str(folder / "last"), target())


def changed(before, after) -> set[str]:
    """The parts of a drafter whose weights differ."""
    theirs = after.state_dict()
    return {name.split(".")[0] for name, weight in before.items() if not torch.equal(weight, theirs[name])}


def test_the_first_stage_trains_the_projector_alone_and_the_second_both(blind, tmp_path):
    torch.manual_seed(0)
    drafter = give_eyes(target(), blind)
    begun = {name: weight.clone() for name, weight in drafter.state_dict().items()}
    first = trained(drafter, tmp_path / "1", parts=["projector"])
    assert changed(begun, first) == {"projector"}
    begun = {name: weight.clone() for name, weight in first.state_dict().items()}
    second = trained(first, tmp_path / "2")
    assert changed(begun, second) == {"projector", "model"}
    image, prompt, _ = sample("scenes", "test", 3)
    plain = mmspec.generate(target(), None, prompt, [image], max_new_tokens=12)
    assert mmspec.generate(target(), second, prompt, [image], max_new_tokens=12).token_ids == plain.token_ids


def test_eyes_are_new_and_the_language_model_is_what_it_was(blind):
    drafter, text = give_eyes(target(), blind), mmspec.load_drafter(blind, target())
    assert isinstance(drafter, SharedVisionDrafter)
    assert all(weight.equal(text.model.state_dict()[name]) for name, weight in drafter.model.state_dict().items())
    theirs = target().family.vision_projector
    assert drafter.projector.inner.weight.shape[1] == next(theirs.parameters()).shape[-1]
    assert not any(torch.equal(drafter.projector.outer.weight, one) for one in theirs.parameters())


def test_what_cannot_be_given_eyes_is_refused(blind, tmp_path):
    cut_shared_vision(target(), 1).save_pretrained(tmp_path / "sees")
    refused(lambda: give_eyes(target(), str(tmp_path / "sees")), "is a SharedVisionDrafter, which gets no eyes")
    with pytest.raises(mmspec.MMSpecError, match="has no 'eyes'; it consists of \\['model', 'projector'\\]"):
        trained(give_eyes(target(), blind), tmp_path / "run", parts=["eyes"])
