"""From words such as `drafter=eagle tree=chain` to the methods of a comparison, and to the engines that run them."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from omegaconf import OmegaConf

from ..decoding.sampling import Sampling
from ..errors import MMSpecError, printable
from ..settings import configuration
from ..target import Target
from .engines import Engine
from .failures import failure, wrapped
from .records import Failure, SideRecord
from .structures import structure_of

GROUPS = ("drafter", "tree", "compressor", "verifier", "engine")
"""Groups of options that make a method; the rest of the configuration is the same for all sides."""

PLAIN, PLAIN_AGAIN = "plain", "plain again"
PLAIN_OVERRIDES = ("drafter=none", "tree=default", "compressor=default", "verifier=auto", "engine=mmspec")


@dataclass(eq=False)
class Method:
    """One side of a comparison: first as it is written, then with the engine that runs it.

    Args:
        label: its name in tables.
        overrides: what makes it, as on the command line.
        config: the whole configuration with them.
        control: True for plain decoding that is run again to see what numerics alone change. It is no method, and
            no difference makes it fail.
        engine: engine that runs it; None before it is built, and where it cannot be.
        failed: why it has no figures, as the bundle says it; None as long as it has them.
    """

    label: str
    overrides: tuple[str, ...]
    config: Any
    control: bool = False
    engine: Engine | None = None
    failed: Failure | None = None

    @property
    def choices(self) -> dict[str, str]:
        """The options that were chosen, by group."""
        pairs = (override.partition("=") for override in self.overrides)
        return {key: value for key, _, value in pairs if key in GROUPS}

    @property
    def settings(self) -> dict[str, Any]:
        """Settings that make the method, resolved."""
        config: Any = OmegaConf.to_container(self.config, resolve=True)
        return {group: config[group] for group in GROUPS}

    @property
    def competes(self) -> bool:
        """True for a method that is compared with plain decoding: neither that itself nor its control."""
        return self.label != PLAIN and not self.control

    def takes(self, batch: int) -> bool:
        """Return True if it is measured at a batch size: some of what transformers offers takes single prompts only."""
        return batch == 1 or self.engine is None or not self.engine.one_row

    @property
    def running(self) -> Engine:
        """Engine of a method that could be built."""
        assert self.engine is not None
        return self.engine

    @property
    def remembering(self) -> tuple[Any, ...]:
        """The drafter, builder and verifier, which may remember earlier requests, see `mmspec.memory`."""
        return () if self.engine is None else (self.engine.drafter, self.engine.tree, self.engine.verifier)

    def describe(self) -> SideRecord:
        """Return what the bundle says of it."""
        settings, choices, engine = self.settings, self.choices, self.engine
        return {
            "label": self.label,
            "engine": choices.get("engine", "mmspec"),
            "baseline": self.label == PLAIN,
            "control": self.control,
            "settings": settings,
            "drafter": choices.get("drafter") if settings["drafter"] is not None else None,
            "tree": choices.get("tree") if settings["tree"] is not None else None,
            "drafter_structure": None if engine is None else structure_of(engine.drafter),
            "budget": None if engine is None else engine.budget,
            "lossless": engine is None or engine.lossless,
            "exact": engine is None or engine.exact,
            "one_row": engine is not None and engine.one_row,
            "versions": None if engine is None else engine.versions,
            "failed": self.failed,
        }


def plan(config: Any, overrides: Sequence[str], config_dir: str | None = None, control: bool = False) -> list[Method]:
    """Return the methods that a configuration of `mmspec bench` asks for, plain decoding first.

    Args:
        config: composed from the overrides.
        overrides: overrides of the command line.
        config_dir: the user's configurations.
        control: run plain decoding a second time, as a side of its own.

    Raises:
        MMSpecError: for methods that are not `{label: overrides}`, a label given twice, an override that is not a
            method's to give, or one that names nothing.
    """
    common = [override for override in overrides if _group(override) not in (*GROUPS, "methods")]
    own = [override for override in overrides if _group(override) in GROUPS]

    def method(label: str, words: Sequence[str]) -> Method:
        return Method(label, tuple(words), configuration.compose("bench", [*common, *words], config_dir))

    planned = [method(PLAIN, PLAIN_OVERRIDES)]
    planned += [replace(planned[0], label=PLAIN_AGAIN, control=True)] if control else []
    if config.methods is None:
        if own:
            planned.append(method(label_of(own), own))
        return planned
    if not isinstance(config.methods, Mapping) or not config.methods:
        raise MMSpecError(
            f"methods={config.methods} must map names to what makes the methods, such as "
            "methods={mine:'drafter=eagle tree=chain'}"
        )
    for label, text in config.methods.items():
        if printable(str(label)) != str(label) or not str(label).strip():
            raise MMSpecError(f"the name of a method must be a text of printable characters, and one is {label!r}")
        if str(label) in (PLAIN, PLAIN_AGAIN):
            raise MMSpecError(f"a method cannot be called {label!r}: that is plain decoding, which is always measured")
        try:
            words = shlex.split(text)
        except (AttributeError, ValueError) as error:
            raise MMSpecError(f"method {label!r}: {text!r} is not a line of overrides ({error})") from None
        for word in words:
            if _group(word) not in GROUPS:
                raise MMSpecError(
                    f"method {label!r} sets {word!r}, but a method is made of {', '.join(GROUPS)}; the rest is the "
                    "same for all methods and belongs on the command line or into the experiment"
                )
        try:
            planned.append(method(str(label), [*own, *words]))
        except MMSpecError as error:
            raise MMSpecError(f"method {label!r}: {error}") from error
    return planned


def label_of(overrides: Sequence[str]) -> str:
    """Return a name for a method: its drafter, then what else was chosen or set, as in `eagle3 dynamic total=8`."""
    pairs = [override.partition("=")[::2] for override in overrides]
    chosen = dict(pairs)
    words = [chosen.pop("engine", ""), chosen.pop("drafter", "none")]
    words = [word for word in words if word and word != "mmspec"]
    words[-1] = words[-1].rstrip("/").rpartition("/")[-1]  # of a path, its last part
    for key, value in chosen.items():
        if value not in ("default", "auto"):
            words.append(value if key in GROUPS else f"{key.partition('.')[2]}={value}")
    return " ".join(words)


def build_engines(
    methods: Sequence[Method],
    target: Target,
    sampling: Sampling,
    max_new_tokens: int,
    budget: int | None = None,
    batches: Sequence[int] = (1,),
) -> None:
    """Build the engines of methods; those with the same drafter share it.

    A method that cannot be built, takes single prompts only, or may draft more than the budget has failed, and the
    others are measured.

    Args:
        methods: methods as they were planned, plain decoding first.
        target: who answers.
        sampling, max_new_tokens: the same for all.
        budget: drafted nodes a round that no method may exceed; None for no limit.
        batches: numbers of prompts that will be answered together.

    Raises:
        MMSpecError: if plain decoding cannot be built, or no other method.
    """
    drafters: dict[str, Any] = {}
    errors: dict[str, Exception] = {}
    for method in methods:
        config, key = method.config, str([method.settings[name] for name in ("drafter", "compressor")])
        try:
            if key not in drafters:
                drafters[key] = configuration.build_drafter(config, target)
            engine = configuration.build(
                config.engine,
                target=target,
                drafter=drafters[key],
                tree=configuration.build(config.tree),
                verifier=configuration.build(config.verifier),
                sampling=sampling,
                max_new_tokens=max_new_tokens,
            )
            _refuse(engine, budget, batches)
            method.engine = engine
        except Exception as error:  # of whatever kind: it must not cost the others their figures
            method.failed, errors[method.label] = failure(error), error
    if errors and (methods[0].failed or all(method.failed for method in methods if method.competes)):
        label, reason = next(iter(errors.items()))
        raise wrapped(reason, f"method {label!r}") from reason


def _refuse(engine: Engine, budget: int | None, batches: Sequence[int]) -> None:
    """Refuse a method that does not go with the settings of the run."""
    if budget is not None and (engine.budget is None or engine.budget > budget):
        most = "an unknown number of" if engine.budget is None else f"up to {engine.budget}"
        raise MMSpecError(
            f"it drafts {most} nodes a round, but budget={budget}: give it a smaller tree (tree.length, tree.total, "
            "drafter.length ...), raise the budget, or leave the method out"
        )
    if engine.one_row and 1 not in batches:
        sizes = ",".join(map(str, batches))
        raise MMSpecError(
            f"it takes one prompt at a time, but batch_size={sizes}: set batch_size=1, or 1 among others, or leave the "
            "method out"
        )


def _group(override: str) -> str:
    return override.lstrip("+~").partition("=")[0].partition(".")[0]
