"""Copies of objects for one request: weights are shared, and everything that a request changes is copied."""

from __future__ import annotations

import copy
import random
from collections import OrderedDict, defaultdict, deque
from typing import Any, TypeVar

import torch
from torch import nn

Self = TypeVar("Self", bound="PerRequest")

CONTAINERS = (list, tuple, dict, OrderedDict, defaultdict, set, deque)


class PerRequest:
    """An object that the loop copies for every request: drafters, tree builders, verifiers, their rules, and
    compressors.

    A copy shares tensors, weights, modules, models and all objects of other classes. It has its own copies of lists,
    tuples, dicts, sets and deques, of random generators, and of every other `PerRequest` that it holds, at any depth:
    the members of a mixture, the tree builder of a member, an adaptive rule in a list. An object that is held twice is
    copied once.
    """

    shared: tuple[str, ...] = ()
    """Names of attributes that all copies share although they could be copied: a large table that is only read, or what
    one request teaches the next."""

    def fork(self: Self) -> Self:
        """Return a copy for one request."""
        return _Forking().copy_of(self)

    def renew(self) -> None:
        """Reset, in a fresh copy, the state that an earlier request may have left in the original. Does nothing by
        default."""


class _Forking:
    """The state of one fork, in which no object is copied twice."""

    def __init__(self) -> None:
        self._copies: dict[int, Any] = {}

    def copy_of(self, original: Any) -> Any:
        if id(original) in self._copies:
            return self._copies[id(original)]
        if holds_some(original):
            return self._copy_of_object(original)
        if type(original) in CONTAINERS:
            return self._copy_of_container(original)
        if isinstance(original, torch.Generator):
            generator = torch.Generator(original.device)
            generator.set_state(original.get_state())
            return self._keep(original, generator)
        if isinstance(original, random.Random):
            return self._keep(original, copy.deepcopy(original))
        return original

    def _copy_of_object(self, original: Any) -> Any:
        duplicate = self._keep(original, copy.copy(original))
        shared = getattr(type(original), "shared", ())
        for name, value in vars(original).items():
            if name not in shared:
                # Past nn.Module, which would sort what is set into its own registries; those are copied here too.
                duplicate.__dict__[name] = self.copy_of(value)
        if isinstance(duplicate, PerRequest):
            duplicate.renew()
        return duplicate

    def _copy_of_container(self, original: Any) -> Any:
        if isinstance(original, tuple):
            return self._keep(original, tuple(self.copy_of(value) for value in original))
        duplicate = self._keep(original, copy.copy(original))
        if isinstance(original, dict):
            for key, value in original.items():
                duplicate[key] = self.copy_of(value)
        elif not isinstance(original, set):  # the members of a set are hashable, and do not change
            for index, value in enumerate(original):
                duplicate[index] = self.copy_of(value)
        return duplicate

    def _keep(self, original: Any, duplicate: Any) -> Any:
        self._copies[id(original)] = duplicate
        return duplicate


def holds_some(value: Any) -> bool:
    """Return True for what is copied for every request: a `PerRequest`, and a module, such as a ModuleList of drafters,
    that holds some."""
    if isinstance(value, PerRequest):
        return True
    return isinstance(value, nn.Module) and any(isinstance(part, PerRequest) for part in value.modules())
