"""Targets on several devices (`device_map`): nothing in the loop may take two modules to be in one place.

This machine may have one device only. Two kinds of tests make up for that: fake tensors, which compute nothing but know
their device and refuse operations on tensors of two of them, as a GPU would; and models that accelerate moves in from
disk layer by layer, which compute real text while most of their parameters are empty.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

import models
import pytest
import torch
from accelerate.hooks import attach_align_device_hook_on_blocks, remove_hook_from_module
from every_drafter import found_with
from tiny_drafters import blurred_drafter, eagle3_drafter, eagle_drafter
from tiny_requests import case, target_of
from torch._subclasses import FakeTensorMode
from torch._subclasses.fake_tensor import FakeTensor
from transformers.cache_utils import DynamicLayer

import mmspec
from mmspec.drafters import as_drafter
from mmspec.errors import MMSpecError
from mmspec.families import Family
from mmspec.loading import load_target
from mmspec.models.session import ModelSession
from mmspec.models.states import LAST
from mmspec.target import Target
from mmspec.tree import DraftTree
from mmspec.trees import DynamicTree

HERE, THERE = "cpu", "cpu:1"
# The embedding, the vision tower and one layer here; two layers, the last norm and the head there.
SPLITS = {
    "llava": {
        **dict.fromkeys(
            ["model.vision_tower", "model.multi_modal_projector", "model.language_model.embed_tokens"], HERE
        ),
        **{"model.language_model.rotary_emb": HERE, "model.language_model.layers.0": HERE},
        **dict.fromkeys(["model.language_model.layers.1", "model.language_model.layers.2"], THERE),
        **{"model.language_model.norm": THERE, "lm_head": THERE},
    },
    "mistral": {
        **dict.fromkeys(["model.embed_tokens", "model.rotary_emb"], HERE),
        **dict.fromkeys(["model.layers.0", "model.layers.1", "model.layers.2", "model.norm", "lm_head"], THERE),
    },
}


@contextmanager
def split(name: str, attention: str = "eager", outer: bool = True) -> Iterator[Target]:
    """A target whose layers are on two GPUs that exist in name only; within it, all tensors are fakes."""

    def start(layer, keys, values):
        """Not from `torch.tensor([], device=...)`, which loses the number of a fake device."""
        layer.keys, layer.values, layer.is_initialized = keys[:, :, :0], values[:, :, :0], True

    model = models.MODELS[name](attention)
    no_numbers = mock.patch.object(Family, "compare_head", lambda self, hidden, logits: None)  # to compare
    with FakeTensorMode(), mock.patch.object(DynamicLayer, "lazy_initialization", start), no_numbers:
        for path, place in SPLITS[name].items():
            for module in model.get_submodule(path).modules():
                for key, tensor in [*module._parameters.items(), *module._buffers.items()]:
                    if tensor is not None:
                        fake = torch.empty(tensor.shape, dtype=tensor.dtype, device=place)
                        setattr(module, key, torch.nn.Parameter(fake) if key in module._parameters else fake)
        attach_align_device_hook_on_blocks(model, execution_device=SPLITS[name])  # as device_map= does
        if not outer:
            remove_hook_from_module(model)
        yield Target(model)


def passes(target: Target, layers: tuple[int, ...]) -> tuple[ModelSession, list[torch.Tensor]]:
    """A ragged prompt and two blocks of nodes: the session, and everything that it returned."""
    session = ModelSession(target, 2, 16, layers)
    ids = torch.ones(2, 6, dtype=torch.long, device=HERE)
    positions, position_offset = target.family.positions({"input_ids": ids})
    reads = [session.prefill(target.family.embed(ids, None), positions, position_offset, [6, 4], {})]
    tree = DraftTree(torch.ones(2, 3, dtype=torch.long, device=HERE), torch.tensor([[-1, 0, 0]] * 2, device=HERE), 1)
    for block in (tree, DraftTree.root_only(torch.ones(2, dtype=torch.long, device=HERE))):
        reads.append(session.read(block.tokens, block.ancestors, block.depth))
        session.keep([2, 1], torch.tensor([[0, 2], [0, -1]], device=HERE) if block is tree else None)
    return session, [tensor for read in reads for tensor in (read.logits, *read.features.values())]


@pytest.mark.parametrize("outer", [True, False])
@pytest.mark.parametrize("name", SPLITS)
def test_a_pass_over_two_devices(name, outer):
    """Entries stay with their layers; logits and features come to where the input is.

    The outermost module's hook carries logits back; a family that calls decoder and head by itself goes past it.
    """
    with split(name, outer=outer) as target:
        assert target.device == torch.device(HERE)
        session, out = passes(target, (0, 2, LAST))
    assert len(out) == 12 and all(
        isinstance(tensor, FakeTensor) and tensor.device == torch.device(HERE) for tensor in out
    )
    there = [layer.self_attn.q_proj.weight.device for layer in target.family.layers]
    assert [layer.keys.device for layer in session.cache.layers] == there and torch.device(THERE) in there
    assert session.cache.lengths.device == session.masks._seen.device == torch.device(HERE)


def test_heads_read_the_targets_head_from_another_device():
    with split("mistral") as target:
        rows = torch.arange(5, device=HERE)
        for tokens in (None, rows):
            weight, bias = target.family.head_rows(tokens)
            assert weight.device == torch.device(HERE) and bias is None
        assert target.model.get_output_embeddings().weight.device == torch.device(THERE)


# Real text from a model most of which is on disk.

OFFLOADED = {
    "llava": [f"model.language_model.layers.{number}" for number in (1, 2)] + ["lm_head"],
    "mistral": ["model.embed_tokens", "model.layers.0", "model.norm", "lm_head"],
}


def offloaded(name: str, folder) -> Target:
    """The target whose text is known, with some of its modules on disk between passes."""
    twin = target_of(name, "sdpa").model
    twin.save_pretrained(folder)
    parts = {path: "disk" if path in OFFLOADED[name] else "cpu" for path in SPLITS[name]}
    model = type(twin).from_pretrained(folder, device_map=parts, offload_folder=folder / "disk")
    model.generation_config.eos_token_id = None
    return Target(model)


@pytest.mark.parametrize("name", OFFLOADED)
def test_text_of_an_offloaded_target(name, tmp_path):
    target = offloaded(name, tmp_path)
    assert any(parameter.is_meta for parameter in target.model.parameters())
    assert target.device == torch.device("cpu")
    assert target.fingerprint == target_of(name, "sdpa").fingerprint
    inputs, expected = case(name, "sdpa", (1, 0), (9, 14), 12)
    draft = as_drafter(target, blurred_drafter(name, "sdpa").model)
    twins = [eagle_drafter(name, "sdpa"), eagle3_drafter(name, "sdpa")]
    heads = [type(twin).from_config(twin.config(), target) for twin in twins]
    for head, twin in zip(heads, twins, strict=True):
        head.load_state_dict(twin.state_dict())
    accepted = 0
    for drafter in (None, draft, *heads):
        tree = None if drafter is None else DynamicTree(3, 2, 6)
        out = mmspec.generate(target, drafter, inputs=inputs, max_new_tokens=12, tree=tree)
        assert out.token_ids == expected
        accepted += out.stats.num_accepted_draft_tokens
    assert accepted
    weight, _ = target.family.head_rows()
    assert weight.equal(target_of(name, "sdpa").model.get_output_embeddings().weight)


@pytest.mark.slow
@pytest.mark.parametrize("name", OFFLOADED)
def test_every_kind_of_drafter_for_an_offloaded_target(name, tmp_path):
    """With static and dynamic trees, greedily and drawn, over a ragged batch: texts and drafts of the target in one
    piece; what cannot follow the layers says so. Among them are those without weights, and those that learn from the
    time of rounds."""
    twin = target_of(name, "sdpa")
    expected = found_with(twin, twin.model, name)
    found = found_with(offloaded(name, tmp_path), twin.model, name)
    plain = {label for label, result in expected.items() if "refused" in result}
    assert plain == ({"std"} if name == "mistral" else set()), "sliding windows"
    refused = {label for label, result in found.items() if "refused" in result} - plain
    for label in refused:
        assert "was spread over devices by accelerate, which ties its layers together" in found[label]["refused"]
    assert refused == {"early exit", "early exit, block", "early exit, mlp", "sp2ec"}
    for label, result in found.items():
        assert label in refused or result == expected[label], label
    assert len(found) > 4 * 14 and "arms, 0.0" in found


def test_load_target_takes_a_device_map_and_no_device_besides(tmp_path, monkeypatch):
    models.mistral().save_pretrained(tmp_path)
    monkeypatch.setattr(mmspec.loading.AutoTokenizer, "from_pretrained", lambda source, **_: None)
    parts = {path: "disk" if path == "model.layers.1" else "cpu" for path in SPLITS["mistral"]}
    target = load_target(tmp_path, device_map=parts, offload_folder=tmp_path / "disk")
    inputs, expected = case("mistral", "sdpa", (0,), (9,), 6)
    assert mmspec.generate(target, inputs=inputs, max_new_tokens=6, eos_token_id=[]).token_ids == expected
    for key in ("device_map", "tp_plan"):
        with pytest.raises(MMSpecError, match=f"device='cpu' and {key}= both say where the weights go"):
            load_target(tmp_path, device="cpu", **{key: "auto"})


def test_flex_attention_stays_on_one_device():
    refused = pytest.raises(MMSpecError, match="masks of flex attention cannot follow the layers to several devices")
    with refused, split("mistral", "flex_attention"):
        pass
