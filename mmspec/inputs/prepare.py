"""From a prompt with media, from messages or from a processor's output to what a target reads: a right-padded batch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..chat import Conversation, media_of, read_messages
from ..errors import MMSpecError, shown
from ..media import KINDS
from ..models.slots import pick_numbers
from .media import ARGUMENTS, PLURALS, loaded, rows_of, unasked
from .processing import apply_template, reserved_texts
from .prompts import conversation_of, prompts_of, refuse_reserved, systems_of
from .reader import Reader
from .request import PER_TOKEN, Request, extras_of


def prepare(
    target: Reader,
    prompt: Any = None,
    images: Any = None,
    inputs: Mapping[str, Any] | Request | None = None,
    *,
    videos: Any = None,
    audio: Any = None,
    system: str | Sequence[str | None] | None = None,
    messages: Any = None,
    chat_template_kwargs: Mapping[str, Any] | None = None,
    extras: Mapping[str, Sequence[Any]] | None = None,
) -> Request:
    """Build a request, from one of `prompt`, `messages` and `inputs`.

    Args:
        target: whose processor or tokenizer, family and limits apply.
        prompt: a text, or a list with one entry per row. An entry is a text, or a tuple of texts: a conversation of the
            user's and the model's texts in turns, `(question, answer, question)`, which is of odd length because the
            user has the first and the last word. An answer may be empty, a question may not. (A tuple outside a list is
            taken for a list.) `<image>`, `<video>` and `<audio>` in a question say where a medium stands, see
            `mmspec.chat.MARKERS`.
        images, videos, audio: the media of the prompt (see `mmspec.media`); for a list of prompts one medium or list
            per row. Without markers those of a conversation belong to its first question, before the text: pictures,
            then videos, then sounds.
        system: what the model is told before the prompt: a text, or a list with a text or None per row.
        inputs: a processor's output: at least `input_ids`, `[batch, length]`; or a request that was prepared for this
            target before, which is returned as it is.
        messages: a conversation in the layout of chats, `[{"role": "user", "content": ...}, ...]`, its media among its
            texts, see `mmspec.chat.messages`; or a list of conversations, one per row.
        chat_template_kwargs: further arguments of the chat template, such as `{"enable_thinking": False}`.
        extras: whatever else drafters want to know, name to one entry per row; they read `context.request.extras`.

    Raises:
        MMSpecError: for an empty or overlong prompt, a medium that cannot be read, a wrong number of media or markers,
            a token id outside the vocabulary, a conversation of another shape or for a processor without a chat
            template, what the processor or its template refuses or leaves out, a request that this target cannot read.
    """
    media = {"image": images, "video": videos, "audio": audio}
    asked = {"prompt": prompt, "messages": messages, "inputs": inputs}
    if audio is not None and target.family.prompt_optional and all(value is None for value in asked.values()):
        others = {"images": images, "videos": videos, "system": system}
        if name := next((name for name, value in others.items() if value is not None), None):
            model = type(target.model).__name__
            raise MMSpecError(f"{name}= goes with prompt=; without one, {model} reads audio= alone")
        return prepare(target, messages=unasked(audio), chat_template_kwargs=chat_template_kwargs, extras=extras)
    given = [f"{name}=" for name, value in asked.items() if value is not None]
    if len(given) != 1:
        raise MMSpecError(
            "give either prompt= (and images=), or messages=, or inputs=, the output of a processor"
            + (f", and not {' and '.join(given)}" if given else "")
        )
    if inputs is not None:
        request = _given(target, inputs, media, system, chat_template_kwargs)
    elif messages is not None:
        request = _written(target, _messages(target, messages, media, system), chat_template_kwargs)
    else:
        request = _written(target, _asked(target, prompt, media, system), chat_template_kwargs)
    limit = target.family.longest
    if limit is not None and request.max_length >= limit:
        raise MMSpecError(
            f"the prompt has {request.max_length} tokens (visual tokens included) but the model's limit is {limit}: "
            "shorten it or pass fewer images"
        )
    if extras is not None:
        request = replace(request, extras=extras_of(extras, request.batch_size))
    return request


PROCESSED = {"images": "pixel_values", "videos": "pixel_values_videos", "audio": "input_features"}
"""Argument to what a processor makes of it."""


def _given(target: Reader, inputs, media: Mapping[str, Any], system, settings) -> Request:
    """Return the request of `inputs=`."""
    if name := next((ARGUMENTS[kind] for kind in KINDS if media[kind] is not None), None):
        raise MMSpecError(f"{name}= goes with prompt=; with inputs= pass the processor's {PROCESSED[name]} instead")
    for name, value in (("system", system), ("chat_template_kwargs", settings)):
        if value is not None:
            raise MMSpecError(f"{name}= goes with prompt= or messages=; inputs= are written already")
    return _readable(target, inputs) if isinstance(inputs, Request) else _right_pad(target, inputs)


def _messages(target: Reader, messages: Any, media: Mapping[str, Any], system) -> list[Conversation]:
    """Return the conversations of `messages=`, their media loaded."""
    if name := next((ARGUMENTS[kind] for kind in KINDS if media[kind] is not None), None):
        raise MMSpecError(f"{name}= goes with prompt=; in messages= media are parts of the messages")
    if system is not None:
        raise MMSpecError('system= goes with prompt=; in messages= begin with {"role": "system", "content": ...}')
    conversations = read_messages(messages)
    _expect_tokenizer(target)
    reserved = reserved_texts(target)
    for row, conversation in enumerate(conversations):
        for message in conversation:
            for text in message.texts:
                refuse_reserved(f"row {row} of messages", f"a text of the {message.role}", text, reserved)
    _refuse_unseen(target, conversations)
    return [loaded(target, conversation) for conversation in conversations]


def _asked(target: Reader, prompt: Any, media: Mapping[str, Any], system) -> list[Conversation]:
    """Return the conversations of `prompt=` with the media beside it, loaded."""
    alone = target.family.prompt_optional
    prompts = prompts_of(prompt, alone)
    count, single = len(prompts), isinstance(prompt, str)
    columns = {kind: rows_of(kind, media[kind], count, single) for kind in KINDS}
    systems = systems_of(system, count)
    _expect_tokenizer(target)
    reserved = reserved_texts(target)
    conversations = []
    for row, asked in enumerate(prompts):
        own = {kind: columns[kind][row] for kind in KINDS}
        conversations.append(conversation_of(f"prompt {row}", asked, own, reserved, systems[row], alone))
    _refuse_unseen(target, conversations)
    return [loaded(target, conversation) for conversation in conversations]


def _expect_tokenizer(target: Reader) -> None:
    if target.tokenizer is None:
        raise MMSpecError("the target has no processor, so it reads no text; give Target(model, processor) or inputs=")


def _refuse_unseen(target: Reader, conversations: list[Conversation]) -> None:
    """Refuse media of kinds that the model does not take."""
    kinds = set(target.family.kinds)
    if getattr(target.processor, "video_processor", None) is not None and "image" in kinds:
        kinds.add("video")  # whose frames are read as pictures
    for kind in KINDS:
        count = sum(len(media_of(conversation, kind)) for conversation in conversations)
        if count and kind not in kinds:
            raise MMSpecError(f"{count} {PLURALS[kind]} were given but {type(target.model).__name__} takes none")


def _written(target: Reader, conversations: list[Conversation], settings: Mapping[str, Any] | None) -> Request:
    """Return the request of conversations, once every medium of theirs has arrived."""
    if settings is not None and not (isinstance(settings, Mapping) and all(isinstance(name, str) for name in settings)):
        raise MMSpecError(
            f'chat_template_kwargs={shown(settings, 60)} must be a dict of names, such as {{"enable_thinking": False}}'
        )
    written = target.family.write(target, conversations, settings or {})
    request = _right_pad(target, written or apply_template(target, conversations, settings))
    request.conversations, request.template_settings = conversations, dict(settings or {})
    if written is None:
        _refuse_swallowed(target, request, conversations)
    return request


def _refuse_swallowed(target: Reader, request: Request, conversations: list[Conversation]) -> None:
    """Refuse a row of whose media of a kind no token has arrived: its template or its processor has left them out."""
    for row, (ids, conversation) in enumerate(zip(request.token_ids(), conversations, strict=True)):
        arrived = {target.family.placeholders.get(token) for token in set(ids)} - {None}
        for kind in KINDS:
            count = len(media_of(conversation, kind))
            own = kind in target.family.placeholders.values()
            if count and not (kind in arrived if own else arrived):
                raise MMSpecError(
                    f"prompt {row}: {count} {PLURALS[kind]} were given, but what the chat template of "
                    f"{type(target.processor).__name__} writes has no place for them: give media of kinds that "
                    "it knows, or set processor.chat_template to one that knows them"
                )


def _readable(target: Reader, request: Request) -> Request:
    """Return a request that was prepared before, unless it was for a model that reads other things."""
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
    ids, mask = request.inputs["input_ids"], request.inputs["attention_mask"].bool()
    _known(target, ids, mask, target.family.known_ids)
    return request


def _right_pad(target: Reader, inputs: Mapping[str, Any]) -> Request:
    """Move every row's tokens to the left edge and drop columns that only hold padding."""
    if not isinstance(inputs, Mapping):
        raise MMSpecError(
            f"inputs is a {type(inputs).__name__}, but a processor returns a mapping; for token ids alone pass "
            'inputs={"input_ids": tensor}'
        )
    inputs = target.family.as_request(inputs)
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
    ids = _known(target, ids, mask, len(target.model.get_input_embeddings().weight))
    per_token["input_ids"] = target.family.ids_of_text(ids)
    # A stable sort of the padding flags keeps the order of the tokens.
    order = (~mask).to(torch.uint8).argsort(dim=-1, stable=True)[:, : max(lengths)]
    for name, value in per_token.items():
        tensors[name] = pick_numbers(value, order)
    tensors["attention_mask"] = mask.gather(1, order).long()
    for name, value in tensors.items():
        if isinstance(value, Tensor):
            tensors[name] = value.to(target.family.dtype_of(name, value))
    target.family.add_missing_inputs(tensors)
    return Request(tensors, lengths, appended_type=target.family.appended_type)


def _refuse_unread(target: Reader, inputs: Iterable[str]) -> None:
    """Refuse inputs that would be passed over in silence."""
    known = {*PER_TOKEN, "mm_encoder_outputs", *target.family.media_inputs}
    if unread := sorted(set(inputs) - known):
        raise MMSpecError(
            f"inputs has {', '.join(unread)}, which mmspec does not know how to give to {type(target.model).__name__}; "
            "leave it out if the answer does not depend on it"
        )


def _integers(name: str, value, device: torch.device) -> Tensor:
    """Return a per-token input as a tensor of whole numbers, or of flags."""
    try:
        tensor = torch.as_tensor(value, device=device)
    except (TypeError, ValueError):
        raise MMSpecError(f"{name} is no rectangular table of integers; pad its rows to one length") from None
    if tensor.is_floating_point() and name != "attention_mask" and tensor.numel():
        raise MMSpecError(f"{name} holds {tensor.dtype} values; it must hold integers")
    return tensor


def _known(target: Reader, ids: Tensor, mask: Tensor, vocabulary: int) -> Tensor:
    """Return the ids, known to be in the vocabulary but for placeholders, which some models put outside it."""
    strange = (ids < 0) | (ids >= vocabulary)
    strange &= ~target.family.is_visual(ids)
    if (strange & mask).any():
        raise MMSpecError(
            f"input_ids holds {int(ids[strange & mask][0])}, but the token ids of {type(target.model).__name__} go "
            f"from 0 to {vocabulary - 1}; make the inputs with the model's own processor"
        )
    return ids.masked_fill(strange & ~mask, 0)  # the id of padding may be anything
