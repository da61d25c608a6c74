"""Writes EAGLE-3 drafters in the format of `speculators`, which vLLM serves.

The fields of `config.json` and the names of the weights are those of speculators 0.9.0; the library itself is not
needed. Both sides number features by the layer that a state enters, so the numbers are written unchanged.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from ..drafters import Drafter, Eagle3Drafter
from ..drafters.head_config import HEAD_SETTINGS, MROPE_SETTINGS
from ..errors import MMSpecError
from ..files.checkpoints import CONFIG, WEIGHTS

FORMAT = "0.9.0"
"""Version of speculators whose format is written."""

SERVED_ACTIVATION = "silu"
"""Activation function that vLLM's Llama layer computes; it has no other."""


def export_speculators(
    drafter: Drafter, folder: str | Path, verifier_name: str | None = None, speculative_tokens: int = 5
) -> Path:
    """Write an EAGLE-3 drafter as speculators and vLLM read it: `config.json` and `model.safetensors`.

    The files draft the same chains as the drafter; the format has no trees.

    Args:
        drafter: an `Eagle3Drafter`, with the switches of EAGLE-3.1 or without.
        folder: folder to write to, created if missing.
        verifier_name: the target's name on the serving machine: a hub id or a folder there. By default the name by
            which the target was loaded.
        speculative_tokens: length of the chain that vLLM drafts by default.

    Returns:
        The folder.

    Raises:
        MMSpecError: for a drafter that the format cannot express, or a target without a name.
    """
    drafter = _check(drafter)
    check_length(speculative_tokens)
    model = drafter.target.model
    verifier_name = verifier_name or model.config.name_or_path
    if not verifier_name:
        raise MMSpecError(
            f"the {type(model).__name__} was not loaded by a name, so the export cannot say for which model it is: "
            "pass verifier_name, a hub id or a folder on the serving machine"
        )
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in _weights(drafter).items()}
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG).write_text(json.dumps(_config(drafter, verifier_name, speculative_tokens), indent=2) + "\n")
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})
    return folder


def check_length(speculative_tokens: int) -> None:
    """Refuse a value that is not the length of a chain.

    Raises:
        MMSpecError: for such a value.
    """
    if not isinstance(speculative_tokens, int) or isinstance(speculative_tokens, bool) or speculative_tokens < 1:
        raise MMSpecError(f"speculative_tokens={speculative_tokens!r} must be a positive integer")


def _check(drafter: Drafter) -> Eagle3Drafter:
    """Return the drafter; refuse one that vLLM would serve differently."""
    name = type(drafter).__name__
    if not isinstance(drafter, Eagle3Drafter) or type(drafter) is not Eagle3Drafter:
        raise MMSpecError(
            f"{name} has no counterpart in speculators {FORMAT}: of mmspec's drafters only Eagle3Drafter can be "
            "exported"
        )
    able = "only an Eagle3Drafter with visual=False, no compressor and three different feature_layers can be exported"
    if drafter.compressor is not None:
        compressor = type(drafter.compressor).__name__
        raise MMSpecError(f"this {name} sees pictures through {compressor}, which speculators cannot express: {able}")
    if drafter.settings.visual:
        raise MMSpecError(
            f"this {name} reads visual embeddings (visual=True), but vLLM gives a drafter the placeholder's embedding: "
            f"{able}"
        )
    if len(set(layers := _fused(drafter))) < len(layers):
        raise MMSpecError(f"this {name} reads feature_layers={layers}, one of them twice: {able}")
    if drafter.head.hidden_act != SERVED_ACTIVATION:
        raise MMSpecError(
            f"this {name} has hidden_act={drafter.head.hidden_act!r}, but vLLM's layer computes {SERVED_ACTIVATION!r} "
            f"alone: train one with +recipe.drafter.head.hidden_act={SERVED_ACTIVATION}"
        )
    return drafter


def _fused(drafter: Eagle3Drafter) -> list[int]:
    """Return the layers of the three features, in the drafter's order."""
    return list(drafter.settings.feature_layers or ())


def _config(drafter: Eagle3Drafter, verifier_name: str, speculative_tokens: int) -> dict[str, Any]:
    model, head = drafter.target.model, drafter.head
    rope: dict[str, Any] = dict(head.rope_parameters or {})
    if drafter.settings.rope != "mrope":  # vLLM goes by what it finds
        rope = {name: value for name, value in rope.items() if name not in MROPE_SETTINGS}
    layer = {name: getattr(head, name) for name in HEAD_SETTINGS} | {
        "rope_parameters": rope,
        "rope_theta": rope["rope_theta"],  # where readers older than transformers 5 look
        "model_type": "llama",
        "num_hidden_layers": 1,
        "vocab_size": drafter.target.vocab_size,
        "mlp_bias": head.mlp_bias,
        "tie_word_embeddings": False,
    }
    proposal = {
        "proposal_type": "greedy",
        "speculative_tokens": speculative_tokens,
        "verifier_accept_k": 1,  # only the target's own choice is accepted
        "accept_tolerance": 0.0,
    }
    verifier = {
        "name_or_path": verifier_name,
        "architectures": list(model.config.architectures or [type(model).__name__]),
    }
    return {
        "architectures": ["Eagle3Speculator"],
        "speculators_model_type": "eagle3",
        "speculators_version": FORMAT,
        "speculators_config": {
            "algorithm": "eagle3",
            "proposal_methods": [proposal],
            "default_proposal_method": "greedy",
            "verifier": verifier,
        },
        "transformer_layer_config": layer,
        "draft_vocab_size": drafter.draft_vocab_size or drafter.target.vocab_size,
        "target_hidden_size": drafter.target.hidden_size,
        "eagle_aux_hidden_state_layer_ids": sorted(_fused(drafter)),
        "norm_before_residual": drafter.settings.norm_before_residual,  # vLLM takes True where it is missing
        "norm_before_fc": drafter.settings.norm_before_fc,
        "fc_norm": drafter.settings.fc_norm,
        "norm_output": drafter.settings.norm_output,
        "embed_requires_grad": False,
        "tie_word_embeddings": False,
        "dtype": str(drafter.fc.weight.dtype).removeprefix("torch."),
    }


def _weights(drafter: Eagle3Drafter) -> dict[str, Tensor]:
    weights = {name.replace("midlayer.", "layers.0."): tensor for name, tensor in drafter.state_dict().items()}
    target = drafter.target
    if drafter.draft_vocab_size == target.vocab_size:  # the library knows no tables of a whole vocabulary
        del weights["d2t"], weights["t2d"]
    # What the drafter reads of a token, a factor of the target's embedding (Gemma) included.
    tokens = torch.arange(target.vocab_size, device=target.device)
    weights["embed_tokens.weight"] = drafter.token_embeds(tokens[None])[0]
    if drafter.head.attention_bias:  # there it includes the output projection, which has none here
        output = weights["layers.0.self_attn.o_proj.weight"]
        weights["layers.0.self_attn.o_proj.bias"] = output.new_zeros(output.shape[0])
    return weights | _ascending(drafter, weights)


def _ascending(drafter: Eagle3Drafter, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights on the three features in the order of their layers: vLLM collects features in that order."""
    order = sorted(range(3), key=lambda number: _fused(drafter)[number])
    sorted_weights: dict[str, Tensor] = {}
    for name in ("fc.weight", "input_norm.weight"):
        if name in weights:
            parts = weights[name].chunk(3, dim=-1)
            sorted_weights[name] = torch.cat([parts[number] for number in order], dim=-1)
    if drafter.fc_norm is not None:
        sorted_weights |= {f"fc_norm.{i}.weight": weights[f"fc_norm.{number}.weight"] for i, number in enumerate(order)}
    return sorted_weights
