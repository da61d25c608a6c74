"""Negative controls: each patch makes one mistake that published implementations have made, and has to be seen."""

from __future__ import annotations

import models
import torch

from mmspec.families import Qwen25VL
from mmspec.models.cache import TreeCache
from mmspec.models.masks import TreeMask
from mmspec.models.session import ModelSession


def no_tree_mask(monkeypatch, target=None):
    """Every node sees all nodes before it."""
    read = ModelSession.read

    def causal(self, tokens, visible, depth, extends_chain=False):
        seen = torch.ones_like(visible).tril(visible.shape[2] - visible.shape[1])
        return read(self, tokens, seen, depth, extends_chain)

    monkeypatch.setattr(ModelSession, "read", causal)


def sequential_positions(monkeypatch, target=None):
    """Siblings stand behind one another, as the nodes do in the batch of tokens."""
    read = ModelSession.read

    def sequential(self, tokens, visible, depth, extends_chain=False):
        first = visible.shape[2] - visible.shape[1]
        return read(self, tokens, visible, torch.arange(first, visible.shape[2]).expand_as(depth), extends_chain)

    monkeypatch.setattr(ModelSession, "read", sequential)


def no_rope_delta(monkeypatch, target):
    """Tokens after a picture stand at their index."""
    positions = Qwen25VL.positions
    monkeypatch.setattr(
        Qwen25VL, "positions", lambda self, inputs: (positions(self, inputs)[0], 0 * positions(self, inputs)[1])
    )


def delta_of_another_request(monkeypatch, target):
    """What the model itself remembers: the offset of whoever came last."""
    positions = Qwen25VL.positions

    def leaking(self, inputs):
        position_ids, position_offset = positions(self, inputs)
        return position_ids, position_offset.roll(1, -1)

    monkeypatch.setattr(Qwen25VL, "positions", leaking)


def boolean_mask(monkeypatch, target):
    """Eager attention adds its mask to the scores: True becomes 1."""
    monkeypatch.setattr(TreeMask, "_finish", lambda self, mask: mask)


def no_window(monkeypatch, target):
    """Sliding-window layers see everything."""
    monkeypatch.setattr(target, "windows", dict.fromkeys(target.windows))


def window_in_slots(monkeypatch, target):
    """Distance is counted in entries of the cache, of which siblings take one each."""
    window = TreeMask._window

    def slots(self, full, size, depth, new):
        return window(self, full, size, torch.arange(depth.shape[1]).expand_as(depth), new)

    monkeypatch.setattr(TreeMask, "_window", slots)


def path_not_compacted(monkeypatch, target):
    """As many entries as were accepted are kept, but the first ones instead of the accepted ones."""
    commit = TreeCache.commit
    monkeypatch.setattr(TreeCache, "commit", lambda self, counts, path=None, kept=None: commit(self, counts))


def picture_dropped(monkeypatch, target):
    """The placeholders' own embeddings stand where the picture should."""
    monkeypatch.setattr(target.family, "embed", lambda ids, vision: target.model.get_input_embeddings()(ids))


MISTAKES = [
    *[
        (mistake, name)
        for mistake in (no_tree_mask, sequential_positions, path_not_compacted)
        for name in models.MODELS
    ],
    *[(mistake, name) for mistake in (no_window, window_in_slots) for name in ("gemma3", "mistral")],
    *[(mistake, "qwen_vl") for mistake in (no_rope_delta, delta_of_another_request)],
    *[(picture_dropped, name) for name in models.VISUAL],
    *[(boolean_mask, name) for name in models.MODELS],
]
