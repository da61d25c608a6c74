"""Views and trees as HTML. All text from a user or a model is escaped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

from ..decoding.stats import speed_in_words, tokens_by_origin
from ..metrics import SHOWN, SPEEDUPS
from ..visualization import html as answers_html
from ..visualization.colours import ACCEPTED, BONUS, REJECTED, ROOT

if TYPE_CHECKING:
    from ..visualization.trace import RoundTrace
    from .choices import ChoiceGroup
    from .session import SideState, View

CLOCK = (
    "Both sides decode on the same machine, so they take turns: the side that had less time so far goes next. Each is "
    "timed by its own clock, which stands while the other works. The speculative side's time includes keeping its "
    "trees."
)
"""Sentence on the page that says how the two sides are timed."""

FIGURES = {
    SHOWN["mean_acceptance_length"]: "of the target: of each pass that verifies a draft, the bonus included",
    SHOWN["num_spec_steps"]: "of the target, one a round; the prompt's pass is none of them",
    SHOWN["new_tokens"]: "new ones, the one by the prompt's pass included",
    "seconds": "by its own clock, the prompt's time included",
}
"""Names of the figures that each side shows, with their meaning: a short form of `docs/metrics.md`. The number of
tokens is 1 + tokens per pass x passes."""

BUSY = "Other questions were answered at the same time, so these are the times of a shared machine."


def status(view: View | None) -> str:
    """Return the line above the answers, which says what is going on or what is wrong."""
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
    """Return the comparison of both sides in one or two sentences."""
    faster = [
        f"{SHOWN[name]}: {ours / theirs:.2f}"
        for speed, name in SPEEDUPS.items()
        if (ours := getattr(view.speculative, speed)) and (theirs := getattr(view.plain, speed))
    ]
    speedups = f"{'; '.join(faster)}. ".capitalize() if faster else ""
    out = view.speculative.out
    assert out is not None  # both have answered
    if view.same:
        text = "Both wrote the same text, token for token."
    elif not out.stats.lossless:
        text = "This verifier does not preserve the target's text."
    elif not view.exact:
        text = "The texts are sampled, so they may differ."
    else:
        text = f"The texts differ, {view.message}."
    return speedups + text


def chosen(groups: Mapping[str, ChoiceGroup], options: Sequence[str]) -> str:
    """Return the description of the option that is chosen in each group."""
    rows = [
        f"<div><dt>{escape(name)}</dt><dd>{escape(group.options.get(option, ''))}</dd></div>"
        for (name, group), option in zip(groups.items(), options, strict=True)
    ]
    return f"<dl>{''.join(rows)}</dl>"


def answers(view: View | None) -> str:
    """Return both answers, side by side where there is room."""
    plain, speculative = (None, None) if view is None else (view.plain, view.speculative)
    ended = view is None or view.ended
    kinds = {"drafted and accepted": ACCEPTED, "bonus: the target's own": BONUS}
    return (
        '<div class="mm-answers">'
        + _card("Plain decoding", "plain", plain, "" if plain is None else _bare(plain), ended)
        + _card("Speculative decoding", "speculative", speculative, _coloured(speculative), ended, _legend(kinds))
        + f'</div><div class="mm-note">{escape(CLOCK)}</div>'
    )


def _card(name: str, kind: str, side: SideState | None, text: str, ended: bool, legend: str = "") -> str:
    """Return one side with its figures and its text."""
    values, speed, origin = ["–"] * len(FIGURES), "<b>–</b> tokens/s", ""
    if side is not None and side.tokens:
        values = [f"{side.mean_acceptance_length:.2f}", str(side.rounds), str(side.tokens), f"{side.seconds:.2f}"]
        speed = _speed(side.tokens_per_second)
        origin = f'<div class="mm-note">{escape(tokens_by_origin(side.tokens, side.rounds))}</div>'
    rows = "".join(
        f'<div title="{tip}"><dt>{label}</dt><dd>{value}</dd></div>'
        for (label, tip), value in zip(FIGURES.items(), values, strict=True)
    )
    cursor = "" if ended or side is None or side.out is not None else '<span class="mm-cursor"></span>'
    return (
        f'<section class="mm-card mm-{kind}"><header><h3>{name}</h3>'
        f'<div class="mm-speed" title="decoding: without the prompt">{speed}</div></header><dl>{rows}</dl>{origin}'
        f'<div class="mm-text">{text}{cursor}</div>{legend}</section>'
    )


def _speed(tokens_per_second: float) -> str:
    """Return a speed with its number in bold; a speed that could not be measured has no number."""
    said = speed_in_words(tokens_per_second)
    number, _, unit = said.partition(" ")
    return f"<b>{number}</b> {unit}" if tokens_per_second else escape(said)


def _bare(side: SideState) -> str:
    """Return the text without marks."""
    return escape("".join(text for text, *_ in side.spans))


def _coloured(side: SideState | None) -> str:
    """Return the text coloured by origin; once the answer is complete, token by token with the rounds in tooltips."""
    if side is None:
        return ""
    if side.out is not None:
        return answers_html.tokens(side.out, 0)
    marked = (answers_html.mark(text, drafted, f"round {number}") for text, drafted, number in side.spans if text)
    return "".join(marked)


def _legend(kinds: dict[str, str]) -> str:
    """Return names with their colours."""
    marks = "".join(
        f'<span><i style="{answers_html.style_of(colour)}">&nbsp;</i> {escape(name)}</span>'
        for name, colour in kinds.items()
    )
    return f'<div class="mm-legend">{marks}</div>'


def tree(rounds: Sequence[RoundTrace], number: Any) -> str:
    """Return the tree of one round.

    Args:
        rounds: rounds of the answer; empty where there is no answer yet.
        number: number of the round, from 1. A number out of range gives the nearest round, anything else the first.
    """
    if not rounds:
        return '<div class="mm-note">The trees of the speculative side are here once it has answered.</div>'
    if not isinstance(number, int | float) or number != number:
        number = 1
    one = rounds[int(min(max(number, 1), len(rounds))) - 1]
    said = f"Round {one.number} of {len(rounds)}: {one.accepted} of {one.drafted} drafted tokens kept"
    if one.settled:
        said += ", without asking the target."
    else:
        said += f", and the bonus token. The target's entropy before it: {one.entropy:.2f} nats."
    kinds = {"last token of the round before": ROOT, "accepted": ACCEPTED, "bonus": BONUS, "rejected": REJECTED}
    return (
        f'<div class="mm-said">{escape(said)}</div><div class="mm-tree">{one.svg()}</div>{_legend(kinds)}'
        '<div class="mm-note">A line is as thick as the drafter was sure. Point at a token for both models\' '
        "probabilities.</div>"
    )
