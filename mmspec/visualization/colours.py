"""Colours of all pictures: the palette of Okabe and Ito, which stays distinct for every kind of colour vision, and some
of Paul Tol's."""

ACCEPTED = "#009E73"
"""Colour of tokens that were drafted and accepted."""
BONUS = "#D55E00"
"""Colour of tokens that the target supplied."""
REJECTED = "#8A8A8A"
"""Colour of tokens that were drafted and rejected."""
ROOT = "#0072B2"
"""Colour of the token with which a round begins."""
INK, PAPER = "#1A1A1A", "#FFFFFF"

NEAR = ("#332288", "#882255", "#44AA99", "#999933")
"""Colours that some cannot tell from one of the others."""
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#8C6D00", "#000000", *NEAR)
"""Colours of what is compared, in the order in which they are given out."""
GREY = "#888888"
"""Colour of plain decoding."""
MARKERS = "osD^vP*X<>hp"
"""Markers that tell apart what has one colour."""
LINES = ("-", "--", ":", "-.")
"""Dashes that tell apart what has one colour."""
PHASE_COLOURS = {
    "vision": "#56B4E9",
    "prefill": "#D55E00",
    "prune": "#44AA99",
    "draft_prefill": "#882255",
    "draft": "#E69F00",
    "score": "#0072B2",
    "verify": "#CC79A7",
    "commit": "#009E73",
    "observe": "#F0E442",
    "other": "#999999",
}
"""Colours of the phases of `mmspec.decoding.clock`."""
