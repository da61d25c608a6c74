"""ParallelDrafter: a draft model that writes the next window while the target judges this one."""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from ...compressors import VisualCompressor
from ...errors import MMSpecError, shown
from ...families import Vision
from ...inputs import Request
from ...models.session import ModelSession
from ...models.tensor_parallel import is_divided
from ...models.transfer import to_device
from ...models.weights import count_weights
from ...outcome import Scores, Verdict
from ...settings.arguments import as_int, flags, instance, one_of, whole_number
from ...tree import DraftTree, Foreseen
from ...trees import Proposals
from ..base import Drafter
from ..draft_model import DraftModelDrafter
from ..reading import view_of
from .guesses import Foresight
from .pace import Pace
from .process import DraftProcess
from .writer import ChainWriter, First

if TYPE_CHECKING:
    from ...context import Context
    from ...target import Target

AUTO: Literal["auto"] = "auto"
SHORTEST = 2
"""The first token of a window written ahead is the guess of the bonus: with one token there would be no window."""


class ParallelDrafter(Drafter):
    """A draft model that works while its target does: ParallelVLM (arXiv 2603.19610), HIPPO (arXiv 2601.08273) and
    their common ancestor PEARL (Liu et al., arXiv 2408.11850) are settings of it.

    While the target judges window i, the drafter goes on behind its last token: with a guess of the bonus that the
    target gives after a window that it accepts whole, and then with window i + 1. If the guess is right, that window is
    judged next, at once. Otherwise it is dropped and the drafter's cache is rolled back to what was emitted.

    `after_rejection` says what happens where no window is there, at the beginning or after a rejection. `"draft"`
    (ParallelVLM): the target waits until one is drafted. `"check"` (HIPPO's conservative mode, PEARL's pre-verify): the
    target makes its pass over the newest token alone, which checks the first token that the drafter writes meanwhile;
    the drafter stops early if that token fails. Both are the same step, with windows of different length: a window that
    is empty is accepted whole by nature. Every row of a batch has a mode of its own.

    Faithful: the two modes, the window floor(T_target / T_draft), parallel prefill with one window drafted before.
    Ours: PEARL judges the first token of the next window in the next pass; here it is compared with the bonus at once,
    which the target's pass has given already, so a wrong one is never followed. Its own `window` counts that guess.

    Lossless with every lossless verifier. At temperature 0 and with `PointMassSampling` the text is that of plain
    decoding with the same seed, whatever the window. With `RejectionSampling` the guess of the bonus is a draw from q,
    and judged as one (`DraftTree.foreseen`): it is right with probability sum(min(p, q)). Which sample is drawn depends
    on the window, which is not measured there but follows from the sizes of both models, so that a seed repeats its
    text.

    Needs no training beyond that of the draft model.

    Args:
        target: the model to draft for.
        drafter: the draft model with its way of reading, and perhaps a compressor; it is used in copies.
        window: tokens that are written ahead in a round, the guess of the bonus among them, 2 or more; `"auto"` for the
            target's time of a pass divided by the drafter's of a token, measured while the text is written.
        after_rejection: `"draft"` or `"check"`, see above.
        process: whether the draft model works in a process of its own, which is started by the first request and serves
            all that follow. Otherwise it works in a thread: there the kernels of both models run side by side, and
            Python does not.
        overlap: True for both sides side by side; False to let them take turns on one device, where the clock tells
            what overlap would give (`Stats.projected_decode_seconds`); None to choose: in turn on an accelerator, or
            with a single core.
        longest: the longest window that `"auto"` chooses.

    Raises:
        MMSpecError: for a drafter that is no draft model, one for another target, a compressor that chooses anew before
            every round, a process for a model on an accelerator, a target under tensor parallelism, and values out of
            range.
    """

    shared = ("known", "helpers")  # type: ignore[assignment]

    inner: DraftModelDrafter

    def __init__(
        self,
        target: Target,
        drafter: DraftModelDrafter,
        window: int | Literal["auto"] = AUTO,
        after_rejection: Literal["draft", "check"] = "draft",
        process: bool = False,
        overlap: bool | None = None,
        longest: int = 16,
    ):
        super().__init__(target)
        instance(self, DraftModelDrafter, "mmspec.drafters.as_drafter(target, model)", drafter=drafter)
        if drafter.target is not target and drafter.target.model is not target.model:
            raise MMSpecError(
                f"ParallelDrafter: the {type(drafter).__name__} was made for another target: make it anew"
            )
        if window != AUTO and (as_int(window) or 0) < SHORTEST:
            raise MMSpecError(
                f"ParallelDrafter: window={shown(window)} must be {AUTO}, or a whole number, {SHORTEST} or more"
            )
        self.longest = whole_number(self, longest=longest, lowest=SHORTEST)
        self.window: int | None = None if window == AUTO else as_int(window)
        self.after_rejection = one_of(self, ("draft", "check"), after_rejection=after_rejection)
        flags(self, process=process, **({} if overlap is None else {"overlap": overlap}))
        self.process, self.overlap = process, overlap
        device = drafter.draft_target.device
        if process and device.type != "cpu":
            raise MMSpecError(
                f"ParallelDrafter: process=true is for draft models on a processor, and this one is on {device}; leave "
                "process=false"
            )
        if is_divided(target):
            raise MMSpecError(
                f"ParallelDrafter: the heads of {type(target.model).__name__} are divided among processes, which would "
                "stop drafting at different times; draft with the draft model alone, or load the target with device_map"
            )
        self.helpers: dict[str, DraftProcess] = {}
        self._foresight: Foresight | None = None
        inner = drafter.fork()
        assert isinstance(inner, DraftModelDrafter)
        self._take(inner)

    def _take(self, inner: DraftModelDrafter) -> None:
        """Draft with a draft model."""
        compressor = inner.compressor
        if compressor is not None and compressor.routes:
            raise MMSpecError(
                f"ParallelDrafter: {type(compressor).__name__} chooses before every round what is seen of pictures, "
                "and windows are written before their round begins: choose Prune, or draft with the draft model alone"
            )
        self.inner, self.feature_layers = inner, inner.feature_layers

    def with_compressor(self, compressor: VisualCompressor) -> Drafter:
        """Return this drafter with another view of the pictures: a copy that shares its weights."""
        drafter = self.fork()
        assert isinstance(drafter, ParallelDrafter)
        inner = self.inner.with_compressor(compressor)
        assert isinstance(inner, DraftModelDrafter)
        drafter._take(inner)
        return drafter

    def save_pretrained(self, folder: Any, **metadata: Any) -> None:
        """Refuse to be saved: what there is to save is the draft model."""
        raise MMSpecError(
            "a ParallelDrafter cannot be saved: save its draft model, drafter.inner.save_pretrained(FOLDER)"
        )

    def native_tree(self) -> None:
        """Return None: windows are chains of its own."""

    @property
    def drafts_unread(self) -> bool:
        """True: it goes by tokens alone."""
        return True

    @property
    def max_nodes(self) -> int:
        """The longest window."""
        return self.window or self.longest

    @property
    def in_turn(self) -> bool:  # type: ignore[override]
        """True if the two sides take turns."""
        if self.overlap is not None:
            return not self.overlap
        if self.process:
            return False
        return self.inner.draft_target.device.type != "cpu" or cores() < 2

    def close(self) -> None:
        """End the process, if there is one; the next request starts another."""
        for helper in [*self.helpers.values()]:
            helper.close()
        self.helpers.clear()

    # A request.

    def anticipate_prompt(self, request: Request, vision: Vision | None, spare: int, proposals: Proposals) -> None:
        """Read the prompt, guess the first token and write a window behind it, while the target reads its own prompt.

        A compressor that goes by what the target has made of the prompt has to wait for it: nothing is done then.
        """
        if self.inner.reads_target:
            return
        read, opening = self.inner.opening(request, vision)
        texts = request.token_ids()
        self._begin(read, opening, texts, [True] * len(texts), spare, proposals, guessed=True)
        self._write([True] * len(texts), proposals)

    def start(self, context: Context) -> None:
        """Read the prompt, unless it was read beside the target."""
        self.context = context
        if self._foresight is not None:
            self._foresight.writer.follow(context.active)
            return self._foresight.go_on(context.history)
        texts, spare = [[*history] for history in context.history], context.spare_capacity
        if context.rows_of(context.request, self.target.family) is context.request:
            read, opening = self.inner.opening(context.request, context.vision, view_of(context))
            self._begin(read, opening, texts, context.active, spare, context.proposals, guessed=False)
        elif self.process:
            raise MMSpecError("ParallelDrafter: process=true has no guidance; leave guidance_scale or process out")
        else:  # it reads the other prompts too, and is led as the target is
            self.inner.start(context)
            vocab = self.target.vocab_size
            writer = ChainWriter(self.inner.session, texts, context.active, context.proposals, vocab)
            self._foresight = Foresight(writer, [*map(len, texts)])

    def _begin(
        self,
        read: Request,
        opening: tuple,
        texts: list[list[int]],
        active: list[bool],
        spare: int,
        proposals: Proposals,
        guessed: bool,
    ) -> None:
        """Let the draft model read the prompt, wherever it works.

        Args:
            read, opening: see `DraftModelDrafter.opening`.
            texts: per row, the tokens so far.
            active: per row, False once it has ended.
            spare: tokens to reserve behind the longest prompt.
            proposals: how tokens are chosen.
            guessed: True if the texts end with the prompts, and the model is to guess the first token.
        """
        capacity, lengths = read.max_length + spare, [*map(len, texts)]
        if self.process:
            batch, longest = read.batch_size, self.max_nodes
            remote = self._helper().open(batch, longest, capacity, opening, texts, active, proposals, guessed)
            self._foresight = Foresight(remote, lengths)
            return
        session = ModelSession(self.inner.draft_target, read.batch_size, capacity)
        logits = session.prefill(*opening).logits
        known = logits if guessed else None
        writer = ChainWriter(session, texts, active, proposals, self.target.vocab_size, known)
        self._foresight = Foresight(writer, lengths)

    def _helper(self) -> DraftProcess:
        """Return the process that drafts; start it if there is none that is alive."""
        helper = self.helpers.get("process")
        if helper is None or not helper.alive:
            draft = self.inner.draft_target
            helper = self.helpers["process"] = DraftProcess(draft, self.target.vocab_size)
        return helper

    # Rounds.

    def draft(self, root: Tensor) -> DraftTree:
        """Return the windows that are there; rows without one have theirs drafted now, or go without."""
        foresight, active = self._ahead, self.context.active
        foresight.writer.stop.clear()
        ahead = [len(guesses) if on else 0 for guesses, on in zip(foresight.rows, active, strict=True)]
        lacking = [on and not there for on, there in zip(active, ahead, strict=True)]
        if any(lacking) and self.after_rejection == "draft":
            self._write(lacking, self.context.proposals)
        lengths = [len(guesses) for guesses in foresight.rows]
        width = max((length for length, on in zip(lengths, active, strict=True) if on), default=0)
        lengths = [length if on else width for length, on in zip(lengths, active, strict=True)]
        guessed, bad = foresight.table(width)
        device, steps = root.device, torch.arange(width + 1, device=root.device)
        valid = None
        if min(lengths) < width:
            valid = steps <= to_device([[length] for length in lengths], device)
        tokens = root[:, None]
        if width:
            tokens = torch.cat([tokens, to_device(guessed, device)], dim=1)
        self._first: First | None = None
        self._heard = threading.Event()
        sampled = self.context.proposals.sampled
        return DraftTree.chain(
            tokens,
            valid,
            expansion=torch.where(steps < max(width, 1), steps, -1).expand(len(root), -1),
            draft_probs=foresight.probs(max(width, 1), self.target.vocab_size, device) if sampled else None,
            unusable=lambda: to_device(bad, device).view(len(root), width).bool(),
            grown=True,
            foreseen=self._foreseen if sampled else None,
            drafted_ahead=ahead,
        )

    def _foreseen(self) -> Foreseen | None:
        """Return the guesses of the bonus, as soon as they are drawn."""
        self._heard.wait()
        if self._first is None:  # nothing was written, or drawing failed, which is raised where it is waited for
            return None
        assert self._first.probs is not None, "they are asked for where they are drawn"
        return Foreseen(self._first.tokens.to(self.target.device), self._first.probs.to(self.target.device))

    def anticipate(self, tree: DraftTree) -> None:
        """Write behind the windows that the target judges now."""
        try:
            self._write(self.context.active, self.context.proposals, self._tell)
        finally:
            self._heard.set()

    def _tell(self, first: First) -> None:
        """Let those know of the guesses of the bonus who wait for them."""
        self._first = first
        self._heard.set()

    def hear(self, tree: DraftTree, verdict: Verdict) -> None:
        """Let the drafter stop if no row of the batch can use what it is writing."""
        active, windows = self.context.active, self._windows(tree)
        lengths = zip(verdict.length.tolist(), windows, active, strict=True)
        whole = [on and length == window + 1 for length, window, on in lengths]
        if any(whole):
            if self._first is None:  # nobody knows yet what it guesses
                return
            right = (self._first.tokens.to(verdict.bonus.device) == verdict.bonus).tolist()
            whole = [both and guess for both, guess in zip(whole, right, strict=True)]
        if not any(whole):
            self._ahead.writer.stop.set()

    def _windows(self, tree: DraftTree) -> list[int]:
        """Return how many tokens of every row the target is judging."""
        return [tree.num_nodes - 1] * tree.batch_size if tree.valid is None else (tree.valid.sum(-1) - 1).tolist()

    def observe(self, tree: DraftTree, scores: Scores | None, verdict: Verdict) -> None:
        """Keep what has come true of all that was written, and drop the rest."""
        self._ahead.go_on(self.context.history)
        clock = self.context.clock
        if clock is not None and scores is not None:
            self._pace().learn(target=clock.round["score"])

    @property
    def _ahead(self) -> Foresight:
        """The windows that are written ahead of the text."""
        assert self._foresight is not None, "the prompt was read"
        return self._foresight

    # Writing.

    def _length(self, proposals: Proposals) -> int:
        """Return how many tokens are written in one go."""
        if self.window is not None:
            return self.window
        if not proposals.sampled:
            return self._pace().window
        whole, own = count_weights(self.target.model), count_weights(self.inner)
        return min(max(math.floor(whole / max(own, 1)), SHORTEST), self.longest)

    def _pace(self) -> Pace:
        """Return what is known of both sides' speed; one request teaches the next."""
        return self.known.setdefault("pace", Pace(SHORTEST, self.longest, first=min(4, self.longest)))

    def _write(self, rows: Sequence[bool], proposals: Proposals, told: Callable[[First], None] | None = None) -> None:
        """Write behind some rows, and note how long it takes."""
        self._pace().learn(draft=self._ahead.write(rows, self._length(proposals), told))


def cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
