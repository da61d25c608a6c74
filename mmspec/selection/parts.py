"""Parts: subject, reasoning and answer of a draft about a document, read out of what a model has written."""

from __future__ import annotations

import re
from itertools import zip_longest
from typing import NamedTuple

NAMES = ("subject", "reasoning", "answer")
AT_START = 2
_DECORATION = r"[^\w\n]|_"
"""Signs that models put around labels: those of headings, lists and bold type."""
_LABEL = rf"(?:final[ ]+)?({'|'.join(NAMES)})(?:[ ]|[*_])*[:\uff1a][*_]*"  # \uff1a is the colon of CJK texts
_AT_START = re.compile(rf"^(?:{_DECORATION})*(?:\d+[.)](?:{_DECORATION})*)?{_LABEL}", re.IGNORECASE | re.MULTILINE)
_INSIDE = re.compile(rf"(?<![\w])[*_]*{_LABEL}", re.IGNORECASE)


class Parts(NamedTuple):
    """The subject, the reasoning and the answer of a draft.

    Args:
        subject: what the document is about; empty if the draft does not say.
        reasoning: why; empty if the draft does not say.
        answer: the proposed answer; empty if the draft has none, as one that was cut off.
    """

    subject: str
    reasoning: str
    answer: str


class _Label(NamedTuple):
    """A label in a text."""

    name: str
    start: int
    end: int
    sure: int
    """`AT_START` of a line, where several are; 1 inside a line with a capital, else 0."""


def read_parts(text: str) -> Parts:
    """Return the parts of a draft that was asked for as `Subject: ... Reasoning: ... Answer: ...`.

    The labels may stand on lines of their own or in one line, in any order, and in bold type, as headings or as points
    of a list; each may be missing. Of several labels of a name those that begin a line count before those inside of
    one, those with a capital before others, and then the first. A part ends where the next label is that counts as
    much. A text that begins anew with a second subject, as those of small models do, ends there. A text without any
    label is an answer.

    VideoSpeculateRAG (arXiv 2601.01513) asks for these parts. Its released code cuts the text at `Reasoning:` and then
    looks for a subject that has `Reasoning:` behind it, so that it finds none.
    """
    labels = _labels(text)
    subjects = [label.start for label in labels if label.name == "subject" and label.sure == AT_START]
    if len(subjects) > 1:
        text = text[: subjects[1]]
        labels = [label for label in labels if label.start < len(text)]
    counting = {name: max((one.sure for one in labels if one.name == name), default=None) for name in NAMES}
    found: dict[str, str] = {}
    bounds = [label for label in labels if label.sure == counting[label.name]]
    for label, after in zip_longest(bounds, bounds[1:]):
        found.setdefault(label.name, _bare(text[label.end : after.start if after else len(text)]))
    if not found:
        return Parts("", "", _bare(text))
    subject, _, rest = found.get("subject", "").partition("\n")
    return Parts(_bare(subject), found.get("reasoning") or _bare(rest), found.get("answer", ""))


def _labels(text: str) -> list[_Label]:
    """Return all labels of a text, in order."""
    at_start = {match.start(1): match for match in _AT_START.finditer(text)}
    inside = {match.start(1): match for match in _INSIDE.finditer(text)}
    in_lines, found = len(at_start) > 1, []
    for place, match in sorted((inside | at_start).items()):
        sure = AT_START if in_lines and place in at_start else int(match[1][0].isupper())
        found.append(_Label(match[1].lower(), match.start(), match.end(), sure))
    return found


def _bare(text: str) -> str:
    """Return a text without white space and signs of bold type at its ends."""
    return text.strip(" \t\r\n*_")
