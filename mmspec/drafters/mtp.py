"""MTP: the layers that a model was trained with to predict further tokens."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Self, cast

import torch
from torch import Tensor, nn
from transformers import LlamaConfig

from ..compressors import DraftPrompt
from ..lesson import Guess, Lesson
from ..models.states import LAST
from ..outcome import Scores, Verdict
from ..tree import DraftTree
from ..trees.growth import Block
from .feature import FeatureDrafter
from .head_config import initialise
from .layer import Rope, attend_causally
from .layer_pass import LayerPass
from .mtp_layer import MtpLayer, MtpPass
from .mtp_settings import MtpSettings
from .reading import view_of
from .relay import Entries, Relay
from .rope import axes_of, rotary_of

if TYPE_CHECKING:
    from ..context import Context
    from ..files.folders import Header
    from ..target import Target


class MtpDrafter(FeatureDrafter):
    """Native multi-token heads: layers of the target's kind, as DeepSeek-V3 (arXiv 2412.19437, section 2.2), GLM, MiMo
    and Qwen3.5 are trained with.

    Layer k reads the token k places ahead of a state: `u = W [norm_e E(x_{t+k}); norm_h h^{k-1}_t]`, then the layer,
    with keys and values of its own, then a norm, whose output is h^k_t for the next layer and goes into the target's
    own vocabulary head. h^0 is the target's state after its final norm. K layers draft K tokens; with `recursive` the
    last one goes on alone, `h^{K+1}_t` from `h^K_t` and the next token, as FastMTP (arXiv 2509.18362) does with a
    single layer. That one is EAGLE-1 with norms before the fusion and one behind the layer.

    Faithful: fusion, norms, chains of layers as in transformers' `MtpModel`, the recursion of a single layer as in vLLM
    and FastMTP, the switches of the layer, and the names of the weights, which are Qwen3.5's (the gate apart: there it
    stands among the queries). Our own: any tree, batches and sampling; positions of the slots are one before those of
    their tokens, in every layer, pictures enter by their visual embeddings, and after a verification all slots are
    computed anew from true states (see `Relay`). Not there: experts instead of the MLP, and latent attention.

    Lossless with every lossless verifier. Trained: everything but the embedding and the vocabulary head (recipe `mtp`,
    the weighted loss of FastMTP). The arguments are those of `FeatureDrafter`, and its settings those of `MtpSettings`.

    Raises:
        MMSpecError: for settings that do not fit the target, sections of `mrope` that do not fill what is turned, or no
            layer at all.
    """

    Settings = MtpSettings
    settings: MtpSettings
    feature_layers = (LAST,)
    guesses_features = False

    def build(self) -> None:
        """Make the norms, the fusions and the layers."""
        settings, head = self.settings, self.head
        self.rotary = rotary_of(self._turning_config)
        if settings.rope == "mrope":
            self.axes = axes_of(dict(head.rope_parameters or {}), self._turning_config.head_dim or 0)
        self.layers = nn.ModuleList([MtpLayer(head, settings) for _ in range(settings.layers)])
        # What belongs to the first layer, or to all of them, stands outside, as published for a single layer.
        owners: tuple[Any, ...] = (self, *list(self.layers)[1:])
        for number, owner in enumerate(owners):
            if not (number and settings.shared_fusion):
                owner.pre_fc_norm_embedding = nn.RMSNorm(head.hidden_size, eps=head.rms_norm_eps)
                owner.pre_fc_norm_hidden = nn.RMSNorm(head.hidden_size, eps=head.rms_norm_eps)
                owner.fc = nn.Linear(2 * head.hidden_size, head.hidden_size, bias=False)
            if settings.output_norm == "own" or (settings.output_norm == "shared" and not number):
                owner.norm = nn.RMSNorm(head.hidden_size, eps=head.rms_norm_eps)
        initialise(self)
        self.max_depth = None if settings.recursive else settings.layers
        self.drafts_unread = not self.last  # only the states of a single layer stand for those of the target

    @property
    def layer(self) -> MtpLayer:
        """The first layer."""
        return cast(MtpLayer, self.layers[0])

    @property
    def last(self) -> int:
        """The number of the last layer, from 0."""
        return self.settings.layers - 1

    def passes(self) -> tuple[LayerPass, ...]:
        """Return the layers as a request runs them."""
        return tuple(MtpPass(cast(MtpLayer, layer)) for layer in self.layers)

    def fuse_features(self, features: dict[int, Tensor]) -> Tensor:
        """Return the target's last states."""
        return features[LAST].to(self._dtype)

    @property
    def takes_corrector(self) -> bool:
        """True for a single layer."""
        return not self.last

    def layer_input(self, embeds: Tensor, states: Tensor, step: int | Tensor = 0) -> tuple[Tensor, Tensor]:
        """Return the fusion of normed embeddings and states, normed again, and as it is, for the layer of a step."""
        number = min(step, self.last) if isinstance(step, int) else 0
        owner: Any = self.layers[number] if number and not self.settings.shared_fusion else self
        parts = [owner.pre_fc_norm_embedding(embeds), owner.pre_fc_norm_hidden(states)]
        fused = owner.fc(torch.cat(parts[::-1] if self.settings.states_first else parts, dim=-1))
        return cast(MtpLayer, self.layers[number]).input_layernorm(fused), fused

    def normed(self, output: Tensor, number: int) -> Tensor:
        """Return the state that a layer hands on, from its output: normed, as the target's own states are."""
        if self.settings.output_norm == "none":
            return output
        owner: Any = self.layers[number] if number and self.settings.output_norm == "own" else self
        return owner.norm(output)

    def next_state(self, output: Tensor) -> Tensor:
        """Return the state that the last layer hands on."""
        return self.normed(output, self.last)

    def head_input(self, output: Tensor) -> Tensor:
        """Return the same state, which the vocabulary head reads too."""
        return self.normed(output, self.last)

    # Drafting with several layers. A single one does as `FeatureDrafter` does.

    def start(self, context: Context) -> None:
        """Read the prompt with the target's states, into sessions of the layers' own."""
        super().start(context)
        if self.last:
            self._relay = Relay(self, self.session, self._passes, self._begun, context, bool(self.settings.recursive))
            del self._begun

    def prefill_kv(self, prompt: DraftPrompt) -> list[tuple[Tensor, Tensor]]:
        """Return keys and values of the first layer for all slots of a prompt; those of the others are kept aside."""
        if not self.last:
            return super().prefill_kv(prompt)
        self._begun = list(self.read_through(prompt))
        mixed, _ = self.layer_input(*self._pairs(prompt, self._begun[-1].states, self.last), self.last)
        rope = self._rope(mixed, self.slot_positions(prompt)[..., self.last :])
        self._begun.append(Entries(*cast(MtpLayer, self.layers[-1]).self_attn.keys_values(mixed, rope), mixed[:, :0]))
        return [(self._begun[0].keys, self._begun[0].values)]

    def expand_root(self, root: Tensor) -> Tensor:
        """Enter what the target has confirmed, with true states; the last of it is the root."""
        if not self.last:
            return super().expand_root(root)
        trunk = self.newest(root, self.session.pending)
        return self.logits(self._relay.begin(trunk, self._states[:, : trunk.tokens.shape[1]]))

    def expand(self, block: Block) -> Tensor:
        """Return the logits after a block of nodes, by the layers of their levels."""
        return super().expand(block) if not self.last else self.logits(self._relay.go_on(block))

    def observe(self, tree: DraftTree, scores: Scores | None, verdict: Verdict) -> None:
        """Keep what is true, and take the target's states of the accepted path."""
        if self.last:
            self._relay.end()
        super().observe(tree, scores, verdict)

    # Whole texts.

    def read_through(self, prompt: DraftPrompt, detach: bool = False) -> Iterator[Entries]:
        """Read a text with all layers but the last; yield their keys and values, and their states, `[batch, slots,
        hidden]`. Layer k (from 0) has k slots fewer than the first one: there are no states before the first."""
        rope, states = self._rope(prompt.embeds, self.slot_positions(prompt)), prompt.states
        for number in range(self.last):
            layer = cast(MtpLayer, self.layers[number])
            mixed, residual = self.layer_input(*self._pairs(prompt, states, number), number)
            turned: Rope = (rope[0][:, number:], rope[1][:, number:])
            entries = layer.self_attn.keys_values(mixed, turned)
            attended = attend_causally(layer.self_attn.queries(mixed, turned), *entries)
            states = self.normed(layer.finish(residual, attended), number)
            yield Entries(*entries, states)
            states = states.detach() if detach else states

    def _pairs(self, prompt: DraftPrompt, states: Tensor, number: int) -> tuple[Tensor, Tensor]:
        """Return the embeddings that a layer reads in its slots of a text, and the states beside them, from those that
        the layer before it has made, or the target."""
        return prompt.embeds[:, number + 1 :].to(self._dtype), states[:, :-1]

    def unroll(self, lesson: Lesson, steps: int = 1, detach: bool = False) -> Iterator[Guess]:
        """Yield the guesses of every step, see `Drafter.unroll`: step k is layer k at all roots, and with `recursive`
        the last layer goes on. A chain of right guesses is the answer itself, so the states of a layer but the last are
        those of the answer's own slots."""
        if not self.last:
            yield from super().unroll(lesson, steps, detach)
            return
        self._prepare()
        prompt = self.read(view_of(lesson))
        slots, states = lesson.root_slots - prompt.removed[:, None], prompt.states
        for step, entries in enumerate(self.read_through(prompt, detach)):
            valid, places = lesson.drafted(step)
            if step >= steps or not valid.any():
                return
            states = entries.states
            rows, roots = valid.nonzero(as_tuple=True)
            # The slot of the token that is `step` places behind a root stands as many places nearer to the beginning.
            chosen = states[rows, slots[rows, roots]]
            yield Guess(self.logits(chosen), None, places, valid.flatten().nonzero()[:, 0])
        if steps > self.last and lesson.drafted(self.last)[0].any():
            states = states.detach() if detach else states
            entered = self.layer_input(*self._pairs(prompt, states, self.last), self.last)
            positions = self.slot_positions(prompt)[..., self.last :]
            left = range(self.last, steps if self.settings.recursive else self.last + 1)
            yield from self._chains(cast(MtpLayer, self.layers[-1]), lesson, prompt, entered, positions, left, detach)

    # In folders.

    def compute_unstored(self) -> None:
        """Compute the frequencies of the rotary positions."""
        self.rotary = rotary_of(self._turning_config).to(self.target.device)

    @classmethod
    def empty(cls, config: dict[str, Any], target: Target, there: Header | None = None) -> Self:
        """Rebuild the drafter on the meta device, see `Drafter.empty`."""
        if there is not None:
            there.check_count("layers", config.get("layers"))
        return super().empty(config, target, there)

    @property
    def _turning_config(self) -> LlamaConfig:
        """The layer's configuration, with heads of as many numbers as are turned."""
        config = LlamaConfig.from_dict(self.head.to_dict())
        config.head_dim = self.settings.turned or self.head.head_dim
        return config
