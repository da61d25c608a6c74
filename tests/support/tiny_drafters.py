"""Drafters of every kind with random weights for any tiny target, and a record of what a drafter proposes."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import models
import torch
from tiny_requests import one_picture, target_of

from mmspec.compressors import Elastic, FeatureGuided
from mmspec.drafters import (
    AasdDrafter,
    DFlashDrafter,
    Drafter,
    DraftModelDrafter,
    DreamDrafter,
    DSparkDrafter,
    Eagle3Drafter,
    EagleDrafter,
    EarlyExitDrafter,
    Gemma4AssistantDrafter,
    HiVisDrafter,
    JacobiDrafter,
    LiLiCorrDrafter,
    LookaheadDrafter,
    MedusaDrafter,
    MixtureDrafter,
    MsdDrafter,
    MtpDrafter,
    NGramDrafter,
    PEagleDrafter,
    ReferenceDrafter,
    SharedVisionDrafter,
    SkippingDrafter,
    SparseToDenseDrafter,
    SpecFlashDrafter,
    SuffixDrafter,
    TextOnlyDrafter,
    V5e0Drafter,
    ViSpecDrafter,
    VisualProjector,
    as_drafter,
)
from mmspec.drafters.gemma4_assistant import new_assistant
from mmspec.inputs import prepare
from mmspec.tree import DraftTree


@cache
def blurred_drafter(name: str, attention: str) -> DraftModelDrafter:
    """A drafter that is right some of the time: the target's own model with noise on its weights, also on those of its
    encoders."""
    target = target_of(name, attention)
    return as_drafter(target, models.short_sighted(models.blurred(target.model)))


def text_drafter(name: str, attention: str) -> DraftModelDrafter:
    """A random language model of another kind, which never sees a picture."""
    return TextOnlyDrafter(target_of(name, attention), models.llama(attention, seed=5, layers=1))


def shared_vision_drafter(name: str, attention: str) -> DraftModelDrafter:
    """A random language model that reads the target's vision tower through a random projector."""
    target, model = target_of(name, attention), models.llama(attention, seed=6, layers=2)
    vision = target.encode(prepare(target, inputs=one_picture(name)))
    projector = models.redraw(VisualProjector(vision.features[0].shape[-1], models.TEXT["hidden_size"]), seed=0)
    return SharedVisionDrafter(target, model, projector)


def eagle_drafter(name: str, attention: str) -> EagleDrafter:
    return models.redraw(EagleDrafter(target_of(name, attention)), seed=8)


def eagle3_drafter(name: str, attention: str) -> Eagle3Drafter:
    """One that can propose every third token only."""
    tokens = torch.arange(1, models.VOCAB, 3)
    drafter = Eagle3Drafter(target_of(name, attention), draft_vocab_size=len(tokens))
    drafter.choose_vocabulary(tokens)
    return models.redraw(drafter, seed=9)


def dream_drafter(name: str, attention: str) -> DreamDrafter:
    """One that keeps half of the visual tokens, and whose gates are open."""
    drafter = models.redraw(DreamDrafter(target_of(name, attention), compressor=FeatureGuided(0.5)), seed=10)
    for gate in (drafter.layers[1].cross_attn_attn_gate, drafter.layers[1].cross_attn_mlp_gate):
        gate.data.fill_(1.0)
    return drafter


def mixture_drafter(name: str, attention: str) -> MixtureDrafter:
    """A small model and a copy of it, which read together, and a head with a smaller vocabulary. Weights are fixed:
    what is learnt depends on which rounds were drafted."""
    text = text_drafter(name, attention)
    members = [text, eagle3_drafter(name, attention), text.fork()]
    return MixtureDrafter(target_of(name, attention), members, [0.25, 0.5, 0.25])


def head_of(make, seed: int):
    """A builder of heads with random weights, in use rather than in training."""
    return lambda name, attention: models.redraw(make(target_of(name, attention)), seed).eval()


# Drafters that need weights, built on tiny random models for any family and back end.
DRAFT_MODELS = {"own model": blurred_drafter, "shared vision": shared_vision_drafter, "text only": text_drafter}
VISUAL_HEADS = {
    "hivis": head_of(HiVisDrafter, 11),
    "msd": head_of(MsdDrafter, 12),
    "vispec": head_of(ViSpecDrafter, 13),
    "fovea": head_of(
        lambda target: Eagle3Drafter(target, corrector={"depth": 2, "inner": 8, "least": 2, "most": 3}), 15
    ),
    "specvlm": head_of(lambda target: EagleDrafter(target, input_norm=True, compressor=Elastic()), 14),
}
TINY_DRAFTERS = {
    **DRAFT_MODELS,
    "eagle": eagle_drafter,
    "eagle3, fewer tokens": eagle3_drafter,
    "dream, guided": dream_drafter,
    "medusa": head_of(lambda target: MedusaDrafter(target, heads=3, layers=2), 15),
    "mixture": mixture_drafter,
    "mtp": head_of(lambda target: MtpDrafter(target, head_norms=True, gate=True, turned=4), 17),
    "peagle": head_of(lambda target: PEagleDrafter(target, layers=2, depths=5), 20),
    "mtp, in a row": head_of(lambda target: MtpDrafter(target, layers=3), 18),
    "aasd": head_of(AasdDrafter, 21),
    "specflash": head_of(lambda target: SpecFlashDrafter(target, tokens=2), 22),
    "v5e0": head_of(lambda target: V5e0Drafter(target, heads=3), 16),
    "dflash": head_of(DFlashDrafter, 16),
    "dflash, shifted": head_of(
        lambda target: DFlashDrafter(target, layout="shifted", mask_token_id=3, causal=True, block_size=4), 17
    ),
    "dflash 2": head_of(
        lambda target: DFlashDrafter(target, conv_kernel=2, selector_rank=4, selector_top_k=5, block_size=5), 19
    ),
    "dspark": head_of(lambda target: DSparkDrafter(target, markov="rnn", markov_rank=6, block_size=5), 18),
    "lilicorr": head_of(lambda target: LiLiCorrDrafter(target, candidates=5, lattice_size=8, block_size=5), 20),
    "early exit, block": head_of(lambda target: EarlyExitDrafter(target, layers=1, imitation="block", blocks=2), 21),
    "early exit, mlp": head_of(lambda target: EarlyExitDrafter(target, layers=2, imitation="mlp", inner=24), 22),
    **VISUAL_HEADS,
}


# What needs no weights: the text so far, or the target itself.
WITHOUT_WEIGHTS = {
    "ngram": lambda name, attention: NGramDrafter(target_of(name, attention)),
    "suffix": lambda name, attention: SuffixDrafter(target_of(name, attention)),
    "reference": lambda name, attention: ReferenceDrafter(target_of(name, attention)),
    "jacobi": lambda name, attention: JacobiDrafter(target_of(name, attention), window=4),
    "lookahead": lambda name, attention: LookaheadDrafter(target_of(name, attention), window=4, ngram=3),
    "sp2ec": lambda name, attention: SkippingDrafter(target_of(name, attention)),
    "std": lambda name, attention: SparseToDenseDrafter(target_of(name, attention), keep=0.5),
    "early exit": lambda name, attention: EarlyExitDrafter(target_of(name, attention), layers=2),
}


def gemma4_assistant(name: str, attention: str) -> Gemma4AssistantDrafter:
    return models.redraw(new_assistant(target_of(name, attention), layers=3), 20).eval()


# Drafters that fit one kind of target: their class, and that target.
OF_ONE_TARGET = {
    "gemma4 assistant": (gemma4_assistant, Gemma4AssistantDrafter, "gemma4_text"),
}
# Without pictures they are no more than EAGLE, or cannot be built.
NEED_PICTURES = {"shared vision", *VISUAL_HEADS}
# Entries are left out, which sliding windows do not allow.
NEED_NO_WINDOWS = {"drafter=std", "sparse"}


@dataclass
class Draft:
    """A tree as it was drafted, with the tokens of each row at that time (the root last)."""

    tree: DraftTree
    history: list[list[int]]
    active: list[bool]


def record_drafts(monkeypatch, cls: type[Drafter]) -> list[Draft]:
    """Every tree that drafters of a class propose from now on."""
    drafts, draft = [], cls.draft

    def recording(self, root):
        tree = draft(self, root)
        drafts.append(Draft(tree, [list(history) for history in self.context.history], list(self.context.active)))
        return tree

    monkeypatch.setattr(cls, "draft", recording)
    return drafts
