"""Head: the way from the last states of a model to its logits, as the model itself makes them."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ..errors import MMSpecError
from ..models.weights import device_of, is_adapted, is_plain, linear_weight
from .view import ModelView

HEAD_TOLERANCE = {torch.float32: 1e-3, torch.float16: 2e-2, torch.bfloat16: 1e-1}
"""The largest difference of the head's logits from the model's, in standard deviations of the logits, by dtype."""
QUANTISED_TOLERANCE = 0.5
"""The largest difference where the head multiplies in fewer bits than its weight is read with."""


class Head(ModelView):
    """The part of a family that knows the output embedding."""

    shapes_logits = True
    """True if the model scales and caps its logits as its language model's configuration says, see `compare_head`."""

    def head_rows(self, tokens: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Return weight `[count, hidden]` and bias `[count]` (or None) of the output embedding, of all tokens or
        `[count]`.

        They are on the device of the input embedding, where drafters are.
        """
        head = self.model.get_output_embeddings()
        table, bias = self.model.get_input_embeddings(), getattr(head, "bias", None)
        device = device_of(table)
        with self.passing():
            weight, bias = linear_weight(head, table.weight.dtype, device), None if bias is None else bias.to(device)
        return (weight, bias) if tokens is None else (weight[tokens], None if bias is None else bias[tokens])

    @property
    def logit_scale(self) -> float:
        """The number by which the model multiplies the output embedding's logits: 1 for most."""
        return self._configured_scale if self.shapes_logits else 1.0

    @property
    def _configured_scale(self) -> float:
        """The scale of logits that the configuration names."""
        scale = getattr(self.text_config, "logit_scale", None) or 1.0  # Cohere
        scaling = getattr(self.text_config, "logits_scaling", None) or 1.0  # Granite divides, HyperCLOVA X multiplies
        return scale * scaling if self.text_config.model_type.startswith("hyperclovax") else scale / scaling

    def head(self, hidden: Tensor, rows: tuple[Tensor, Tensor | None] | None = None) -> Tensor:
        """Return logits `[..., count]` for `[..., hidden]` states after the final norm, of all tokens or given
        `head_rows`.

        They are the model's own: scaled and capped as it does.
        """
        weight, bias = rows or self.head_rows()
        logits = nn.functional.linear(hidden, weight.to(hidden.dtype), None if bias is None else bias.to(hidden.dtype))
        return self._shaped(logits) if self.shapes_logits else logits

    def _shaped(self, logits: Tensor) -> Tensor:
        """Return logits scaled and capped as the configuration says."""
        scale, cap = self._configured_scale, self._configured_cap
        if scale != 1:
            logits = logits * scale
        return logits if cap is None else cap * torch.tanh(logits / cap)

    @property
    def logit_cap(self) -> float | None:
        """The bound that logits approach; None for most models."""
        return self._configured_cap if self.shapes_logits else None

    @property
    def _configured_cap(self) -> float | None:
        """The bound of logits that the configuration names."""
        return getattr(self.text_config, "final_logit_softcapping", None)

    def compare_head(self, hidden: Tensor, logits: Tensor) -> None:
        """Make sure that `head` gives the model's own logits.

        Find out on the way whether the model scales and caps them as its configuration says: some vision-language
        models (Aya Vision, PaliGemma 2 in transformers 5.17) have a head of their own, which does not.

        Args:
            hidden: `[..., hidden]` states after the final norm.
            logits: `[..., vocab]` that the model made of them.

        Raises:
            MMSpecError: if they are not the model's, whichever way.
        """
        weight, bias = self.head_rows()
        plain = nn.functional.linear(hidden, weight.to(hidden.dtype), None if bias is None else bias.to(hidden.dtype))
        found = {shaped: (self._shaped(plain) if shaped else plain).to(logits).float() for shaped in (True, False)}
        theirs = logits.float()
        # What a model masks by itself is no logit, and a model that gives no numbers cannot be compared.
        seen = theirs.isfinite() & (theirs > torch.finfo(torch.float16).min)
        if plain.shape == logits.shape and not seen.any():
            return
        errors = {
            shaped: float((ours - theirs)[seen].abs().max()) if ours.shape == theirs.shape else math.inf
            for shaped, ours in found.items()
        }
        self.shapes_logits = errors[True] <= errors[False]
        head = self.model.get_output_embeddings()
        stored = is_plain(head.weight) or is_adapted(head)
        tolerance = HEAD_TOLERANCE.get(logits.dtype, HEAD_TOLERANCE[torch.bfloat16]) if stored else QUANTISED_TOLERANCE
        error, spread = errors[self.shapes_logits], float(theirs[seen].std())
        if not error <= tolerance * max(spread, torch.finfo(torch.float32).tiny):
            raise MMSpecError(
                f"{type(self.model).__name__}: its output embedding does not make its logits of its last states (they "
                f"differ by {error:.2g}, and spread by {spread:.2g}), so drafters that read the head would guess "
                "wrongly; merge an adapter on the head into it, or give the model a family in mmspec/families"
            )
