"""Selection among answers: several models answer, and one of the answers, or the large model's verdict, is the result.

Nothing here is lossless: the text is not the large model's own. It is measured by accuracy and cost.
"""

from ..data.examples import DOCUMENTS
from .alignment import ClipScorer, Scorer, TowerScorer
from .answerability import Answerability, token_scores
from .cascade import Cascade
from .consensus import closest, disagreement
from .engine import CascadeEngine, SelectionEngine, VerdictEngine
from .member import Member
from .outcome import Selected, Selector
from .parts import Parts, read_parts
from .rag_engine import StandardRAGEngine, VideoSpeculateRAGEngine
from .reliability import Reliability, admitted, best_draft
from .retrieval import CosineRetriever, Retriever, nearest
from .speculate_rag import DocumentDraft, DocumentSelector, SelectedDraft, StandardRAG, VideoSpeculateRAG
from .verdict import Verdict

__all__ = [
    "DOCUMENTS",
    "Answerability",
    "Cascade",
    "CascadeEngine",
    "ClipScorer",
    "CosineRetriever",
    "DocumentDraft",
    "DocumentSelector",
    "Member",
    "Parts",
    "Reliability",
    "Retriever",
    "Scorer",
    "Selected",
    "SelectedDraft",
    "SelectionEngine",
    "Selector",
    "StandardRAG",
    "StandardRAGEngine",
    "TowerScorer",
    "Verdict",
    "VerdictEngine",
    "VideoSpeculateRAG",
    "VideoSpeculateRAGEngine",
    "admitted",
    "best_draft",
    "closest",
    "disagreement",
    "nearest",
    "read_parts",
    "token_scores",
]
