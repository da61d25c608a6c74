"""The procedural clips: deterministic, disjoint, and what is said of them is what their pixels show."""

import itertools
import time

import numpy
import pytest

from mmspec import zoo
from mmspec.zoo.drawing import COLOURS as INKS
from mmspec.zoo.scenes import PLACES
from mmspec.zoo.video import frames
from mmspec.zoo.video.clips import COLOURS, HELD_OUT, SHAPES, TURNING, steps_of
from mmspec.zoo.video.data import CLIP_TASKS, LENGTHS, clip_conversation, clip_of, watch
from mmspec.zoo.video.frames import CELL, JUMP, floor_of, number_mask, patch_words, render
from mmspec.zoo.video.metrics import common_subsequence, measure_clip, parse_events

NAMES = list(itertools.product(COLOURS, SHAPES))


class Eye:
    """Reads frames by comparing them with single shapes on an empty floor; it knows nothing of clips and events."""

    def __init__(self, edge):
        self.edge = edge

    def block(self, frame, cell):
        top, left = (1 + cell[0]) * CELL, cell[1] * CELL
        return frame[top : top + CELL, left : left + CELL]

    def painted(self, figures, turned=()):
        """`figures` are (name, cell, shift)."""
        frame = floor_of(self.edge).copy()
        for name, cell, shift in figures:
            frames.paint(frame, name, cell, shift, name in turned)
        return frame.round().astype(numpy.uint8)

    def number(self, frame):
        shown = frame[:CELL, :CELL]
        empty = numpy.float32(frames.STRIP)
        for number in range(100):
            if (shown == (empty + number_mask(number)[..., None] * (255 - empty)).round()).all():
                return number
        raise AssertionError("no number is shown")

    def figures(self, frame):
        """Figures in their places, as name to (cell, turned); None if something is out of place."""
        empty, found = self.painted(()), {}
        for cell in itertools.product(range(3 * self.edge), repeat=2):
            block = self.block(frame, cell)
            if (block == self.block(empty, cell)).all():
                continue
            likely = [n for n in NAMES if (numpy.abs(block - numpy.float32(INKS[n[0]])).sum(-1) < 8).any()]
            seen = [
                (name, turned)
                for name in likely
                for turned in ((False, True) if name[1] in TURNING else (False,))
                if (block == self.block(self.painted([(name, cell, (0, 0))], [name] if turned else ()), cell)).all()
            ]
            if not seen:
                return None
            found[seen[0][0]] = (cell, seen[0][1])
        return found

    def place(self, cell):
        return PLACES[3 * (cell[0] // self.edge) + cell[1] // self.edge]

    def event(self, first, second):
        """What happened between two frames, in the words of the account."""
        before, after = self.figures(first), self.figures(second)
        if after is None:
            return self.collision({name: cell for name, (cell, _) in before.items()}, second)
        for name, (cell, turned) in after.items():
            called = f"{name[0]} {name[1]}"
            if name not in before:
                return f"{'an' if name[0] == 'orange' else 'a'} {called} appears in the {self.place(cell)}"
            if before[name][0] != cell:
                return f"the {called} moves to the {self.place(cell)}"
            if turned:
                return f"the {called} turns"
        gone = before.keys() - after.keys()
        return "nothing changes" if not gone else "the {} {} vanishes".format(*gone.pop())

    def collision(self, figures, second):
        for (name, other), (down, right) in itertools.product(
            itertools.permutations(figures, 2), ((-1, 0), (1, 0), (0, -1), (0, 1))
        ):
            beside = (figures[other][0] - down, figures[other][1] - right)
            shift = (JUMP * down, JUMP * right)
            jumped = {name: (beside, shift), other: (figures[other], shift)}
            painted = self.painted([(n, *jumped.get(n, (cell, (0, 0)))) for n, cell in figures.items()])
            if (painted[CELL:] == second[CELL:]).all():
                return "the {} {} hits the {} {}".format(*name, *other)
        raise AssertionError("something is out of place, and nothing was hit")


@pytest.mark.parametrize("length", LENGTHS)
def test_the_account_tells_what_the_frames_show(length):
    for index in range(8 if length == "short" else 2):
        clip = clip_of("accounts", "test", index, length)
        film, _, account = watch("accounts", "test", index, length)
        eye = Eye(clip.edge)
        steps = range(0, len(film) // 2, LENGTHS[length].repeat)
        pairs = [(film[2 * step], film[2 * step + 1]) for step in steps]
        seen = [f"{eye.number(first)}: {eye.event(first, second)}." for first, second in pairs]
        assert all(eye.number(first) == eye.number(second) for first, second in pairs)
        opening, *lines, ending = account.splitlines()
        assert lines == seen
        shown = eye.figures(film[0])
        assert opening.count(" in the ") == len(shown)
        for name, (cell, _) in shown.items():
            assert f"{name[0]} {name[1]} in the {eye.place(cell)}" in opening
        kept = steps_of(clip)[-1].after
        assert all(f"{name[0]} {name[1]} in the {eye.place(cell)}" in ending for name, cell in kept.items())


def test_every_kind_of_event_and_question_occurs():
    told = "\n".join(watch("accounts", "test", index, "short").reference for index in range(25))
    assert all(word in told for word in ("nothing changes", "appears", "vanishes", "moves", "turns", "hits"))
    prompts = {watch("moments", "test", index, "short").prompt for index in range(80)}
    for words in ("Where was", "What was in the", "above", "below", "What happened", "When does", "How many"):
        assert any(words in prompt for prompt in prompts), words


@pytest.mark.parametrize(("task", "split"), list(itertools.product(CLIP_TASKS, zoo.SPLITS)))
def test_clips_are_deterministic_and_differ(task, split):
    first, again, other = (watch(task, split, index, "short") for index in (3, 3, 4))
    assert first.frames.tobytes() == again.frames.tobytes() and first[1:] == again[1:]
    assert first.frames.tobytes() != other.frames.tobytes()
    assert first.frames.dtype == numpy.uint8 and first.frames.ndim == 4


def test_splits_share_no_clip():
    contents = {
        split: {repr(clip_of("accounts", split, index, "short")) for index in range(60)} for split in zoo.SPLITS
    }
    for left, right in itertools.combinations(zoo.SPLITS, 2):
        assert not contents[left] & contents[right]


def names_in(clip):
    return {name for name, _ in clip.opening} | {event.name for event in clip.events}


def test_held_out_pairs_appear_only_in_the_test_split():
    assert HELD_OUT
    for split in ("train", "validation"):
        for index in range(30):
            assert not names_in(clip_of("accounts", split, index, "short")) & HELD_OUT
    assert not names_in(clip_conversation(7, 8, 1).clip) & HELD_OUT
    assert set().union(*(names_in(clip_of("accounts", "test", index, "short")) for index in range(60))) >= HELD_OUT


def test_lengths_are_what_they_say():
    for index in range(30):
        long, short = (clip_of("moments", "train", index, length) for length in ("long", "short"))
        assert 500 <= long.visual_tokens <= 2500 and 8 <= 2 * len(long.events) <= 32
        assert 48 <= short.visual_tokens <= 96
        film = render(short)
        assert film.shape == (2 * len(short.events), 64, 48, 3)
        assert film.size // (2 * CELL * CELL * 3) == short.visual_tokens


def test_a_short_clip_is_drawn_in_some_milliseconds():
    watch("accounts", "train", 0, "short")
    started = time.process_time()
    for index in range(20):
        watch("accounts", "train", index, "short")
    assert (time.process_time() - started) / 20 < 0.05


def test_words_of_visual_tokens_say_what_stands_there():
    clip = clip_of("accounts", "train", 5, "short")
    words, steps, size = patch_words(clip), steps_of(clip), 12
    for place, step in enumerate(steps):
        assert words[place * size] == [str(step.number)]
        shown = {tuple(w.strip() for w in words[token][:2]) for token in words if 0 < token - place * size < size}
        assert shown == (step.before if step.event.kind == "vanishes" else step.after).keys()
        own = [w for token, w in words.items() if place * size < token < (place + 1) * size]
        acting = [tuple(word.strip() for word in w[:2]) for w in own if w[-1] == f" {step.event.kind}"]
        assert acting == ([] if step.event.name is None else [step.event.name])


def test_metrics():
    account = watch("accounts", "test", 0, "short").reference
    events = parse_events(account)
    perfect = measure_clip("accounts", account, account)
    assert perfect == {"events_in_order": (len(events), len(events)), "endings": (2, 2)}
    wrong = account.replace(events[0], events[0].replace("the ", "the other "))
    assert measure_clip("accounts", account, wrong)["events_in_order"] == (len(events) - 1, len(events))
    twice = "\n".join([*account.splitlines(), *events])
    assert measure_clip("accounts", account, twice)["events_in_order"] == (len(events), 2 * len(events))
    backwards = "\n".join(account.splitlines()[::-1])
    assert measure_clip("accounts", account, backwards)["events_in_order"] == (1, len(events))
    assert common_subsequence(list("abcde"), list("xbydz")) == 2
    question = watch("moments", "test", 0, "short").reference
    assert measure_clip("moments", question, question) == {"answer_accuracy": (1, 1)}
    assert measure_clip("moments", question, "So the answer is a mountain.") == {"answer_accuracy": (0, 1)}
    with pytest.raises(ValueError, match="films.*accounts, moments"):
        measure_clip("films", "", "")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("films", "test", 0), ["films", "accounts, moments"]),
        (("moments", "dev", 0), ["dev", "train, validation, test"]),
        (("moments", "test", 0, "endless"), ["endless", "short, long"]),
        (("moments", "test", -1), ["-1"]),
    ],
)
def test_wrong_arguments_are_named(arguments, words):
    with pytest.raises(ValueError) as error:
        watch(*arguments)
    assert all(word in str(error.value) for word in words)
