"""MixtureDrafter: what several drafters guess, mixed token by token."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ...compressors import VisualCompressor
from ...errors import MMSpecError, shown
from ...models.slots import pick
from ...outcome import Scores, Verdict
from ...settings.arguments import flags
from ...tree import DraftTree
from ...trees import Chain, TreeBuilder
from ...trees.growth import Block
from ...trees.proposals import IMPOSSIBLE
from ..step import StepDrafter
from .abreast import Abreast, Alone, side_by_side
from .weights import MixtureWeights, weights_of

if TYPE_CHECKING:
    from ...context import Context
    from ...target import Target


class MixtureDrafter(StepDrafter):
    """A mixture of drafters (IBED, ICLR 2025 workshop SCOPE; TABED, arXiv 2601.20357).

    At every node the members' probabilities are mixed, `q_bar = sum_m w_m q_m`; children are chosen by q_bar, or drawn
    from it, and every member reads the same ones. So the loop, the builder and the verifier see one drafter whose
    distribution is q_bar, and what is lossless with one drafter is lossless with a mixture, sampling too.

    Faithful: probabilities are mixed and not logits; each member keeps its own prompt and its own cache, and only the
    answer is common; weights are uniform (IBED) or fitted anew before every block to what the target said at the places
    of the earlier ones (TABED), the first refused place among them and the bonus not. Ours: members of any kind that
    grow trees, heads too; trees of any shape, where the places are those of the accepted path; weights for each row of
    a batch; passes in which members that share a model are rows of one batch (the release runs one after the other).
    The paper samples with the drafters' separate q; q_bar itself is what makes sampling exact, so that is what is drawn
    from here, behind the request's pipeline. p and q of the fit are what the models say before that pipeline.

    Needs no training. It is as fast as its slowest members together, so members should be small.

    Args:
        target: the model to draft for.
        members: drafters made for the target, two or more. A head with a reduced vocabulary gives all other tokens the
            probability 0.
        weights: `"matches"`, `"kl"` or `"tv"` (`GridWeights`), `"inverse_kl"` or `"inverse_tv"` (`InverseWeights`),
            `"uniform"`, a list of fixed weights, or a `MixtureWeights` of your own.
        tree: the builder of its trees, see `Drafter`; the native one is a chain of five. Members' own builders are not
            asked.
        together: whether members that share a model draft in one pass.

    Raises:
        MMSpecError: for members that grow no trees, are made for another target, stand there twice or cannot draft
            beside the others, and for weights that are not theirs.
    """

    def __init__(
        self,
        target: Target,
        members: Sequence[StepDrafter],
        weights: str | Sequence[float] | MixtureWeights = "matches",
        tree: TreeBuilder | None = None,
        together: bool = True,
    ):
        super().__init__(target, tree)
        members = _checked(target, members)
        flags(self, together=together)
        self.members = nn.ModuleList(members)
        self.weights, self.together = weights_of(weights, len(members)), together
        self.weights.fork().start(len(members), 1, torch.device("cpu"))  # refuses weights that are not theirs
        self.feature_layers = tuple(sorted({layer for member in members for layer in member.feature_layers}))
        depths = [member.max_depth for member in members if member.max_depth is not None]
        self.max_depth = min(depths, default=None)
        self.independent = all(member.independent for member in members)
        self.cheap_levels = all(member.cheap_levels for member in members)

    @property
    def drafts_unread(self) -> bool:
        """True if all members can go on behind tokens that the target has not read."""
        return all(member.drafts_unread for member in self._all)

    def take_compressor(self, compressor: VisualCompressor) -> None:
        """Refuse a compressor: every member sees the pictures in its own way."""
        raise MMSpecError(
            f"the members of a MixtureDrafter have views of their own, so {type(compressor).__name__} has no place: "
            "give it to a member (mmspec.mixtures.mixture_of_views: views=)"
        )

    def config(self) -> dict[str, Any]:
        """Return what there is to say of the mixture, which tells it from others where costs are noted."""
        members = [{"class": type(member).__name__, **member.config()} for member in self._all]
        return {"members": members, "weights": type(self.weights).__name__, "together": self.together}

    def save_pretrained(self, folder: str | Path, **metadata: Any) -> None:
        """Refuse to be saved: what there is to save are the members."""
        raise MMSpecError("a MixtureDrafter cannot be saved: save its members, and mix them again in a configuration")

    # Drafting.

    def start(self, context: Context) -> None:
        """Let every member read the prompt."""
        super().start(context)
        for member in self._all:
            member.tree = Chain()  # which learns nothing from trees that it did not build
            member.start(context)
        self._groups: list[Abreast | Alone] = side_by_side(self._all, self.together)
        self.weights.start(len(self.members), len(context.history), self.target.device)
        self._vocabularies = [member.draft_vocabulary for member in self._all]
        self._guessed: list[Tensor] = []

    def expand_root(self, root: Tensor) -> Tensor:
        """Return `[batch, vocab]` log q_bar after the root."""
        self._guessed = []
        self._log_weights = self.weights.now().log()
        each = self._each(lambda group: group.expand_root(root))
        return self._mixed([logits[:, None] for logits in each])[:, 0]

    def expand(self, block: Block) -> Tensor:
        """Return `[batch, new, vocab]` log q_bar after a block of nodes."""
        return self._mixed(self._each(lambda group: group.expand(block)))

    def marginals(self, depth: int) -> Tensor:
        """Return `[batch, depth, vocab]` log q_bar of the depths, if all members are `independent`."""
        self._guessed = []  # the first of them is what stands behind the root
        return self._mixed([member.marginals(depth) for member in self._all])

    def confidence(self) -> Tensor | None:
        """Return the members' estimates, weighted as their guesses are; None if one makes none."""
        estimates = [estimate for member in self._all if (estimate := member.confidence()) is not None]
        if len(estimates) < len(self.members):
            return None
        return (torch.stack(estimates, dim=-1) * self._log_weights.exp()[:, None]).sum(-1)

    @property
    def _all(self) -> list[StepDrafter]:
        """The members."""
        return [member for member in self.members if isinstance(member, StepDrafter)]

    def _each(self, ask: Callable[[Abreast | Alone], list[Tensor]]) -> list[Tensor]:
        """Return what all members answer, in their order."""
        answers = {
            place: answer for group in self._groups for place, answer in zip(group.places, ask(group), strict=True)
        }
        return [answers[place] for place in range(len(answers))]

    def _mixed(self, logits: Sequence[Tensor]) -> Tensor:
        """Return `[batch, new, vocab]` log q_bar from every member's logits; NaN where one that counts gives no
        distribution."""
        log_q = torch.stack([self._whole(place, each) for place, each in enumerate(logits)], dim=2)
        if self.weights.learns:
            self._guessed.append(log_q)
        weight = self._log_weights[:, None, :, None]
        # A weight of 0 silences a member whatever it says, NaN too.
        return torch.where(weight == IMPOSSIBLE, IMPOSSIBLE, log_q + weight).logsumexp(2)

    def _whole(self, place: int, logits: Tensor) -> Tensor:
        """Return the log-probabilities of a member over the target's vocabulary."""
        log_q = logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)
        vocabulary, size = self._vocabularies[place], self.target.vocab_size
        if vocabulary is not None:
            return log_q.new_full((*log_q.shape[:-1], size), IMPOSSIBLE).index_copy(-1, vocabulary, log_q)
        if log_q.shape[-1] != size:
            raise MMSpecError(
                f"MixtureDrafter: member {place}, a {type(self.members[place]).__name__}, speaks of "
                f"{log_q.shape[-1]} tokens and the target of {size}: members need the target's vocabulary, or a "
                "draft_vocabulary"
            )
        return log_q

    # Learning.

    def observe(self, tree: DraftTree, scores: Scores | None, verdict: Verdict) -> None:
        """Let the members hear the verdict, and the weights what the target said."""
        super().observe(tree, scores, verdict)
        for group in self._groups:
            group.first.observe(tree, scores, verdict)
        if scores is not None and self._guessed:
            self._learn(torch.cat(self._guessed, dim=1), tree, scores, verdict)
        self._guessed = []

    def _learn(self, log_q: Tensor, tree: DraftTree, scores: Scores, verdict: Verdict) -> None:
        """Tell the weights what was said along the accepted path, at every node behind which the members have guessed.

        Args:
            log_q: `[batch, expansions, members, vocab]` what the members guessed.
            tree, scores, verdict: see `observe`.
        """
        path = verdict.path[:, : max(verdict.lengths)]
        if not path.shape[1]:
            return
        steps = torch.arange(path.shape[1], device=path.device).expand_as(path)
        nodes = path.clamp(min=0)
        # Trees from marginals have no expansions: the guess behind a node is that of its level.
        places = steps if tree.expansion is None else tree.expansion.gather(1, nodes)
        known = (path >= 0) & (steps < verdict.length[:, None]) & (places >= 0) & (places < log_q.shape[1])
        q = pick(log_q.flatten(2), places.clamp(0, log_q.shape[1] - 1)).unflatten(-1, log_q.shape[2:]).exp()
        self.weights.learn(pick(scores.logits, nodes).to(q.dtype).softmax(-1), q, known)


def _checked(target: Target, members: Sequence[Any]) -> list[StepDrafter]:
    """Return the members of a mixture.

    Raises:
        MMSpecError: for members that cannot be mixed.
    """
    if not isinstance(members, Sequence):
        raise MMSpecError(f"MixtureDrafter: members={shown(members)} must be a list of two or more drafters")
    found: list[StepDrafter] = []
    for place, member in enumerate(members):
        name = type(member).__name__
        if not isinstance(member, StepDrafter):
            raise MMSpecError(
                f"MixtureDrafter: members[{place}]={shown(member)} gives no logits to mix: choose drafters that grow "
                "trees (StepDrafter), such as draft models and heads"
            )
        if member.target is not target and member.target.model is not target.model:
            raise MMSpecError(f"MixtureDrafter: members[{place}], a {name}, was made for another target: make it anew")
        if any(member is other for other in found):
            raise MMSpecError(
                f"MixtureDrafter: members[{place}], a {name}, stands there twice: every member needs a state of its "
                "own (member.fork() shares the weights)"
            )
        found.append(member)
    if len(found) < 2:
        raise MMSpecError(f"MixtureDrafter: members has {len(found)} drafters, and two at least make a mixture")
    for member in found:
        member.join([other for other in found if other is not member])
    return found
