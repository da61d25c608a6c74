"""From a prompt and pictures, or from a processor's output, to what a target reads: a right-padded batch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .errors import MMSpecError
from .masks import padding_mask
from .media import load_image
from .prompts import Prompt, apply_template, check_prompt

if TYPE_CHECKING:
    from PIL.Image import Image

    from .target import Target

TYPES = "token_type_ids"
PER_TOKEN = ("input_ids", "attention_mask", TYPES, "mm_token_type_ids", "position_ids")
"""Processor outputs with an entry per token, `[..., batch, length]`."""


@dataclass
class Request:
    """A batch of prompts.

    Args:
        inputs: what a Hugging Face processor returns, on the target's device, right-padded, with an attention mask.
        lengths: tokens per row.
        prompts: the texts and conversations it was made from, if it was.
        images: the pictures of each row, if the request was made from pictures.
        appended_type: see `Family.appended_type`.

    Generating only reads a request, so one request may be answered any number of times.
    """

    inputs: dict[str, Any]
    lengths: list[int]
    prompts: list[Prompt] | None = None
    images: list[list[Image]] | None = None
    appended_type: int = 0

    @property
    def batch_size(self) -> int:
        return len(self.lengths)

    @property
    def max_length(self) -> int:
        return max(self.lengths)

    def token_ids(self) -> list[list[int]]:
        """The prompts as lists, without padding."""
        return [ids[:n] for ids, n in zip(self.inputs["input_ids"].tolist(), self.lengths, strict=True)]


def prepare(target: Target, prompt=None, images=None, inputs: Mapping[str, Any] | Request | None = None) -> Request:
    """Build a request.

    Args:
        target: whose processor or tokenizer, family and limits apply.
        prompt: a text, or a list with one entry per row. An entry is a text, or a tuple of texts: a conversation of the
            user's and the model's texts in turns, `(question, answer, question)`, which is of odd length because the
            user has the first and the last word. An answer may be empty, a question may not. (A tuple outside a list is
            taken for a list.) `<image>` in a question says where a picture stands, see `mmspec.prompts.MARKER`.
        images: the pictures of the prompt (see `mmspec.media.load_image`); for a list of prompts one picture or list
            per row. Without markers those of a conversation belong to its first question, before the text.
        inputs: instead of the above, a processor's output: at least `input_ids`, `[batch, length]`; or a request that
            was prepared for this target before, which is returned as it is.

    Raises:
        MMSpecError: for an empty or overlong prompt, an unreadable picture, a wrong number of pictures or markers, a
            token id outside the vocabulary, a conversation of another shape or for a processor without a chat template,
            what the processor or its template refuses, a request that this target cannot read.
    """
    if (prompt is None) == (inputs is None):
        raise MMSpecError("give either prompt= (and images=) or inputs=, the output of a processor")
    if inputs is not None:
        if images is not None:
            raise MMSpecError("images= goes with prompt=; with inputs= pass the processor's pixel_values instead")
        request = _readable(target, inputs) if isinstance(inputs, Request) else _right_pad(target, inputs)
    else:
        request = _from_prompt(target, prompt, images)
    limit = target.family.longest
    if limit is not None and request.max_length >= limit:
        raise MMSpecError(
            f"the prompt has {request.max_length} tokens (visual tokens included) but the model's limit is {limit}: "
            "shorten it or pass fewer images"
        )
    return request


def append(request: Request, answers: Sequence[Sequence[int]], multiple: int = 1) -> Request:
    """A request whose rows go on with an answer each, for the same pictures, right-padded again.

    Args:
        request: the prompts, whose texts are not in the result.
        answers: token ids per row; a row may get none.
        multiple: `length` is padded to a multiple of it.
    """
    inputs = dict(request.inputs)
    lengths = [n + len(answer) for n, answer in zip(request.lengths, answers, strict=True)]
    ids, width = inputs["input_ids"], -(-max(lengths) // multiple) * multiple
    for name in PER_TOKEN:
        if name in inputs:
            old = inputs[name]
            inputs[name] = old.new_zeros(*old.shape[:-1], width)
            inputs[name][..., : old.shape[-1]] = old
    inputs.pop("position_ids", None)
    for row, (start, answer) in enumerate(zip(request.lengths, answers, strict=True)):
        inputs["input_ids"][row, start : lengths[row]] = torch.tensor(answer, device=ids.device)
        if TYPES in inputs:
            inputs[TYPES][row, start:] = request.appended_type
    mask = padding_mask(lengths, width, ids.device)
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"]) if mask is None else mask
    return Request(inputs, lengths)


def _from_prompt(target: Target, prompt, images) -> Request:
    if isinstance(prompt, (Mapping, Tensor)):
        kind = type(prompt).__name__
        raise MMSpecError(f"prompt is a {kind}, which is no text; what a processor returned goes into inputs=")
    if not isinstance(prompt, Iterable) or isinstance(prompt, bytes):
        raise MMSpecError(f"prompt={prompt!r} is no text; pass a str, or a list of them with one per row")
    prompts = [prompt] if isinstance(prompt, str) else list(prompt)
    if not prompts:
        raise MMSpecError("prompt is an empty list; give at least one text")
    if images is None:
        rows = [[] for _ in prompts]
    else:
        if isinstance(images, (str, bytes, bytearray, Path)) or not isinstance(images, Sequence):
            images = [images]
        rows = [images] if isinstance(prompt, str) else [i if isinstance(i, (list, tuple)) else [i] for i in images]
    if len(rows) != len(prompts):
        raise MMSpecError(f"{len(prompts)} prompts but images for {len(rows)}; give one entry of images per prompt")
    for row, asked in enumerate(prompts):
        check_prompt(row, asked)
    rows = [[load_image(image) for image in row] for row in rows]
    tokenizer = target.tokenizer
    if tokenizer is None:
        raise MMSpecError("the target has no processor, so it reads no text; give Target(model, processor) or inputs=")
    count = sum(map(len, rows))
    if count and target.family.image_token_id is None:
        raise MMSpecError(f"{count} images were given but {type(target.model).__name__} takes none")
    batch = apply_template(target, prompts, rows)
    request = _right_pad(target, batch)
    request.prompts, request.images = prompts, rows
    return request


def _readable(target: Target, request: Request) -> Request:
    """A request that was prepared before, unless it was for a model that reads other things."""
    for name, value in request.inputs.items():
        if not isinstance(value, Tensor):
            continue
        wanted = target.family.dtype_of(name, value)
        if value.device != target.device or value.dtype != wanted:
            raise MMSpecError(
                f"the request's {name} is {value.dtype} on {value.device}, but the target reads {wanted} on "
                f"{target.device}: prepare the request for this target"
            )
    _refuse_unread(target, request.inputs)
    _known(target, request.inputs["input_ids"], request.inputs["attention_mask"].bool())
    return request


def _right_pad(target: Target, inputs: Mapping[str, Any]) -> Request:
    """Move every row's tokens to the left edge and drop columns that only hold padding."""
    if not isinstance(inputs, Mapping):
        raise MMSpecError(
            f"inputs is a {type(inputs).__name__}, but a processor returns a mapping; for token ids alone pass "
            'inputs={"input_ids": tensor}'
        )
    if inputs.get("input_ids") is None:
        raise MMSpecError(f"inputs has no input_ids, only {', '.join(inputs) or 'nothing'}")
    tensors = {
        name: value.to(target.device) if isinstance(value, Tensor) else value
        for name, value in inputs.items()
        if value is not None and name != "labels"  # PaliGemma's processor adds them for training
    }
    _refuse_unread(target, tensors)
    per_token = {name: _integers(name, tensors[name], target.device) for name in PER_TOKEN if name in tensors}
    ids = per_token["input_ids"]
    if ids.ndim != 2:
        raise MMSpecError(f"input_ids must be [batch, length], got shape {tuple(ids.shape)}")
    for name, value in per_token.items():
        if value.shape[-2:] != ids.shape:
            raise MMSpecError(
                f"{name} has shape {tuple(value.shape)} but input_ids {tuple(ids.shape)}: they must agree"
            )
    mask = per_token.get("attention_mask", torch.ones_like(ids)).bool()
    lengths = mask.sum(-1).tolist()
    if ids.shape[0] == 0 or min(lengths) == 0:
        raise MMSpecError(f"inputs must hold at least one token per row, the rows' lengths are {lengths}")
    per_token["input_ids"] = _known(target, ids, mask)
    # A stable sort of the padding flags keeps the order of the tokens.
    order = (~mask).to(torch.uint8).argsort(dim=-1, stable=True)[:, : max(lengths)]
    for name, value in per_token.items():
        tensors[name] = value.gather(-1, order.expand(*value.shape[:-1], -1))
    tensors["attention_mask"] = mask.gather(1, order).long()
    for name, value in tensors.items():
        if isinstance(value, Tensor):
            tensors[name] = value.to(target.family.dtype_of(name, value))
    target.family.complete(tensors)
    return Request(tensors, lengths, appended_type=target.family.appended_type)


def _refuse_unread(target: Target, inputs: Iterable[str]) -> None:
    """Refuse inputs that would be passed over in silence."""
    known = {*PER_TOKEN, "mm_encoder_outputs", *target.family.vision_inputs}
    if unread := sorted(set(inputs) - known):
        raise MMSpecError(
            f"inputs has {', '.join(unread)}, which mmspec does not know how to give to {type(target.model).__name__}; "
            "leave it out if the answer does not depend on it"
        )


def _integers(name: str, value, device: torch.device) -> Tensor:
    """A per-token input as a tensor of whole numbers, or of flags."""
    try:
        tensor = torch.as_tensor(value, device=device)
    except (TypeError, ValueError):
        raise MMSpecError(f"{name} is no rectangular table of integers; pad its rows to one length") from None
    if tensor.is_floating_point() and name != "attention_mask" and tensor.numel():
        raise MMSpecError(f"{name} holds {tensor.dtype} values; it must hold integers")
    return tensor


def _known(target: Target, ids: Tensor, mask: Tensor) -> Tensor:
    """The ids, known to be in the vocabulary but for image placeholders, which some models put outside it."""
    vocabulary = target.model.get_input_embeddings().weight.shape[0]
    strange = (ids < 0) | (ids >= vocabulary)
    strange &= ~target.family.is_visual(ids)
    if (strange & mask).any():
        raise MMSpecError(
            f"input_ids holds {int(ids[strange & mask][0])}, but the token ids of {type(target.model).__name__} go "
            f"from 0 to {vocabulary - 1}; make the inputs with the model's own processor"
        )
    return ids.masked_fill(strange & ~mask, 0)  # the id of padding may be anything
