"""Requests that targets read, and how they are made of prompts, conversations and media."""

from ..chat import MARKERS, Conversation, Medium, Message
from ..media import KINDS, load_image
from .prepare import prepare
from .prompts import Prompt
from .request import PER_TOKEN, Request, append, stack
from .template import end_of_answer

__all__ = [
    "KINDS",
    "MARKERS",
    "PER_TOKEN",
    "Conversation",
    "Medium",
    "Message",
    "Prompt",
    "Request",
    "append",
    "end_of_answer",
    "load_image",
    "prepare",
    "stack",
]
