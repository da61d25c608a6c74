"""Rounds of a drafter along texts that were written beforehand, whatever it or its target thinks of them."""

from __future__ import annotations

import models
import torch
from heads import TOLERANCE, error, guesses_of, inputs_of, lesson_of

from mmspec.drafters.reading import TargetView
from mmspec.inputs import append, prepare
from mmspec.outcome import Verdict
from mmspec.trees import Chain, TreeBuilder


class Told(TreeBuilder):
    """A tree of full width whose one path holds tokens that it is told, as if the drafter had guessed them.

    Args:
        width: children of every node.
        depth: levels.
    """

    def __init__(self, width: int, depth: int):
        self.width, self.depth = width, depth

    def build(self, growth):
        self.logits, self.path, node = [], [0], growth.root
        for level in range(self.depth):
            children = growth.expand(node, self.width)
            self.logits.append(growth.logits)
            # The right child is the last one on one level, the first one on the next.
            place = (self.path[-1] - int(node[0, 0])) * self.width + (self.width - 1) * (level % 2 == 0)
            self.path.append(int(children[0, place]))
            growth.tokens[:, self.path[-1]] = self.told[:, level]
            node = children
        return growth.keep_all()


class Script:
    """A request whose rows write the answers of a lesson, whatever the target thinks of them.

    Args:
        drafter: drafts for it.
        inputs: of the prompts.
        answers: token ids per row.
        tree: see `Told`.
    """

    @torch.inference_mode()
    def __init__(self, drafter, inputs: dict, answers: list[list[int]], tree: Told):
        target = drafter.target
        request = prepare(target, inputs=inputs)
        layers = drafter.feature_layers
        self.context = target.prefill(request, target.encode(request), feature_layers=layers)
        self.answers, self.places = answers, [0] * len(answers)
        for history, answer in zip(self.context.history, answers, strict=True):
            history.append(answer[0])
        self.session = drafter.fork(tree)
        self.session.start(self.context)

    @torch.inference_mode()
    def round(self, accepted: list[int], settled: bool = False):
        """Draft, score, and accept so many tokens per row; returns the builder and the tree.

        A round that is settled emits those tokens without asking the target.
        """
        builder, context = self.session.tree, self.context
        ahead = [
            (answer[place + 1 :] + [3] * builder.depth)[: builder.depth]
            for answer, place in zip(self.answers, self.places, strict=True)
        ]
        builder.told = torch.tensor(ahead)
        tree = self.session.draft(torch.tensor([history[-1] for history in context.history])).validate()
        scores = None if settled else context.score(tree)
        left = [len(answer) - 1 - place for answer, place in zip(self.answers, self.places, strict=True)]
        more = int(not settled)  # the target's own token
        accepted = [max(min(count, n - more, builder.depth), 0) for count, n in zip(accepted, left, strict=True)]
        path = torch.tensor([builder.path[: count + 1] + [-1] * (builder.depth - count) for count in accepted])
        bonus = [
            answer[min(place + more + count, len(answer) - 1)]
            for answer, place, count in zip(self.answers, self.places, accepted, strict=True)
        ]
        verdict = Verdict(path, torch.tensor(accepted) + 1, torch.tensor(bonus), settled=settled).only(context.active)
        context.commit(tree, verdict)
        self.session.observe(tree, scores, verdict)
        for row, count in enumerate(accepted):
            if context.active[row]:
                self.places[row] += count + more
                context.active[row] = self.places[row] < len(self.answers[row]) - 1
        return builder, tree


# What each round accepts, per row: nothing, one token, several; the second row ends at once.
ROUNDS = ([0, 1, 3, 2], [2, 0, 0, 1], [0, 0, 2, 0])


def decode(drafter, name: str, width: int, depth: int = 4, tree: type[Told] = Told):
    """Yields per round: the active rows with the places of their roots, the builder and the tree."""
    depth = min(depth, drafter.max_depth or depth)
    script = Script(drafter, inputs_of(name), lesson_of(name).answers, tree(width, depth))
    for accepted in ROUNDS:
        roots = {row: place for row, place in enumerate(script.places) if script.context.active[row]}
        yield roots, *script.round(accepted)


def guesses_compared(drafter, lesson, name: str, width: int) -> int:
    """How many unrolled guesses of a lesson were found equal to what the drafter says while it decodes the same."""
    guesses, compared = guesses_of(drafter, lesson, 4), 0
    for roots, builder, _ in decode(drafter, name, width):
        for row, root in roots.items():
            for step in range(min(builder.depth, len(lesson.answers[row]) - 1 - root)):
                node = builder.path[step] - (2**step - 1 if width == 2 else step)
                assert error(builder.logits[step][row, node], guesses[row, root, step]) < TOLERANCE
                compared += 1
    return compared


def expect_true_features_only(drafter, name: str, inputs: dict, answers: list[list[int]]) -> None:
    """After rounds of all kinds, the cache is that of a drafter which read the whole text as its prompt."""
    script = Script(drafter, inputs, answers, Told(2, min(3, drafter.max_depth or 3)))
    for accepted in ROUNDS:
        script.round(accepted)
    removed = has_true_features_only(script, drafter, inputs)
    blind = getattr(drafter.settings, "attention_scope", "all") == "text"
    assert any(removed) == ((blind or drafter.compressor is not None) and name in models.VISUAL)
    begun = prepare(drafter.target, inputs=inputs).lengths[1] + drafter.first_slot
    assert script.session.session.cache.lengths_list[1] == begun, "a row that has finished takes no room"


def has_true_features_only(script, drafter, inputs: dict) -> list[int]:
    """Draft once more, and compare cache and guesses with those of a drafter that read the whole text as its prompt.
    Returns how many entries of every row a compressor has removed."""
    answers, active, places = script.answers, list(script.context.active), list(script.places)
    assert active == [True, False, True, True]
    script.round([0] * 4)

    prompt = prepare(drafter.target, inputs=inputs)
    longer = append(prompt, [answer[:place] for answer, place in zip(answers, places, strict=True)])
    with torch.inference_mode():
        layers = drafter.feature_layers
        context = drafter.target.prefill(longer, drafter.target.encode(longer), feature_layers=layers)
        for history, answer, place in zip(context.history, answers, places, strict=True):
            history.append(answer[place])
        fresh = drafter.fork(Chain(1))
        fresh.start(context)
        logits = fresh.expand_root(torch.tensor([history[-1] for history in context.history]))
    ours, theirs = caches_of(script.session), caches_of(fresh)
    view = TargetView(longer, prompt, context.embeds, context.features, context.vision)
    removed = drafter.read(view).removed.tolist()
    for row in [row for row, on in enumerate(active) if on]:
        length = prompt.lengths[row] + places[row] - removed[row] + drafter.first_slot
        for further, (mine, other) in enumerate(zip(ours, theirs, strict=True)):  # layers in a row begin further ahead
            slots = max(length - further, 0)
            assert mine.lengths_list[row] == other.lengths_list[row] == slots
            for number, layer in enumerate(mine.layers):
                for kind in ("keys", "values"):
                    kept, wanted = mine.whole(getattr(layer, kind)), getattr(other.layers[number], kind)
                    assert error(kept[row, :, :slots], wanted[row, :, :slots]) < TOLERANCE, (further, number, kind)
        assert error(script.session.tree.logits[0][row, 0], logits[row]) < TOLERANCE
    return removed


def caches_of(drafter) -> list:
    """Those of a drafter whose root has been read; there are several where its layers stand in a row."""
    relay = getattr(drafter, "_relay", None)
    if relay is None:
        return [drafter.session.cache]
    with torch.inference_mode():
        relay.end()
    return [session.cache for session in relay.sessions]
