"""A package that answers as vLLM does, from a file: what an engine of ours tells it, and makes of it, is seen here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

PACKAGE = """
import json, os
from types import SimpleNamespace as Made

__version__ = "0.0"
FOLDER = os.environ["FAKE_VLLM"]


class SamplingParams:
    def __init__(self, **given):
        self.given = given


class LLM:
    def __init__(self, **options):
        print("what libraries print")
        with open(FOLDER + "/options.json", "w") as file:
            json.dump(options, file)
        with open(FOLDER + "/threads.json", "w") as file:
            json.dump([os.environ.get(library + "_NUM_THREADS") for library in ("OMP", "NUMBA")], file)
        self.files = sorted(os.listdir(options["model"]))
        self.llm_engine = Made(model_config=Made(max_model_len=options.get("max_model_len", 512)))
        self.counts = [0, 0, 0, [0, 0, 0]]
        self.said = json.load(open(FOLDER + "/answers.json"))

    def generate(self, asked, parameters, use_tqdm):
        for prompt in asked:
            if "refused" in self.said[json.dumps(prompt["prompt_token_ids"])]:
                raise ValueError("this prompt is too long")
        with open(FOLDER + "/asked.jsonl", "a") as file:
            for prompt, one in zip(asked, parameters, strict=True):
                sizes = [picture.size for picture in prompt.get("multi_modal_data", {}).get("image", ())]
                file.write(json.dumps([prompt["prompt_token_ids"], sizes, one.given]) + chr(10))
        # Every answer: two drafts of three, of which two tokens and none are accepted.
        for number, more in enumerate((2 * len(asked), 6 * len(asked), 2 * len(asked))):
            self.counts[number] += more
        self.counts[3] = [self.counts[3][0] + len(asked), self.counts[3][1] + len(asked), 0]
        found = [self.said[json.dumps(prompt["prompt_token_ids"])] for prompt in asked]
        return [
            Made(
                prompt_token_ids=one["prompt"],
                outputs=[Made(token_ids=one["ids"], finish_reason=one.get("finish", "length"))],
                metrics=Made(first_token_latency=0.0),
            )
            for one in found
        ]

    def get_metrics(self):
        names = ("num_drafts", "num_draft_tokens", "num_accepted_tokens")
        found = [Made(name="vllm:spec_decode_" + name, value=value) for name, value in zip(names, self.counts)]
        place = Made(name="vllm:spec_decode_num_accepted_tokens_per_pos", values=list(self.counts[3]))
        return [*found, place, Made(name="vllm:other", value=1)]
"""


def install(folder: Path, answers: dict[str, dict[str, list[int]]]) -> dict[str, str]:
    """Write the package, and what it says; return the variables of the environment with which it is found.

    Args:
        folder: where it is written.
        answers: token ids of a prompt, as JSON, to those that it is read as (`prompt`), those of its answer (`ids`),
            and why it ends (`finish`, by default `length`).
    """
    (folder / "vllm").mkdir()
    (folder / "vllm" / "__init__.py").write_text(PACKAGE)
    (folder / "answers.json").write_text(json.dumps(answers))
    return {"PYTHONPATH": str(folder), "FAKE_VLLM": str(folder)}


def told(folder: Path) -> tuple[dict[str, Any], list[Any]]:
    """Return the arguments with which the engine was made, and the prompts that it was asked."""
    asked = (folder / "asked.jsonl").read_text().splitlines()
    return json.loads((folder / "options.json").read_text()), [json.loads(line) for line in asked]
