"""Multi-token layers in a row: beside transformers' own, and in the rounds that differ from those of a single layer."""

from __future__ import annotations

import json

import models
import pytest
import torch
import transformers
from heads import TOLERANCE, drafter_of, error, guesses_of, inputs_of, lesson_of
from safetensors.torch import save_file
from scripted_rounds import Script, Told, caches_of, expect_true_features_only
from tiny_drafters import record_drafts
from tiny_requests import target_of
from yardstick import reference_at

import mmspec
from mmspec import MMSpecError
from mmspec.drafters import MtpDrafter
from mmspec.drafters.relay import Relay
from mmspec.inputs import prepare
from mmspec.models.session import Session
from mmspec.training.teacher import Teacher
from mmspec.trees import BestFirstTree, Chain, DynamicTree, TreeBuilder

try:
    from transformers.cache_utils import MtpCache
    from transformers.modeling_layers import MtpModel
except ImportError:
    MtpModel = None

LAYERS, PROMPT, NEW = 3, 9, 24


# Beside transformers.


def model_of(kind: str):
    """A random model that transformers can give multi-token layers."""
    torch.manual_seed(11)
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "vocab_size": 60, "head_dim": 8}
    shape |= {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256}
    shape |= {"num_mtp_layers": LAYERS, "pad_token_id": 0, "bos_token_id": None, "eos_token_id": None}
    if kind == "qwen3":
        config = transformers.Qwen3Config(**shape, mtp_layer_types=["full_attention"] * LAYERS)
        return drawn(transformers.Qwen3ForCausalLM(config))
    if kind == "states first":
        shape["mtp_hidden_states_first"] = True
    return drawn(transformers.LlamaForCausalLM(transformers.LlamaConfig(**shape)))


def drawn(model):
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.3)
        elif "norm" in name:
            torch.nn.init.uniform_(parameter, 0.5, 1.5)
    return model.eval()


def published_keys(layers, first: int) -> dict[str, torch.Tensor]:
    """The weights of transformers' layers under the names that they are published with."""
    found = {}
    for name, tensor in layers.state_dict().items():
        if name.startswith("layers."):
            number, rest = name.removeprefix("layers.").split(".", 1)
            rest = rest.removeprefix("mtp_block.").replace("post_norm.", "shared_head.norm.")
            found[f"model.layers.{first + int(number)}.{rest}"] = tensor.clone()
    return found


@pytest.mark.skipif(MtpModel is None, reason="this transformers has no MtpModel")
@pytest.mark.parametrize("kind", ["llama", "qwen3", "states first"])
def test_they_draft_what_those_of_transformers_do(kind, tmp_path, monkeypatch):
    model = model_of(kind)
    theirs = drawn(MtpModel(model, LAYERS))
    drawn_again = published_keys(theirs, 2)
    copies = {"model.layers.2.embed_tokens.weight": model.get_input_embeddings().weight.detach().clone()}
    save_file(drawn_again | copies, tmp_path / "model.safetensors", {"format": "pt"})
    (tmp_path / "config.json").write_text(json.dumps(model.config.to_dict(), default=str))
    target = mmspec.Target(model)
    drafter = mmspec.load_drafter(str(tmp_path), target)
    assert type(drafter) is MtpDrafter and drafter.settings.layers == LAYERS and not drafter.settings.recursive
    assert drafter.settings.head_norms == (kind == "qwen3")

    drafts = record_drafts(monkeypatch, MtpDrafter)
    ids = torch.randint(1, 60, (1, PROMPT), generator=torch.Generator().manual_seed(2))
    out = mmspec.generate(target, drafter, inputs={"input_ids": ids}, max_new_tokens=NEW, tree=Chain(8))
    assert out.token_ids[0] == model.generate(ids, max_new_tokens=NEW, do_sample=False)[0, PROMPT:].tolist()
    assert {draft.tree.num_nodes - 1 for draft in drafts} == {LAYERS}, "there are no more levels than layers"
    for draft in drafts:
        tokens, logits = theirs_after(model, theirs, draft.history[0])
        assert draft.tree.tokens[0, 1:].tolist() == tokens
        wanted = logits.log_softmax(-1).gather(1, torch.tensor(tokens)[:, None])[:, 0].cumsum(0)
        assert error(draft.tree.log_probs[0, 1:].cumsum(0), wanted) < TOLERANCE


def theirs_after(model, layers, history: list[int]) -> tuple[list[int], torch.Tensor]:
    """Tokens and logits that transformers' layers draft behind a text."""
    ids = torch.tensor([history])
    with torch.no_grad():
        states = model.model(ids[:, :-1]).last_hidden_state
        cache = MtpCache(config=model.config.get_mtp_config())
        places = torch.arange(1, ids.shape[1])[None]
        tokens, logits, _ = layers(ids[:, 1:], states, None, places, cache)
    return tokens[0].tolist(), logits[0]


# Rounds.


@pytest.mark.parametrize("wrong", ["drafted slots kept", "state of the drafted token"])
def test_what_is_kept_of_a_draft_would_be_seen(wrong, monkeypatch):
    """The comparison of caches fails for a layer that keeps slots of drafted tokens, or goes on from one's state."""
    end, keep, ending = Relay.end, Session.keep, []

    def end_wrongly(self):
        begun, outputs = self._begun, list(self._outputs)
        ending.append(wrong)
        end(self)
        ending.pop()
        if begun and wrong == "state of the drafted token":
            self._handed = [torch.cat(made, dim=1)[:, -1:] for made in outputs]

    def keep_wrongly(self, counts, path=None, kept=None):
        if ending == ["drafted slots kept"] and self.cache.speculative > max(counts) > 0:
            path, kept = torch.arange(1, max(counts) + 1).expand(len(counts), -1), None
        keep(self, counts, path, kept)

    monkeypatch.setattr(Relay, "end", end_wrongly)
    monkeypatch.setattr(Session, "keep", keep_wrongly)
    drafter = drafter_of("llava", "mtp, in a row")
    with pytest.raises(AssertionError):
        expect_true_features_only(drafter, "llava", inputs_of("llava"), lesson_of("llava").answers)


def test_states_that_are_handed_on_without_their_norm_would_be_seen():
    drafter, lesson = drafter_of("llava", "mtp, in a row"), lesson_of("llava")
    guesses, chain = guesses_of(drafter, lesson, 3), lesson.answers[0][1:3]
    right, wrong = (reference_at("llava", drafter, 0, 0, chain, one) for one in ("", "not normed"))
    for step in range(3):
        assert error(guesses[0, 0, step], right[step]) < TOLERANCE
        assert (error(guesses[0, 0, step], wrong[step]) > 10 * TOLERANCE) == (step > 0)


@pytest.mark.parametrize("depths", [(1, 3, 1, 2), (3, 1, 1, 3)], ids=str)
def test_layers_that_a_round_does_not_ask_catch_up(depths):
    """Whatever the depth of earlier rounds, a guess is that of training."""
    name = "llava"
    drafter, lesson, compared = drafter_of(name, "mtp, in a row"), lesson_of(name), 0
    guesses = guesses_of(drafter, lesson, 3)
    script = Script(drafter, inputs_of(name), lesson.answers, Told(2, 3))
    for depth in depths:
        script.session.tree.depth = depth
        roots = {row: place for row, place in enumerate(script.places) if script.context.active[row]}
        builder, _ = script.round([1, 0, 1, 0])
        for row, root in roots.items():
            for step in range(min(depth, len(lesson.answers[row]) - 1 - root)):
                logits = builder.logits[step][row, builder.path[step] - (2**step - 1)]
                assert error(logits, guesses[row, root, step]) < TOLERANCE
                compared += 1
    assert compared > 15


class MixedDepths(TreeBuilder):
    """Expands a root, two children, then nodes of two depths at once, and then one that was left."""

    def build(self, growth):
        first = growth.expand(growth.root, 3)
        second = growth.expand(first[:, :2], 2)
        self.asked, self.told = [], []
        for nodes in (torch.cat([first[:, 2:], second[:, 1:3]], dim=1), second[:, :1]):
            growth.expand(nodes, 1)
            self.asked.append(nodes)
            self.told.append(growth.logits)
        return growth.keep_all()


@pytest.mark.parametrize("variant", ["mtp, in a row", "mtp, in a row and on"])
def test_nodes_of_several_depths_are_expanded_at_once(variant):
    name, compared = "llava", 0
    drafter, lesson = drafter_of(name, variant), lesson_of(name)
    script = Script(drafter, inputs_of(name), lesson.answers, Told(1, 3))
    for _ in range(2):
        script.round([1, 0, 0, 2])
    roots = {row: place for row, place in enumerate(script.places) if script.context.active[row]}
    with torch.inference_mode():
        script.session.tree = MixedDepths()
        tree = script.session.draft(torch.tensor([history[-1] for history in script.context.history]))
    for nodes, told in zip(script.session.tree.asked, script.session.tree.told, strict=True):
        for row, root in roots.items():
            for place, node in enumerate(nodes[row].tolist()):
                chain = []
                while node:
                    chain, node = [int(tree.tokens[row, node]), *chain], int(tree.parents[row, node])
                expected = reference_at(name, drafter, row, root, chain)[-1]
                assert error(told[row, place], expected) < TOLERANCE
                compared += 1
    assert compared == 4 * len(roots)


@pytest.mark.parametrize("length", [1, 2, 3])
def test_a_prompt_may_have_fewer_tokens_than_there_are_layers(length):
    """Tokens before which there was no state are seen by nobody."""
    drafter = drafter_of("llama", "mtp, in a row")
    ids = [[7, 8, 9][:length], [7, 8, 9, 2, 3]]
    width = max(map(len, ids))
    inputs = {
        "input_ids": torch.tensor([row + [0] * (width - len(row)) for row in ids]),
        "attention_mask": torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in ids]),
    }
    answers = [[4, 5, 6, 7, 8, 9], [5, 4, 3, 2, 1]]
    lesson = Teacher(drafter.target, range(3)).study(prepare(drafter.target, inputs=inputs), answers)
    guesses = guesses_of(drafter, lesson, 3)
    script = Script(drafter, inputs, answers, Told(1, 3))
    for roots, accepted in (((0, 0), [0, 0]), ((1, 1), [1, 0]), ((3, 2), [0, 0])):
        builder, _ = script.round(accepted)
        for row, root in enumerate(roots):
            for step in range(min(3, len(answers[row]) - 1 - root)):
                assert error(builder.logits[step][row, 0], guesses[row, root, step]) < TOLERANCE, (root, step)
    counts = [cache.lengths_list[0] for cache in caches_of(script.session)]
    assert counts[0] - counts[1] == counts[1] - counts[2] == 1, "but for these every layer has a slot of each token"


@pytest.mark.parametrize(
    "tree", [Chain(5), DynamicTree(4, 3, 12), BestFirstTree(12)], ids=["chain", "dynamic", "best first"]
)
@pytest.mark.parametrize("variant", ["mtp, in a row", "mtp, in a row and on"])
def test_text_is_the_targets_own_and_levels_are_counted(variant, tree, monkeypatch):
    drafter = drafter_of("qwen_vl", variant)
    inputs = inputs_of("qwen_vl")
    drafts = record_drafts(monkeypatch, MtpDrafter)
    plain, drafted = (
        mmspec.generate(drafter.target, one, inputs=inputs, max_new_tokens=12, tree=shape).token_ids
        for one, shape in ((None, None), (drafter, tree))
    )
    assert plain == drafted
    deepest = max(int(draft.tree.depth.max()) for draft in drafts)
    limit = 3 if variant == "mtp, in a row" else 5
    assert deepest == limit or (deepest < limit and not isinstance(tree, Chain))


def test_what_it_cannot_do_is_said_in_one_line():
    for settings, message in (
        ({"layers": 0}, "MtpDrafter: layers=0 must be a positive integer"),
        ({"layers": 2, "output_norm": "each"}, "output_norm='each' is unknown"),
    ):
        with pytest.raises(MMSpecError, match=message) as caught:
            MtpDrafter(target_of("llama", "sdpa"), **settings)
        assert "\n" not in str(caught.value)
    assert drafter_of("llama", "mtp").drafts_unread and not drafter_of("llama", "mtp, in a row").drafts_unread


def test_a_folder_cannot_ask_for_more_layers_than_it_has(tmp_path):
    drafter = drafter_of("llama", "mtp, in a row")
    drafter.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"layers": 10**9}))
    with pytest.raises(MMSpecError, match="config.json says layers=1000000000, but there are"):
        mmspec.load_drafter(str(tmp_path), drafter.target)


def test_every_layer_learns():
    """A loss on the last step reaches every layer, and none without gradients between steps but the last."""
    drafter, lesson = models.redraw(MtpDrafter(target_of("llava", "sdpa"), layers=3), seed=4), lesson_of("llava")
    for detach in (False, True):
        drafter.zero_grad()
        *_, guess = drafter.unroll(lesson, 3, detach)
        guess.logits.logsumexp(-1).sum().backward()
        reached = [layer.mlp.up_proj.weight.grad is not None for layer in drafter.layers]
        assert reached == [not detach, not detach, True]
        assert (drafter.fc.weight.grad is not None) == (not detach)
