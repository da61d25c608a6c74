"""An independent small model as drafter: with encoders of its own, with the target's, or blind and deaf."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..compressors import DraftPrompt, VisualCompressor, compressed_prompt, layout_of
from ..compressors.base import compressor_of
from ..errors import MMSpecError, did_you_mean, shown
from ..families import Family, Vision, class_for, family_of
from ..files.folders import stored
from ..inputs import Request, append, prepare
from ..lesson import WIDTHS, Guess, Lesson
from ..models.masks import padding_mask
from ..models.states import LAST, capture
from ..models.weights import is_adapted
from ..trees import TreeBuilder
from ..trees.growth import Block
from .projector import VisualProjector
from .session_step import SessionDrafter

if TYPE_CHECKING:
    from ..context import Context
    from ..files.folders import Header
    from ..target import Target

MODES = ("own_vision", "shared_vision", "shared_encoder", "text_only")

LARGEST_COMPUTED = 2**28
"""Bytes of what a model that is loaded computes for itself, such as masks and frequencies of rotary positions."""


class DraftModelDrafter(SessionDrafter):
    """A drafter that is a small causal model and shares the target's tokenizer.

    Args:
        target: the model to draft for.
        model: a Hugging Face model: one that takes media for `own_vision`, a causal LM otherwise.
        mode: the source of its sight and hearing.
            `own_vision`: the draft model encodes the pictures or the sound itself.
            `shared_encoder`: its decoder attends to what the target's encoder has made of the sound, which is encoded
            once (Distil-Whisper, arXiv 2311.00430, whose encoder is a copy of the target's). An encoder that the draft
            model may have is left idle.
            `shared_vision`: the pictures are encoded once, by the target's tower; `projector` maps the tower's features
            into the draft model (Spec-LLaVA, arXiv 2509.11961; MASSV, arXiv 2505.10526).
            `text_only`: pictures are left out of the draft prompt (Gagrani et al., arXiv 2404.08856). Its prompt is
            shorter than the target's, and so are its positions.
        projector: for `shared_vision`, a module from `[tokens, vision_hidden]` to `[tokens, draft_hidden]`.
        processor: for `own_vision`, if the draft model needs another one than the target. Of a Whisper, whose tokens
            are the target's, it only hears the sound anew.
        tree: the builder of its trees; a chain of five by default.
        compressor: the compressor through which it reads pictures; none by default. Positions follow entry by entry, on
            all axes of multi-axis rotary embeddings.

    Raises:
        MMSpecError: for an unknown mode, a missing or superfluous projector, another vocabulary than the target's, or a
            compressor for a model that sees nothing.
    """

    def __init__(
        self,
        target: Target,
        model: nn.Module,
        mode: str = "own_vision",
        projector: nn.Module | None = None,
        processor=None,
        tree: TreeBuilder | None = None,
        compressor: VisualCompressor | None = None,
    ):
        from ..target import Target, unwrapped

        super().__init__(target, tree)
        model = unwrapped(model)
        if mode not in MODES:
            raise MMSpecError(f"DraftModelDrafter mode {mode!r} is unknown.{did_you_mean(mode, MODES)}")
        if (projector is not None) != (mode == "shared_vision"):
            raise MMSpecError("DraftModelDrafter: a projector belongs to mode='shared_vision', and to no other")
        self.mode = mode
        self.model = model
        self.projector = projector
        self.draft_target = Target(model, processor, target.compile, writes=target.family.writes)
        _check_mode(mode, self.draft_target.family, target.family)
        _check_vocabulary(target, self.draft_target)
        if compressor is not None:
            self.take_compressor(compressor)

    def take_compressor(self, compressor: VisualCompressor) -> None:
        """Read the pictures through a compressor; refuse it where the model reads none."""
        if self.mode == "text_only" or self.draft_target.family.cross_attends:
            how = f"a {type(self.model).__name__} in mode={self.mode!r}"
            raise MMSpecError(
                f"{how} reads no pictures, so there is nothing for {type(compressor).__name__} to compress"
            )
        compressor.attach(self.draft_target.hidden_size, self.target.hidden_size)
        self.compressor = compressor

    def start(self, context: Context) -> None:
        """Read the prompt, in a session of the draft model."""
        super().start(context)
        request, vision = self._prompt(context.request, context.vision)
        # Under guidance it reads the other prompts too, and is led as the target is.
        read = context.rows_of(request, self.draft_target.family)
        self.session = context.sibling(self.draft_target, read.batch_size, read.max_length + context.spare_capacity)
        self.session.prefill(*self._read(read, read, vision))
        self.session.follow(context.history, context.active)

    def expand(self, block: Block) -> Tensor:
        """Return the logits after a block of nodes, over the target's vocabulary."""
        read = self.session.read(self._known(block.tokens), block.visible, block.depth, block.extends_chain)
        return self._fit(read.logits)

    def unroll(self, lesson: Lesson, steps: int = 1, detach: bool = False) -> Iterator[Guess]:
        """Yield the guesses of all steps, see `Drafter.unroll`. A chain of right guesses is the answer itself, so one
        pass gives the guesses of all steps; those of a later step are the first step's at later roots."""
        prompt, vision = self._prompt(lesson.prompt, lesson.vision)
        request = append(prompt, lesson.answers, WIDTHS)
        family = self.draft_target.family
        embeds, position_ids, _, lengths, once, extra = self._read(request, prompt, vision)
        mask = padding_mask(lengths, embeds.shape[1], embeds.device)
        if mask is None:  # transformers would take gaps between positions for the ends of texts packed into one row
            mask = torch.ones(embeds.shape[:2], dtype=torch.long, device=embeds.device)
        with capture(family, [LAST]) as features:
            family.run(
                inputs_embeds=embeds,
                attention_mask=mask,
                position_ids=position_ids,
                use_cache=False,
                logits_to_keep=1,
                **once,
                **extra,
            )
        # A state is wanted at every answer token but the last of its row.
        starts = [left - len(answer) for left, answer in zip(lengths, lesson.answers, strict=True)]
        own = replace(lesson, prompt=replace(prompt, lengths=starts), features=features)
        valid, first = own.drafted(0)
        guesses = self._fit(family.head(own.states(LAST)[first]))
        number = torch.full((len(own.tokens),), -1, device=first.device)
        number[first] = torch.arange(len(first), device=first.device)
        for step in range(steps):
            valid, places = own.drafted(step)
            if not valid.any():
                return
            yield Guess(guesses[number[places]], None, places, valid.flatten().nonzero()[:, 0])

    def trainable_parameters(self) -> Iterator[nn.Parameter]:
        """Return all weights but those of an encoder of its own, which is only ever run without gradients."""
        if self.mode in ("shared_vision", "text_only"):
            return self.parameters()
        parts = (self.model.get_decoder(), self.model.get_output_embeddings(), self.compressor)
        return iter({id(p): p for part in parts if part is not None for p in part.parameters()}.values())

    def _prompt(self, request: Request, vision: Vision | None) -> tuple[Request, Vision | None]:
        """Return the target's prompt as the draft model reads it, and what stands for its pictures."""
        if self.mode == "text_only":
            request, vision = _without_images(request, self.target.family.placeholders), None
        elif self.mode == "shared_vision":
            if vision is not None and vision.features is None:
                raise MMSpecError(
                    "what the vision tower saw is not known, which a draft model with mode='shared_vision' reads: "
                    "the pictures were passed encoded (then pass their pixels instead of mm_encoder_outputs), or "
                    f"{type(self.target.model).__name__} is of no listed family; use mode='own_vision' or 'text_only'"
                )
        elif self.mode == "own_vision":
            request, vision = self._encoded(request, vision)
        inputs = dict(request.inputs)
        self.draft_target.family.add_missing_inputs(inputs)
        return replace(request, inputs=inputs), vision

    def _encoded(self, request: Request, vision: Vision | None) -> tuple[Request, Vision | None]:
        """Return the prompt with its media, encoded by the draft model itself."""
        own = self.draft_target
        if own.processor is None or (own.family.cross_attends and request.conversations is None):
            pixels = own.family.sample_inputs
            if vision is not None and all(request.inputs.get(name) is None for name in pixels):
                raise MMSpecError(
                    f"the media were passed encoded and without {' or '.join(pixels)}, which a draft model with "
                    "mode='own_vision' reads; pass them as the processor returned them"
                )
        elif request.conversations is None:
            raise MMSpecError(
                "a draft model with its own processor needs the prompt and the media; call generate(prompt=, images=) "
                "or generate(audio=) instead of generate(inputs=)"
            )
        elif own.family.cross_attends:  # the tokens are the decoder's, of one vocabulary; the sound is another matter
            heard = own.family.features_of(own, request.distinct.conversations or [])
            inputs = {name: value.to(own.family.dtype_of(name, value)) for name, value in heard.items()}
            request = request.showing({name: value.to(own.device) for name, value in inputs.items()})
        else:
            asked: dict[str, Any] = {
                "messages": request.distinct.conversations,
                "chat_template_kwargs": request.template_settings or None,
            }
            request = own.repeat(prepare(own, **asked), request.copies)
        return request, own.encode(request)

    def _read(self, request: Request, prompt: Request, vision: Vision | None) -> tuple:
        """Return the arguments of `ModelSession.prefill`: embeddings, positions, their offset, lengths, further
        arguments of this pass, and further arguments of all passes.

        Args:
            request: the draft model's prompt, or prompt and answer.
            prompt: the prompt alone.
            vision: the encoded pictures.
        """
        family, embeds = self.draft_target.family, self._embed(request, vision)
        positions, position_offset = family.positions_until(prompt.inputs, embeds.shape[1])
        if self.compressor is None or vision is None:
            once = family.prefill_inputs(request.inputs, vision)
            return embeds, positions, position_offset, request.lengths, once, family.lasting_inputs(vision)
        eyes = self.target.family if self.mode == "shared_vision" else family
        layout = layout_of(eyes, request, prompt, vision)
        none, further = position_offset.new_zeros(len(embeds)), embeds[..., :0]
        deep = None
        if self.mode == "own_vision" and vision.deep is not None:  # what else stands for pictures is compressed too
            deep = torch.cat(vision.deep, dim=1).movedim(0, 1)
            further = deep.new_zeros(*embeds.shape[:2], deep[0].numel())
            further[layout.visual] = deep.flatten(1)
        left = compressed_prompt(
            self.compressor, DraftPrompt(embeds, further, positions, layout.visual, none, position_offset), layout
        )
        removed = left.removed.tolist()
        lengths, starts = ([n - m for n, m in zip(each.lengths, removed, strict=True)] for each in (request, prompt))
        kept = None if deep is None else [left.states[left.visual].unflatten(-1, deep.shape[1:]).movedim(1, 0)]
        types = family.token_types(left.visual, starts)
        once = family.prefill_inputs({"token_type_ids": types}, Vision([], None, deep=kept), left.visual)
        return left.embeds, left.positions, left.position_offset, lengths, once, {}

    def _embed(self, request: Request, vision: Vision | None) -> Tensor:
        """Return `[batch, length, hidden]` embeddings that the draft model reads as its prompt."""
        ids, family = request.inputs["input_ids"], self.draft_target.family
        if self.mode == "own_vision":
            return family.embed(ids, vision)
        embeds = family.embed(self._known(ids), None)
        if vision is None or self.projector is None:
            return embeds
        assert vision.features is not None, "refused in _prompt"
        visual = self.target.family.is_visual(ids)
        dtype = next(self.projector.parameters(), vision.features[0]).dtype
        projected = [self.projector(features.to(dtype)) for features in vision.features]
        return embeds.masked_scatter(visual[..., None], torch.cat(projected).to(embeds))

    def _known(self, tokens: Tensor) -> Tensor:
        """Return tokens that this model can read. What only the target's padded table holds is read as token 0: the
        target may emit it all the same, and a guess after it may be wrong."""
        return tokens.masked_fill(tokens >= self.draft_target.family.known_ids, 0)

    def _fit(self, logits: Tensor) -> Tensor:
        """Return logits over the target's vocabulary: models pad their embedding tables differently."""
        vocab = self.target.vocab_size
        if logits.shape[-1] >= vocab:
            return logits[..., :vocab]
        return nn.functional.pad(logits, (0, vocab - logits.shape[-1]), value=float("-inf"))

    def config(self) -> dict[str, Any]:
        """Return the mode, and the settings of the model, the projector and the compressor."""
        projector = None
        if self.projector is not None:
            if not isinstance(self.projector, VisualProjector):
                raise MMSpecError(f"a {type(self.projector).__name__} projector cannot be saved; use VisualProjector")
            projector = self.projector.sizes
        if any(map(is_adapted, self.model.modules())):
            raise MMSpecError("a draft model with an adapter cannot be saved: merge it with merge_and_unload() first")
        settings = self.model.config.to_diff_dict()
        settings.pop("dtype", None)  # it loads in the dtype of its target
        compressor = None if self.compressor is None else self.compressor.config()
        return {"mode": self.mode, "model": settings, "projector": projector, "compressor": compressor}

    @classmethod
    def from_config(cls, config: dict[str, Any], target: Target) -> DraftModelDrafter:
        """Rebuild the drafter, on the target's device."""
        model, projector, compressor = _parts(config, target)
        drafter = cls(target, model, config["mode"], projector, compressor=compressor)
        if compressor is not None:
            compressor.to(target.dtype)
        # Moved but not cast: the rotary frequencies stay in float32 whatever the weights are in.
        return drafter.to(target.device)

    @classmethod
    def empty(cls, config: dict[str, Any], target: Target, there: Header | None = None) -> DraftModelDrafter:
        """Rebuild the drafter for weights that are brought along, see `Drafter.empty`. A model is made twice, the first
        time without numbers: a configuration says in one line how many there are to be."""
        if there is not None:
            if config["mode"] not in MODES:
                raise MMSpecError(f"DraftModelDrafter mode {shown(config['mode'])} is unknown; there are {MODES}")
            there.check_counts(config["model"])
            outline: Any = nn.Module()
            with torch.device("meta"):
                outline.model, outline.projector, outline.compressor = _parts(config, target)
                if outline.compressor is not None:
                    hidden = outline.model.config.get_text_config().hidden_size
                    outline.compressor.attach(hidden, target.hidden_size)
            there.check_fits(stored(outline), cls.__name__)
            kept = {id(tensor) for tensor in outline.state_dict(keep_vars=True).values()}
            computed = sum(buffer.nbytes for buffer in outline.buffers() if id(buffer) not in kept)
            if computed > LARGEST_COMPUTED:
                raise MMSpecError(
                    f"{there.source}: the {type(outline.model).__name__} of its config.json computes tables of "
                    f"{computed} bytes, and at most {LARGEST_COMPUTED} are made; correct its sizes"
                )
        return cls.from_config(config, target)


def _parts(config: dict[str, Any], target: Target) -> tuple[nn.Module, VisualProjector | None, VisualCompressor | None]:
    """Return the model, the projector and the compressor that a configuration describes."""
    from transformers import AutoConfig

    settings = _settings(config["model"])
    model_config = AutoConfig.for_model(settings.pop("model_type"), **settings)
    loader = class_for(model_config, sees=config["mode"] == "own_vision")
    options = {"dtype": target.dtype, "attn_implementation": target.attention, "trust_remote_code": False}
    model = loader.from_config(model_config, **options)
    projector = VisualProjector(*config["projector"]).to(target.dtype) if config.get("projector") else None
    return model, projector, compressor_of(config.get("compressor"))


def _settings(values: Any) -> Any:
    """Return settings of a model without those that name code: the place of its classes, and kernels to be fetched."""
    if isinstance(values, dict):
        named = {name: value for name, value in values.items() if not name.startswith("_") and name != "auto_map"}
        return {name: _settings(value) for name, value in named.items()}
    return values


def _without_images(request: Request, placeholders: Collection[int]) -> Request:
    """Return the prompt with every placeholder left out."""
    rows = [[token for token in ids if token not in placeholders] for ids in request.token_ids()]
    lengths = [len(row) for row in rows]
    if min(lengths) == 0:
        raise MMSpecError("a prompt without its images is empty, so a text_only draft model has nothing to read")
    device = request.inputs["input_ids"].device
    ids = torch.tensor([row + [0] * (max(lengths) - len(row)) for row in rows], device=device)
    mask = torch.arange(max(lengths), device=device) < torch.tensor(lengths, device=device)[:, None]
    return Request({"input_ids": ids, "attention_mask": mask.long()}, lengths)


def mode_of(target: Target, model: nn.Module) -> str:
    """Choose how a model drafts if nobody says: with all that it can see and hear, and no sound encoded twice alike."""
    family = family_of(model)
    if not family.cross_attends:
        return "own_vision" if family.kinds else "text_only"
    return "shared_encoder" if family.hears_like(target.family) else "own_vision"


def _check_mode(mode: str, draft: Family, target: Family) -> None:
    """Refuse a mode that the draft model, or the target, is not made for."""
    name = type(draft.model).__name__
    if mode == "own_vision" and not draft.kinds:
        other = "shared_encoder" if draft.cross_attends else "text_only"
        raise MMSpecError(
            f"DraftModelDrafter: mode='own_vision' needs a model that takes pictures or sound, {name} takes none; use "
            f"mode={other!r}"
        )
    if draft.cross_attends != (mode == "shared_encoder") and not (draft.cross_attends and mode == "own_vision"):
        fits = "'own_vision' or 'shared_encoder'" if draft.cross_attends else "another mode"
        raise MMSpecError(f"DraftModelDrafter: mode={mode!r} does not fit {name}; use {fits}")
    if draft.cross_attends and not target.cross_attends:
        raise MMSpecError(f"DraftModelDrafter: {name} attends to sound, which {type(target.model).__name__} does not")
    if mode == "shared_encoder" and draft.text_config.hidden_size != target.text_config.hidden_size:
        raise MMSpecError(
            f"DraftModelDrafter: mode='shared_encoder': {name} attends to states of width "
            f"{draft.text_config.hidden_size}, and the target's encoder makes those of "
            f"{target.text_config.hidden_size}; use mode='own_vision'"
        )


def _check_vocabulary(target: Target, draft: Target) -> None:
    """Refuse a draft model whose token ids mean something else; embedding tables may be padded to different sizes."""
    ours, theirs = target.tokenizer, draft.tokenizer
    apart = ours is not None and theirs is not None and ours is not theirs
    if apart and ours.get_vocab() != theirs.get_vocab():
        raise MMSpecError(
            f"the draft model's tokenizer ({len(theirs.get_vocab())} tokens) is not the target's "
            f"({len(ours.get_vocab())} tokens): they must share one; choose a draft model of the target's family"
        )
    if target.vocab_size != draft.vocab_size and (not apart or target.family.writes != "text"):
        raise MMSpecError(
            f"target vocab is {target.vocab_size} but the drafter's is {draft.vocab_size}: they must share a "
            "tokenizer; if they do and only their padding differs, give both models their processor to compare"
        )
