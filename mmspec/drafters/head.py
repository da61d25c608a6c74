"""HeadDrafter: what small trained heads have in common: a dataclass of settings, a vocabulary, folders."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from inspect import Signature, getattr_static
from typing import TYPE_CHECKING, Any, ClassVar, Self

import torch
from torch import Tensor, nn

from ..errors import MMSpecError
from ..files.folders import stored
from ..settings.fields import check_fields, expect_dataclass, in_name_of, settings_from, signature_with
from ..trees import TreeBuilder
from .step import StepDrafter
from .vocabulary import check_tokens, draft_tokens, tables_of

if TYPE_CHECKING:
    from ..files.folders import Header
    from ..target import Target


@dataclass(frozen=True, kw_only=True)
class HeadSettings:
    """The settings of a head: everything that says how it is made for a target, except for its weights.

    A subclass is a dataclass too, with a default for every field. Values are checked against the annotations; what else
    must hold is checked in `__post_init__`, and what depends on the target in `fit`.
    """

    def __post_init__(self) -> None:
        check_fields(self)

    def fit(self, target: Target) -> Self:
        """Return these settings with what they leave to the target.

        Raises:
            MMSpecError: for settings that do not fit the target.
        """
        return self


class HeadDrafter(StepDrafter):
    """A drafter whose weights are small heads on the target's states.

    A subclass names its dataclass of settings, `Settings`. Their names are the keywords of the constructor, what a
    configuration may set, and what `config` saves; a folder that lacks one, because it is older, gets the default.

    Args:
        target: the model to draft for.
        tree: the builder of its trees.
        settings: fields of the dataclass `Settings`.

    Raises:
        MMSpecError: for settings that are unknown, have another type, or do not fit the target.
    """

    Settings: ClassVar[type[HeadSettings]] = HeadSettings
    """The dataclass of this drafter's settings."""

    __signature__: ClassVar[Signature]

    d2t: Tensor
    t2d: Tensor

    settings: HeadSettings
    """The settings, with what they leave to the target."""

    def __init_subclass__(cls, **keywords: Any) -> None:
        super().__init_subclass__(**keywords)
        expect_dataclass(cls.Settings)
        cls.__signature__ = signature_with(cls, HeadDrafter, cls.Settings)

    def __init__(self, target: Target, *, tree: TreeBuilder | None = None, **settings: Any):
        with in_name_of(type(self).__name__, self.Settings):
            fitted = settings_from(self.Settings, settings).fit(target)
        self.settings = fitted  # before all else: the native tree may follow from them
        super().__init__(target, tree)

    # A reduced vocabulary.

    def reduce_vocabulary(self, size: int | None) -> None:
        """Draft from `size` tokens, the first ones until `choose_vocabulary`; None is all of them. For constructors."""
        self.draft_vocab_size = size
        if size is not None:
            tables = tables_of(torch.arange(size), self.target.vocab_size)
            self.register_buffer("d2t", tables[0])
            self.register_buffer("t2d", tables[1])

    @property
    def draft_vocabulary(self) -> Tensor | None:
        """`[draft_vocab_size]` target tokens in the order of the logits, ascending; None for all of them."""
        return None if self.draft_vocab_size is None else draft_tokens(self.d2t)

    def choose_vocabulary(self, tokens: Tensor) -> None:
        """Set which target tokens can be drafted, usually the most frequent ones.

        Args:
            tokens: `[draft_vocab_size]` token ids in any order.

        Raises:
            MMSpecError: if their number is another, they are not different tokens of the target, or this drafter drafts
                from all tokens.
        """
        name, size, vocab = type(self).__name__, self.draft_vocab_size, self.target.vocab_size
        if size is None:
            way = "make it with draft_vocab_size"
            raise MMSpecError(f"this {name} drafts from all {vocab} tokens, so there are none to choose; {way}")
        check_tokens(tokens, size, vocab, f"choose_vocabulary: {len(tokens)} token ids lead to")
        for table, chosen in zip((self.d2t, self.t2d), tables_of(tokens.sort().values, vocab), strict=True):
            table.copy_(chosen)

    def check_weights(self, source: str) -> None:
        """Refuse tokens that the target does not have, or has once but would be drafted twice."""
        if self.draft_vocab_size is not None:
            tokens, given = draft_tokens(self.d2t), f"{source}: d2t of {self.draft_vocab_size} draft tokens leads to"
            check_tokens(tokens, self.draft_vocab_size, self.target.vocab_size, given)

    # In folders.

    def config(self) -> dict[str, Any]:
        """Return the settings, see `Drafter.config`."""
        return asdict(self.settings)

    @classmethod
    def from_config(cls, config: dict[str, Any], target: Target) -> Self:
        """Rebuild the drafter, on the target's device and in its dtype."""
        return cls._remade(config, target).to(target.device)

    @classmethod
    def empty(cls, config: dict[str, Any], target: Target, there: Header | None = None) -> Self:
        """Rebuild the drafter for weights that are brought along, see `Drafter.empty`."""
        if getattr_static(cls, "from_config") is not getattr_static(HeadDrafter, "from_config"):
            return cls.from_config(config, target)
        with torch.device("meta"):
            drafter = cls._remade(config, target)
        if there is not None:
            there.check_fits(stored(drafter), cls.__name__)
        drafter.compute_unstored()
        return cls.from_config(config, target) if has_unstored(drafter) else drafter

    def compute_unstored(self) -> None:
        """Compute what no file has, on the target's device, after everything was made on the meta device."""

    @classmethod
    def _remade(cls, config: dict[str, Any], target: Target) -> Self:
        """Rebuild the drafter on the current device."""
        drafter = cls(target, **cls._keywords(config))
        for parameter in drafter.parameters():  # not the rotary frequencies, which stay in float32
            parameter.data = parameter.data.to(target.dtype)
        return drafter

    @classmethod
    def _keywords(cls, config: dict[str, Any]) -> dict[str, Any]:
        """Return the arguments of the constructor that a configuration has."""
        return {field.name: config[field.name] for field in fields(cls.Settings) if field.name in config}


def has_unstored(drafter: nn.Module) -> bool:
    """Return True if a module on the meta device has tensors there that no checkpoint will bring: computed ones."""
    stored = {id(tensor) for tensor in drafter.state_dict(keep_vars=True).values()}
    holders = [values for module in drafter.modules() for values in (vars(module), module._buffers)]
    tensors = [value for values in holders for value in values.values() if isinstance(value, Tensor)]
    return any(tensor.is_meta and id(tensor) not in stored for tensor in tensors)
