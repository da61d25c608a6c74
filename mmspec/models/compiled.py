"""Compiled passes: `compile=true` runs the target, and small models that draft, through torch.compile.

What is compiled is one pass over a block of nodes, of fixed form: the cache is written at given slots and a window of
it is attended to, under a mask. So all sizes may change from round to round without anything being compiled anew, but
one node (or one row) is another program than several.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.fx.experimental import _config as symbols

from ..compat import CACHE
from ..errors import MMSpecError
from .states import LAST, layer_entered, numbered
from .switches import Switch

if TYPE_CHECKING:
    from ..families import Family
    from .cache import TreeCache
    from .masks import Mask

BACKEND = "inductor"
PROGRAMS = 32
"""Programs that one model may have: for one or several nodes or rows, and for each set of features."""


def _want_few_programs() -> Callable[[], object]:
    # Numbers such as the scale of attention, taken for symbols, make every program be traced twice. Sizes that happen
    # to be the same at first would be held to be so for ever.
    patches = ExitStack()
    patches.enter_context(torch._dynamo.config.patch(specialize_float=True))
    patches.enter_context(symbols.patch(use_duck_shape=False))  # type: ignore[attr-defined]
    return patches.close


FEW_PROGRAMS = Switch(_want_few_programs)
"""Programs are made for all sizes, and traced once."""


class CompiledModel:
    """A Hugging Face model's pass over a block of nodes, translated by torch.compile when it is first called.

    Hidden states are read by hooks that stay in the model and do nothing but while it is being compiled.

    Args:
        model: to compile, without graph breaks.
        family: where the model's layers are.
    """

    def __init__(self, model: nn.Module, family: Family):
        self.model, self.family = model, family
        self._states: dict[int, Tensor] = {}
        for number, layer in enumerate(family.layers):
            layer.register_forward_pre_hook(self._keeper(number), with_kwargs=True)
        family.final_norm.register_forward_pre_hook(self._keeper(len(family.layers)), with_kwargs=True)
        family.final_norm.register_forward_hook(lambda _, args, output: self._keep(LAST, output))
        self._weight = cast(Tensor, family.final_norm.weight)
        self._compiled_for: tuple[torch.dtype, torch.device] | None = None
        self._compiling = threading.Lock()

    def __call__(
        self,
        tokens: Tensor,
        mask: Mask | dict[str, Mask] | None,
        position_ids: Tensor,
        cache: TreeCache,
        features: Iterable[int],
    ) -> tuple[Tensor, dict[int, Tensor]]:
        """Run `[batch, new]` tokens at `[batch, new]` or `[axes, batch, new]` positions.

        Returns:
            `[batch, new, vocab]` logits, and the `[batch, new, hidden]` features asked for.

        Raises:
            MMSpecError: if the model cannot be compiled here.
        """
        features = tuple(features)
        kind = self._weight.dtype, self._weight.device
        with self._compiling:  # threads share the programs
            if self._compiled_for != kind:  # weights are not looked at by the guards
                self._pass, self._compiled_for = self._compile(), kind
        try:
            with FEW_PROGRAMS.on():
                logits, states = self._pass(tokens, mask, position_ids, cache, features)
        except torch._dynamo.exc.TorchDynamoException as error:  # a graph break, no compiler, a compiler that fails
            reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
            raise MMSpecError(
                f"compile=true: {type(self.model).__name__} cannot be compiled here ({reason}); leave compile out. "
                "For a processor, torch.compile needs a C++ compiler"
            ) from error
        return logits, dict(zip(features, states, strict=True))

    def _compile(self) -> Callable[..., tuple[Tensor, list[Tensor]]]:
        """Return the compiled pass."""
        # Asking every weight before every pass whether it is still the one of before takes as long as three layers.
        options: dict[str, Any] = {"guard_filter_fn": torch.compiler.skip_guard_on_all_nn_modules_unsafe}
        limits: dict[str, Any] = {"recompile_limit": PROGRAMS, "isolate_recompiles": True}
        try:
            return torch.compile(
                self._forward,
                dynamic=True,
                fullgraph=True,
                backend=BACKEND,
                options=options,
                **limits,
            )
        except TypeError as error:
            raise MMSpecError(f"compile=true needs torch 2.13 or later, and this is {torch.__version__}") from error

    def _forward(self, tokens, mask, position_ids, cache, features) -> tuple[Tensor, list[Tensor]]:
        """Run the pass that is compiled."""
        logits = self.family.forward(
            input_ids=tokens, attention_mask=mask, position_ids=position_ids, use_cache=True, **{CACHE: cache}
        )
        # Nothing visual joins a block of nodes.
        states = [self._states[layer_entered(numbered(layer, len(self.family.layers)))] for layer in features]
        self._states.clear()  # what the caller does not ask for is no output of the program
        return logits, states

    def _keeper(self, number: int) -> Callable[..., None]:
        return lambda _, args, kwargs: self._keep(number, args[0] if args else kwargs["hidden_states"])

    def _keep(self, number: int, state: Tensor) -> None:
        if torch.compiler.is_compiling():
            self._states[number] = state
