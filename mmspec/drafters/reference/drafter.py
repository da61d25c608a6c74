"""ReferenceDrafter: what a reference text says next is what the target will write next."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ...decoding.text import TextStream
from ...errors import MMSpecError, shown
from ...layouts import Layout, regions_of
from ...outcome import Scores, Verdict
from ...settings.arguments import as_int, flags, number, positive, whole_number
from ...tree import DraftTree
from ..base import Drafter
from ..continuations import Branches, padded
from .alignment import ALONE, Alignment, Windows
from .reading import read_references
from .text import ReferenceText

if TYPE_CHECKING:
    from ...context import Context
    from ...target import Target

REFERENCES = "references"
"""The name of the references among `generate(extras=)`."""


class ReferenceDrafter(Drafter):
    """Drafts from texts that say, more or less, what the target is about to write: the drafter of HSD (hierarchical
    speculative decoding, arXiv 2602.12957), whose texts are what a layout parser has read on a page.

    References belong to a row: `generate(extras={"references": [...]})` has an entry for each, which is a text, a list
    of texts (the regions of its page), or None. A row with None has what `layout` reads in its pictures; without a
    layout or pictures those that the drafter was made with, and if there are none its own prompt, without media. A row
    whose answer is found nowhere takes plain steps.

    Faithful: texts are tokenized by the target's tokenizer; a window of the newest `window` tokens is looked up, and
    grows up to `longest_window` while there are several matches; behind a single match all the rest is proposed, behind
    several a prefix tree of `depth` levels; nodes are limited; where tokens do not match, letters do, without signs and
    spaces, and the rest is tokenized anew; what has a fixed form, as JSON does, is a list of `skeletons`.
    Ours: the window grows at once and not over rounds; a reference from whose path the answer strays is not searched
    anew, but kept for some tokens, as if the reference had a wrong, a missing or a superfluous token there; letters are
    compared without case, and the rest follows the case of the answer; where one reference ends, any other may begin,
    and the end of the last one is the end of the answer; and a row learns how often each kind of guess is right, from
    those too that it did not draft, and drafts no token whose chance of being emitted is below `least`. So a reference
    of another page costs little. `least=0` is the original.

    Lossless with every lossless verifier, whatever the references say. Needs no training and no model.

    Args:
        target: the model to draft for.
        references: for rows that bring none: a text, or a list of texts; a list of token ids counts as a text.
        file: a file of further ones, see `read_references`.
        layout: layout parser: a function from a picture to its regions, such as `mmspec.layouts.OcrLayout`. Its time is
            part of the request's.
        joint: what stands between two references of a row that are written one after the other, such as a line break;
            None if that is not known, or if they may come in any order.
        skeletons: texts of structure, such as `', "text": "'`, which may come at any time and any number of times.
        escape: True if references are to be written as JSON writes them within a string; skeletons stay as they are.
        window, longest_window: tokens to look up, and the most of them.
        letters: letters to look up where tokens do not match; 0 for none.
        depth: levels of a tree of several guesses.
        nodes: tokens to draft in a round at most.
        branches: matches to go on from, where there are several.
        least: smallest chance of a token worth drafting, from 0 to below 1. About what a token costs in the target's
            pass, as a share of a plain step.

    Raises:
        MMSpecError: for sizes out of range, for references that are no texts, for a layout that is no function or
            returns no regions, and for texts where the target has no tokenizer.
    """

    def __init__(
        self,
        target: Target,
        references: Any = None,
        file: str | Path | None = None,
        layout: Layout | None = None,
        joint: str | None = None,
        skeletons: Sequence[str] = (),
        escape: bool = False,
        window: int = 3,
        longest_window: int = 10,
        letters: int = 8,
        depth: int = 15,
        nodes: int = 256,
        branches: int = 8,
        least: float = 0.1,
    ):
        super().__init__(target)
        positive(self, window=window, longest_window=longest_window, depth=depth, nodes=nodes, branches=branches)
        if window > longest_window:
            raise MMSpecError(f"ReferenceDrafter: window={window} is larger than longest_window={longest_window}")
        flags(self, escape=escape)
        if not isinstance(joint, str | None):
            raise MMSpecError(
                f"ReferenceDrafter: joint={shown(joint)} must be a text, such as a line break, or None (null)"
            )
        if layout is not None and not callable(layout):
            raise MMSpecError(f"ReferenceDrafter: layout={shown(layout, 60)} must be a function of a picture, or None")
        self.layout = layout
        self.least = number(self, least=least, lowest=0, highest=0.99)
        self.windows = Windows(window, longest_window, whole_number(self, lowest=0, letters=letters), branches)
        self.depth, self.nodes, self.escape, self.joint = depth, nodes, escape, joint
        self._apart, self._ends = set(target.family.placeholders), [*target.eos_token_ids[:1]]
        given = None if references is None and file is None else [*_listed(references, "references")]
        if file is not None and given is not None:
            given += read_references(file)
        self.skeletons = [self._prepared(text, "skeletons", escape=False) for text in _listed(skeletons, "skeletons")]
        self.references = None if given is None else self._all_prepared(given, "references")

    @property
    def max_nodes(self) -> int:
        """Tokens of a draft."""
        return self.nodes

    def start(self, context: Context) -> None:
        """Take up a request with the references of its rows."""
        self.context = context
        rows, request = range(len(context.history)), context.request
        given = request.extras.get(REFERENCES, [None for _ in rows])
        self._begins = [*request.lengths]
        self._heard = [*request.lengths]
        self._pages: list[list[Any]] = request.images or [[] for _ in rows]
        self._found: dict[int, list[str]] = {}
        self._streams = [TextStream(context.target.speller) for _ in rows]
        self._alignments = [
            Alignment([*self._of_row(row, given[row]), *self.skeletons], self.windows, self._spelling(row))
            for row in rows
        ]

    def draft(self, root: Tensor) -> DraftTree:
        """Propose what the references say behind the place that each row has reached."""
        rows = []
        for row, history in enumerate(self.context.history):
            tree = Branches(history[-1], self.nodes)
            if self.context.active[row]:
                self._grow(tree, self._alignments[row], history[self._begins[row] :])
            self._heard[row] = len(history)
            rows.append(tree)
        return padded(rows, root.device, self.nodes)

    def observe(self, tree: DraftTree, scores: Scores | None, verdict: Verdict) -> None:
        """Move on in the references by what was emitted."""
        for row, (history, alignment) in enumerate(zip(self.context.history, self._alignments, strict=True)):
            if emitted := history[self._heard[row] :]:
                alignment.follow(emitted)
            self._heard[row] = len(history)

    def _grow(self, tree: Branches, alignment: Alignment, answer: list[int]) -> None:
        """Add to a row's tree what may follow its answer."""
        for line, at, kind in alignment.guesses(answer):
            reach = alignment.odds.reach(kind, self.least)
            length = int(min(reach, self.nodes if kind in ALONE else self.depth))
            tree.add(takewhile(self._can_follow, line[at : at + length]))

    def _can_follow(self, token: int) -> bool:
        """Return True for a token that the target may write: no placeholder, and one of its vocabulary."""
        return token < self.target.vocab_size and token not in self._apart

    def _spelling(self, row: int) -> Callable[[], str] | None:
        """Return a function that gives the text of a row's answer so far; None where tokens have no text."""
        stream = self._streams[row]
        if stream.tokenizer is None:
            return None

        def spell() -> str:
            stream.ids += self.context.history[row][self._begins[row] + len(stream.ids) :]
            return "".join(stream.text(number) for number in range(max(len(stream.ids) - 64, 0), len(stream.ids)))

        return spell

    # References.

    def _of_row(self, row: int, given: Any) -> list[ReferenceText]:
        """Return the references of a row."""
        if given is not None:
            name = f"extras[{REFERENCES!r}] of row {row}"
            return self._all_prepared(_listed(given, name), name)
        if self.layout is not None and (pages := self._pages[row]):
            for page in pages:  # several answers to one prompt show the same one
                if id(page) not in self._found:
                    self._found[id(page)] = [region.text for region in regions_of(self.layout(page), page)]
            return self._all_prepared(
                [text for page in pages for text in self._found[id(page)]], f"layout of row {row}"
            )
        if self.references is not None:
            return self.references
        prompt = self.context.history[row][: self._begins[row]]
        return [ReferenceText(part) for part in _parted(prompt, self._apart)]

    def _all_prepared(self, given: Sequence[Any], name: str) -> list[ReferenceText]:
        """Return references ready to be looked up; behind the last one the answer ends."""
        if self.joint is not None and len(given) > 1:
            for one in given:
                if not isinstance(one, str):
                    raise MMSpecError(
                        f"ReferenceDrafter: joint={shown(self.joint, 40)} joins texts, and {name} has {shown(one, 40)}"
                    )
            texts = [as_in_json(one) for one in given] if self.escape else given
            return [self._prepared(self.joint.join(texts), name, escape=False, close=self._ends)]
        last = len(given) - 1
        return [
            self._prepared(one, name, self.escape, self._ends if place == last and not self.skeletons else [])
            for place, one in enumerate(given)
        ]

    def _prepared(self, given: Any, name: str, escape: bool, close: Sequence[int] = ()) -> ReferenceText:
        """Return a text, or tokens, ready to be looked up."""
        if isinstance(given, str):
            tokenizer = self.target.speller
            if tokenizer is None:
                raise MMSpecError(
                    f"ReferenceDrafter: {name} are texts, and the target has no tokenizer: pass mmspec.Target its "
                    "processor, or give lists of token ids"
                )
            text = as_in_json(given) if escape else given
            return ReferenceText(tokenizer.encode(text, add_special_tokens=False), text, tokenizer, close)
        ids = [as_int(token) for token in given] if isinstance(given, Iterable) else [None]
        known = [token for token in ids if token is not None and 0 <= token < self.target.vocab_size]
        if len(known) < len(ids):
            raise MMSpecError(
                f"ReferenceDrafter: {name} has {shown(given, 60)}, which is neither a text nor a list of token ids "
                f"below {self.target.vocab_size}"
            )
        return ReferenceText(known, close=close)


def as_in_json(text: str) -> str:
    """Return a text as JSON writes it within a string."""
    return json.dumps(text, ensure_ascii=False)[1:-1]


def _listed(given: Any, name: str) -> list[Any]:
    """Return references as a list: one alone may be given as it is."""
    if given is None:
        return []
    if isinstance(given, str):
        return [given]
    if not isinstance(given, Sequence) and not hasattr(given, "tolist"):
        raise MMSpecError(f"ReferenceDrafter: {name} is {shown(given, 60)}: give a text, or a list of texts")
    entries = given.tolist() if hasattr(given, "tolist") else [*given]
    return [entries] if entries and all(as_int(entry) is not None for entry in entries) else entries


def _parted(tokens: Sequence[int], apart: set[int]) -> list[list[int]]:
    """Return the runs of tokens between those that stand apart."""
    runs: list[list[int]] = [[]]
    for token in tokens:
        if token in apart:
            runs.append([])
        else:
            runs[-1].append(token)
    return [run for run in runs if run]
