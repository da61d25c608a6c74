"""Writer: what all kinds of drafters share that are written as speculators and vLLM read them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

from safetensors.torch import save_file
from torch import Tensor

from ...drafters import LayerDrafter
from ...drafters.head_config import HEAD_SETTINGS, MROPE_SETTINGS
from ...errors import MMSpecError
from ...files.checkpoints import CONFIG, WEIGHTS
from ...models.states import LAST

FORMAT = "0.9.0"
"""Version of speculators whose format is written."""

SERVED_ACTIVATION = "silu"
"""Activation function that vLLM's layers compute; they have no other."""

Kind = TypeVar("Kind", bound=LayerDrafter)


class Writer(Generic[Kind]):
    """The configuration and the weights of one drafter in the format of speculators.

    Args:
        drafter: the drafter to write.
        mask_token_id: the token that a mask of the drafter's own is to stand for; None to choose one.

    Raises:
        MMSpecError: for what the format cannot express, or a server would compute differently.
    """

    kind: str
    """The name of the drafter's kind, `speculators_model_type`."""
    architecture: str
    """The name of the class that reads it."""
    model_type: ClassVar[str]
    """The name of the kind of layer, `model_type` of the nested configuration."""

    def __init__(self, drafter: Kind, mask_token_id: int | None = None):
        self.drafter, self.mask_token_id = drafter, mask_token_id
        self.check()

    def check(self) -> None:
        """Refuse a drafter that would be served as something else; subclasses have more to refuse.

        Raises:
            MMSpecError: for such a drafter.
        """
        drafter, name = self.drafter, type(self.drafter).__name__
        if drafter.compressor is not None:
            seen = type(drafter.compressor).__name__
            raise MMSpecError(
                f"this {name} sees pictures through {seen}, which speculators cannot express: train one without a "
                "compressor"
            )
        if getattr(drafter.settings, "attention_scope", "all") != "all":
            raise MMSpecError(
                f"this {name} attends to text alone (attention_scope='text'), which no server does: export "
                "drafter.with_scope('all'), or train one with attention_scope=all"
            )
        if drafter.head.hidden_act != SERVED_ACTIVATION:
            raise MMSpecError(
                f"this {name} has hidden_act={drafter.head.hidden_act!r}, but vLLM's layer computes "
                f"{SERVED_ACTIVATION!r} alone: train one with +recipe.drafter.head.hidden_act={SERVED_ACTIVATION}"
            )

    def length(self, wished: int | None) -> int:
        """Return the length of the chains that a server drafts by default; `wished` is None where nobody asks.

        Raises:
            MMSpecError: for a length that the drafter does not have.
        """
        raise NotImplementedError

    def fields(self) -> dict[str, Any]:
        """Return the entries of `config.json` that this kind has besides those of all kinds."""
        raise NotImplementedError

    def weights(self) -> dict[str, Tensor]:
        """Return the weights by the format's names."""
        raise NotImplementedError

    def layer(self) -> dict[str, Any]:
        """Return the configuration of the layers."""
        head, drafter = self.drafter.head, self.drafter
        rope: dict[str, Any] = dict(head.rope_parameters or {})
        if drafter.axes is None:  # vLLM goes by what it finds
            rope = {name: value for name, value in rope.items() if name not in MROPE_SETTINGS}
        return {name: getattr(head, name) for name in HEAD_SETTINGS} | {
            "rope_parameters": rope,
            "rope_theta": rope["rope_theta"],  # where readers older than transformers 5 look
            "model_type": self.model_type,
            "vocab_size": drafter.target.vocab_size,
            "tie_word_embeddings": False,
        }

    def config(self, verifier_name: str, speculative_tokens: int) -> dict[str, Any]:
        """Return the whole `config.json`.

        Args:
            verifier_name: the target's name on the serving machine.
            speculative_tokens: length of the chain that is drafted by default.
        """
        target = self.drafter.target
        proposal = {
            "proposal_type": "greedy",
            "speculative_tokens": speculative_tokens,
            "verifier_accept_k": 1,  # only the target's own choice is accepted
            "accept_tolerance": 0.0,
        }
        verifier = {
            "name_or_path": verifier_name,
            "architectures": list(target.model.config.architectures or [type(target.model).__name__]),
        }
        return {
            "architectures": [self.architecture],
            "speculators_model_type": self.kind,
            "speculators_version": FORMAT,
            "speculators_config": {
                "algorithm": self.kind,
                "proposal_methods": [proposal],
                "default_proposal_method": "greedy",
                "verifier": verifier,
            },
            "transformer_layer_config": self.layer(),
            "draft_vocab_size": self.drafter.draft_vocab_size or target.vocab_size,
            "target_hidden_size": target.hidden_size,
            "tie_word_embeddings": False,
            "dtype": str(next(self.drafter.parameters()).dtype).removeprefix("torch."),
        } | self.fields()


def check_taps(taps: Sequence[int], name: str) -> None:
    """Refuse features of the target that a server does not hand over.

    Args:
        taps: the features that are read.
        name: the drafter's class.

    Raises:
        MMSpecError: for one that is read twice, or before visual features join it.
    """
    if len(set(taps)) < len(taps):
        raise MMSpecError(
            f"this {name} reads feature_layers={list(taps)}, one of them twice: the format wants different ones"
        )
    if any(tap < LAST for tap in taps):
        raise MMSpecError(
            f"this {name} reads states before visual features join them (before_deepstack=True), but vLLM hands them "
            "over behind that: train one with before_deepstack=False"
        )


def zero_bias(weights: dict[str, Tensor], layer: str) -> dict[str, Tensor]:
    """Return a bias of the output projection of a layer, all zero: the format has one there where queries, keys and
    values have one.

    Args:
        weights: those of the drafter, by the format's names.
        layer: prefix of the layer's names.
    """
    output = weights[f"{layer}.self_attn.o_proj.weight"]
    return {f"{layer}.self_attn.o_proj.bias": output.new_zeros(output.shape[0])}


def write_files(folder: Path, config: Mapping[str, Any], weights: Mapping[str, Tensor]) -> None:
    """Write a configuration and weights into a folder, which is created if missing."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n")
    held = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
    save_file(held, folder / WEIGHTS, metadata={"format": "pt"})


def check_length(speculative_tokens: int | None) -> None:
    """Refuse a value that is not the length of a chain.

    Raises:
        MMSpecError: for such a value.
    """
    if speculative_tokens is None:
        return
    if not isinstance(speculative_tokens, int) or isinstance(speculative_tokens, bool) or speculative_tokens < 1:
        raise MMSpecError(f"speculative_tokens={speculative_tokens!r} must be a positive integer")
