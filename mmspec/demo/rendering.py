"""Views and trees as HTML. Everything that a user or a model wrote is escaped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING

from ..seeing import html as answers_html
from ..seeing.colours import ACCEPTED, BONUS, REJECTED, ROOT

if TYPE_CHECKING:
    from ..seeing.trace import RoundTrace
    from .choices import Group
    from .session import Side, View

CLOCK = (
    "Both sides decode on the same machine, so they take turns: the side that had less time so far goes next. Each is "
    "timed by its own clock, which stands while the other works. The speculative side's time includes keeping its "
    "trees."
)
"""How the two are timed, as the page says it."""

FIGURES = {
    "tokens per pass": "mean_acceptance_length: tokens per pass of the target after the prompt's, the bonus included",
    "passes": "of the target, the prompt's among them",
    "tokens": "new ones",
    "seconds": "by its own clock, the prompt's time included",
}
"""What a side shows, with what it means."""

BUSY = "Other questions were answered at the same time, so these are the times of a shared machine."


def status(view: View | None) -> str:
    """The line above the answers: what is going on, or what is wrong."""
    if view is None:
        return _status("idle", "Ask a question to see plain and speculative decoding side by side.")
    said = {
        "waiting": f"{_questions(view.before)} before yours. The page goes on by itself.",
        "loading": "Loading the models. That happens once.",
        "answering": "Answering …",
        "stopped": "Stopped. What was written by then is below." if view.plain.tokens else "Stopped.",
        "done": _verdict(view) if view.state == "done" else "",
        "refused": view.message,
        "failed": f"Something went wrong that mmspec did not foresee; the terminal has the details. {view.message}",
    }[view.state]
    shared = f" {BUSY}" if view.shared and view.state in ("answering", "done", "stopped") else ""
    return _status(view.state, said + shared)


def _status(state: str, said: str) -> str:
    role = "alert" if state in ("refused", "failed") else "status"
    return f'<div class="mm-status mm-{state}" role="{role}">{escape(said)}</div>'


def _questions(count: int) -> str:
    return "1 question is" if count == 1 else f"{count} questions are"


def _verdict(view: View) -> str:
    """What came out, in a sentence or two."""
    speed, plain = view.speculative.tokens_per_second, view.plain.tokens_per_second
    faster = f"{speed / plain:.2f} times as fast as plain decoding. " if speed and plain else ""
    if view.same:
        text = "Both wrote the same text, token for token."
    elif not view.speculative.out.stats.lossless:
        text = "This verifier does not preserve the target's text."
    elif not view.exact:
        text = "The texts are sampled, so they may differ."
    else:
        text = f"The texts differ, {view.message}."
    return faster + text


def chosen(groups: Mapping[str, Group], options: Sequence[str]) -> str:
    """What is chosen in each group, in words."""
    rows = [
        f"<div><dt>{escape(name)}</dt><dd>{escape(group.options.get(option, ''))}</dd></div>"
        for (name, group), option in zip(groups.items(), options, strict=True)
    ]
    return f"<dl>{''.join(rows)}</dl>"


def answers(view: View | None) -> str:
    """Both answers, side by side where there is room."""
    plain, speculative = (None, None) if view is None else (view.plain, view.speculative)
    ended = view is None or view.ended
    kinds = {"drafted and accepted": ACCEPTED, "bonus: the target's own": BONUS}
    return (
        '<div class="mm-answers">'
        + _card("Plain decoding", "plain", plain, "" if plain is None else _bare(plain), ended)
        + _card("Speculative decoding", "speculative", speculative, _coloured(speculative), ended, _legend(kinds))
        + f'</div><div class="mm-note">{escape(CLOCK)}</div>'
    )


def _card(name: str, kind: str, side: Side | None, text: str, ended: bool, legend: str = "") -> str:
    values, speed = ["–"] * len(FIGURES), "–"
    if side is not None and side.tokens:
        passes = side.rounds + 1  # the prompt's pass gives the first token
        values = [f"{side.mean_acceptance_length:.2f}", str(passes), str(side.tokens), f"{side.seconds:.2f}"]
        speed = f"{side.tokens_per_second:.1f}"
    rows = "".join(
        f'<div title="{tip}"><dt>{label}</dt><dd>{value}</dd></div>'
        for (label, tip), value in zip(FIGURES.items(), values, strict=True)
    )
    cursor = "" if ended or side is None or side.out is not None else '<span class="mm-cursor"></span>'
    return (
        f'<section class="mm-card mm-{kind}"><header><h3>{name}</h3>'
        f'<div class="mm-speed"><b>{speed}</b> tokens/s</div></header><dl>{rows}</dl>'
        f'<div class="mm-text">{text}{cursor}</div>{legend}</section>'
    )


def _bare(side: Side) -> str:
    return escape("".join(text for text, *_ in side.spans))


def _coloured(side: Side | None) -> str:
    """The text by origin; once it is whole, token by token, with what became of each round in the tooltips."""
    if side is None:
        return ""
    if side.out is not None:
        return answers_html.tokens(side.out, 0)
    marked = (answers_html.mark(text, drafted, f"round {number}") for text, drafted, number in side.spans if text)
    return "".join(marked)


def _legend(kinds: dict[str, str]) -> str:
    marks = "".join(
        f'<span><i style="{answers_html.style_of(colour)}">&nbsp;</i> {escape(name)}</span>'
        for name, colour in kinds.items()
    )
    return f'<div class="mm-legend">{marks}</div>'


def tree(rounds: Sequence[RoundTrace], number: int) -> str:
    """The tree of one round.

    Args:
        rounds: of the answer; none of them for an answer without a round.
        number: of the round, from 1; what lies outside is the nearest that exists.
    """
    if not rounds:
        return '<div class="mm-note">The trees of the speculative side are here once it has answered.</div>'
    one = rounds[min(max(number, 1), len(rounds)) - 1]
    said = (
        f"Round {one.number} of {len(rounds)}: {one.accepted} of {one.drafted} drafted tokens kept, and the bonus "
        f"token. The target's entropy before it: {one.entropy:.2f} nats."
    )
    kinds = {"last token of the round before": ROOT, "accepted": ACCEPTED, "bonus": BONUS, "rejected": REJECTED}
    return (
        f'<div class="mm-said">{escape(said)}</div><div class="mm-tree">{one.svg()}</div>{_legend(kinds)}'
        '<div class="mm-note">A line is as thick as the drafter was sure. Point at a token for both models\' '
        "probabilities.</div>"
    )
