"""Colours of tokens by their origin: the palette of Okabe and Ito, which stays distinct for every kind of colour
vision."""

ACCEPTED = "#009E73"
"""Colour of tokens that were drafted and accepted."""
BONUS = "#D55E00"
"""Colour of tokens that the target supplied."""
REJECTED = "#8A8A8A"
"""Colour of tokens that were drafted and rejected."""
ROOT = "#0072B2"
"""Colour of the token with which a round begins."""
INK, PAPER = "#1A1A1A", "#FFFFFF"
