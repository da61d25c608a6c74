"""Gemma 4's assistants: a small model without keys and values, which reads those of its target."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Self

import torch
import transformers
from torch import Tensor, nn

from ..errors import MMSpecError, first_line, shown
from ..lesson import Guess, Lesson
from ..models.slots import pick
from ..models.states import LAST
from ..settings.arguments import as_int
from ..trees import Chain, TreeBuilder
from ..trees.growth import Block
from .one_state import OneStateDrafter

if TYPE_CHECKING:
    from ..target import Target

FULL, SLIDING = "full_attention", "sliding_attention"

MODEL_TYPES = ("gemma4_assistant", "gemma4_unified_assistant")
"""`model_type` of an assistant's configuration: the second one is of the 12B."""


class Gemma4AssistantDrafter(OneStateDrafter):
    """The assistant that Google publishes for every Gemma 4 (`google/gemma-4-*-it-assistant`), as transformers 5.24
    drafts with it ("single position multi-token").

    `u = W_pre [E(x); h]`, then layers of Gemma 4 without keys and values of their own: each attends to those that the
    target holds in its last layer of the same kind, full or sliding, of all tokens before the root. The vocabulary head
    is the assistant's own, and `W_post` of the output stands for the target's state at the next level. All levels stand
    at one position, the root's. h is at first the target's state after the final norm at the token before the root.

    Faithful: the model, which is transformers' own class, and so its weights and head, the ordered embedding included.
    Our own: trees, ragged batches, sampling; and in a round after a rejection transformers hands over the keys of one
    rejected token, here only those of tokens that stand. There is no cache, so nothing has to be rolled back.

    Lossless with every lossless verifier. Trained: everything (recipe `gemma4_assistant`, which begins with a random
    one; Google's recipe is unpublished, so that losses and sizes are ours). A lesson keeps no keys and values, so that
    the target reads every text twice.

    Args:
        target: the model to draft for, a Gemma 4.
        model: its assistant, a `Gemma4AssistantForCausalLM`.
        tree: the builder of its trees, see `Drafter`; the native one is a chain.

    Raises:
        MMSpecError: for a target that is no Gemma 4, or an assistant of another width, with other heads or tokens.
    """

    def __init__(self, target: Target, model: nn.Module, tree: TreeBuilder | None = None):
        super().__init__(target, tree)
        self._layers = layers_read(target)
        check_fits(model, target, self._layers)
        self.model: Any = model
        config: Any = model.config
        config._attn_implementation = config.get_text_config()._attn_implementation = "sdpa"
        self._window = config.get_text_config().sliding_window

    def native_tree(self) -> TreeBuilder:
        """Return a chain."""
        return Chain()

    def expand_root(self, root: Tensor) -> Tensor:
        """Take the target's keys and values as they stand, and read the root with the state before it."""
        context = self.context
        shared = {kind: context.keys_values(layer) for kind, layer in self._layers.items()}
        self._look_at(shared, context.lengths[:, None], context.position_offset)
        self._states: list[Tensor] = []
        return self._drafted(root[:, None], self._state)[:, 0]

    def expand(self, block: Block) -> Tensor:
        """Read nodes with what their parents' outputs say of the target's state."""
        above = self._states[-1] if block.extends_chain else pick(torch.cat(self._states, dim=1), block.parents)
        return self._drafted(block.tokens, above)

    def _drafted(self, tokens: Tensor, states: Tensor) -> Tensor:
        """Read `[batch, new]` nodes; return their logits, and remember what their children will read."""
        output = self._read(self._embed(tokens), states)
        self._states.append(self.model.post_projection(output))
        return self._logits(output)

    def _look_at(self, shared: dict[str, tuple[Tensor, Tensor]], lengths: Tensor, offset: Tensor) -> None:
        """Take keys and values of the target by kind of attention, for drafts from roots with so many tokens before
        them, `[batch, roots]`; `offset` is `[batch]`, see `Session.position_offset`."""
        dtype = self.model.pre_projection.weight.dtype
        self._shared = {kind: (keys.to(dtype), values.to(dtype)) for kind, (keys, values) in shared.items()}
        slots = torch.arange(next(iter(shared.values()))[0].shape[2], device=lengths.device)
        seen = slots < lengths[..., None]
        near = seen & (slots >= lengths[..., None] - 1 - self._window)
        self._masks = {FULL: seen[:, None], SLIDING: near[:, None]}
        self._position = lengths + offset[:, None]

    def _read(self, embeds: Tensor, states: Tensor) -> Tensor:
        """Run the assistant over `[batch, new]` nodes, of which none sees another, from the target's embeddings and
        states; return its last states."""
        model, width = self.model, embeds.shape[1]
        dtype = model.pre_projection.weight.dtype
        fused = model.pre_projection(torch.cat([embeds.to(dtype), states.to(dtype)], dim=-1))
        return model.model(
            input_ids=None,
            inputs_embeds=fused,
            attention_mask={kind: mask.expand(-1, -1, width, -1) for kind, mask in self._masks.items()},
            position_ids=self._position.expand(-1, width),
            shared_kv_states=self._shared,
            use_cache=False,
            logits_to_keep=slice(None),  # a number would have it leave out nodes, which fails in transformers 5.24
        ).last_hidden_state

    def _logits(self, output: Tensor) -> Tensor:
        """Return the assistant's own logits, of its `[batch, new, hidden]` last states."""
        model = self.model
        if model.masked_embedding is not None:
            return model.masked_embedding(output, model.lm_head.weight)
        return model.lm_head(output)

    def unroll(self, lesson: Lesson, steps: int = 1, detach: bool = False) -> Iterator[Guess]:
        """Yield the guesses of every step, see `Drafter.unroll`: all roots in one pass a step, each behind the keys and
        values of the tokens before it. A lesson keeps none, so the target reads the texts once more for them [OUR]."""
        with torch.no_grad():
            context = self.target.prefill(lesson.request, lesson.vision)
        shared = {kind: context.keys_values(layer) for kind, layer in self._layers.items()}
        shared = {kind: (keys.clone(), values.clone()) for kind, (keys, values) in shared.items()}  # for gradients
        slots, tokens = lesson.root_slots, lesson.request.inputs["input_ids"]
        self._look_at(shared, slots + 1, context.position_offset)
        embed, last = self.target.family.embedder(), tokens.shape[1] - 1
        states = pick(lesson.features[LAST], slots)
        for step in range(steps):
            valid, places = lesson.drafted(step)
            if not valid.any():
                return
            # The root, and then the tokens that right guesses would have been; beyond an answer anything will do.
            output = self._read(embed(tokens.gather(1, (slots + step + 1).clamp(max=last))), states)
            logits = self._logits(output[valid][None])[0]
            yield Guess(logits, None, places, valid.flatten().nonzero()[:, 0])
            states = self.model.post_projection(output)
            states = states.detach() if detach else states

    def config(self) -> dict[str, Any]:
        """Return the assistant's configuration."""
        settings = self.model.config.to_diff_dict()
        settings.pop("dtype", None)  # it loads in the dtype of its target
        return {"assistant": settings}

    @classmethod
    def from_config(cls, config: dict[str, Any], target: Target) -> Self:
        """Rebuild the drafter, on the target's device and in its dtype."""
        try:
            settings = assistant_class(target, "Config").from_dict(dict(config["assistant"]))
            model = assistant_class(target, "ForCausalLM")(settings).to(target.dtype)
        except Exception as error:  # what transformers' own checks say comes in types of several libraries
            raise MMSpecError(f"transformers has no assistant with these settings: {first_line(error)}") from error
        return cls(target, model).to(target.device)


def assistant_class(target: Target, suffix: str) -> Any:
    """Return transformers' class of the assistants of a target, or of their configuration."""
    unified = target.family.text_config.model_type.startswith("gemma4_unified")
    return getattr(transformers, f"Gemma4{'Unified' if unified else ''}Assistant{suffix}")


def new_assistant(
    target: Target,
    layers: int = 4,
    hidden_size: int | None = None,
    intermediate_size: int | None = None,
    tree: TreeBuilder | None = None,
) -> Gemma4AssistantDrafter:
    """Return an assistant with random weights, to be trained: sliding layers, and a last one of full attention, with
    the heads and the window of its target.

    Args:
        target: the model to draft for, a Gemma 4.
        layers: number of layers, at least two.
        hidden_size: width of its states; a quarter of the target's if None.
        intermediate_size: width of its MLPs; four times its states' if None.
        tree: builder of the drafter's trees; the drafter's default if None.

    Raises:
        MMSpecError: for a target that is no Gemma 4, sizes that are no positive numbers, or fewer than two layers.
    """
    layers_read(target)
    width = hidden_size or max(target.hidden_size // 4, 1)
    inner = intermediate_size or 4 * width
    for name, value, least in (("layers", layers, 2), ("hidden_size", width, 1), ("intermediate_size", inner, 1)):
        if (found := as_int(value)) is None or found < least:
            raise MMSpecError(f"new_assistant: {name}={shown(value)} must be a whole number, {least} or more")
    own_settings = target.family.text_config.to_dict()
    changes = {
        "hidden_size": width,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_kv_shared_layers": layers,
        "layer_types": [SLIDING] * (layers - 1) + [FULL],
        "hidden_size_per_layer_input": 0,
        "vocab_size_per_layer_input": 0,
        "vocab_size": target.vocab_size,
        "enable_moe_block": False,
        "use_double_wide_mlp": False,
    }
    settings = own_settings | {name: value for name, value in changes.items() if name in own_settings}
    if own := settings.get("per_layer_config"):  # the heads of full attention, by layer
        settings["per_layer_config"] = {layers - 1: next(iter(own.values()))}
    text = type(target.family.text_config).from_dict(settings)
    config = assistant_class(target, "Config")(text_config=text, backbone_hidden_size=target.hidden_size)
    model = assistant_class(target, "ForCausalLM")(config).to(target.device, target.dtype)
    return Gemma4AssistantDrafter(target, model, tree)


def layers_read(target: Target) -> dict[str, int]:
    """Return, by kind of attention, the last layer of the target that has keys and values of its own.

    Raises:
        MMSpecError: if the target is no Gemma 4.
    """
    text = target.family.text_config
    kinds = list(getattr(text, "layer_types", None) or [])
    if not text.model_type.startswith("gemma4") or set(kinds) != {FULL, SLIDING}:
        raise MMSpecError(
            "Gemma4AssistantDrafter reads the keys and values of a Gemma 4, and the target is a "
            f"{shown(text.model_type)}: choose another drafter"
        )
    own = kinds[: len(kinds) - (text.num_kv_shared_layers or 0)]
    return {kind: max(number for number, one in enumerate(own) if one == kind) for kind in (FULL, SLIDING)}


def check_fits(model: Any, target: Target, layers: dict[str, int]) -> None:
    """Refuse an assistant that cannot read the states, keys and values, or tokens of a target.

    Args:
        model: the assistant.
        target: the model to draft for.
        layers: the target's layers that are read, see `layers_read`.

    Raises:
        MMSpecError: with what the two have.
    """
    name, text = type(model).__name__, model.config.get_text_config()
    if model.config.model_type not in MODEL_TYPES:
        fits = assistant_class(target, "ForCausalLM").__name__
        raise MMSpecError(f"{name} is no assistant of Gemma 4: give a {fits}")
    wide = model.config.backbone_hidden_size
    if (wide, text.vocab_size) != (target.hidden_size, target.vocab_size):
        raise MMSpecError(
            f"{name} was made for a hidden size of {wide} and {text.vocab_size} tokens, and the target has "
            f"{target.hidden_size} and {target.vocab_size}: load the assistant of this model"
        )
    for kind in set(text.layer_types):
        attention = next(layer.self_attn for layer in model.model.layers if layer.self_attn.layer_type == kind)
        shape, heads = target.cache_shapes[layers[kind]][0], text.num_attention_heads // attention.num_key_value_groups
        if (heads, attention.head_dim) != (shape.heads, shape.dim):
            raise MMSpecError(
                f"{name} asks {kind} for {heads} keys of width {attention.head_dim}, and the target has "
                f"{shape.heads} of width {shape.dim}: load the assistant of this model"
            )
