"""Acceptance rules for `TreeWalk`: they judge drafted tokens. Each file holds one rule or a few related ones."""

from .additive import Additive
from .base import ChoiceRule, CoinRule, Judged, Rule
from .distance import Distance
from .exact import Match, Rejection
from .logit_ratio import LogitRatio
from .mixture import Mixture
from .segments import Segments
from .top_rank import TopRank
from .typical import Typical
from .visual_relevance import VisualRelevance

__all__ = [
    "Additive",
    "ChoiceRule",
    "CoinRule",
    "Distance",
    "Judged",
    "LogitRatio",
    "Match",
    "Mixture",
    "Rejection",
    "Rule",
    "Segments",
    "TopRank",
    "Typical",
    "VisualRelevance",
]
