"""ModelView: what all parts of a family share about the model that they look at."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from ..models.masks import MaskForm, kernels
from ..models.weights import device_of

_TURN = threading.RLock()
"""Lock around models that only one thread may run at a time, see `ModelView.passing`."""


class ModelView:
    """A view of one model.

    Attributes:
        model: the whole model. Its modules have the names that its architecture gives them.
        text_config: the configuration of its language model.
        one_at_a_time: True if modules of the model change while they run.
    """

    model: Any
    text_config: Any
    one_at_a_time: bool

    @contextmanager
    def passing(self) -> Iterator[None]:
        """Enter before anything runs modules of the model, and leave behind it.

        Any number of threads may be inside at once, but for models whose modules change while they run: frequencies of
        rotary embeddings that depend on the length of the text, weights that are fetched for a pass. Of these, one at a
        time.
        """
        turn = _TURN if self.one_at_a_time else nullcontext()
        attention = self.text_config._attn_implementation
        around: AbstractContextManager = nullcontext()
        if attention == MaskForm.BLOCK.value:  # else nobody asks for the device, which takes longer than a look-up
            around = kernels(attention, device_of(self.model.get_input_embeddings()))
        with turn, around:
            yield

    @property
    def passes_freely(self) -> bool:
        """True if `passing` does nothing for this model."""
        return not self.one_at_a_time and self.text_config._attn_implementation != MaskForm.BLOCK.value

    def add_missing_inputs(self, inputs: dict[str, Any]) -> None:
        """Add to prepared inputs what the model's own processor would have: kinds of tokens, if they are missing."""
