"""One question: its views, the two clocks, what is refused, and that the work ends when nobody looks."""

from __future__ import annotations

from itertools import pairwise, zip_longest

import meeting
import pytest

import mmspec
from mmspec.demo import session as module
from mmspec.demo.choices import Choices
from mmspec.demo.line import WaitingLine
from mmspec.demo.session import Desk, Lane

pytestmark = pytest.mark.product


@pytest.fixture
def every_round(monkeypatch):
    """A view after every round."""
    monkeypatch.setattr(module, "FRAME", -1.0)


def text_of(side) -> str:
    return "".join(text for text, *_ in side.spans)


def ids_of(side) -> list[int]:
    return side.out.token_ids[0]


# What is shown


def test_views_grow_to_the_answer_that_generate_gives(ask, desk, every_round):
    views = list(ask(max_new_tokens=24).views())
    states = [view.state for view in views if view.state != "loading"]
    assert states == ["answering"] * (len(states) - 1) + ["done"]
    last = views[-1]
    for name in ("plain", "speculative"):
        texts = [text_of(getattr(view, name)) for view in views]
        assert all(later.startswith(earlier) for earlier, later in pairwise(texts))
    method = desk.models.method({name: group.start for name, group in desk.choices.groups.items()})
    image = mmspec.zoo.demo_image()
    out = mmspec.generate(method.target, prompt="Describe the picture.", images=[image], max_new_tokens=24)
    assert ids_of(last.plain) == ids_of(last.speculative) == out.token_ids[0]
    assert text_of(last.plain) == text_of(last.speculative) == out.text[0]
    assert last.same is True and last.exact is True and not last.message
    assert last.plain.mean_acceptance_length == 1 < last.speculative.mean_acceptance_length
    assert len(last.speculative.out.trace) == last.speculative.rounds == len(last.speculative.out.stats.rounds)


def test_figures_on_the_way_are_those_of_the_stats(ask, every_round):
    views = list(ask(max_new_tokens=24).views())
    last = views[-1].speculative
    before = [view.speculative for view in views if view.speculative.out is None][-1]  # plain decoding is not done yet
    assert (before.tokens, before.rounds) == (last.tokens, last.rounds)
    assert before.mean_acceptance_length == pytest.approx(last.out.stats.mean_acceptance_length)
    assert before.tokens_per_second == pytest.approx(last.out.stats.tokens_per_second, rel=0.1)
    assert before.seconds == pytest.approx(last.out.stats.total_seconds, rel=0.1)


def test_views_are_of_their_moment(ask, every_round):
    views = list(ask().views())
    assert len({view.plain.tokens for view in views}) > 5


def test_every_origin_is_kept(ask):
    last = list(ask(max_new_tokens=24).views())[-1].speculative
    assert {drafted for _, drafted, _ in last.spans} == {True, False}
    assert sorted({number for *_, number in last.spans}) == list(range(last.rounds + 1))


# The clocks


class Clock:
    """Time that passes only while a lane decodes."""

    now = 0.0

    def perf_counter(self) -> float:
        return self.now


def pieces(clock: Clock, seconds: float, count: int):
    for number in range(count):
        clock.now += seconds
        yield type("Piece", (), {"spans": [("x", False)], "token_ids": [1], "round": number})()
    return "output"


def test_the_side_that_had_less_time_goes_next(ask, desk, monkeypatch):
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    slow, fast = Lane(pieces(clock, 1.0, 4)), Lane(pieces(clock, 0.25, 16))
    lanes, worst = [slow, fast], 0.0
    while running := [lane for lane in lanes if lane.out is None]:
        min(running, key=lambda lane: lane.seconds).step()
        clock.now += 5.0  # what others take is on nobody's clock
        if len(running) == 2:
            worst = max(worst, abs(slow.seconds - fast.seconds))
    assert worst <= 1.0  # one round of the slower side
    assert slow.seconds == fast.seconds == 4.0
    assert (slow.prompt_seconds, fast.prompt_seconds) == (1.0, 0.25)
    assert slow.side.rounds == 3 and fast.side.tokens == 16


def test_both_sides_have_had_the_same_time(ask, every_round):
    for view in ask(max_new_tokens=24).views():
        sides = (view.plain, view.speculative)
        if view.state == "answering" and all(side.rounds for side in sides) and all(side.out is None for side in sides):
            steps = [side.seconds / (side.rounds + 1) for side in sides]
            slowest = max(*(side.prompt_seconds for side in sides), 10 * max(steps))
            assert abs(sides[0].seconds - sides[1].seconds) < slowest


# Choices


@pytest.mark.parametrize(
    "values",
    [
        {"tree": "chain"},
        {"drafter": "ngram"},
        {"drafter": "none"},
        {"drafter": "draft_model", "tree": "sage", "verifier": "rejection", "temperature": 1.0},
        {"image": None, "prompt": "What is red?"},
    ],
)
def test_choices_are_answered(ask, values):
    last = list(ask(**values).views())[-1]
    assert last.state == "done" and last.plain.tokens == last.speculative.tokens > 0
    assert last.exact == ("temperature" not in values)


def test_a_verifier_that_is_not_lossless_is_no_exact_one(ask):
    last = list(ask(verifier="synthetic").views())[-1]
    assert last.state == "done" and last.exact is False and last.same is not None


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"tree": "sage", "verifier": "rejection"}, "verifier=rejection samples: give temperature= above 0"),
        ({"drafter": "none", "tree": "chain"}, "tree= shapes what a drafter proposes, but drafter is None"),
        ({"drafter": "none", "compressor": "pool"}, "compressor= changes what a drafter sees, but drafter=none"),
        ({"drafter": "vispec", "compressor": "pool"}, "was trained with Resampler"),
        ({"drafter": "pretrained"}, "drafter 'pretrained' is not offered here"),
        ({"temperature": -1}, "temperature"),
        ({"temperature": None}, "temperature=None is no number"),
        ({"max_new_tokens": 0}, "max_new_tokens=0 must be a positive integer"),
        ({"max_new_tokens": 513}, "max_new_tokens=513 is more than this page answers: ask for 512 at most"),
        ({"max_new_tokens": True}, "max_new_tokens=True is no number"),
        ({"seed": 1.5}, "seed=1.5 must be an integer"),
        ({"seed": 2**63}, "seed=9223372036854775808 is out of range"),
        ({"seed": 10**400}, "is no number"),
        ({"temperature": float("inf")}, "temperature=inf is no number"),
        ({"max_new_tokens": float("nan")}, "max_new_tokens=nan is no number"),
        ({"max_new_tokens": [8]}, "max_new_tokens=[8] is no number"),
        ({"prompt": "  "}, "is empty"),
        ({"prompt": ["hi"] * 100_000}, "the question must be text, not ['hi', 'hi',"),
        ({"prompt": {"role": "user"}}, "the question must be text, not {'role': 'user'}"),
        ({"prompt": None}, "the question must be text, not None"),
        ({"prompt": 3}, "the question must be text, not 3"),
        ({"prompt": "word " * 801}, "the question has 4005 characters, but this page takes 4000 at most"),
        ({"image_name": ["x"]}, "the image name must be text, not ['x']"),
        ({"drafter": ["eagle3"]}, "drafter ['eagle3'] is not offered here"),
        ({"drafter": {}}, "drafter {} is not offered here"),
        ({"drafter": "x" * 1_000_000}, "drafter 'xxx"),
        ({"image": __file__}, "is not in a picture format"),
    ],
)
def test_what_does_not_go_is_said_in_mmspecs_words(ask, desk, values, words, capsys):
    before = desk.steps
    views = list(ask(**values).views())
    assert views[-1].state == "refused" and words in views[-1].message
    assert len(views[-1].message) < 400 and "\n" not in views[-1].message
    assert desk.steps == before and len(desk.line) == 0
    assert "Traceback" not in capsys.readouterr().err


def test_a_placeholder_in_a_question_is_the_place_of_the_picture(ask, capsys):
    last = list(ask(prompt="What is <image> about?", max_new_tokens=4).views())[-1]
    assert last.state == "done" and last.same is True
    last = list(ask(prompt="What is <image> about?", image=None).views())[-1]
    assert last.state == "refused" and "prompt 0 has 1 <image> but 0 pictures" in last.message
    assert "Traceback" not in capsys.readouterr().err


def test_a_picture_is_a_path(ask, tmp_path):
    for image in ("\0", "x" * 5000, str(tmp_path), "/dev/zero"):
        (view,) = ask(image=image, image_name="n" * 5000).views()
        assert view.state == "refused" and "is no longer there: drop it again" in view.message
        assert len(view.message) < 200


def test_what_is_refused_does_not_wait(ask, desk):
    at = Desk(desk.choices, line=WaitingLine(waiting=0))
    at.models = desk.models
    with at.line.place():
        (view,) = ask(at, prompt=["hi"]).views()
    assert view.state == "refused" and "must be text" in view.message


def test_what_nobody_foresaw_is_a_view_and_a_traceback(ask, desk, monkeypatch, capsys):
    def broken(self, chosen):
        raise RuntimeError("the accelerator\nis gone")

    monkeypatch.setattr(type(desk.models), "method", broken)
    last = list(ask().views())[-1]
    assert (last.state, last.message) == ("failed", "RuntimeError: the accelerator is gone")
    assert "Traceback" in capsys.readouterr().err and len(desk.line) == 0


def test_a_difference_that_should_not_be_is_described(ask, desk):
    session = ask(max_new_tokens=8)
    last = list(session.views())[-1]
    method = desk.models.method(session.question.chosen)
    request = mmspec.inputs.prepare(method.target, session.question.prompt, [mmspec.zoo.demo_image()])
    other = last.speculative.out
    other.token_ids[0][3] += 1
    words = module._difference(method, request, last.plain.out, other)
    assert words.startswith("not by rounding: at new token 3 it wrote")


# The end


def test_closing_ends_the_work(ask, desk, every_round):
    views = ask(max_new_tokens=240).views()
    for _ in range(6):
        next(views)
    assert len(desk.line) == 1
    views.close()
    steps = desk.steps
    assert len(desk.line) == 0
    assert list(views) == [] and desk.steps == steps


def test_closing_closes_both_streams(ask, monkeypatch, every_round):
    closed = []
    real = Lane.close
    monkeypatch.setattr(Lane, "close", lambda lane: closed.append(lane) or real(lane))
    views = ask(max_new_tokens=240).views()
    for _ in range(4):
        next(views)
    views.close()
    assert len(closed) == 2
    assert all(list(lane._pieces) == [] for lane in closed)


def test_stopping_keeps_what_is_there_with_its_trees(ask, desk, every_round):
    session = ask(max_new_tokens=240)
    steps, shown = desk.steps, []
    for view in session.views():
        shown.append(view)
        if view.speculative.rounds == 3:
            session.stop()
    last = shown[-1]
    assert last.state == "stopped" and last.same is None
    assert last.speculative.out.finish_reason == last.plain.out.finish_reason == ["stopping_criteria"]
    assert len(last.speculative.out.trace) == last.speculative.rounds <= 5
    assert desk.steps - steps < 40
    assert text_of(last.plain) == last.plain.out.text[0]


def test_stopping_before_it_begins(ask, desk):
    session = ask(max_new_tokens=240)
    session.stop()
    last = list(session.views())[-1]
    assert last.state == "stopped" and last.plain.tokens == last.speculative.tokens == 1


# Several at once


def test_two_questions_in_turns_do_not_mix(ask, desk, every_round):
    at = Desk(desk.choices, line=WaitingLine(at_once=2))
    at.models = desk.models
    alone = [list(ask(prompt=prompt).views())[-1] for prompt in ("Describe the picture.", "What is red?")]
    a, b = (ask(at, prompt=prompt).views() for prompt in ("Describe the picture.", "What is red?"))
    lasts = {}
    for one, other in zip_longest(a, b):
        lasts |= {name: view for name, view in (("a", one), ("b", other)) if view is not None}
    for view, other in zip(lasts.values(), alone, strict=True):
        assert ids_of(view.speculative) == ids_of(other.speculative) and view.shared and not other.shared
    assert ids_of(lasts["a"].plain) != ids_of(lasts["b"].plain)


def test_questions_that_are_answered_at_once_do_not_mix(ask, desk):
    """In threads, as the page has it, with passes that overlap, and options that nobody chose before."""
    at = Desk(Choices(), line=WaitingLine(at_once=2))
    asked = [{"prompt": "What is red?", "tree": "chain"}, {"prompt": "Describe the picture.", "tree": "static"}]
    alone = [list(ask(**one).views())[-1] for one in asked]
    list(ask(at).views())  # what loads the models
    chosen = {name: group.start for name, group in at.choices.groups.items()}
    target = at.models.method(chosen).target
    lasts = meeting.together(target, [lambda one=one: list(ask(at, **one).views())[-1] for one in asked])
    for view, other in zip(lasts, alone, strict=True):
        assert (view.state, view.message, view.same) == ("done", "", True)
        for side in ("plain", "speculative"):
            mine, theirs = getattr(view, side), getattr(other, side)
            assert ids_of(mine) == ids_of(theirs)
            assert [r.accepted for r in mine.out.stats.rounds] == [r.accepted for r in theirs.out.stats.rounds]


def test_who_waits_sees_the_place_and_may_leave(ask, desk, monkeypatch):
    monkeypatch.setattr(module, "PATIENCE", 0.01)
    first, second, third = (ask(max_new_tokens=240) for _ in range(3))
    one, two, three = (session.views() for session in (first, second, third))
    assert next(one).state == "answering"
    assert [(view.state, view.before) for view in (next(two), next(three))] == [("waiting", 1), ("waiting", 2)]
    two.close()  # a tab that is closed
    assert next(three).before == 1
    third.stop()
    assert [view.state for view in three] == ["stopped"]
    fourth = ask().views()
    assert next(fourth).before == 1
    one.close()
    assert [view.state for view in fourth][-1] == "done"
    assert len(desk.line) == 0


def test_a_full_line_is_a_view(ask, desk):
    at = Desk(desk.choices, line=WaitingLine(waiting=0))
    at.models = desk.models
    one, two = ask(at).views(), ask(at).views()
    next(one)
    assert [(view.state, "waiting already" in view.message) for view in two] == [("refused", True)]
    one.close()
