"""`Teacher`: the frozen target reads prompts and its own answers, so that drafters can learn from its states."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch

from ..errors import MMSpecError
from ..inputs import Request, append
from ..lesson import WIDTHS, Lesson
from ..models.masks import padding_mask
from ..models.states import LAST, layer_entered, numbered
from ..models.whole_texts import read_states
from ..target import Target
from .data import TrainingPass


class Teacher:
    """Makes lessons: one forward pass of the frozen target over prompts and answers.

    Args:
        target: the model that wrote the answers.
        feature_layers: layers whose states drafters and losses want besides the last one.

    Raises:
        MMSpecError: for layers that the target does not have.
    """

    def __init__(self, target: Target, feature_layers: Iterable[int] = ()):
        self.target = target
        self.feature_layers = tuple(dict.fromkeys([*feature_layers, LAST]))
        count = len(target.family.layers)
        entered = [layer_entered(numbered(layer, count)) for layer in self.feature_layers]
        if beyond := [layer for layer in entered if not LAST <= layer <= count]:
            raise MMSpecError(
                f"layer {beyond[0]} is to be learnt from, but {type(target.model).__name__} has layers 0 to "
                f"{count - 1}: name one of these in the recipe, such as recipe.intermediate_layer"
            )

    def lesson_of(self, batch: TrainingPass) -> Lesson:
        """Run the target over a pass of a training."""
        return self.study(batch.prompt, batch.answers, batch.tasks)

    @torch.no_grad()
    def study(self, prompt: Request, answers: list[list[int]], tasks: Sequence[str] = ()) -> Lesson:
        """Run the target over prompts and its answers to them.

        Args:
            prompt: prepared prompts, see `mmspec.inputs.prepare`.
            answers: token ids per row, at least two of them.
            tasks: a label per row, for reports.
        """
        target, family = self.target, self.target.family
        vision = target.encode(prompt)
        request = append(prompt, answers, WIDTHS)
        embeds = family.embed(request.inputs["input_ids"], vision)
        position_ids, _ = family.positions_until(prompt.inputs, embeds.shape[1])
        mask = padding_mask(request.lengths, embeds.shape[1], embeds.device)
        further = family.prefill_inputs(request.inputs, vision) | family.lasting_inputs(vision)
        features = read_states(family, self.feature_layers, embeds, mask, position_ids, further)
        return Lesson(target, prompt, answers, request, vision, embeds, features, list(tasks))
