"""Starting points of a training other than random weights: a draft model cut from its target, a text model that is
given eyes, or the drafter of a first stage."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, cast

from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from ..compressors import VisualCompressor
from ..drafters import (
    FeatureDrafter,
    HiVisDrafter,
    OwnEncoderDrafter,
    SharedVisionDrafter,
    TextOnlyDrafter,
    VisualProjector,
)
from ..errors import MMSpecError, shown
from ..loading import load_drafter, load_drafter_as
from ..models.twins import with_layers
from ..models.weights import is_adapted, is_plain
from ..target import Target
from ..trees import TreeBuilder


def cut_text_only(target: Target, layers: int = 2, tree: TreeBuilder | None = None) -> TextOnlyDrafter:
    """Return a draft model, to be trained, that begins as the bottom layers of its target and sees no pictures.

    Where the paper of a small draft model takes one off the shelf, this makes one for any target: the same tokens, the
    same width, fewer layers.

    Args:
        target: the model to draft for.
        layers: number of the target's layers to copy, from the bottom.
        tree: builder of the drafter's trees; the drafter's default if None.

    Raises:
        MMSpecError: for a target whose language model transformers cannot build on its own, whose layers depend on one
            another, or whose weights are quantised or not in memory; for too many layers.
    """
    return TextOnlyDrafter(target, _cut(target, layers), tree=tree)


def cut_shared_vision(target: Target, layers: int = 2, tree: TreeBuilder | None = None) -> SharedVisionDrafter:
    """Return the same with a projector, through which it reads the target's vision tower: a copy of the target's if
    that has two linear layers, as LLaVA's has, and one with random weights otherwise.

    Args:
        target, layers, tree: see `cut_text_only`.

    Raises:
        MMSpecError: see `cut_text_only`; for a target that takes no pictures, or is of no listed family.
    """
    theirs = _vision_projector(target, "cut_shared_vision")
    model = _cut(target, layers)
    return SharedVisionDrafter(target, model, _projector(theirs, target.hidden_size), tree=tree)


def cut_own_encoder(target: Target, layers: int = 2, tree: TreeBuilder | None = None) -> OwnEncoderDrafter:
    """Return a draft model of the target's own class, to be trained: copies of its encoders, which stay as they are, of
    its embeddings and of its bottom layers. So it reads whatever the target reads, with the target's positions: videos
    by M-RoPE, for instance.

    Args:
        target, layers, tree: see `cut_text_only`.

    Raises:
        MMSpecError: for a target whose layers depend on one another, whose weights are quantised or not in memory, that
            takes no media, or has fewer layers.
    """
    family = target.family
    _refuse_cutting(target, layers)
    kept = with_layers(target.model, family.decoder, [*family.layers[:layers]], [*range(layers)])
    return OwnEncoderDrafter(target, copy.deepcopy(kept).requires_grad_(True), tree=tree)


def give_eyes(target: Target, model: str, tree: TreeBuilder | None = None) -> SharedVisionDrafter:
    """Return a text model with a projector of random weights, through which it is to learn to read the target's vision
    tower (MASSV, arXiv 2505.10526).

    Args:
        target: the model to draft for.
        model: name of a language model with the target's tokenizer that reads no pictures, as for
            `mmspec.load_drafter`: a folder, a hub id, or a `TextOnlyDrafter` that was trained before.
        tree: see `cut_text_only`.

    Raises:
        MMSpecError: if it is no such model; for a target that takes no pictures, or is of no listed family.
    """
    theirs = _vision_projector(target, "give_eyes")
    lacking = (
        "gets no eyes: name a language model with the target's tokenizer that reads text alone, such as what "
        "recipe=text_only trains"
    )
    blind = load_drafter_as(TextOnlyDrafter, model, target, lacking)
    projector = VisualProjector(_vision_width(theirs), blind.draft_target.hidden_size)
    return SharedVisionDrafter(target, blind.model, projector, tree=tree)


def _vision_projector(target: Target, by: str) -> nn.Module:
    """Return the target's projector; refuse a target without a known one.

    Args:
        target: the model to draft for.
        by: the name of the caller, for errors.
    """
    name, family = type(target.model).__name__, target.family
    if "image" not in family.encoders:
        raise MMSpecError(f"{by}: {name} takes no pictures; use cut_text_only (recipe=text_only)")
    if family.vision_projector is None:
        raise MMSpecError(
            f"{by}: the visual features of {name} are not known, because it is of no listed family; use "
            "cut_text_only (recipe=text_only)"
        )
    return family.vision_projector


def _refuse_cutting(target: Target, layers: int) -> None:
    """Refuse a target of whose layers none can be copied, or not so many."""
    if any(map(is_adapted, target.model.modules())):
        raise MMSpecError(
            f"this {type(target.model).__name__} has an adapter, whose layers cannot be copied: merge it with "
            "merge_and_unload() and make the target of the result"
        )
    if not all(map(is_plain, target.family.decoder.parameters())):
        raise MMSpecError(
            f"the weights of this {type(target.model).__name__} are quantised or not all in memory, so none can be "
            "copied: load it as it was trained, cut, and use the drafter with the quantised one"
        )
    if not target.family.can_be_cut:
        raise MMSpecError(
            f"no smaller model can be cut from this {type(target.model).__name__}: its layers read the keys of others, "
            "or embeddings that are stored for all of them; train a drafter with layers of its own (recipe=eagle3), "
            "or give mmspec.load_drafter the folder of a small model of the same family"
        )
    if not 0 < layers <= len(target.family.layers):
        raise MMSpecError(f"layers={layers} must lie between 1 and the target's {len(target.family.layers)}")


def _cut(target: Target, layers: int) -> nn.Module:
    """Return a causal language model of the target's bottom layers."""
    _refuse_cutting(target, layers)
    text = target.family.text_config
    embedding, head = target.model.get_input_embeddings(), target.model.get_output_embeddings()
    tied = head.weight is embedding.weight  # a VLM's text configuration may say otherwise
    settings = text.to_dict() | {"num_hidden_layers": layers, "tie_word_embeddings": tied}
    for name in ("dtype", "model_type", "architectures"):
        settings.pop(name, None)
    if settings.get("layer_types"):
        settings["layer_types"] = settings["layer_types"][:layers]
    try:
        config = AutoConfig.for_model(text.model_type, **settings)
        model = AutoModelForCausalLM.from_config(config, attn_implementation=target.attention)
    except ValueError:
        raise MMSpecError(
            f"transformers has no causal language model for {text.model_type!r}, so none can be cut from this target; "
            "cut one of the target's own class (recipe=small_copy), or give mmspec.load_drafter the folder of a small "
            "model of the same family"
        ) from None
    pairs = [
        (model.get_input_embeddings(), embedding),
        (model.get_decoder().norm, target.family.final_norm),
        *zip(model.get_decoder().layers, target.family.layers, strict=False),
    ]
    if not tied:
        pairs.append((model.get_output_embeddings(), head))
    for ours, theirs in pairs:
        ours.load_state_dict(theirs.state_dict())
    return model


def _projector(theirs: nn.Module, hidden: int) -> VisualProjector:
    """Return a projector of the target's sizes, with a copy of its weights if it has two linear layers.

    Args:
        theirs: the target's projector.
        hidden: the target's hidden size.
    """
    linears = [part for part in theirs.modules() if isinstance(part, nn.Linear)]
    projector = VisualProjector(_vision_width(theirs), hidden)
    ours = [projector.inner, projector.outer]
    if [part.weight.shape for part in linears] == [part.weight.shape for part in ours]:
        for own, original in zip(ours, linears, strict=True):
            nn.init.zeros_(own.bias)  # the target's may have none
            own.load_state_dict(original.state_dict(), strict=False)
    return projector


def _vision_width(theirs: nn.Module) -> int:
    """Return the width of the features that the target's projector reads."""
    linears = [part for part in theirs.modules() if isinstance(part, nn.Linear)]
    return linears[0].in_features if linears else theirs.get_parameter("weight").shape[0]  # Gemma 3: a norm


def second_stage(target: Target, name: str, steps: int = 3) -> HiVisDrafter:
    """Prepare a first-stage drafter for the second stage: its residual's only row becomes the first guess of all rows.

    Args:
        target: the model to draft for.
        name: the first stage's drafter, as for `mmspec.load_drafter`.
        steps: number of rows of the residual.

    Raises:
        MMSpecError: if it is no HiViS drafter, or has more than one row already.
    """
    try:
        first = load_drafter(name, target)
    except MMSpecError as error:
        raise MMSpecError(
            f"the second stage begins with a drafter of the first, and {name!r} is none ({error}): run mmspec train "
            "recipe=hivis1 first, and give its folder best as recipe.drafter.name"
        ) from error
    if not isinstance(first, HiVisDrafter) or first.settings.steps != 1:
        raise MMSpecError(f"{name!r} is no HiViS drafter of the first stage, which has a single residual")
    first.residual = nn.Parameter(first.residual.detach().repeat(steps, 1))
    first.settings = replace(first.settings, steps=steps)
    return first


def corrected(
    target: Target, name: str = "tiny/eagle3", corrector: dict[str, Any] | None = None, tree: TreeBuilder | None = None
) -> FeatureDrafter:
    """Put a corrector on a trained head (FOVEA, arXiv 2608.22883). It begins as the identity, so that the head drafts
    what it did.

    Args:
        target: the model to draft for.
        name: the head, as for `mmspec.load_drafter`.
        corrector: settings of the corrector, see `mmspec.drafters.corrector.CorrectorSettings`; None to train the head
            on as it is, for a comparison.
        tree: builder of the drafter's trees; the drafter's default if None.

    Raises:
        MMSpecError: if it is no head on the target's states, or has a corrector already; for settings that are none.
    """
    first = load_drafter_as(FeatureDrafter, name, target, "has no states to correct: name a head such as tiny/eagle3")
    if corrector is None:
        return cast(FeatureDrafter, first.fork(tree))
    if first.corrector is not None:
        raise MMSpecError(f"{name!r} has a corrector already: train it on with start={name}, or name one without")
    told = dict(corrector) if isinstance(corrector, Mapping) else corrector
    made = type(first).from_config(first.config() | {"corrector": told}, target)
    lacking = made.load_state_dict(first.state_dict(), strict=False).missing_keys
    assert all(key.startswith("corrector.") for key in lacking), lacking
    return cast(FeatureDrafter, made.fork(tree))


def routed(
    target: Target, compressor: VisualCompressor, name: str = "tiny/eagle", tree: TreeBuilder | None = None
) -> FeatureDrafter:
    """Let a compressor choose anew before every round what a trained head sees of pictures (TIGER, arXiv 2607.11131).
    The head begins with its weights, which it had from seeing everything.

    Args:
        target: the model to draft for.
        compressor: the compressor, such as `LearnedRouting`, whose weights are new.
        name: the head, as for `mmspec.load_drafter`.
        tree: builder of the drafter's trees; the drafter's default if None.

    Raises:
        MMSpecError: if it is no head on the target's states, has a compressor already, or takes none that routes; for
            what is no compressor.
    """
    if not isinstance(compressor, VisualCompressor):
        raise MMSpecError(
            f"routed: compressor={shown(compressor)} is no VisualCompressor; pass an instance, such as LearnedRouting()"
        )
    lacking = "is not taught to see some visual tokens alone: name a head such as tiny/eagle"
    first = load_drafter_as(FeatureDrafter, name, target, lacking)
    if first.compressor is not None:
        raise MMSpecError(
            f"{name!r} has {type(first.compressor).__name__} already: train it on with start={name}, or name a head "
            "without a compressor"
        )
    made = type(first).from_config(first.config() | {"compressor": compressor.config()}, target)
    lacking = made.load_state_dict(first.state_dict(), strict=False).missing_keys
    assert all(key.startswith("compressor.") for key in lacking), lacking
    return cast(FeatureDrafter, made.fork(tree))
