"""EAGLE-3 and EAGLE-3.1, as SafeAILab, SpecForge and AngelSlim (`midlayer`) or vLLM and speculators (`layers.0`) save
it."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..drafters import Eagle3Drafter, Eagle3Settings, FeatureDrafter
from ..drafters.head_config import MROPE_SETTINGS
from ..drafters.vocabulary import is_padding
from ..errors import MMSpecError, shown
from ..target import Target
from .assembly import assemble
from .base import Format, Shapes
from .checkpoint import Checkpoint
from .deepstack import SETTING, reads_before
from .head import FUSED_NORMS

HEAD = "lm_head.weight"
MIDLAYERS = ("midlayer", "layers.0")
ENTERING, LEAVING = "eagle_aux_hidden_state_layer_ids", "aux_hidden_states_layer_ids"
"""Settings that name the same states in two ways: by the layer that a state enters, and by the one that it leaves,
which is one less."""

SPECULATORS = "speculators_model_type"

logger = logging.getLogger(__name__)


class Eagle3(Format):
    """EAGLE-3 (arXiv 2503.01840) with the switches of EAGLE-3.1 (arXiv 2605.09992).

    The norms of the switches are present or not, and a configuration that contradicts them is refused. `norm_output`
    and `norm_before_residual` leave no weights, so the configuration decides about them, False where it is silent.
    Checkpoints of speculators must state the latter: speculators always writes it, and readers of its files differ in
    their default.

    Pictures reach the drafter through the features alone: image slots hold the embedding of the placeholder token, as
    in the ports to vision-language models. Positions are those of the target (`rope="mrope"`) if the configuration has
    a `mrope_section`, and numbers of tokens otherwise.
    """

    name = "eagle3"

    def matches(self, keys: Shapes, config: Mapping[str, Any]) -> bool:
        """Return True if a checkpoint has this format."""
        return is_eagle3(keys) and "mask_hidden" not in keys and config.get(SPECULATORS) != "peagle"

    def build(self, checkpoint: Checkpoint, target: Target) -> FeatureDrafter:
        """Make the drafter with the checkpoint's weights."""
        keys, config = checkpoint.shapes, checkpoint.config
        if config.get(SPECULATORS, self.name) != self.name:
            raise MMSpecError(
                f"{checkpoint}: {SPECULATORS} is {shown(config[SPECULATORS])}, and of speculators' models with "
                f"these keys only {self.name!r} is supported"
            )
        layer = MIDLAYERS[0] if any(key.startswith(f"{MIDLAYERS[0]}.") for key in keys) else MIDLAYERS[1]
        checkpoint.require("fc.weight", "norm.weight", HEAD)
        made = vocabulary_of(checkpoint, target)
        settings = Eagle3Settings(**read_settings(checkpoint, made, target))
        return assemble(
            Eagle3Drafter,
            checkpoint,
            target,
            settings,
            layer=layer,
            axes=settings.rope == "mrope",
            names={"midlayer.": f"{layer}."},
            made=made,
            unread=("d2t", "t2d", HEAD, *idle_bias(checkpoint, layer)),
        )


def read_settings(checkpoint: Checkpoint, made: Mapping[str, Tensor], target: Target) -> dict[str, Any]:
    """Return EAGLE-3's settings by name, as a checkpoint has them.

    Args:
        checkpoint: the checkpoint to read.
        made: what `vocabulary_of` has made of it.
        target: the model to draft for.

    Raises:
        MMSpecError: for settings that contradict each other or the weights, or are missing where they must be said.
    """
    ropes = [checkpoint.said(name, dict, {}) for name in ("rope_parameters", "rope_scaling")]
    layers = feature_layers(checkpoint)
    fitted = Eagle3Settings(feature_layers=layers).fit(target).feature_layers or ()
    return {
        "draft_vocab_size": len(made["d2t"]) if "d2t" in made else None,
        "feature_layers": layers,
        "before_deepstack": reads_before(checkpoint, target, fitted, checkpoint.said(SETTING, bool)),
        "fc_norm": norm_switch(checkpoint, "fc_norm", "fc_norm.0.weight"),
        "norm_before_fc": norm_switch(checkpoint, "norm_before_fc", "input_norm.weight"),
        "norm_output": checkpoint.said("norm_output", bool, False),
        "norm_before_residual": normed_residual(checkpoint),
        "rope": "mrope" if any(MROPE_SETTINGS[0] in rope for rope in ropes) else "1d",
    }


def is_eagle3(keys: Shapes) -> bool:
    """Return True if there is a key that of all heads on hidden states only EAGLE-3 has."""
    if any(norm in keys for norm in FUSED_NORMS):  # a block drafter's, which may have a reduced vocabulary too
        return False
    return "d2t" in keys or any(key.startswith("midlayer.") for key in keys) or "layers.0.hidden_norm.weight" in keys


def idle_bias(checkpoint: Checkpoint, layer: str) -> list[str]:
    """Return the keys to ignore: the bias of the output projection, which speculators has where queries, keys and
    values have one, if it is zero. A bias that is not zero is left to be refused."""
    key = f"{layer}.self_attn.o_proj.bias"
    return [key] if key in checkpoint.shapes and not checkpoint.read(key).any() else []


def norm_switch(checkpoint: Checkpoint, switch: str, key: str) -> bool:
    """Return True if a switch is on, which follows from the weights that it needs.

    Raises:
        MMSpecError: if the configuration contradicts the weights.
    """
    found, said = key in checkpoint.shapes, checkpoint.said(switch, bool)
    if said is not None and said != found:
        raise MMSpecError(
            f"{checkpoint}: config.json says {switch}={said}, but {key} is {'there' if found else 'missing'}; correct "
            "the one that is wrong"
        )
    return found


def normed_residual(checkpoint: Checkpoint) -> bool:
    """Return True if the residual stream is the normed state.

    Raises:
        MMSpecError: if a configuration of speculators does not say.
    """
    said = checkpoint.said("norm_before_residual", bool)
    if said is None and SPECULATORS in checkpoint.config:
        raise MMSpecError(
            f"{checkpoint}: a speculators config.json must say norm_before_residual: without it vLLM takes true, "
            "others false, and no weight tells"
        )
    return bool(said)


def feature_layers(checkpoint: Checkpoint) -> list[int] | None:
    """Return the layers that the features enter; None for EAGLE-3's own three.

    Raises:
        MMSpecError: if the two conventions contradict each other, or the configuration does not say which one it uses.
    """
    nested = checkpoint.said("eagle_config", dict, {})
    entering, leaving = (checkpoint.said(name, list[int]) for name in (ENTERING, LEAVING))
    if entering is None and leaving is None and nested.get(ENTERING):
        raise MMSpecError(
            f"{checkpoint}: eagle_config says {ENTERING}={shown(nested[ENTERING])}, which SGLang reads as layers that "
            f"the states leave and vLLM as layers that they enter; write {LEAVING} (leave) or {ENTERING} (enter) at "
            "the top of config.json"
        )
    shifted = None if leaving is None else [layer + 1 for layer in leaving]
    if entering is not None and shifted is not None and list(entering) != shifted:
        raise MMSpecError(
            f"{checkpoint}: {ENTERING}={shown(entering)} and {LEAVING}={shown(leaving)} are not the same states: the "
            "second ones must be one less"
        )
    return shifted if entering is None else list(entering)


def vocabulary_of(checkpoint: Checkpoint, target: Target) -> dict[str, Tensor]:
    """Return the tensors of a reduced vocabulary: its head, and `d2t` and `t2d` for the target's vocabulary; nothing if
    the head covers all tokens, row by row.

    Rows beyond the tokens are padding, and are cut off. Tokens of the target beyond the rows are padding of the target,
    and are not drafted.

    Raises:
        MMSpecError: if the head's rows cannot be tokens of the target; see `tokens_of`.
    """
    vocab, rows = target.vocab_size, checkpoint.sizes(HEAD, "tokens", "hidden")[0]
    checkpoint.header.check_kind(HEAD, floating=True)
    if "d2t" in checkpoint.shapes:
        tokens, known = tokens_of(checkpoint, rows, vocab)
    else:
        reduced = checkpoint.said("draft_vocab_size", int) == rows != checkpoint.said("vocab_size", int, rows)
        if "t2d" in checkpoint.shapes or not is_padding(rows, vocab) or (rows < vocab and reduced):
            raise MMSpecError(
                f"{checkpoint} is incomplete: missing keys ['d2t'], without which its {rows} draft tokens cannot be "
                f"mapped to the target's {vocab}"
            )
        tokens = torch.arange(rows)
        known = tokens < vocab
    made = {}
    if len(known) < rows or not known.all():
        logger.info("%s: of the %d rows of %s %d are tokens, the rest is padding", checkpoint, rows, HEAD, known.sum())
        made[HEAD] = checkpoint.rows(HEAD, 0, len(known))[known]
        tokens = tokens[known]
    if "d2t" not in checkpoint.shapes and len(tokens) == vocab:
        return made
    t2d = torch.zeros(vocab, dtype=torch.bool)
    t2d[tokens] = True
    return made | {"d2t": tokens - torch.arange(len(tokens)), "t2d": t2d}


def tokens_of(checkpoint: Checkpoint, rows: int, vocab: int) -> tuple[Tensor, Tensor]:
    """Return the target's tokens that `d2t` leads to, `[draft tokens]`, and a mask of those that the target has.

    `d2t` is added to a draft token to give the target's token. It may be padded with zeros, as the head is, and lead to
    padding of the target's table, if `config.json` says that this was larger.

    Args:
        checkpoint: the checkpoint that holds `d2t`.
        rows: number of rows of the vocabulary head.
        vocab: number of the target's tokens.

    Raises:
        MMSpecError: if `d2t` leads elsewhere or twice to a token, or `t2d` contradicts it.
    """
    checkpoint.sizes("d2t", "draft tokens")
    checkpoint.header.check_kind("d2t", floating=False)
    d2t, marked = checkpoint.read("d2t").long(), None
    if "t2d" in checkpoint.shapes:
        checkpoint.sizes("t2d", "tokens")
        checkpoint.header.check_kind("t2d", floating=False)
        marked = checkpoint.read("t2d").bool().nonzero().flatten()
    used = len(marked) if marked is not None else int(d2t.nonzero().max()) + 1 if d2t.any() else 0
    if 0 < used < len(d2t) and is_padding(used, len(d2t)) and not d2t[used:].any():
        d2t = d2t[:used]
    tokens = torch.arange(len(d2t)) + d2t
    said = checkpoint.said("vocab_size", int, vocab)
    limit = max(said, vocab) if is_padding(said, vocab) else vocab
    fits = len(d2t) <= rows and is_padding(len(d2t), rows) and tokens.min() >= 0 and tokens.max() < limit
    if not fits or len(tokens.unique()) < len(tokens):
        raise MMSpecError(
            f"{checkpoint}: d2t of {len(d2t)} draft tokens leads to {len(tokens.unique())} tokens from "
            f"{int(tokens.min())} to {int(tokens.max())}; {rows} different ones of the target's {vocab} are needed"
        )
    if marked is not None and not marked.equal(tokens.sort().values):
        raise MMSpecError(
            f"{checkpoint}: t2d marks {len(marked)} tokens, other ones than the {len(d2t)} of d2t, which are "
            "i + d2t[i]; fetch it again"
        )
    return tokens, tokens < vocab
