"""Documents: what is given to read beside a question, and the requests that are made of both."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..chat import Conversation
from ..data.examples import DOCUMENTS
from ..errors import MMSpecError, shown
from ..inputs import Request, prepare
from .member import with_words

if TYPE_CHECKING:
    from ..target import Target

DRAFT = (
    "\nA document that may or may not be about this:\n{document}\n"
    "Name what the document is about, say what it and the picture or video tell about the question, and answer in a "
    "few words. Write:\nSubject: ...\nReasoning: ...\nAnswer: ..."
)
JUDGE = (
    "\nSomebody has proposed an answer.\nSubject: {subject}\nReasoning: {reasoning}\nAnswer: {answer}\n"
    "Is it right, and is the subject what the picture or video shows? Answer Yes or No."
)
READ = "\nDocuments, not all of which are about this:\n{documents}\nAnswer the question in a few words."


def documents_of(request: Request) -> list[str] | None:
    """Return the documents that came with a request of one row; None if it has no list of them.

    Raises:
        MMSpecError: for anything but texts.
    """
    found = request.extras.get(DOCUMENTS, [None])[0]
    return None if found is None else texts_of(found)


def texts_of(given: Any) -> list[str]:
    """Return documents as a list.

    Raises:
        MMSpecError: for anything but a list of texts with something in them.
    """
    if isinstance(given, str) or not isinstance(given, Sequence):
        raise MMSpecError(f"documents={shown(given, 40)} must be a list of texts, even for a single one")
    for place, text in enumerate(given, start=1):
        if not isinstance(text, str) or not text.strip():
            raise MMSpecError(f"document {place} is {shown(text, 40)}: give texts that say something")
    return list(given)


def all_documents(conversation: Conversation, documents: Sequence[str]) -> Conversation:
    """Return a question with all of its documents."""
    listed = "\n".join(f"{number}. {text}" for number, text in enumerate(documents, start=1))
    return with_words(conversation, READ.format(documents=listed))


def prepare_together(target: Target, conversations: Sequence[Conversation], settings: Any = None) -> Request:
    """Return the request of several questions about the same media, which are held and encoded once.

    Args:
        target: who reads it.
        conversations: questions that differ in their texts alone.
        settings: further arguments of the chat template.
    """
    request = prepare(target, messages=list(conversations), chat_template_kwargs=settings or None)
    first = prepare(target, messages=[conversations[0]], chat_template_kwargs=settings or None)
    return target.sharing(request, first)
