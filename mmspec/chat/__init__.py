"""Conversations: messages of texts and media, and the layouts in which users and files have them."""

from .conversation import MARKERS, Conversation, Medium, Message, Part, media_of, with_media
from .messages import parts_of, read_messages, source_of

__all__ = [
    "MARKERS",
    "Conversation",
    "Medium",
    "Message",
    "Part",
    "media_of",
    "parts_of",
    "read_messages",
    "source_of",
    "with_media",
]
