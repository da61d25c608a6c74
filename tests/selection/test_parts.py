"""Drafts are taken apart whichever way they are laid out, and whatever is missing."""

from __future__ import annotations

import pytest

from mmspec.selection import read_parts

CASES = {
    # name: (text, subject, reasoning, answer)
    "lines": ("Subject: red circle\nReasoning: it says so.\nAnswer: AB3", "red circle", "it says so.", "AB3"),
    "one line": ("Subject: red circle Reasoning: it says so. Answer: AB3", "red circle", "it says so.", "AB3"),
    "blank lines": ("\n\nSubject:\nred circle\n\nReasoning:\n\nso.\n\nAnswer:\nAB3\n", "red circle", "so.", "AB3"),
    "bold": ("**Subject:** red circle\n**Reasoning**: so\n**Answer:** **AB3**", "red circle", "so", "AB3"),
    "headings": ("## Subject: a\n## Reasoning: b\n## Answer: c", "a", "b", "c"),
    "points": ("1. Subject: a\n2. Reasoning: b\n3. Answer: c", "a", "b", "c"),
    "dashes": ("- *Subject*: a\n- *Reasoning*: b\n- *Answer*: c", "a", "b", "c"),
    "small letters": ("subject: a\nreasoning: b\nanswer: c", "a", "b", "c"),
    "colons of other scripts": ("Subject\uff1a红圆\nReasoning\uff1ab\nAnswer\uff1ac", "红圆", "b", "c"),
    "another order": ("Answer: c\nSubject: a\nReasoning: b", "a", "b", "c"),
    "no subject": ("Reasoning: b\nAnswer: c", "", "b", "c"),
    "no reasoning": ("Subject: a\nAnswer: c", "a", "", "c"),
    "reasons without a label": ("Subject: a\nIt is round.\nAnswer: c", "a", "It is round.", "c"),
    "cut off in the reasoning": ("Subject: a\nReasoning: because of", "a", "because of", ""),
    "cut off in the subject": ("Subject: a red ci", "a red ci", "", ""),
    "an empty answer": ("Subject: a\nReasoning: b\nAnswer:", "a", "b", ""),
    "no label": ("  It is AB3.\n", "", "", "It is AB3."),
    "nothing": ("", "", "", ""),
    "words before": ("Sure! Here it is.\nSubject: a\nReasoning: b\nAnswer: c", "a", "b", "c"),
    "labels inside of the reasoning": (
        "Subject: a\nReasoning: the subject: a dog, has the answer: no.\nAnswer: c",
        "a",
        "the subject: a dog, has the answer: no.",
        "c",
    ),
    "the same in one line": ("Subject: a Reasoning: my answer: not b. Answer: c", "a", "my answer: not b.", "c"),
    "once more behind it": (
        "Subject: a\nReasoning: b\nAnswer: c\n\nSubject: d\nReasoning: e\nAnswer: f",
        "a",
        "b",
        "c",
    ),
    "a second answer": ("Subject: a\nReasoning: b\nAnswer: c\nAnswer: d", "a", "b", "c"),
    "once more without an answer": ("Subject: a\nReasoning: b\nSubject: d\nAnswer: f", "a", "b", ""),
    "once more in one line": ("Subject: a Reasoning: b Answer: c Subject: d Answer: e", "a", "b", "c"),
    "several lines": ("Subject: a\nReasoning: b\nAnswer: c\nand d", "a", "b", "c\nand d"),
    "the final answer": ("Subject: a\nReasoning: b\nFinal Answer: c", "a", "b", "c"),
    "longer words": ("Subjects: none\nThe reanswer: x", "", "", "Subjects: none\nThe reanswer: x"),
}


@pytest.mark.parametrize("name", CASES)
def test_parts(name):
    text, *expected = CASES[name]
    assert list(read_parts(text)) == expected


def test_the_subject_is_found_where_the_released_code_loses_it():
    """It cuts at `Reasoning:` and then wants both labels in the first half, so its subject is always empty."""
    text = "Subject: red circle\nReasoning: it says so.\nAnswer: AB3"
    half = text.split("Reasoning:")[0]
    assert not ("Subject:" in half and "Reasoning:" in half)
    assert read_parts(text).subject == "red circle"
