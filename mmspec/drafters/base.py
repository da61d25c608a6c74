"""The interface of drafters."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import huggingface_hub
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from ..compressors import VisualCompressor
from ..errors import MMSpecError, first_line, shown
from ..files.folders import CONFIG, WEIGHTS, Header, stored
from ..lesson import Guess, Lesson
from ..outcome import Scores, Verdict
from ..per_request import PerRequest
from ..settings.calls import Named
from ..tree import DraftTree
from ..trees import TreeBuilder

if TYPE_CHECKING:
    from ..context import Context
    from ..families import Vision
    from ..inputs import Request
    from ..target import Target
    from ..trees import Proposals

CONVENTION = (
    "the state that enters the layer of this number, counted from 0; -1 is the state after the final norm; -2, -3, ... "
    "are the states that leave layers 0, 1, ... before visual features join them"
)
"""The way in which `feature_layers` are counted, for readers of a saved drafter elsewhere."""


class Drafter(nn.Module, Named, PerRequest):
    """A module that proposes a tree of tokens each round.

    A subclass implements `start`, `draft` and `observe`. What it assigns to `self` in them belongs to the request at
    hand: the loop works on a copy (`fork`) that shares the weights and nothing else, so one drafter serves any number
    of requests at once.

    Args:
        target: the model to draft for.
        tree: the builder of its trees, for drafters that grow them; `generate(tree=...)` overrides it. Without either,
            `generate` drafts what pays, see `mmspec.speed.AutoTree`.
    """

    feature_layers: tuple[int, ...] = ()
    """Hidden states of the target to be handed over in `context.features` and `scores.features`: the number of the
    layer that a state enters, `mmspec.models.states.LAST` for the state after the final norm, or `left` of a layer for
    the state that leaves it, before visual features join."""

    draft_vocab_size: int | None = None
    """Size of a reduced vocabulary; None where every token can be drafted."""

    shared = ("known",)

    max_depth: int | None = None
    """Levels of a tree that it can draft; None where one can always follow. Builders ask `Growth.limit_depth`."""

    independent = False
    """True if all nodes of a depth have one distribution, whatever tokens stand above them: a tree can then be made
    from the marginals of one pass, see `StepDrafter.marginals`."""

    cheap_levels = False
    """True if only the first level of a tree costs a pass of the drafter's layers: further ones are looked up, or take
    a small correction."""

    def __init__(self, target: Target, tree: TreeBuilder | None = None):
        super().__init__()
        self.target = target
        self._native = self.native_tree()
        self.tree = self._native if tree is None else tree
        self.compressor: VisualCompressor | None = None
        self.known: dict[Any, Any] = {}  # what one request teaches the next, shared by all copies

    @classmethod
    def expect_parts(cls, given: dict[str, Any]) -> None:
        """Refuse what stands in the place of a target, a tree builder or a compressor, and is none.

        Args:
            given: the arguments by name.
        """
        if "target" in given and not hasattr(given["target"], "family"):
            from ..target import expect_target  # which imports the drafters

            expect_target(given["target"], cls.__name__)
        for part, kind, such_as in (("tree", TreeBuilder, "Chain()"), ("compressor", VisualCompressor, "Hide()")):
            value = given.get(part)
            if value is not None and not isinstance(value, kind):
                way = f"pass an instance, such as {such_as}"
                raise MMSpecError(f"{cls.__name__}: {part}={shown(value)} is no {kind.__name__}; {way}")

    def take_compressor(self, compressor: VisualCompressor) -> None:
        """Read the pictures through a compressor, whose weights are then among this drafter's.

        Raises:
            MMSpecError: if the drafter does not look at pictures.
        """
        raise MMSpecError(f"{type(self).__name__} takes no compressor: choose a drafter that reads visual tokens")

    def with_compressor(self, compressor: VisualCompressor) -> Drafter:
        """Return this drafter with another view of the pictures: a copy that shares its weights.

        Raises:
            MMSpecError: if the drafter takes no compressor, or the compressor would have to be trained with it.
        """
        name, own = type(self).__name__, type(self.compressor).__name__
        self.expect_parts({"compressor": compressor})
        if self.compressor is not None:
            raise MMSpecError(f"this {name} was trained with {own}: leave compressor=default")
        drafter = self.fork()
        drafter.take_compressor(compressor)
        if next(compressor.parameters(), None) is not None:
            raise MMSpecError(
                f"{type(compressor).__name__} has weights of its own, which this {name} was not trained with: train "
                "one with it (recipe.drafter.compressor), or choose Hide, Prune or Pool"
            )
        return drafter

    @property
    def draft_vocabulary(self) -> Tensor | None:
        """`[draft_vocab]` target tokens that this drafter's logits are about; None for all of them, in their order."""
        return None

    @property
    def drafts_unread(self) -> bool:
        """True if it can go on behind tokens that were emitted although the target has not read them (see `Gate`):
        `observe` is called for them with `scores` None, and their states come in `Scores.features_along`, once the
        target has read them. By default, drafters that need no states of the target can."""
        return not self.feature_layers

    @property
    def states_read(self) -> tuple[int, ...]:
        """The `feature_layers`, and the states that its tree builder looks at."""
        of_tree = () if self.tree is None else self.tree.feature_layers(self.target)
        return tuple(dict.fromkeys([*self.feature_layers, *of_tree]))

    @property
    def max_nodes(self) -> int | None:
        """Tokens that it drafts per round at most; None if that cannot be said beforehand."""
        return None if self.tree is None else self.tree.max_nodes

    def native_tree(self) -> TreeBuilder | None:
        """Return the builder of the trees that its authors drafted with; None for a drafter that grows no trees."""
        return None

    @property
    def tree_chosen(self) -> bool:
        """True if it was given a builder, and does not just have the native one."""
        return self.tree is not self._native

    def fork(self, tree: TreeBuilder | None = None) -> Drafter:
        """Return a copy for one request, see `PerRequest`; perhaps with another tree builder."""
        drafter = super().fork()
        if tree is not None:
            drafter.tree = tree.for_drafter(self).fork()
        return drafter

    def check(self, proposal: str) -> None:
        """Refuse a request that this drafter's trees cannot serve; see `TreeBuilder.check`."""

    def start(self, context: Context) -> None:
        """Take up a request whose prompt the target has read."""
        raise NotImplementedError

    def draft(self, root: Tensor) -> DraftTree:
        """Propose a tree below `root`, `[batch]`, the newest token of each row."""
        raise NotImplementedError

    def observe(self, tree: DraftTree, scores: Scores | None, verdict: Verdict) -> None:
        """Update the drafter's state from the verdict on its last tree; `context.history` already holds what was
        emitted."""

    asks_anew = False
    """True if it asks a compressor that `routes` before every round which visual tokens it sees."""

    def refuse_routing(self, compressor: VisualCompressor) -> None:
        """Refuse a compressor that is asked anew before every round, where this drafter asks it once.

        Raises:
            MMSpecError: for such a one.
        """
        if compressor.routes and not self.asks_anew:
            raise MMSpecError(
                f"{type(compressor).__name__} chooses anew before every round what is seen of pictures, and "
                f"{type(self).__name__} looks at them once: choose a head such as EagleDrafter, or choose Prune"
            )

    reads_every_round = False
    """True if it has to read every token in the round in which it is drafted or emitted, and so cannot rest."""

    def rest(self, tree: DraftTree, scores: Scores | None, verdict: Verdict) -> None:
        """Hear the verdict on a tree that another drafter drafted (`DraftTree.of_another`): by default as on one of its
        own of which it has expanded nothing. It reads what was emitted when it is asked again."""
        self.observe(tree, scores, verdict)

    def adjust(self, **settings: Any) -> None:
        """Draft with other settings from now on, between two rounds of a request: see `mmspec.rounds.ArmSelector`.

        Raises:
            MMSpecError: for settings that cannot change while a text is written: by default all.
        """
        raise MMSpecError(
            f"{type(self).__name__} has no setting {next(iter(settings), None)!r} that can change while it drafts: "
            "give ArmSelector trees, compressors or drafters as arms"
        )

    @property
    def anticipates(self) -> bool:
        """True if it has an `anticipate` of its own."""
        return type(self).anticipate is not Drafter.anticipate

    def anticipate(self, tree: DraftTree) -> None:
        """Work on what is expected to come after a tree, in a thread of its own, while the target scores that tree.

        `observe` then gets the verdict; what turns out to be of no use has to be rolled back. Nothing of the
        target's context may be changed.
        """

    in_turn = False
    """True if `anticipate` is to run behind the target's pass instead of beside it: on one device each side would only
    slow down the other, and in turns the clock tells what both would take side by side
    (`Stats.projected_decode_seconds`)."""

    def hear(self, tree: DraftTree, verdict: Verdict) -> None:
        """Hear the verdict on a tree while `anticipate` may still be at work, and end that work if it is in vain; does
        nothing by default. `observe` follows once it has ended."""

    def anticipate_prompt(self, request: Request, vision: Vision | None, spare: int, proposals: Proposals) -> None:
        """Read a prompt in a thread of its own, while the target reads it; does nothing by default. `start` follows.

        It is not called under guidance, nor if the drafter does not `anticipate`.

        Args:
            request: the prompt, as the target reads it.
            vision: its media, encoded by the target.
            spare: tokens per row to reserve behind the longest prompt.
            proposals: how children are to be chosen; it has no history yet.
        """

    def unroll(self, lesson: Lesson, steps: int = 1, detach: bool = False) -> Iterator[Guess]:
        """Yield what this drafter would have guessed at every token of some answers, for training and for validation.

        From every root (every answer token but the last) a chain is drafted along the answer itself: step i predicts
        the answer token i + 1 places behind the root, after the tokens before it. Those are what the drafter would read
        had all its earlier guesses been right, so the chance that guess i is right is the acceptance at position i.

        Args:
            lesson: answers with what the target knew while writing them.
            steps: length of the chains.
            detach: pass no gradient from a step to earlier ones.

        Yields:
            One `Guess` per step, fewer where no answer is so long.
        """
        raise NotImplementedError(f"{type(self).__name__} cannot be trained: it has no unroll()")

    @property
    def lesson_layers(self) -> tuple[int, ...]:
        """States of the target that `unroll` reads, numbered as `feature_layers`: by default those that drafting
        reads."""
        return self.feature_layers

    def trainable_parameters(self) -> Iterator[nn.Parameter]:
        """Return the weights that training changes: by default all of its own."""
        return self.parameters()

    def choose_vocabulary(self, tokens: Tensor) -> None:
        """Set which target tokens can be drafted, for drafters with a reduced vocabulary (`draft_vocab_size`)."""
        raise NotImplementedError(f"{type(self).__name__} drafts from the whole vocabulary")

    def config(self) -> dict[str, Any]:
        """Return all that `from_config` needs to rebuild this drafter without its weights, as plain JSON values."""
        raise NotImplementedError(f"{type(self).__name__} cannot be saved: it has no config()")

    @classmethod
    def from_config(cls, config: dict[str, Any], target: Target) -> Drafter:
        """Rebuild a drafter from `config()`, weights not yet loaded."""
        raise NotImplementedError(f"{cls.__name__} cannot be loaded from a folder: it has no from_config()")

    @classmethod
    def empty(cls, config: dict[str, Any], target: Target, there: Header | None = None) -> Drafter:
        """Rebuild a drafter as `from_config` does, for a caller that brings all weights along: they may be on the meta
        device, where they take no memory, and are then to be assigned.

        Args:
            config: see `from_config`. It may be anybody's, and so of any size.
            target: the model to draft for.
            there: the weights that will be brought, under the names that they have here. What takes memory is compared
                with them first (`Header.check_fits`). None if the configuration was made from them.
        """
        return cls.from_config(config, target)

    def check_weights(self, source: str) -> None:
        """Refuse weights that were loaded and cannot be right, such as draft tokens that the target does not have.

        Args:
            source: name of the place that the weights come from, for errors.
        """

    def save_pretrained(self, folder: str | Path, **metadata: Any) -> None:
        """Write `config.json` and `model.safetensors`, which `mmspec.load_drafter(folder, target)` reads.

        Args:
            folder: the folder to write, made if it is missing.
            metadata: further plain values for `config.json`, such as how the drafter was trained.

        Raises:
            MMSpecError: if the folder cannot be written.
        """
        folder, cls, layers = Path(folder), type(self), list(self.feature_layers)
        config = {
            "mmspec_drafter": f"{cls.__module__}.{cls.__qualname__}",
            "target": {
                "model_type": self.target.model.config.model_type,
                "vocab_size": self.target.vocab_size,
                "hidden_size": self.target.hidden_size,
                "weights": self.target.fingerprint,
            },
            **({"features": {"layers": layers, "convention": CONVENTION}} if layers else {}),
            **self.config(),
            **({"metadata": metadata} if metadata else {}),
        }
        weights = {name: tensor.detach().contiguous() for name, tensor in stored(self).items()}
        try:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n")
            save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})
        except (OSError, SafetensorError) as error:
            reason = getattr(error, "strerror", None) or first_line(error)
            raise MMSpecError(
                f"save_pretrained: the drafter cannot be written to {str(folder)!r}: {reason}; name a folder"
            ) from error

    def push_to_hub(self, repository: str, private: bool = False, **metadata: Any) -> str:
        """Upload this drafter to the Hugging Face hub, whence `mmspec.load_drafter(repository, target)` loads it.

        Args:
            repository: `owner/name`; it is made if it does not exist.
            private: True to make it so that others cannot see it.
            metadata: see `save_pretrained`.

        Returns:
            The address of the upload.

        Raises:
            MMSpecError: if the hub refuses it or cannot be reached.
        """
        hub = huggingface_hub.HfApi()
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder, **metadata)
            try:
                hub.create_repo(repository, private=private, exist_ok=True)
                return str(hub.upload_folder(repo_id=repository, folder_path=folder))
            except Exception as error:  # the hub's client raises errors of several libraries
                reason = first_line(error)
                raise MMSpecError(
                    f"the hub did not take {repository!r}: {reason}; log in with `hf auth login`"
                ) from error


def expect_drafter(given: Any, call: str) -> None:
    """Refuse what is no `Drafter`, and say how to come by one.

    Args:
        given: the object given in its place.
        call: name of the call to which it was given, such as `"mmspec.generate"`.
    """
    if isinstance(given, Drafter):
        return
    if hasattr(given, "generate"):
        way = "mmspec.drafters.as_drafter(target, model) drafts with it"
        raise MMSpecError(f"{call}: drafter is a {type(given).__name__}, which is no Drafter: {way}")
    raise MMSpecError(f"{call}: drafter={shown(given)} is no Drafter; load one with mmspec.load_drafter(name, target)")
