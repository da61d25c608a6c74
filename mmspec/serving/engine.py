"""VLLMEngine: vLLM as one side of a comparison, and as who answers prompts by the thousand."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..decoding.sampling import Sampling
from ..drafters import NGramDrafter
from ..errors import MMSpecError
from ..evaluation.engines import Answer, Engine
from ..formats.export import TARGET, Exported, export_drafter, export_target
from ..inputs import Request
from ..settings.arguments import number
from ..trees import Chain
from .asking import asked_of, check_prompt, check_room, cut_short
from .counters import rounds_of
from .process import ON_A_PROCESSOR, WorkerProcess

MORE_ROOM = "give it more (engine.options={max_model_len: N})"
"""The way out where its answers are cut short."""


@dataclass(eq=False)
class VLLMEngine(Engine):
    """vLLM in a process of its own, which loads the target again, with the drafter exported to it.

    The drafter of the configuration says how it drafts: none; `NGramDrafter` is its own lookup in the prompt with as
    long guesses and n-grams (and one continuation, where ours has several); all that `mmspec export` writes is exported
    first. Chains only: their length is that of a `Chain`, or else what the export says. Greedy text is compared with
    plain decoding's token by token; drawn text has the same law and other draws.

    Nothing that an earlier request left behind is used again (no prefix cache), and the time is the process's own,
    without the way there and back. Its counters are over all rows of a batch, see `counters`.

    Args:
        python: the Python of the environment that holds vLLM; None for the one that `MMSPEC_VLLM` names, or this one.
        options: further arguments of `vllm.LLM`, such as `{"max_model_len": 4096}`.
        environment: further variables of the process's environment.
        patience: seconds that loading, and every request, may take at most.
        made: an export of the drafter that is there already; None to make one.

    Raises:
        MMSpecError: for a drafter, a tree or a verifier that vLLM has no counterpart of; if it cannot be started.
    """

    python: str | None = None
    options: Mapping[str, Any] | None = None
    environment: Mapping[str, str] | None = None
    patience: float = 600.0
    made: Exported | None = None

    def __post_init__(self) -> None:
        self.exact = self.sampling.temperature == 0
        number(self, above=0, patience=self.patience)
        if self.verifier is not None:
            raise MMSpecError("engine=vllm has its own rule of acceptance: leave verifier=auto")
        if self.tree is not None and not (isinstance(self.tree, Chain) and self.drafter is not None):
            raise MMSpecError(
                f"engine=vllm drafts chains, and no {type(self.tree).__name__}: set tree=chain tree.length=N"
            )
        self._files = tempfile.TemporaryDirectory(prefix="mmspec-vllm-")
        served, drafting = self._written(Path(self._files.name))
        self.drafts = drafting is not None
        self.budget = 0 if drafting is None else drafting["num_speculative_tokens"]
        options = {
            "model": served,
            "dtype": str(self.target.dtype).removeprefix("torch."),
            "seed": 0,
            "disable_log_stats": False,  # without them there are no counters
            "enable_prefix_caching": False,
            "mm_processor_cache_gb": 0,
            "speculative_config": drafting,
        }
        threads, defaults = {}, {}
        if self.target.device.type == "cpu":
            options |= {"enforce_eager": True}
            # numba, with which vLLM looks up n-grams, sets the number for the whole process, by itself to that of the
            # cores, and threads that wait for each other spin while others run: thirty times as slow on two busy cores.
            threads = dict.fromkeys(("OMP_NUM_THREADS", "NUMBA_NUM_THREADS"), str(torch.get_num_threads()))
            defaults = ON_A_PROCESSOR
        self._worker = WorkerProcess(self.python, threads | dict(self.environment or {}), defaults)
        loaded = self._worker.ask({"load": options | dict(self.options or {})}, self.patience)
        self.versions, self._room = loaded["versions"], loaded["room"]
        check_room("vLLM", self._room, self.max_new_tokens, MORE_ROOM)

    def _written(self, folder: Path) -> tuple[str, dict[str, Any] | None]:
        """Write what vLLM cannot read as it is; return the target's name and the `speculative_config`."""
        if self.made is not None:
            return self.made.target, self.made.speculative_config
        drafter, length = self.drafter, self.tree.length if isinstance(self.tree, Chain) else None
        if drafter is not None and not isinstance(drafter, NGramDrafter):
            made = export_drafter(drafter, folder, speculative_tokens=length)
            return made.target, made.speculative_config
        written = export_target(self.target, folder / TARGET)
        name = str(written or self.target.model.config.name_or_path)
        if not name:
            raise MMSpecError(
                "engine=vllm loads the target again, and this one was not loaded by a name: load it from a folder"
            )
        if drafter is None:
            return name, None
        lookup = {"prompt_lookup_max": drafter.max_ngram, "prompt_lookup_min": drafter.min_ngram}
        return name, {"method": "ngram", "num_speculative_tokens": length or drafter.length, **lookup}

    def answer(self, request: Request, seed: int) -> Answer:
        """Decode a request; the preparation of the prompt is vLLM's own part, as far as it processes pictures.
        `Answer.unanswered` has the rows that it does not take."""
        asked, rows = asked_of(self.target, request), request.batch_size
        answered = self._worker.ask(
            {
                "prompts": [{"ids": one.ids, "images": one.images} for one in asked],
                "sampling": sampling_of(self.sampling, self.max_new_tokens),
                "seeds": [(seed + row) % 2**63 for row in range(rows)],
            },
            self.patience,
        )
        answers, wall = answered["answers"], answered["wall"]
        unanswered = {
            row: f"vLLM does not take the prompt: {one['refused']}"
            for row, one in enumerate(answers)
            if "refused" in one
        }
        for row, (one, ours) in enumerate(zip(answers, request.token_ids(), strict=True)):
            check_prompt(row, ours, one.get("prompt_ids", ours), "vLLM")
            if one.get("finish") == "length" and len(one["ids"]) < self.max_new_tokens:
                unanswered[row] = cut_short("vLLM", self._room, len(one["ids"]), self.max_new_tokens, MORE_ROOM)
        ids = [[] if row in unanswered else one["ids"] for row, one in enumerate(answers)]
        first = min(wall, max((one.get("first_token") or 0.0) for one in answers))
        rounds = rounds_of(answered["counts"] if self.drafts else {}, sum(max(0, len(row) - 1) for row in ids))
        return Answer(
            token_ids=ids,
            finish=["eos" if one.get("finish") == "stop" else "length" for one in answers],
            wall=wall,
            seconds={"prefill": first, "vllm": wall - first},
            first_tokens=[min(1, len(row)) for row in ids],
            passes=len(rounds),
            rounds=rounds,
            unanswered=unanswered,
        )


def sampling_of(sampling: Sampling, max_new_tokens: int) -> dict[str, Any]:
    """Return the arguments of vLLM's `SamplingParams` that mean the same."""
    options: dict[str, Any] = {"temperature": sampling.temperature, "max_tokens": max_new_tokens}
    if sampling.temperature > 0:
        options |= {"top_k": sampling.top_k or 0, "top_p": 1.0 if sampling.top_p is None else sampling.top_p}
        options |= {"min_p": sampling.min_p or 0.0}
    if sampling.repetition_penalty is not None:
        options["repetition_penalty"] = sampling.repetition_penalty
    return options
