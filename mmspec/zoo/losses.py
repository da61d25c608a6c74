"""Losses that train the embedded targets: the forward pass of a batch, and its two losses.

Importing this module registers the attention implementation `mmspec_dense`, which training uses.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import torch
from einops import rearrange
from torch import nn
from torch.nn import functional
from transformers import AttentionInterface, LlavaForConditionalGeneration

from mmspec.zoo.architecture import VISUAL_TOKENS
from mmspec.zoo.batches import IGNORE, IMAGE_START, Batch


def dense_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Compute softmax attention as two matrix products. Rows are padded on the right, so the only mask is the causal
    one."""
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    scores = torch.matmul(query * scaling, rearrange(key, "batch head token width -> batch head width token"))
    if module.is_causal:
        length = query.shape[2]
        scores.add_(torch.full((length, length), -1e9, dtype=scores.dtype).triu_(1))
    attended = torch.matmul(functional.softmax(scores, -1), value)
    return rearrange(attended, "batch head token width -> batch token head width").contiguous(), None


AttentionInterface.register("mmspec_dense", dense_attention)


class Losses(NamedTuple):
    """Cross-entropy of every answer token, the row of each token, and the mean over the patches of every row."""

    answers: torch.Tensor  # [tokens]
    rows: torch.Tensor  # [tokens]
    patches: torch.Tensor  # [rows]


class Embedded(NamedTuple):
    """Inputs of the language model: features of the visual tokens, and embeddings of all, `[rows, tokens, width]` both;
    positions where they are not simply counted."""

    visual: torch.Tensor
    embeddings: torch.Tensor
    position_ids: torch.Tensor | None = None


class TrainingBatch(Protocol):
    """A batch, whatever it shows: labels `[rows, length]`, labels of the visual tokens `[rows, tokens, words]`, tasks
    `[rows]`."""

    @property
    def labels(self) -> torch.Tensor:
        """Ids of the answers, and `IGNORE` elsewhere."""

    @property
    def patch_labels(self) -> torch.Tensor:
        """Ids of the words that the visual tokens show, and `IGNORE` elsewhere."""

    @property
    def tasks(self) -> torch.Tensor:
        """Numbers of the tasks."""


Reader = Callable[[Any, Any], Embedded]
"""From a model and a batch of the kind that it is trained on to what its language model reads."""


def read_pictures(model: LlavaForConditionalGeneration, batch: Batch) -> Embedded:
    """Put the features of each picture in the place of its placeholders."""
    inner = model.model
    features = inner.vision_tower(batch.pixel_values.to(model.dtype)).last_hidden_state[:, 1:]
    visual = inner.multi_modal_projector(features)
    embeddings = inner.get_input_embeddings()(batch.input_ids)
    start, end = IMAGE_START, IMAGE_START + VISUAL_TOKENS
    return Embedded(visual, torch.cat([embeddings[:, :start], visual, embeddings[:, end:]], dim=1))


def losses_of(model: Any, batch: TrainingBatch, read: Reader = read_pictures, towers_alone: bool = False) -> Losses:
    """Run one forward pass and return its losses. Logits are computed only where there is something to predict.

    The loss on the patches asks the projector to make the embedding of a patch resemble the words for what the patch
    shows, such as the letter K or the colour red. The model then learns to see at once instead of through all its
    layers, and transcription becomes a task that language models are good at: copying. Where a patch shows several
    words, its loss is the mean over them less what it cannot fall below, the logarithm of their number.

    Args:
        model: a vision-language model with `model.language_model` and `lm_head`.
        batch: conversations of the kind that `read` reads.
        read: see `Reader`.
        towers_alone: leaves the language model out, and so the loss on the answers, which is empty then.
    """
    visual, embeddings, position_ids = read(model, batch)
    if towers_alone:
        nothing = embeddings.new_zeros(0, dtype=torch.float32)
        return Losses(nothing, nothing.long(), _of_patches(model, batch, visual))
    hidden = model.model.language_model(
        inputs_embeds=embeddings, position_ids=position_ids, use_cache=False
    ).last_hidden_state
    targets = batch.labels[:, 1:]
    wanted = targets != IGNORE
    logits = model.lm_head(hidden[:, :-1][wanted]).float()
    answers = functional.cross_entropy(logits, targets[wanted], reduction="none")
    return Losses(answers, wanted.nonzero()[:, 0], _of_patches(model, batch, visual))


def _of_patches(model: Any, batch: TrainingBatch, visual: torch.Tensor) -> torch.Tensor:
    """Return the mean loss on the patches of every row."""
    labelled = (batch.patch_labels != IGNORE).any(dim=-1)
    shown = batch.patch_labels[labelled]  # [patches, words]
    words = model.lm_head(functional.rms_norm(visual[labelled], visual.shape[-1:])).float().log_softmax(dim=-1)
    number = (shown != IGNORE).sum(dim=-1)
    said = words.gather(1, shown.clamp(min=0)).masked_fill(shown == IGNORE, 0.0).sum(dim=-1)
    seen = -said / number - number.log()
    # A mean per picture: a page labels ten times as many patches as a scene, whose few must not be lost in the crowd.
    sums = seen.new_zeros(len(labelled)).index_add(0, labelled.nonzero()[:, 0], seen)
    return sums / labelled.sum(dim=1).clamp(min=1)
