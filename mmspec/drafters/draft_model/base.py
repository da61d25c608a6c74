"""The base of drafters that are small models: a session of their own, the target's tokens, saving and loading."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from ...compressors import DraftPrompt, Layout, TargetView, VisualCompressor, compressed_prompt, layout_of
from ...compressors.base import compressor_of
from ...errors import MMSpecError, shown
from ...families import Family, Vision
from ...inputs import Request, append
from ...inputs.request import OF_TOKENS
from ...lesson import WIDTHS, Guess, Lesson
from ...models.masks import whole_mask
from ...models.session import ModelSession
from ...models.states import LAST
from ...models.weights import is_adapted
from ...models.whole_texts import read_states
from ...outcome import Scores, Verdict
from ...tree import DraftTree
from ...trees import TreeBuilder
from ...trees.growth import Block
from ..reading import view_of
from ..router import Router, router_of
from ..session_step import SessionDrafter
from ..step import StepDrafter
from .outline import check_outline, model_of
from .vocabulary import check_vocabulary, fitted, known_tokens, read_block

if TYPE_CHECKING:
    from ...context import Context
    from ...files.folders import Header
    from ...target import Target


class DraftModelDrafter(SessionDrafter):
    """A drafter that is a small causal model and shares the target's tokenizer.

    The subclasses differ in what the model reads of the prompt: `TextOnlyDrafter`, `SharedVisionDrafter`,
    `OwnEncoderDrafter` and `SharedEncoderDrafter`; `as_drafter` chooses one. A subclass implements `prompt_of`, and
    `embed` if it looks at pictures.

    Args:
        target: the model to draft for.
        model: a Hugging Face model.
        processor: processor of the draft model, if it is another one than the target's.
        tree: the builder of its trees, see `Drafter`; the native one is a chain of five.
        compressor: the compressor through which it reads pictures; none by default. Positions follow entry by entry, on
            all axes of multi-axis rotary embeddings.

    Raises:
        MMSpecError: for a model that cannot read so, another vocabulary than the target's, or a compressor for a model
            that sees nothing.
    """

    mode: ClassVar[str] = ""
    """Name of the class in folders whose `config.json` names `DraftModelDrafter` and a `mode`."""

    encodes: ClassVar[bool] = False
    """True if encoders of the model's own are part of the drafter."""

    drafts_unread = True

    _router: Router | None = None  # of a request whose compressor routes

    def __init__(
        self,
        target: Target,
        model: nn.Module,
        processor: Any = None,
        tree: TreeBuilder | None = None,
        compressor: VisualCompressor | None = None,
    ):
        from ...target import Target, unwrapped

        super().__init__(target, tree)
        if type(self) is DraftModelDrafter:
            raise MMSpecError(
                "DraftModelDrafter does not say what a model reads of the prompt: use "
                "mmspec.drafters.as_drafter(target, model), or a class such as TextOnlyDrafter"
            )
        self.model = unwrapped(model)
        self.draft_target = Target(self.model, processor, target.compile, writes=target.family.writes)
        self.check_model(self.draft_target.family, target.family)
        check_vocabulary(target, self.draft_target)
        if compressor is not None:
            self.take_compressor(compressor)

    # What a subclass decides.

    def check_model(self, draft: Family, target: Family) -> None:
        """Refuse a draft model, or a target, that this way of reading is not made for; here, one that attends to
        sound."""
        if draft.cross_attends:
            raise self.unfit("it attends to sound; use SharedEncoderDrafter or OwnEncoderDrafter")

    def prompt_of(self, request: Request, vision: Vision | None) -> tuple[Request, Vision | None]:
        """Return the target's prompt as the draft model reads it, and what stands for its pictures."""
        raise NotImplementedError

    def embed(self, request: Request, vision: Vision | None) -> Tensor:
        """Return `[batch, length, hidden]` embeddings that the draft model reads as its prompt."""
        return self.draft_target.family.embed(self._known(request.inputs["input_ids"]), None)

    @property
    def reads_pictures(self) -> bool:
        """True if the draft model's prompt holds pictures, which a compressor can make shorter."""
        return False

    @property
    def eyes(self) -> Family:
        """The family that encodes the pictures."""
        return self.draft_target.family

    def unfit(self, why: str) -> MMSpecError:
        """Return the error that the model is not made for this class."""
        return MMSpecError(f"{type(self).__name__} cannot draft with {type(self.model).__name__}: {why}")

    @property
    def asks_anew(self) -> bool:  # type: ignore[override]
        """True where it reads pictures: those of its prompt's tokens that do not matter now can be hidden from what it
        reads, although later layers of other tokens have seen them."""
        return self.reads_pictures

    # Reading and drafting.

    def join(self, others: Sequence[StepDrafter]) -> None:
        """Refuse a mixture with a compressor that routes, see `StepDrafter.join`: its members read by themselves, or as
        rows of one batch, and nobody asks it there."""
        if self.compressor is not None and self.compressor.routes:
            raise MMSpecError(
                f"MixtureDrafter: {type(self.compressor).__name__} chooses anew before every round what a "
                f"{type(self).__name__} sees, and a mixture does not ask it: choose Prune, or draft with this one alone"
            )

    def take_compressor(self, compressor: VisualCompressor) -> None:
        """Read the pictures through a compressor; refuse it where the model reads none."""
        if not self.reads_pictures:
            raise MMSpecError(
                f"a {type(self).__name__} with {type(self.model).__name__} reads no pictures, so there is nothing for "
                f"{type(compressor).__name__} to compress: leave the compressor out"
            )
        self.refuse_routing(compressor)
        compressor.meet(self.target)
        compressor.attach(self.draft_target.hidden_size, self.target.hidden_size)
        if compressor.routes and next(compressor.parameters(), None) is not None:
            raise MMSpecError(
                f"{type(compressor).__name__} is learned with a head of one layer (recipe=tiger), whose entries do not "
                f"hang on what was seen before them, as those of a {type(self).__name__} do: choose Routing"
            )
        self.compressor = compressor
        self.feature_layers = tuple(compressor.layers_seen(self.target))

    def start(self, context: Context) -> None:
        """Read the prompt, in a session of the draft model."""
        super().start(context)
        request, vision = self._prompt(context.request, context.vision)
        # Under guidance it reads the other prompts too, and is led as the target is.
        read = context.rows_of(request, self.draft_target.family)
        self.session = context.sibling(self.draft_target, read.batch_size, read.max_length + context.spare_capacity)
        self.session.prefill(*self._read(read, read, vision, view_of(context)))
        self.session.follow(context.history, context.active)
        self._router = router_of(self.compressor, context)

    @property
    def reads_target(self) -> bool:
        """True if its prompt takes shape by what the target has made of its own, so that it has to be read after it."""
        compressor = self.compressor
        return compressor is not None and (compressor.needs_attention or compressor.routes or bool(self.feature_layers))

    def opening(
        self, request: Request, vision: Vision | None, view: TargetView | None = None
    ) -> tuple[Request, tuple[Any, ...]]:
        """Return the prompt as this model reads it, and the arguments of the pass over it, `ModelSession.prefill`.

        Args:
            request: the target's prompt.
            vision: what the target's encoders made of its media.
            view: what the target knows of the prompt; None where it has not read it, see `reads_target`.
        """
        read, vision = self._prompt(request, vision)
        return read, self._read(read, read, vision, view)

    def expand_root(self, root: Tensor) -> Tensor:
        """Read what is still unread, and the root; what is not to be seen in this round is hidden before."""
        if self._router is not None and (hidden := self._router.choose()) is not None:
            self.session.hide(hidden)
        return super().expand_root(root)

    def observe(self, tree: DraftTree, scores: Scores | None, verdict: Verdict) -> None:
        """Keep the accepted path, and go on to the newest state."""
        super().observe(tree, scores, verdict)
        if self._router is not None:
            self._router.observe(scores, verdict)

    def expand(self, block: Block) -> Tensor:
        """Return the logits after a block of nodes, over the target's vocabulary."""
        return read_block(self.session, block, self.target.vocab_size)

    def unroll(self, lesson: Lesson, steps: int = 1, detach: bool = False) -> Iterator[Guess]:
        """Yield the guesses of all steps, see `Drafter.unroll`. A chain of right guesses is the answer itself, so one
        pass gives the guesses of all steps; those of a later step are the first step's at later roots.

        Raises:
            MMSpecError: with a compressor that routes.
        """
        if self.compressor is not None and self.compressor.routes:
            raise MMSpecError(
                f"a {type(self).__name__} is trained in one pass over an answer, where what is seen cannot change from "
                f"round to round: train it without {type(self.compressor).__name__}, and draft with it"
            )
        prompt, lengths, states = self.states_of(lesson.prompt, lesson.vision, lesson.answers, view_of(lesson))
        family, features = self.draft_target.family, {LAST: states}
        # A state is wanted at every answer token but the last of its row.
        starts = [left - len(answer) for left, answer in zip(lengths, lesson.answers, strict=True)]
        own = replace(lesson, prompt=replace(prompt, lengths=starts), features=features)
        _, first = own.drafted(0)
        guesses = self._fit(family.head(own.states(LAST)[first]))
        for chosen, places, roots in own.each_step(steps):
            yield Guess(guesses[chosen], None, places, roots)

    def states_of(
        self,
        request: Request,
        vision: Vision | None,
        answers: Sequence[Sequence[int]],
        view: TargetView | None = None,
    ) -> tuple[Request, list[int], Tensor]:
        """Read answers behind the target's prompts, in one pass without a cache.

        Args:
            request: prompts of the target.
            vision: what the target's encoders made of their media.
            answers: token ids per row.
            view: what the target knows of all this, for compressors that ask.

        Returns:
            prompt: as this model reads it.
            lengths: per row, the entries of prompt and answer.
            states: `[batch, entries, hidden]` states behind the final norm.
        """
        prompt, vision = self._prompt(request, vision)
        read = append(prompt, answers, WIDTHS)
        family = self.draft_target.family
        embeds, position_ids, _, lengths, once, extra = self._read(read, prompt, vision, view)
        mask = whole_mask(lengths, embeds.shape[1], embeds.device)
        features = read_states(family, [LAST], embeds, mask, position_ids, once | extra)
        return prompt, lengths, features[LAST]

    def write(self, request: Request, vision: Vision | None, longest: int, ends: Collection[int]) -> list[list[int]]:
        """Return what this model writes by itself to every prompt: its likeliest token every time, up to an end token,
        which is not among them.

        Args:
            request: the target's prompts.
            vision: what the target's encoders made of their media.
            longest: at most so many tokens.
            ends: end tokens.
        """
        read, opening = self.opening(request, vision)
        session = ModelSession(self.draft_target, read.batch_size, read.max_length + longest)
        logits, device = session.prefill(*opening).logits, self.draft_target.device
        written: list[list[int]] = [[] for _ in read.lengths]
        going = [True for _ in read.lengths]
        session.follow(written, going, pending=0)
        one = torch.ones(len(going), 1, 1, dtype=torch.bool, device=device)
        for step in range(1, longest + 1):
            chosen = self._fit(logits).argmax(-1)
            for row, token in enumerate(chosen.tolist()):
                going[row] = going[row] and token not in ends
                if going[row]:
                    written[row].append(token)
            if step == longest or not any(going):
                break
            block = self._known(chosen[:, None])
            logits = session.read(block, one, torch.zeros_like(block), extends_chain=True).logits[:, 0]
            session.keep([int(on) for on in going])
        return written

    def logits_of(self, states: Tensor) -> Tensor:
        """Return logits over the target's vocabulary from states behind the final norm."""
        return self._fit(self.draft_target.family.head(states))

    def _prompt(self, request: Request, vision: Vision | None) -> tuple[Request, Vision | None]:
        """Return what `prompt_of` returns, with the inputs that the model's family adds."""
        request, vision = self.prompt_of(request, vision)
        inputs = dict(request.inputs)
        self.draft_target.family.add_missing_inputs(inputs)
        return replace(request, inputs=inputs), vision

    def _read(self, request: Request, prompt: Request, vision: Vision | None, view: TargetView | None = None) -> tuple:
        """Return the arguments of `ModelSession.prefill`: embeddings, positions, their offset, lengths, further
        arguments of this pass, and further arguments of all passes.

        Args:
            request: the draft model's prompt, or prompt and answer.
            prompt: the prompt alone.
            vision: the encoded pictures.
            view: what the target knows of the same text, for compressors that ask.
        """
        family, embeds = self.draft_target.family, self.embed(request, vision)
        positions, position_offset = family.positions_until(prompt.inputs, embeds.shape[1])
        if self.compressor is None or vision is None:
            once = family.prefill_inputs(request.inputs, vision)
            return embeds, positions, position_offset, request.lengths, once, family.lasting_inputs(vision)
        if view is not None:
            view.lap("draft_prefill")
        layout = layout_of(self.eyes, request, prompt, vision)
        none, further = position_offset.new_zeros(len(embeds)), embeds[..., :0]
        deep = None
        if self.encodes and vision.deep is not None:  # what else stands for pictures is compressed too
            deep = torch.cat(vision.deep, dim=1).movedim(0, 1)
            further = deep.new_zeros(*embeds.shape[:2], deep[0].numel())
            further[layout.visual] = deep.flatten(1)
        left = compressed_prompt(
            self.compressor,
            DraftPrompt(embeds, further, positions, layout.visual, none, position_offset),
            layout,
            scores=None if view is None else self._scores(view, layout),
        )
        if view is not None:
            view.lap("prune")
        removed = left.removed.tolist()
        lengths = [n - m for n, m in zip(request.lengths, removed, strict=True)]
        kept = None if deep is None else [left.states[left.visual].unflatten(-1, deep.shape[1:]).movedim(1, 0)]
        assert left.origin is not None  # of a compressed prompt
        kinds = {name: request.inputs[name] for name in OF_TOKENS if name in request.inputs}
        kinds = {name: value.gather(1, left.origin) for name, value in kinds.items()}
        once = family.prefill_inputs(kinds, Vision([], None, deep=kept), left.visual)
        return left.embeds, left.positions, left.position_offset, lengths, once, {}

    def _scores(self, view: TargetView, layout: Layout) -> Tensor | None:
        """Return what the target makes of each token, `[batch, length]`, if the compressor asks for it.

        Args:
            view: what the target knows of the text.
            layout: the places of the pictures in this model's own prompt.

        Raises:
            MMSpecError: if that is another one than the target's.
        """
        compressor = self.compressor
        assert compressor is not None and view.vision is not None
        if not (compressor.needs_attention or compressor.routes):
            return None
        theirs = layout_of(self.target.family, view.request, view.prompt, view.vision)
        if layout.spans != theirs.spans:
            raise MMSpecError(
                f"{type(compressor).__name__} goes by what the target looks at, and this {type(self).__name__} reads "
                "other prompts than the target (by a processor of its own, or guided ones): choose Prune or Pool"
            )
        return compressor.token_scores(self.target, view, theirs) if compressor.needs_attention else None

    def _known(self, tokens: Tensor) -> Tensor:
        """Return tokens that this model can read. What only the target's padded table holds is read as token 0: the
        target may emit it all the same, and a guess after it may be wrong."""
        return known_tokens(tokens, self.draft_target.family)

    def _fit(self, logits: Tensor) -> Tensor:
        """Return logits over the target's vocabulary."""
        return fitted(logits, self.target.vocab_size)

    # Training, saving and loading.

    def trainable_parameters(self) -> Iterator[nn.Parameter]:
        """Return all weights but those of an encoder, which is only ever run without gradients."""
        others = [part for part in self.children() if part is not self.model]
        parts = [self.model.get_decoder(), self.model.get_output_embeddings(), *others]
        return iter({id(p): p for part in parts if part is not None for p in part.parameters()}.values())

    def config(self) -> dict[str, Any]:
        """Return the settings of the model and of the compressor."""
        if any(map(is_adapted, self.model.modules())):
            raise MMSpecError("a draft model with an adapter cannot be saved: merge it with merge_and_unload() first")
        settings = self.model.config.to_diff_dict()
        settings.pop("dtype", None)  # it loads in the dtype of its target
        return {"model": settings, "compressor": None if self.compressor is None else self.compressor.config()}

    @classmethod
    def parts_of(cls, config: dict[str, Any], target: Target) -> dict[str, Any]:
        """Return the modules that a configuration describes, by the constructor's names."""
        model = model_of(config["model"], target, encodes=cls.encodes)
        return {"model": model, "compressor": compressor_of(config.get("compressor"))}

    @classmethod
    def from_config(cls, config: dict[str, Any], target: Target) -> DraftModelDrafter:
        """Rebuild the drafter, on the target's device."""
        drafter = cls(target, **cls.parts_of(config, target))
        if drafter.compressor is not None:
            drafter.compressor.to(target.dtype)
        # Moved but not cast: the rotary frequencies stay in float32 whatever the weights are in.
        return drafter.to(target.device)

    @classmethod
    def empty(cls, config: dict[str, Any], target: Target, there: Header | None = None) -> DraftModelDrafter:
        """Rebuild the drafter for weights that are brought along, see `Drafter.empty`. A model is made twice, the first
        time without numbers: a configuration says in one line how many there are to be."""
        if cls is DraftModelDrafter:
            known = {each.mode: each for each in cls.__subclasses__() if each.mode}
            if config["mode"] not in list(known):
                raise MMSpecError(f"DraftModelDrafter mode {shown(config['mode'])} is unknown; there are {list(known)}")
            return known[config["mode"]].empty(config, target, there)
        if there is not None:
            there.check_counts(config["model"])
            with torch.device("meta"):
                check_outline(cls.parts_of(config, target), target, there, cls.__name__)
        return cls.from_config(config, target)
