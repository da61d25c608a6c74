"""A round's tree as an SVG picture: the accepted path, the rejected branches, and both models' probabilities."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from unicodedata import east_asian_width

from .colours import ACCEPTED, BONUS, INK, PAPER, REJECTED, ROOT
from .node import Node

HEIGHT, GAP, MARGIN = 26, 34, 12
"""Height of a node, gap between the right edge of a level and the next level, and margin around the picture, in
pixels."""
LETTER = 7.3
"""Width of a letter in pixels; the font is monospaced."""
LONGEST = 16
"""Number of letters of a token that are shown."""


def draw(nodes: Sequence[Node], title: str) -> str:
    """Return the picture as SVG text. Levels go from left to right; the tooltip of a node gives both models'
    probabilities.

    Args:
        nodes: nodes with the root first and parents before children.
        title: description of the picture for screen readers.
    """
    rows = _rows(nodes)
    labels = [_label(node.text) for node in nodes]
    widths = [LETTER * _letters(label) + 16 for label in labels]
    levels = max(node.depth for node in nodes) + 1
    broad = [
        max((w for w, n in zip(widths, nodes, strict=True) if n.depth == level), default=0) for level in range(levels)
    ]
    left = [MARGIN + sum(broad[:level]) + level * GAP for level in range(levels)]
    places = [(left[node.depth], MARGIN + rows[number] * (HEIGHT + 8)) for number, node in enumerate(nodes)]
    width, height = left[-1] + broad[-1] + MARGIN, MARGIN * 2 + (max(rows) + 1) * (HEIGHT + 8) - 8
    edges, boxes = [], []
    for number, node in enumerate(nodes):
        x, y = places[number]
        if node.parent >= 0:
            start, above = places[node.parent][0] + widths[node.parent], places[node.parent][1]
            edges.append(_edge(start, above + HEIGHT / 2, x, y + HEIGHT / 2, node))
        boxes.append(_box(x, y, widths[number], labels[number], node))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{height:.0f}" role="img" '
        f'viewBox="0 0 {width:.0f} {height:.0f}" aria-label="{title}" font-family="monospace" font-size="12">'
        f'<rect width="100%" height="100%" fill="{PAPER}"/>{"".join(edges)}{"".join(boxes)}</svg>'
    )


def _rows(nodes: Sequence[Node]) -> list[float]:
    """Return the line of every node: leaves stand below one another, and a parent beside its first child."""
    rows: list[float] = [0] * len(nodes)
    free = 0

    def place(number: int) -> None:
        nonlocal free
        children = [child for child, node in enumerate(nodes) if node.parent == number]
        # What was kept comes first, so that it runs along the top.
        children.sort(key=lambda child: (not nodes[child].accepted, child))
        for child in children:
            place(child)
        if children:
            rows[number] = rows[children[0]]
        else:
            rows[number] = free
            free += 1

    place(0)
    return rows


def _label(text: str) -> str:
    """Return the text of a token as it stands in its box: white space as signs, unprintable characters replaced, long
    text cut."""
    shown = text.replace(" ", "␣").replace("\n", "⏎").replace("\t", "⇥") or "∅"
    # Bytes that are no text are tokens too, and XML takes no control characters.
    shown = "".join(letter if letter.isprintable() else "�" for letter in shown)
    return shown if len(shown) <= LONGEST else f"{shown[: LONGEST - 1]}…"


def _letters(label: str) -> int:
    """Return the width of a label in letters: wide characters, such as Chinese ones, count twice."""
    return sum(2 if east_asian_width(letter) in "WF" else 1 for letter in label)


def _edge(x1: float, y1: float, x2: float, y2: float, node: Node) -> str:
    """Return the line from a parent to a node."""
    middle, colour = (x1 + x2) / 2, (BONUS if node.bonus else ACCEPTED) if node.accepted else REJECTED
    thick = 1 + 4 * (node.drafter if node.drafter is not None else 0.25)
    dashes = ' stroke-dasharray="4 3"' if node.bonus else ""
    return (
        f'<path d="M{x1:.1f} {y1:.1f} C{middle:.1f} {y1:.1f} {middle:.1f} {y2:.1f} {x2:.1f} {y2:.1f}" fill="none" '
        f'stroke="{colour}" stroke-width="{thick:.1f}"{dashes}/>'
    )


def _box(x: float, y: float, width: float, label: str, node: Node) -> str:
    """Return the box of a node with its label and its tooltip."""
    if node.parent < 0:
        colour, said = ROOT, "root: the last token of the round before"
    elif node.bonus:
        colour, said = BONUS, "bonus: the target's own token"
    else:
        colour, said = (ACCEPTED, "drafted and accepted") if node.accepted else (REJECTED, "drafted and rejected")
    said += "".join(
        f"; {who} {p:.3f}" for who, p in (("drafter", node.drafter), ("target", node.target)) if p is not None
    )
    solid = node.accepted or node.parent < 0
    return (
        f'<g><title>{escape(said)}</title><rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{HEIGHT}" rx="6" '
        f'fill="{colour if solid else PAPER}" fill-opacity="{0.25 if solid else 1}" stroke="{colour}"/>'
        f'<text x="{x + width / 2:.1f}" y="{y + HEIGHT / 2 + 4:.1f}" text-anchor="middle" '
        f'fill="{INK if solid else REJECTED}">{escape(label)}</text></g>'
    )
