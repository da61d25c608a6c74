"""What a request needs is let go with it, not when Python next looks for circles of references: caches are large and
few, so that may be many requests later, or too late for an accelerator's memory."""

from __future__ import annotations

import gc
from contextlib import contextmanager

import pytest
import torch
from every_drafter import BY_TIME
from tiny_drafters import TINY_DRAFTERS, WITHOUT_WEIGHTS
from tiny_requests import ragged_inputs, target_of

import mmspec
from mmspec.compressors import Routing
from mmspec.drafters import ParallelDrafter
from mmspec.models.cache import TreeCache
from mmspec.speed import AutoTree
from mmspec.trees import Chain, DynamicTree
from mmspec.verifiers import TreeWalk
from mmspec.verifiers.rules import TopRank


def routing(name, attention):
    return TINY_DRAFTERS["eagle"](name, attention).with_compressor(Routing(3))


def beside(name, attention):
    return ParallelDrafter(target_of(name, attention), TINY_DRAFTERS["text only"](name, attention), window=3)


MAKERS = {**TINY_DRAFTERS, **WITHOUT_WEIGHTS, **BY_TIME, "routing": routing, "beside its target": beside}
TREES = {"native": None, "chain": Chain(3), "dynamic": DynamicTree(3, 2, 6), "auto": AutoTree()}


@contextmanager
def nobody_looks():
    """Without Python's collector of circles."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def alive() -> int:
    """The number of tensors that there are."""
    return sum(isinstance(one, torch.Tensor) for one in gc.get_objects())


def ask(drafter, tree=None, **options):
    options = {"inputs": ragged_inputs("llava"), "max_new_tokens": 8, "tree": tree} | options
    return mmspec.generate(target_of("llava"), drafter, **options)


@pytest.mark.parametrize("label", MAKERS)
def test_no_tensor_outlives_its_request(label):
    drafter = MAKERS[label]("llava", "sdpa")
    ask(drafter)  # what is kept for all requests is there from now on
    with nobody_looks():
        before = alive()
        ask(drafter)
        assert alive() <= before


@pytest.mark.parametrize("tree", TREES)
@pytest.mark.parametrize("label", ["eagle3, fewer tokens", "own model"])
def test_whatever_tree_is_drafted(label, tree):
    drafter = MAKERS[label]("llava", "sdpa")
    settings = {"temperature": 1.0}, {"verifier": TreeWalk(TopRank(2))}, {"guidance_scale": 1.5}
    for once in settings:
        ask(drafter, TREES[tree], **once)
    with nobody_looks():
        before = alive()
        for once in settings:
            ask(drafter, TREES[tree], **once)
        assert alive() <= before


def test_a_request_that_is_left_lets_go_too():
    drafter = MAKERS["own model"]("llava", "sdpa")
    ask(drafter)
    with nobody_looks():
        before = alive()
        pieces = mmspec.stream(target_of("llava"), drafter, inputs=ragged_inputs("llava"), max_new_tokens=8)
        next(pieces)
        assert alive() > before + 10
        pieces.close()
        del pieces
        assert alive() <= before


def test_a_trace_keeps_no_caches():
    drafter = MAKERS["eagle3, fewer tokens"]("llava", "sdpa")
    with nobody_looks():
        out = ask(drafter, DynamicTree(3, 2, 6), trace=True)
        assert not [one for one in gc.get_objects() if isinstance(one, TreeCache)]
        assert len(out.trace) > 2


def test_a_tree_that_is_built_does_not_grow():
    kept = []

    class Late(Chain):
        def build(self, growth):
            kept.append(growth)
            return super().build(growth)

    ask(MAKERS["own model"]("llava", "sdpa"), Late(2))
    with pytest.raises(mmspec.MMSpecError, match="does not grow"):
        kept[0].expand(torch.zeros(4, 1, dtype=torch.long), 2)
