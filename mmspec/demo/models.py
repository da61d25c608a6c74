"""Models of the page: the first question that needs a model loads it, and all questions share it. State belongs to a
request."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..errors import MMSpecError
from ..settings import configuration

if TYPE_CHECKING:
    from ..drafters import Drafter
    from ..target import Target
    from ..trees import TreeBuilder
    from ..verifiers import Verifier
    from .choices import Choices


@dataclass
class LoadedMethod:
    """A target with the drafter, the tree and the verifier that answer a question."""

    target: Target
    drafter: Drafter | None
    tree: TreeBuilder | None
    verifier: Verifier | None


class Models:
    """Loaded targets and drafters, by the names of their options."""

    def __init__(self, choices: Choices):
        self._choices = choices
        self._targets: dict[str, Target] = {}
        self._drafters: dict[tuple[str, str, str], Drafter | None] = {}
        self._lock = threading.Lock()  # two that ask for one model at once must not load it twice

    def loaded(self, chosen: Mapping[str, str]) -> bool:
        """Return True if all models of a choice are loaded."""
        return self._key(chosen) in self._drafters

    def method(self, chosen: Mapping[str, str]) -> LoadedMethod:
        """Build what was chosen; models that are loaded are used again.

        Raises:
            MMSpecError: for what cannot be loaded or does not go together.
        """
        name, key = chosen["target"], self._key(chosen)
        with self._lock:
            if name not in self._targets:
                self._targets[name] = configuration.build(self._node(chosen, "target"))
            target = self._targets[name]
            if key not in self._drafters:
                self._drafters[key] = self._drafter(chosen, target)
        tree, verifier = (configuration.build(self._node(chosen, group)) for group in ("tree", "verifier"))
        return LoadedMethod(target, self._drafters[key], tree, verifier)

    def _drafter(self, chosen: Mapping[str, str], target: Target) -> Drafter | None:
        """Load the drafter that was chosen, with its compressor."""
        from omegaconf import OmegaConf

        nodes = {group: self._node(chosen, group) for group in ("drafter", "compressor")}
        try:
            return configuration.build_drafter(OmegaConf.create(nodes), target)
        except MMSpecError:
            raise
        except (RuntimeError, OSError) as error:  # an accelerator that is full, a disk that is gone
            raise MMSpecError(f"drafter {chosen['drafter']!r} cannot be loaded: {error}") from error

    def _node(self, chosen: Mapping[str, str], group: str) -> Any:
        """Return the configuration of what was chosen in a group."""
        return self._choices.node(group, chosen[group])

    @staticmethod
    def _key(chosen: Mapping[str, str]) -> tuple[str, str, str]:
        """Return the options that decide which drafter is loaded."""
        return chosen["target"], chosen["drafter"], chosen["compressor"]
