"""`prefix_allowed_tokens_fn` in trees and batches: asked as `generate` asks, and no guess can make it fail."""

from __future__ import annotations

import models
import pytest
import torch
from refusals import refused
from tiny_drafters import blurred_drafter
from tiny_requests import target_of
from transformers import PrefixConstrainedLogitsProcessor

import mmspec
from mmspec import MMSpecError
from mmspec.decoding.allowed import AllowedTokens
from mmspec.trees import DynamicTree, StaticTree
from mmspec.verifiers import RejectionSampling

LENGTHS, NEW = (9, 14, 5), 12
SETS = (range(2, 12), range(10, 30), range(28, 50))
TREE = StaticTree(["0", "1", "2", "00", "01", "10", "20", "000"])


def by_row_and_token(row: int, ids: torch.Tensor) -> list[int]:
    """Another set for every row, and of it another half after every token."""
    return [token for token in SETS[row] if (token + int(ids[-1])) % 2]


def spelling(width: int):
    """Counts from the end of the padded prompt, as functions for `generate` do; knows only what it allowed."""

    def allowed(row: int, ids: torch.Tensor) -> list[int]:
        written = ids[width:].tolist()
        known = {0: SETS[row]}
        for place, token in enumerate(written):
            if token not in known[place]:
                raise KeyError(f"row {row} cannot have come to {token}")
            known[place + 1] = [other for other in SETS[row] if (other + token + place) % 3]
        return list(known[len(written)])

    return allowed


def written_by_generate(inputs: dict, function, **options) -> list[list[int]]:
    model = target_of("llama", "sdpa").model
    options = {"max_new_tokens": NEW, "do_sample": False, "prefix_allowed_tokens_fn": function} | options
    return model.generate(**inputs, **options)[:, inputs["input_ids"].shape[1] :].tolist()


@pytest.mark.parametrize("tree", [TREE, DynamicTree(4, 3, 16)], ids=["static", "dynamic"])
def test_every_row_gets_its_own_tokens_whatever_was_guessed(tree):
    inputs = models.inputs_for("llama", [0] * 3, list(LENGTHS))
    expected = written_by_generate(inputs, by_row_and_token)
    asked = set()

    def function(row, ids):
        asked.add((row, len(ids)))
        return by_row_and_token(row, ids)

    drafter = blurred_drafter("llama", "sdpa")
    rule = PrefixConstrainedLogitsProcessor(function, 1)
    for rows in ([0, 1, 2], [0]):
        single = inputs if len(rows) > 1 else models.one_row(inputs, 0)
        out = mmspec.generate(
            drafter.target, drafter, inputs=single, max_new_tokens=NEW, tree=tree, logits_processor=[rule]
        )
        assert out.token_ids == [expected[row] for row in rows]
        assert {row for row, _ in asked} == set(rows)
        assert {min(n for row, n in asked if row == wanted) for wanted in rows} == {LENGTHS[row] for row in rows}
        asked.clear()


@pytest.mark.parametrize("tree", [None, TREE], ids=["chain", "static"])
def test_in_custom_generate_it_hears_what_it_hears_in_generate(tree):
    """Padding included; and its failures behind guesses that it forbids are nobody's business."""
    inputs = models.inputs_for("llama", [0] * 3, list(LENGTHS))
    function = spelling(inputs["input_ids"].shape[1])
    drafter = blurred_drafter("llama", "sdpa")
    custom = mmspec.hf.custom_generate(drafter, tree=tree)
    assert written_by_generate(inputs, function, custom_generate=custom) == written_by_generate(inputs, function)
    assert drafter.last_output.stats.num_draft_tokens > NEW


def test_drawn_children_and_drawn_text_keep_to_it():
    inputs = models.inputs_for("llama", [0] * 3, list(LENGTHS))
    drafter = blurred_drafter("llama", "sdpa")
    options = {"temperature": 0.9, "verifier": RejectionSampling(), "tree": TREE, "max_new_tokens": NEW}
    rule = PrefixConstrainedLogitsProcessor(by_row_and_token, 1)
    out = mmspec.generate(drafter.target, drafter, inputs=inputs, logits_processor=[rule], **options)
    assert out.stats.num_accepted_draft_tokens > 0
    for row, tokens in enumerate(out.token_ids):
        last = [models.one_row(inputs, row)["input_ids"][0, -1].item(), *tokens]
        assert all(token in SETS[row] and (token + before) % 2 for before, token in zip(last, tokens, strict=False))


@pytest.mark.parametrize("fails", ["nothing", "error"])
def test_a_dead_end_is_told_when_the_text_gets_there_and_not_before(fails):
    inputs = models.inputs_for("llama", [0], [9])
    drafter = blurred_drafter("llama", "sdpa")

    def function(row, ids):
        if len(ids) < 13:
            return by_row_and_token(0, ids)
        if fails == "error":
            raise KeyError("no way on")
        return []

    def run(new):
        rule = PrefixConstrainedLogitsProcessor(function, 1)
        options = {"inputs": inputs, "max_new_tokens": new, "tree": TREE, "logits_processor": [rule]}
        return mmspec.generate(drafter.target, drafter, **options).token_ids

    assert run(4) == written_by_generate(inputs, function, max_new_tokens=4)
    if fails == "error":
        with pytest.raises(KeyError, match="no way on"):
            run(5)
    else:
        refused(lambda: run(5), "allows no token in row 0 after 13 tokens, the last of them [")


def test_a_row_that_has_ended_is_asked_about_no_more():
    """Nor is what lies behind an end token: there a function may have nothing to say."""
    inputs = models.inputs_for("llama", [0] * 2, [9, 9])
    drafter, end = blurred_drafter("llama", "sdpa"), 7

    def function(row, ids):
        if end in ids[9:]:
            raise KeyError("this text is complete")
        return [end] if len(ids) == 9 + 3 + 5 * row else by_row_and_token(row, ids)

    rule = PrefixConstrainedLogitsProcessor(function, 1)
    options = {"inputs": inputs, "max_new_tokens": NEW, "tree": TREE, "eos_token_id": end, "logits_processor": [rule]}
    out = mmspec.generate(drafter.target, drafter, **options)
    assert [len(tokens) for tokens in out.token_ids] == [4, 9] and out.finish_reason == ["eos", "eos"]


def test_a_derived_class_is_refused_as_it_numbers_nodes():
    class Own(PrefixConstrainedLogitsProcessor):
        pass

    target = target_of("llama", "sdpa")
    with pytest.raises(MMSpecError, match="logits_processor holds a Own, which cannot judge the nodes"):
        mmspec.generate(
            target, inputs=models.inputs_for("llama", [0], [9]), logits_processor=[Own(by_row_and_token, 1)]
        )


def test_failures_are_kept_for_as_long_as_they_may_matter():
    rule = AllowedTokens(lambda row, ids: [])
    for ids in ([1, 2], [1, 3]):
        rule(torch.tensor([ids]), torch.zeros(1, 5), [0])
    rule.settle(0, [1, 4], 1, 1, False)  # the text went another way
    rule.settle(0, [1, 3, 0], 2, 1, False)  # which is all that is known of it
    rule(torch.tensor([[1, 4]]), torch.zeros(1, 5), [0])
    refused(lambda: rule.settle(0, [1, 4, 2], 2, 1, False), "allows no token in row 0")


def test_criteria_that_go_by_the_number_of_a_row_are_refused():
    def both(ids, scores):
        return torch.tensor([True, False])

    target = target_of("llama", "sdpa")
    with pytest.raises(MMSpecError, match="stopping_criteria holds both, which gave 2 answers about"):
        mmspec.generate(target, inputs=models.inputs_for("llama", [0] * 2, [9, 5]), stopping_criteria=[both])
