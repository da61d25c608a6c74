"""VideoSpeculateRAG: a draft from every document, judged by the large model in one pass; and what it is compared to."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeGuard

from ..chat import Conversation
from ..data.examples import DOCUMENTS
from ..drafters import Drafter, DraftModelDrafter
from ..errors import MMSpecError, shown
from ..inputs import Request, prepare
from ..media import keyframes, load_image
from ..settings.arguments import number
from ..target import Target
from .alignment import Scorer, TowerScorer, scored
from .documents import DRAFT, JUDGE, all_documents, documents_of, prepare_together, texts_of
from .member import Member, with_words
from .outcome import Selected, Selector, one_row
from .panel import large_answer, members_of
from .parts import Parts, read_parts
from .reliability import NO, YES, Reliability, admitted, best_draft
from .retrieval import Retriever

if TYPE_CHECKING:
    from PIL.Image import Image

Writer = Callable[[Sequence[Conversation]], Sequence[str]]
"""From the questions to draft for, each with its document, to what is written to each."""

LONGEST = 200
"""Tokens of a draft at most."""


@dataclass
class DocumentDraft:
    """A draft from one document.

    Args:
        name: `document 1` and so on, in the order in which they came.
        document: its text.
        text: what was written.
        parts: its subject, reasoning and answer.
        reliability: see `Reliability`; None if there is no answer to judge.
        alignment: the largest score of its subject with any keyframe; minus infinity if it names no subject, and None
            if there is no answer.
    """

    name: str
    document: str
    text: str
    parts: Parts
    reliability: float | None = None
    alignment: float | None = None


@dataclass
class SelectedDraft(Selected):
    """The answer to one question about documents.

    `scores` is the reliability of the drafts by the name of their document, `kept` names those that were admitted by
    it, `reasons` is their reasoning, and `answers` their answers. `by` is the name of a document, or `"large"`.

    Args:
        drafts: all drafts, in the order of the documents.
        keyframes: number of pictures that subjects were compared with.
    """

    drafts: list[DocumentDraft] = field(default_factory=list)
    keyframes: int = 0


class DocumentSelector(Selector):
    """A selector whose questions come with documents: those of the question, or those that a retriever finds.

    Args:
        target: the large model.
        retriever: finds documents for questions that come without any.

    Raises:
        MMSpecError: for a retriever that cannot be called.
    """

    def __init__(self, target: Target, retriever: Retriever | None = None):
        super().__init__(target)
        if retriever is not None and not callable(retriever):
            raise MMSpecError(
                f"retriever={shown(retriever, 40)} must be a function of a question and its pictures, such as "
                "mmspec.selection.CosineRetriever(...)"
            )
        self.retriever = retriever

    def ask(
        self,
        prompt: str,
        images: Any = None,
        videos: Any = None,
        documents: Sequence[str] | None = None,
        **options: Any,
    ) -> Any:
        """Answer a question about pictures or a video.

        Args:
            prompt: the question.
            images, videos: its media, see `mmspec.generate`.
            documents: texts that may have the answer; None to ask the retriever.
            options: arguments of `answer`.
        """
        extras = None if documents is None else {DOCUMENTS: [texts_of(documents)]}
        return self.answer(prepare(self.target, prompt, images, videos=videos, extras=extras), **options)

    def read(self, request: Request, found: Selected) -> tuple[Conversation, list[str]]:
        """Return the question of a request, and its documents.

        Args:
            request: one row with pictures or a video.
            found: books the time of the retriever.

        Raises:
            MMSpecError: for several rows, a row without media or documents, and one that was made from `inputs=`.
        """
        one_row(request, self)
        name = type(self).__name__
        if request.conversations is None:
            raise MMSpecError(f"{name} writes documents into the question: ask with prompt= or messages=, not inputs=")
        if not any(request.media[kind][0] for kind in ("image", "video")):
            raise MMSpecError(f"{name} reads documents beside a picture or a video, and there is none: give one")
        documents = documents_of(request)
        if documents is None and self.retriever is not None:
            with found.stage("retrieval"):
                asked = "\n".join(request.conversations[0][-1].texts)
                documents = texts_of(self.retriever(asked, seen_in(request)))
        if not documents:
            raise MMSpecError(
                f"{name}: the question has no documents: give documents=, extras={{'{DOCUMENTS}': [[...]]}}, or a "
                "retriever that finds some"
            )
        return request.conversations[0], documents

    def with_all(self, conversation: Conversation, documents: Sequence[str], request: Request) -> Request:
        """Return the request for the large model to read all documents."""
        asked = all_documents(conversation, documents)
        return prepare(self.target, messages=[asked], chat_template_kwargs=request.template_settings or None)


class StandardRAG(DocumentSelector):
    """The large model reads all documents at once and answers: what VideoSpeculateRAG is compared to.

    Its text is that of plain decoding of the longer prompt, with any drafter whose verifier is lossless.

    Args:
        target: the large model.
        retriever: see `DocumentSelector`.
        drafter: what drafts for the large model.
    """

    def __init__(self, target: Target, retriever: Retriever | None = None, drafter: Drafter | None = None):
        super().__init__(target, retriever)
        self.drafter = drafter

    def answer(self, request: Request, max_new_tokens: int = LONGEST, seed: int = 0) -> Selected:
        """Answer a request of one row, see `Selector.answer`."""
        found = Selected("", [], "large")
        conversation, documents = self.read(request, found)
        asked = self.with_all(conversation, documents, request)
        large_answer(self.target, self.drafter, asked, max_new_tokens, found)
        return found


class VideoSpeculateRAG(DocumentSelector):
    """VideoSpeculateRAG, in its repository FastV-RAG (arXiv 2601.01513): a small model drafts an answer from every
    document, the large model judges all drafts in one pass, and the subject of the best must fit what is seen.

    Faithful: one batched call of the small model, each row with one document, the whole video and the question;
    subject, reasoning, answer; `rel = P(Yes) / (P(Yes) + P(No))` by a prefill of the large model; `ent = max over
    keyframes of the score of subject and keyframe`; keyframes by grey histograms; of the drafts with
    `rel >= max rel - delta` the one of the largest `ent`, ties by `rel`; 200 tokens, `delta=0.3`, `keyframe=0.8`.

    Ours: the words of the instructions; the reading of the parts (`read_parts`), as the released code never finds a
    subject; the target's tower in CLIP's place, unless a `ClipScorer` is given; the first frame is a keyframe, and so
    is every picture; a draft without an answer is left out, one without a subject is aligned with nothing, and if no
    draft has an answer the large model reads all documents.

    NOT lossless: the answer is the small model's. Needs no training.

    Args:
        target: the large model.
        small: who drafts: a `Member` (whose drafter may speed it up), a `Target`, a draft model of the large one; or a
            function from conversations to texts, for a model that is somewhere else.
        scorer: compares subjects with pictures, see `Scorer`; None is `TowerScorer(target)`.
        delta: how much less reliable than the most reliable a draft may be, from 0 (the most reliable is taken) to 1
            (the one that fits best is).
        keyframe: a frame is a keyframe if its grey histogram correlates with that of the frame before by less.
        retriever: finds documents for questions that come without any, see `CosineRetriever`.
        yes_words, no_words: see `Reliability`.
        drafter: what drafts for the large model, if it has to answer; its text stays what it is.

    Raises:
        MMSpecError: for objects of other classes, values out of range, words that are no single tokens.
    """

    def __init__(
        self,
        target: Target,
        small: Member | Target | DraftModelDrafter | Writer,
        scorer: Scorer | None = None,
        delta: float = 0.3,
        keyframe: float = 0.8,
        retriever: Retriever | None = None,
        yes_words: str | Sequence[str] = YES,
        no_words: str | Sequence[str] = NO,
        drafter: Drafter | None = None,
    ):
        super().__init__(target, retriever)
        self.small: Member | Writer = small if _is_function(small) else members_of([small])[0]
        if scorer is not None and not callable(scorer):
            raise MMSpecError(f"scorer={shown(scorer, 40)} must be a function of subjects and pictures")
        self.scorer: Scorer = TowerScorer(target) if scorer is None else scorer
        self.delta = number(self, lowest=0, highest=1, delta=delta)
        self.keyframe = number(self, lowest=-1, highest=1, keyframe=keyframe)
        self.reliability = Reliability(target, yes_words, no_words)
        self.drafter = drafter

    def answer(self, request: Request, max_new_tokens: int = LONGEST, seed: int = 0) -> SelectedDraft:
        """Answer a request of one row, see `Selector.answer`. Drafts have so many tokens at most, all of their parts
        together."""
        found = SelectedDraft("", [], "large")
        conversation, documents = self.read(request, found)
        with found.stage("drafts"):
            texts = self._write(conversation, documents, request, max_new_tokens, found)
        found.drafts = [
            DocumentDraft(f"document {number}", document, text, read_parts(text))
            for number, (document, text) in enumerate(zip(documents, texts, strict=True), start=1)
        ]
        found.answers = {draft.name: draft.parts.answer for draft in found.drafts}
        drafts = [draft for draft in found.drafts if draft.parts.answer]
        if not drafts:
            asked = self.with_all(conversation, documents, request)
            large_answer(self.target, self.drafter, asked, max_new_tokens, found)
            return found
        with found.stage("reliability"):
            reliability = self.reliability(
                [with_words(conversation, JUDGE.format(**draft.parts._asdict())) for draft in drafts],
                request.template_settings,
            )
        found.passes += 1
        with found.stage("keyframes"):
            seen = seen_in(request, self.keyframe)
        found.keyframes = len(seen)
        with found.stage("alignment"):
            alignment = self._align([draft.parts.subject for draft in drafts], seen)
        for draft, rel, ent in zip(drafts, reliability, alignment, strict=True):
            draft.reliability, draft.alignment = rel, ent
        found.scores = {draft.name: rel for draft, rel in zip(drafts, reliability, strict=True)}
        kept = [drafts[place] for place in admitted(reliability, self.delta)]
        found.kept, found.reasons = [one.name for one in kept], {one.name: one.parts.reasoning for one in kept}
        best = drafts[best_draft(reliability, alignment, self.delta)]
        found.by, found.text = best.name, best.parts.answer
        found.token_ids = self.target.tokenizer(best.parts.answer, add_special_tokens=False)["input_ids"]
        return found

    def _write(
        self, conversation: Conversation, documents: Sequence[str], request: Request, longest: int, found: Selected
    ) -> list[str]:
        """Return a draft from every document."""
        asked = [with_words(conversation, DRAFT.format(document=document)) for document in documents]
        large = self.target
        if isinstance(self.small, Member):
            together = prepare_together(large, asked, request.template_settings)
            rows = self.small.write_all(together, large, longest)
            found.tokens["members"] = sum(map(len, rows))
            return [large.tokenizer.decode(ids, skip_special_tokens=True) for ids in rows]
        texts = self.small(asked)
        table = isinstance(texts, Sequence) and not isinstance(texts, str)
        if not table or len(texts) != len(asked) or not all(isinstance(text, str) for text in texts):
            raise MMSpecError(
                f"small: the function returned {shown(texts, 40)} for {len(asked)} documents: return a text for each"
            )
        found.tokens["members"] = sum(map(len, large.tokenizer(list(texts), add_special_tokens=False)["input_ids"]))
        return list(texts)

    def _align(self, subjects: Sequence[str], seen: Sequence[Image]) -> list[float]:
        """Return the largest score of each subject with anything that is seen."""
        named = [subject for subject in subjects if subject]
        scores = iter(scored(self.scorer, named, seen).amax(-1).tolist() if named else [])
        return [next(scores) if subject else float("-inf") for subject in subjects]


def seen_in(request: Request, keyframe: float | None = None) -> list[Image]:
    """Return the pictures of a request of one row, and the frames of its videos.

    Args:
        request: with its media.
        keyframe: the limit of `mmspec.media.keyframes`; None for all frames.
    """
    (images,), (videos,) = request.media["image"], request.media["video"]
    found = list(images)
    for video in videos:
        chosen = range(len(video)) if keyframe is None else keyframes(video.frames, keyframe)
        found += [load_image(video.frames[place]) for place in chosen]
    return found


def _is_function(small: Any) -> TypeGuard[Writer]:
    return callable(small) and not isinstance(small, Member | Target | Drafter | type)
