"""Selection among answers: several models answer, and one of the answers, or the large model's verdict, is the result.

Nothing here is lossless: the text is not the large model's own. It is measured by accuracy and cost.
"""

from .answerability import Answerability, token_scores
from .cascade import Cascade
from .consensus import closest, disagreement
from .engine import CascadeEngine, SelectionEngine, VerdictEngine
from .member import Member
from .outcome import Selected, Selector
from .verdict import Verdict

__all__ = [
    "Answerability",
    "Cascade",
    "CascadeEngine",
    "Member",
    "Selected",
    "SelectionEngine",
    "Selector",
    "Verdict",
    "VerdictEngine",
    "closest",
    "disagreement",
    "token_scores",
]
