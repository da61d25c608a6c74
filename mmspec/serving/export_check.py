"""Tries an export: `speculators` loads it, and vLLM answers a question about a picture with it."""

from __future__ import annotations

from collections.abc import Iterator

from ..decoding.sampling import Sampling
from ..drafters import Drafter
from ..errors import MMSpecError
from ..exactness import divergences
from ..formats.export import WRITERS, Exported
from ..generation import generate
from ..inputs import prepare
from ..trees import Chain
from .engine import VLLMEngine
from .process import WorkerProcess, found_python

QUESTION, TOKENS = "Describe the picture.", 64
"""A question, and the number of tokens of its answer that are compared."""
PATIENCE = 600.0
"""Seconds that importing and loading may take."""


def checked(drafter: Drafter, made: Exported, python: str | None = None) -> Iterator[str]:
    """Yield a line for every program that has taken an export, with what it made of it.

    Args:
        drafter: what was exported.
        made: the export.
        python: the Python of an environment that holds vLLM; None for the one that `MMSPEC_VLLM` names, or this one.

    Raises:
        MMSpecError: if one of them does not take it, or writes another text than the target; if there is none to ask.
    """
    found = WorkerProcess(python).ask({"installed": None}, PATIENCE)
    if not any(found.values()):
        raise MMSpecError(
            f"{found_python(python)} has neither speculators nor vLLM: name the Python of an environment that has, "
            "python=DIR/bin/python (scripts/vllm_environment.sh DIR makes one)"
        )
    if type(drafter) in WRITERS and found["speculators"]:
        name = WorkerProcess(python).ask({"export": str(made.folder)}, PATIENCE)
        yield f"speculators {found['speculators']} loads it as {name}"
    if found["vllm"]:
        yield answered_by_vllm(drafter, made, python)


def answered_by_vllm(drafter: Drafter, made: Exported, python: str | None) -> str:
    """Let vLLM answer with an export, compare the token ids with the target's own, and return the line about it.

    Raises:
        MMSpecError: if it writes another text, and not at a near-tie.
    """
    from ..zoo import demo_image

    target = drafter.target
    request = prepare(target, QUESTION, [demo_image()] if "image" in target.family.encoders else None)
    engine = VLLMEngine(target, drafter, None, None, Sampling(), TOKENS, python=python, made=made)
    theirs = engine.answer(request, 0)
    plain = generate(target, inputs=request, max_new_tokens=TOKENS).token_ids
    found = divergences(target, request, plain, theirs.token_ids)
    if any(not one["tie"] for one in found):
        (one,) = found
        raise MMSpecError(
            f"vLLM writes another token than the target at new token {one['position']}, {one['token']} and not "
            f"{one['plain']}: it does not run this target as transformers does"
        )
    ours = generate(target, drafter, inputs=request, tree=Chain(made.speculative_tokens), max_new_tokens=TOKENS).stats
    length = sum(sum(one.emitted) for one in theirs.rounds) / max(1, len(theirs.rounds))
    same = "its token ids are the target's own" if not found else f"the same up to a near-tie at {found[0]['position']}"
    version, count = (engine.versions or {}).get("vllm"), len(theirs.token_ids[0])
    return (
        f"vLLM {version} answers with it, {same}: {count} tokens, {length:.2f} a pass (here, in chains of "
        f"{made.speculative_tokens}: {ours.mean_acceptance_length:.2f})"
    )
