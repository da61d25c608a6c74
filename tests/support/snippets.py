"""The code blocks of the documentation, and how a page says what is to be done with one.

A comment before a block, `<!-- test: ITEM; ITEM -->`, holds items of these kinds:

    skip: REASON             not run; commands of mmspec in it are still composed, so their options must exist
    slow                     run only by `pytest -m slow`
    with ARGUMENTS           added to every mmspec command of the block, to make it cheap
    with COMMAND: ARGUMENTS  added to those of one command: `with train: steps=2`
    given THING as PATH      what the page supposes to be there: one of THINGS
    where CODE               Python that the page supposes, run before a Python block
    reading "A" as "B"       in a Python block, to make it cheap

Python blocks of a page run in order in one namespace, commands in the same folder, which begins empty.
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass, field
from pathlib import Path

from mmspec.cli import COMMANDS

ROOT = Path(__file__).resolve().parents[2]
OWN_TEST = ROOT / "docs" / "add_your_own.md"  # tests/docs/test_add_your_own.py
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]

BLOCK = re.compile(
    r"(?:^<!-- test: (?P<note>(?:(?!-->).)*?) *-->\n\n?)?^```(?P<language>\w*)[^\n]*\n(?P<text>.*?)^```$", re.M | re.S
)
NOTE = re.compile(r"<!-- *test\b")
THINGS = ("photo", "pictures", "answers", "conversations", "target", "drafter", "bundle")


@dataclass
class Snippet:
    """A block of Python or bash.

    Args:
        line: where it begins.
        skip: why it is not run.
        extra: arguments for all mmspec commands of the block, and for those of one.
        given: `(thing, path)`.
        where: Python to run before it.
    """

    language: str
    text: str
    line: int
    skip: str | None = None
    slow: bool = False
    extra: dict[str | None, list[str]] = field(default_factory=dict)
    given: list[tuple[str, str]] = field(default_factory=list)
    where: str = ""

    @property
    def commands(self) -> list[list[str]]:
        """The words of every command of a bash block, without comments and what it is piped to."""
        lines = self.text.replace("\\\n", " ").splitlines()
        commands = [shlex.split(line, comments=True) for line in lines]
        return [words[: words.index("|")] if "|" in words else words for words in commands if words]

    def added(self, words: list[str]) -> list[str]:
        """What a note adds to a command of mmspec."""
        said = " ".join(words[1:]) + " "
        title = max((title for title in COMMANDS if said.startswith(f"{title} ")), key=len, default="")
        return [*self.extra.get(None, []), *self.extra.get(title, [])]


def read(page: Path) -> list[Snippet]:
    """The blocks of a page that are Python or bash.

    Raises:
        ValueError: for a note that means nothing, or belongs to no such block.
    """
    text = page.read_text(encoding="utf-8")
    snippets, notes = [], 0
    for match in BLOCK.finditer(text):
        where = f"{page.name}, line {text[: match.start('language')].count(chr(10)) + 1}"
        notes += match["note"] is not None
        if match["language"] in ("python", "bash"):
            snippet = Snippet(match["language"], match["text"], int(where.rpartition(" ")[2]))
            _annotate(snippet, match["note"], where)
            snippets.append(snippet)
        elif match["note"] is not None:
            raise ValueError(f"{where}: a note for a block of {match['language'] or 'no language'}, which is not run")
    if notes != len(NOTE.findall(text)):
        raise ValueError(f"{page.name}: a note stands directly before a block, as <!-- test: ... -->")
    return snippets


def _annotate(snippet: Snippet, note: str | None, where: str) -> None:
    for item in (note or "").split(";"):
        kind, _, rest = item.strip().partition(" ")
        rest = rest.strip()
        if kind == "skip:" and rest:
            snippet.skip = rest
        elif kind == "slow" and not rest:
            snippet.slow = True
        elif kind == "where" and rest and snippet.language == "python":
            snippet.where += rest + "\n"
        elif kind == "reading" and (match := re.fullmatch(r'"(.+)" as "(.*)"', rest)) and match[1] in snippet.text:
            snippet.text = snippet.text.replace(match[1], match[2])
        elif kind == "given" and (match := re.fullmatch(r"(\w+) as (\S+)", rest)) and match[1] in THINGS:
            snippet.given.append((match[1], match[2]))
        elif kind == "with" and rest and snippet.language == "bash":
            command, _, arguments = rest.rpartition(": ")
            snippet.extra.setdefault(command or None, []).extend(shlex.split(arguments))
        elif item.strip():
            raise ValueError(f"{where}: the note {item.strip()!r} means nothing here; see tests/support/snippets.py")
