"""DFlash and DSpark, as speculators and vLLM read them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from ...drafters import BlockDrafter, DFlashDrafter, DSparkDrafter
from ...errors import MMSpecError, shown
from ...models.states import LAST
from ...settings.arguments import as_int
from ..embedding import EMBEDDING, alike
from .writer import Writer, check_taps, zero_bias

Kind = TypeVar("Kind", bound=BlockDrafter)

HEAD, FUSION = "lm_head.weight", "fc.weight"


class BlockWriter(Writer[Kind], Generic[Kind]):
    """A block whose slots see the target's states, fused by a linear map.

    Its embedding and its head are the target's, which readers look up there: they are written only where they are not.
    A mask that is a vector is written as the row of a token, in an embedding of the drafter's own.
    """

    model_type = "qwen3"

    def check(self) -> None:
        """Refuse a block that would be laid out, or computed, in another way."""
        super().check()
        drafter, settings = self.drafter, self.drafter.settings
        for reason in self.obstacles():
            raise MMSpecError(f"this {type(drafter).__name__} {reason}")
        check_taps(drafter.taps, type(drafter).__name__)
        if settings.mask_token_id is not None and self.mask_token_id not in (None, settings.mask_token_id):
            raise MMSpecError(
                f"mask_token_id={shown(self.mask_token_id)} is not the token that stands in this drafter's empty "
                f"slots, {settings.mask_token_id}: leave it out"
            )
        self.mask = settings.mask_token_id if settings.mask_token_id is not None else self._row_of_mask()

    def obstacles(self) -> Iterator[str]:
        """Yield the reasons for which the drafter cannot be written, each the end of a sentence."""
        settings, family = self.drafter.settings, self.drafter.target.family
        if settings.fusion != "linear" or settings.context_maps:
            yield (
                f"fuses the target's states with fusion={settings.fusion!r} and context_maps={settings.context_maps}; "
                "speculators has one linear map for all layers: train one with fusion='linear'"
            )
        if settings.conv_kernel:
            yield f"has convolutions (conv_kernel={settings.conv_kernel}), which this format has no weights for"
        if not settings.qk_norm:
            yield "has no norms of queries and keys, which the format's layers have: train one with qk_norm=True"
        if settings.norms_turned:
            yield "norms queries and keys once they are turned, and the format's layers do so before"
        if settings.causal:
            yield "is causal (JetSpec), but a server lets the slots of layers without a window see the whole block"
        if settings.rope != "1d":
            yield f"has rope={settings.rope!r}, but a server counts a block's positions along one axis: use rope='1d'"
        if LAST in self.drafter.taps:
            yield f"reads the state after the final norm (feature_layers has {LAST}), which a server does not hand over"
        if len(self._windows) > 1:
            yield f"has windows of several lengths, {sorted(self._windows)}, and the format one for all layers"
        cap = family.logit_cap if settings.logit_cap is None and not settings.own_head else settings.logit_cap
        if cap:
            yield f"caps its logits at {cap}, for which the format has no setting"
        if not settings.own_head and family.head_rows()[1] is not None:
            yield "uses a vocabulary head with a bias, which the format has none for"

    @property
    def _windows(self) -> set[int]:
        """The lengths of the layers' windows."""
        return {window for window in self.drafter.settings.windows or () if window is not None}

    def _row_of_mask(self) -> int:
        """Return the token whose row becomes the mask's vector.

        Raises:
            MMSpecError: if the one that is given is none, or there is none that is never written.
        """
        target, given = self.drafter.target, self.mask_token_id
        if given is not None:
            if as_int(given) is None or not 0 <= given < target.vocab_size:
                raise MMSpecError(f"mask_token_id={shown(given)} is none of the target's {target.vocab_size} tokens")
            return given
        if target.tokenizer is not None and len(target.tokenizer) < target.vocab_size:
            return target.vocab_size - 1
        seen = [token for token in target.family.placeholders if token < target.vocab_size]
        if not seen:
            raise MMSpecError(
                "the mask of this drafter is a vector of its own, which the format holds as the row of a token, and "
                "all tokens of the target are text: pass mask_token_id, a token that it never writes"
            )
        return min(seen)

    def length(self, wished: int | None) -> int:
        """Return the number of tokens that a pass guesses.

        Raises:
            MMSpecError: for another one: a server would lay out another block than the one that was trained.
        """
        drafts = self.drafter.settings.drafts
        if wished not in (None, drafts):
            raise MMSpecError(
                f"speculative_tokens={wished} is not what a block of this {type(self.drafter).__name__} guesses, "
                f"{drafts}: leave it out"
            )
        return drafts

    def layer(self) -> dict[str, Any]:
        """Return the configuration of the layers, with the windows of those that have one."""
        settings = self.drafter.settings
        kinds = {True: "full_attention", False: "sliding_attention"}
        windows = settings.windows or [None] * settings.layers
        made = {"num_hidden_layers": settings.layers, "layer_types": [kinds[window is None] for window in windows]}
        if self._windows:
            made |= {"use_sliding_window": True, "sliding_window": min(self._windows)}
        return super().layer() | made

    def fields(self) -> dict[str, Any]:
        """Return the layout, the mask and the layers that are read."""
        settings = self.drafter.settings
        return {
            "block_size": settings.block_size,
            "sample_from_anchor": settings.layout == "shifted",
            "mask_token_id": self.mask,
            "aux_hidden_state_layer_ids": sorted(self.drafter.taps),
            # Some versions of vLLM take this for all layers, so that it must not be said idly.
            "sliding_window_non_causal": not (self._windows and settings.causal_windows),
        }

    def weights(self) -> dict[str, Tensor]:
        """Return the weights, with what is not the target's of embedding and head."""
        drafter = self.drafter
        weights = dict(drafter.state_dict())
        weights.pop("mask_embedding", None)
        weights.pop(EMBEDDING, None)
        if drafter.draft_vocab_size == drafter.target.vocab_size:
            del weights["d2t"], weights["t2d"]
        parts = weights[FUSION].chunk(len(drafter.taps), dim=-1)
        order = sorted(range(len(parts)), key=lambda number: drafter.taps[number])  # in which a server collects them
        weights[FUSION] = torch.cat([parts[number] for number in order], dim=-1)
        if drafter.head.attention_bias:
            for layer in range(drafter.settings.layers):
                weights |= zero_bias(weights, f"layers.{layer}")
        return weights | self._embedding() | self._head()

    @torch.no_grad()
    def _embedding(self) -> dict[str, Tensor]:
        """Return the embedding as the drafter reads it, factors included; nothing if it is the target's table."""
        target, vector = self.drafter.target, self.drafter.mask_embedding
        tokens = torch.arange(target.vocab_size, device=target.device)
        table = self.drafter.token_embeds(tokens[None])[0]
        if vector is not None:
            table = table.clone()
            table[self.mask] = vector
        elif alike(table, target.model.get_input_embeddings().weight[: target.vocab_size]):
            return {}
        return {EMBEDDING: table}

    @torch.no_grad()
    def _head(self) -> dict[str, Tensor]:
        """Return the vocabulary head with the factor of its logits; nothing if it is the target's."""
        drafter, settings = self.drafter, self.drafter.settings
        family, vocabulary = drafter.target.family, drafter.draft_vocabulary
        if drafter.lm_head is not None:
            rows, scale = drafter.lm_head.weight, settings.logit_scale
        else:
            rows = family.head_rows(vocabulary)[0]
            scale = family.logit_scale if settings.logit_scale is None else settings.logit_scale
            if scale == 1 and (vocabulary is None or len(vocabulary) == drafter.target.vocab_size):
                return {}
        return {HEAD: rows if scale is None else rows * scale}


class DFlashWriter(BlockWriter[DFlashDrafter]):
    """DFlash. With `layout='shifted'`, which vLLM knows of DSpark alone, it is written as a DSpark whose correction is
    zero."""

    def check(self) -> None:
        """Choose the kind by the layout, besides what all block drafters check."""
        super().check()
        self.shifted = self.drafter.settings.layout == "shifted"
        self.kind = "dspark" if self.shifted else "dflash"
        self.architecture = "DSparkSpeculator" if self.shifted else "DFlashSpeculator"

    def obstacles(self) -> Iterator[str]:
        """Yield those of all block drafters, and the choice among candidates."""
        yield from super().obstacles()
        if self.drafter.candidate_selector is not None:
            rank = self.drafter.settings.selector_rank
            yield f"chooses among candidates (selector_rank={rank}, DFlash 2), which this format has no weights for"

    def fields(self) -> dict[str, Any]:
        """Return those of all block drafters, and a correction of rank 1 where there must be one."""
        return super().fields() | (markov_fields("vanilla", 1) if self.shifted else {})

    def weights(self) -> dict[str, Tensor]:
        """Return those of all block drafters, and zeros where there must be a correction."""
        weights, tokens = super().weights(), self.drafter.target.vocab_size
        if self.shifted:
            some = weights[FUSION]
            weights["markov_head.markov_w1.weight"] = some.new_zeros(tokens, 1)
            weights["markov_head.markov_w2.weight"] = some.new_zeros(self.drafter.draft_vocab_size or tokens, 1)
        return weights


class DSparkWriter(BlockWriter[DSparkDrafter]):
    """DSpark, whose heads have the names of the format here too."""

    kind, architecture = "dspark", "DSparkSpeculator"

    def fields(self) -> dict[str, Any]:
        """Return those of all block drafters, and the kinds of the two heads."""
        settings = self.drafter.settings
        heads = markov_fields(settings.markov, settings.markov_rank)
        if settings.confidence:
            heads |= {"enable_confidence_head": True, "confidence_head_with_markov": settings.confidence_markov}
        return super().fields() | heads


def markov_fields(kind: str, rank: int) -> dict[str, Any]:
    """Return the settings of DSpark's correction, of a kind and a rank, without a head of confidence."""
    return {
        "markov_head_type": kind,
        "markov_rank": rank,
        "enable_confidence_head": False,
        "confidence_head_with_markov": False,
    }
