"""The walk down a tree by any acceptance rule: the only place where a draft becomes a verdict."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..decoding.sampling import LogitsPipeline, NoiseTape
from ..errors import MMSpecError
from ..outcome import Scores, Verdict, one_hot
from ..seeds import random_stream
from ..settings.arguments import instance
from ..tree import DraftTree, Foreseen
from .base import Verifier
from .rules import ChoiceRule, CoinRule, Judged, Match, Rule
from .rules.base import of_token, reached

if TYPE_CHECKING:
    from ..context import Context
    from ..target import Target


class TreeWalk(Verifier):
    """Keeps the drafted tokens that an acceptance rule allows, see `mmspec.verifiers.rules`.

    The target's choices above temperature 0 are draws that are tied to positions (see `NoiseTape`): under a
    `ChoiceRule` the same seed gives the same choices, whatever was drafted.

    Args:
        rule: judges the drafted tokens.

    Raises:
        MMSpecError: for an object of another class.
    """

    def __init__(self, rule: Rule):
        self.rule = instance(self, Rule, "Typical()", rule=rule)

    @property
    def lossless(self) -> bool:
        """True if the rule is lossless."""
        return self.rule.lossless

    @property
    def proposal(self) -> str:
        """The way in which the rule wants children to be chosen at a temperature above 0."""
        return self.rule.proposal

    def proposal_under(self, pipeline: LogitsPipeline) -> str:
        """Return how drafters should choose children: at temperature 0 always the likeliest."""
        return "point" if pipeline.greedy else self.proposal

    def check(self, target: Target, pipeline: LogitsPipeline) -> None:
        """Refuse a request that the rule cannot serve."""
        super().check(target, pipeline)
        self.rule.check(target)

    def feature_layers(self, target: Target) -> tuple[int, ...]:
        """Return the states that the rule looks at."""
        return self.rule.feature_layers(target)

    def start(self, seed: int) -> None:
        """Set up the random numbers of a request, and the rule."""
        logits = self.context.logits
        self.rule.start(self.context)
        self.noise = NoiseTape(logits.shape[0], logits.shape[-1], seed, logits.device)
        self.generator = random_stream(logits.device, seed, "verifier")

    def first_token(self, context: Context) -> Tensor:
        """Return the target's first token, `[batch]`: the argmax or a draw."""
        scores = self.processed_first(context)
        if self.pipeline.greedy:
            return scores.argmax(-1)
        if isinstance(self.rule, CoinRule):
            return self._draw(scores.softmax(-1))
        best = (scores + self.noise.peek(1)[:, 0]).max(-1)
        self._refuse_unusable((~best.values.isfinite()).tolist())
        self.noise.consume([1] * len(best.indices))
        return best.indices

    def verify(self, tree: DraftTree, scores: Scores) -> Verdict:
        """Return the path that the rule allows and the token after it."""
        if isinstance(self.rule, CoinRule):
            return self._by_coins(self.rule, tree, scores)
        assert isinstance(self.rule, ChoiceRule)  # a rule is one or the other
        return self._by_choice(self.rule, tree, scores)

    def _by_choice(self, rule: ChoiceRule, tree: DraftTree, scores: Scores) -> Verdict:
        """Judge all nodes at once."""
        processed = self.processed(tree, scores)
        if self.pipeline.greedy:
            choices = processed.argmax(-1)
        else:
            noise = self.noise.peek(tree.max_depth + 1)
            depth = tree.depth[..., None].expand(-1, -1, noise.shape[-1])
            drawn, choices = (processed + noise.gather(1, depth)).max(-1)
        if isinstance(rule, Match):
            verdict = follow(tree, choices)
        else:
            space = self.context.target.space
            uniform = lambda: self._uniform(processed[..., 0])  # noqa: E731
            judged = Judged(tree, processed, choices, uniform, self._written, space, self._answers, scores.features)
            verdict = longest(tree, rule.allow(judged), choices)
        if not self.pipeline.greedy:
            unusable = ~drawn.isfinite().gather(1, verdict.path.clamp(min=0)) & (verdict.path >= 0)
            lengths, rows = torch.stack([verdict.length, unusable.any(-1)]).tolist()
            self._refuse_unusable(rows)
            self.noise.consume(lengths)
        return verdict

    def _by_coins(self, rule: CoinRule, tree: DraftTree, scores: Scores) -> Verdict:
        """Go down level by level, and try siblings in the order of their draw."""
        self.processed(tree, scores)
        p_all = scores.p.clone()
        rows = torch.arange(tree.batch_size, device=p_all.device)
        nodes = torch.arange(tree.num_nodes, device=p_all.device)
        current = torch.zeros_like(rows)
        walking = torch.ones_like(rows, dtype=torch.bool)
        for _ in range(tree.max_depth):
            p = p_all[rows, current]
            sampled = None
            if tree.draft_probs is not None and tree.expansion is not None:
                sampled = tree.draft_probs[rows, tree.expansion[rows, current].clamp(min=0)].to(p)
            is_child = (tree.parents == current[:, None]) & walking[:, None]
            if tree.valid is not None:
                is_child &= tree.valid
            # The order of the draw is the order of the nodes.
            children = torch.where(is_child, nodes, tree.num_nodes).sort(-1).values
            walking = torch.zeros_like(walking)
            for child in children[:, : int(is_child.sum(-1).max())].unbind(1):
                trying = (child < tree.num_nodes) & ~walking
                child = child.clamp(max=tree.num_nodes - 1)
                token = tree.tokens[rows, child]
                q = one_hot(token, p) if sampled is None else sampled
                u = self._uniform(p[:, 0])
                # A node beyond q's support was never drawn (q ran dry): it cannot be accepted.
                accepted = trying & rule.accept(p, q, token, u) & (q[rows, token] > 0)
                refused = (trying & ~accepted)[:, None]
                p = torch.where(refused, rule.residual(p, q, token), p)
                if sampled is not None:
                    sampled = torch.where(refused, strike(sampled, token), sampled)
                current = torch.where(accepted, child, current)
                walking |= accepted
            p_all[rows, current] = torch.where(walking[:, None], p_all[rows, current], p)
            if not walking.any():
                break
        path, length = tree.path_to(current)
        foreseen = None if tree.foreseen is None else tree.foreseen()
        bonus = self._bonus(rule, tree, current, p_all[rows, current], foreseen)
        return Verdict(path, length, bonus)

    def _bonus(self, rule: CoinRule, tree: DraftTree, last: Tensor, p: Tensor, foreseen: Foreseen | None) -> Tensor:
        """Return the token behind the path, `[batch]`.

        Behind a draft that was accepted to its end it may have been foreseen, as a draw from q. Then it is judged as
        any drafted token is, and what is left of p decides if it is refused: the bonus still has the law p, and is the
        guess with probability sum(min(p, q)) instead of sum(p * q).

        Args:
            rule: judges the guess.
            tree: the draft.
            last: `[batch]` last node of every path.
            p: `[batch, vocab]` what is left of the target's distribution behind it.
            foreseen: the guesses; None for none.
        """
        if foreseen is None:
            return self._draw(p)
        below = tree.parents == last[:, None]
        if tree.valid is not None:
            below &= tree.valid
        trying = ~below.any(-1) & (foreseen.tokens >= 0)
        guess, q = foreseen.tokens.clamp(min=0), foreseen.probs.to(p)
        accepted = trying & rule.accept(p, q, guess, self._uniform(p[:, 0])) & (of_token(q, guess) > 0)
        p = torch.where((trying & ~accepted)[:, None], rule.residual(p, q, guess), p)
        return torch.where(accepted, guess, self._draw(p))

    def _written(self) -> list[int]:
        """Return, for each row, the number of tokens of the answer before the root."""
        lengths = self.context.request.lengths
        return [len(history) - length - 1 for history, length in zip(self.context.history, lengths, strict=True)]

    def _answers(self) -> list[list[int]]:
        """Return, for each row, the tokens of the answer, the root the last."""
        lengths = self.context.request.lengths
        return [history[length:] for history, length in zip(self.context.history, lengths, strict=True)]

    def _uniform(self, like: Tensor) -> Tensor:
        """Draw random numbers from 0 to 1, with the shape and dtype of `like`."""
        return torch.rand(like.shape, generator=self.generator, dtype=like.dtype, device=like.device)

    def _refuse_unusable(self, rows: list[int]) -> None:
        """Raise an `MMSpecError` if the target's own logits do not form a distribution in a row that goes on:
        `generate` cannot draw from them either. `rows` is True for each row with such logits."""
        for row in [row for row, unusable in enumerate(rows) if unusable]:
            if self.context.active[row]:
                raise MMSpecError(
                    f"the target's logits in row {row} are NaN or infinite after {len(self.context.history[row])} "
                    "tokens, so no token can be drawn; where half precision overflows, load it in bfloat16 or float32"
                )

    def _draw(self, probs: Tensor) -> Tensor:
        """Draw a token from `[batch, vocab]` probabilities."""
        unusable = ~(probs.sum(-1) > 0)  # of NaN too
        self._refuse_unusable(unusable.tolist())
        probs = probs.masked_fill(unusable[:, None], 1.0)  # in rows that have ended
        return torch.multinomial(probs, 1, generator=self.generator)[:, 0]


def follow(tree: DraftTree, choices: Tensor) -> Verdict:
    """Return the longest path on which every token equals the target's choice in its place: `longest`, for the exact
    rule.

    In a chain it is found without reading ancestors.

    Args:
        tree: the draft.
        choices: `[batch, nodes]` the target's own token after each node.
    """
    if tree.num_nodes == 1:  # plain decoding: nothing was guessed
        return Verdict(torch.zeros_like(choices), torch.ones_like(choices[:, 0]), choices[:, 0])
    if tree.is_chain and tree.valid is None:
        right = (tree.tokens[:, 1:] == choices[:, :-1]).cumprod(-1).sum(-1)
        steps = torch.arange(tree.num_nodes, device=choices.device).expand_as(choices)
        path = torch.where(steps <= right[:, None], steps, -1)
        return Verdict(path, right + 1, choices.gather(1, right[:, None])[:, 0])
    matches = tree.tokens == choices.gather(1, tree.parents.clamp(min=0))
    return longest(tree, reached(tree, matches), choices)


def longest(tree: DraftTree, allowed: Tensor, choices: Tensor) -> Verdict:
    """Return the longest allowed path, the first one among equals, and the target's choice behind it.

    Args:
        tree: the draft.
        allowed: `[batch, nodes]` True where the path from the root to a node may be emitted; the root always may.
        choices: `[batch, nodes]` the target's own token after each node.
    """
    last = torch.where(allowed, tree.depth, -1).argmax(-1)
    path, length = tree.path_to(last)
    return Verdict(path, length, choices.gather(1, last[:, None])[:, 0])


def strike(q: Tensor, token: Tensor) -> Tensor:
    """Return q without `token` (`[batch]`), normalised again; all zeros if q held nothing else."""
    rest = q.scatter(-1, token[:, None], 0.0)
    return rest / rest.sum(-1, keepdim=True).clamp(min=torch.finfo(q.dtype).tiny)
