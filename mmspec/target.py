"""Target: a Hugging Face model whose output is to be preserved."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from einops import rearrange
from transformers import PreTrainedModel

from .check import CheckReport, check_target
from .check.prompts import NAMES
from .compat import warn_if_untested
from .context import Context
from .errors import MMSpecError, first_line, shown
from .families import Vision, family_of
from .inputs import Request
from .models.cache import AHEAD
from .models.guidance import Guidance, GuidedContext
from .models.model import Model
from .models.weights import device_of, fingerprint
from .node_by_node import NodeByNode
from .settings.calls import named_arguments


def unwrapped(model: Any) -> PreTrainedModel:
    """Return a model of transformers: the one given, or the one that peft has wrapped.

    Raises:
        MMSpecError: for anything else, and for an adapter that does more than to change layers.
    """
    if hasattr(model, "peft_config") and hasattr(model, "get_base_model"):
        name, wrapped = type(model).__name__, model.eval()
        model = wrapped.get_base_model()
        if any(getattr(config, "is_prompt_learning", False) for config in wrapped.peft_config.values()):
            raise MMSpecError(
                f"{name}: its adapter writes virtual tokens into the prompt, which no drafter could see; give a model "
                "whose adapter acts inside layers, such as LoRA"
            )
        tokens = torch.zeros(1, 3, dtype=torch.long, device=device_of(model.get_input_embeddings()))
        arguments = family_of(model).example(tokens)
        with torch.inference_mode():
            outer, inner = (one(**arguments).logits for one in (wrapped, model))
        if not torch.equal(outer, inner):
            raise MMSpecError(
                f"{name}: its adapter does more than to change layers: the model inside writes something else; merge "
                "it with merge_and_unload() and give the result"
            )
    if isinstance(model, PreTrainedModel):
        return model
    if isinstance(model, str):
        raise MMSpecError(f"Target({shown(model)}): a name is loaded with mmspec.load_target({shown(model)})")
    raise MMSpecError(
        f"a {type(model).__name__} is no model of transformers; give Target one, or load one with "
        "mmspec.load_target(name)"
    )


class Target(Model):
    """The model whose output is to be preserved, with its processor.

    Args:
        model: a Hugging Face model, in memory, with an sdpa, eager or flex attention back end; or peft's of one, whose
            adapter acts inside its layers. `target.model` is then the model inside, with the adapter.
        processor: its processor or tokenizer; needed for text prompts, not for `inputs=`.
        compile: whether to compile the passes that score trees, and those of small models that draft for it, see
            `mmspec.models.compiled`. The first answer then takes a minute or more, and less in later
            processes, which find the programs on disk.
        check: whether to compare it with its own `generate` at once, see `mmspec.check`; by default only if it is of no
            listed family. Such a model reads no pictures, videos or sounds before it was checked with some: with those
            that its processor makes, or by `check(inputs=...)`.
        writes: what it is to write: `"text"`, or `"image"` for the tokens of pictures, where the model can do both.

    Raises:
        MMSpecError: if the model cannot be decoded speculatively: attention without arbitrary masks, recurrent state,
            a vision-language model without the parts that are read, one that does not pass its self-check.
    """

    @named_arguments("Target")
    def __init__(self, model, processor=None, compile: bool = False, check: bool | None = None, writes: str = "text"):
        warn_if_untested()
        super().__init__(unwrapped(model), processor, compile, writes)
        self.checked = set(self.family.encoders) if self.family.verified or check is False else set()
        """The kinds of media that it is known to read as its model does."""
        if check:
            self._expect_text()
        if check or (check is None and not self.family.verified):
            try:
                report = check_target(self, thorough=False)
            except Exception as error:  # whatever a model of another shape stumbles over
                raise MMSpecError(
                    f"{type(model).__name__} does not pass the self-check: it cannot be run as mmspec runs models "
                    f"({first_line(error)}). It may need a family of its own in mmspec/families"
                ) from error
            self._believe(report)

    def check(self, inputs: Mapping[str, Any] | None = None) -> CheckReport:
        """Compare trees with the model's own `generate`, see `mmspec.check.check_target`.

        Args:
            inputs: inputs of one row with pictures, videos or sounds, from the model's processor; by default some of
                noise are made.

        Raises:
            MMSpecError: if they differ.
        """
        self._expect_text()
        report = check_target(self, inputs)
        self._believe(report)
        return report

    def _expect_text(self) -> None:
        if self.family.writes != "text":
            raise MMSpecError(f"the check compares texts, and this target writes={self.family.writes!r}: leave it out")

    def _believe(self, report: CheckReport) -> None:
        report.raise_if_wrong(self)
        self.checked |= report.kinds

    @torch.inference_mode()
    def draw(self, token_ids: Sequence[Sequence[int]]) -> list[Any]:
        """Return the pictures that written tokens are, as the processor returns them; without one, tensors `[height,
        width, channels]`.

        Args:
            token_ids: per picture, all of its tokens, as in `Output.token_ids`.

        Raises:
            MMSpecError: if the target writes text, or a picture is not complete.
        """
        if self.family.writes == "image":
            for row, ids in enumerate(token_ids):
                if len(ids) != self.space.length:
                    raise MMSpecError(
                        f"draw: picture {row} has {len(ids)} of {self.space.length} tokens; give max_new_tokens="
                        f"{self.space.length}, or leave it out"
                    )
        pixels = self.family.pixels(torch.tensor(token_ids, device=self.device)).float()
        if self.processor is None or not hasattr(self.processor, "postprocess"):
            return list(pixels)
        # Of the two back ends of Janus' processor one takes the channels first only, and the other takes both.
        images = list(rearrange(pixels, "image row column channel -> image channel row column"))
        return self.processor.postprocess(images, return_tensors="PIL.Image.Image")["pixel_values"]

    def first_capacity(self, prompt: int, new: int) -> int:
        """Slots per row to reserve for a prompt of so many tokens and so many new ones: for an answer of usual length,
        and not beyond the model's own limit. `generate` goes on behind both, and so does the cache, which then grows.
        """
        limit = self.family.longest or prompt + new
        return max(prompt, min(prompt + min(new, AHEAD), limit))

    @property
    def fingerprint(self) -> str:
        """Sixteen characters that change when any weight does: what was computed with other weights can be told.

        All weights and buffers that would be saved count, in the dtype in which they are held, adapters among them.
        Nothing is kept: every weight is read anew, about a gigabyte a second on one thread of a processor.
        """
        return fingerprint(self.model)

    @torch.no_grad()  # and not inference mode: what is trained beside the target reads this too
    def encode(self, request: Request) -> Vision | None:
        """Run the encoders over a request's media; None if it has none.

        Raises:
            MMSpecError: see `Family.encode`; for media of a model of no listed family that were not checked.
        """
        vision = super().encode(request)
        if vision is not None and (unknown := set(vision.kinds or ()) - self.checked):
            raise MMSpecError(
                f"{type(self.model).__name__} is of no listed family, and how it reads {NAMES[min(unknown)]} was not "
                "checked, for there is no processor, or it makes none: give Target(model, processor), or run "
                "target.check(inputs=...) once with inputs of one row from its processor"
            )
        return vision

    @torch.inference_mode()
    def prefill(
        self,
        request: Request,
        vision: Vision | None = None,
        capacity: int = 0,
        feature_layers: Iterable[int] = (),
        guidance: Guidance | None = None,
        node_by_node: bool = False,
    ) -> Context:
        """Run a request's prompt.

        Args:
            request: right-padded inputs, see `mmspec.inputs.prepare`.
            vision: what `encode` returned for it.
            capacity: tokens per row to reserve in the cache, the prompt included.
            feature_layers: hidden states to keep for the drafter, see `mmspec.models.states`.
            guidance: what the text is led away from, see `mmspec.models.guidance`.
            node_by_node: whether trees are scored one node at a time, see `NodeByNode`.

        Raises:
            MMSpecError: for a batch or guidance, if nodes are to be scored one at a time.
        """
        if node_by_node:
            if guidance is not None:
                raise MMSpecError("node_by_node=True reads one row at a time, and guidance reads pairs: choose one")
            return NodeByNode(self, request, vision, capacity, feature_layers)
        if guidance is None:
            return Context(self, request, vision, capacity, feature_layers)
        return GuidedContext(guidance, self, request, vision, capacity, feature_layers)


def expect_target(given: Any, call: str) -> None:
    """Refuse what is no `Target`, and say how to come by one.

    Args:
        given: in its place.
        call: to which it was given, such as `"mmspec.generate"`.
    """
    if isinstance(given, Target):
        return
    if isinstance(given, str):
        raise MMSpecError(f"{call} takes a Target, and {shown(given)} is a name: mmspec.load_target({shown(given)})")
    kind = type(given).__name__
    if hasattr(given, "draft") and hasattr(given, "observe"):
        raise MMSpecError(f"{call} takes a Target, and this is a drafter, a {kind}: give its target first")
    way = "mmspec.Target(model, processor)" if hasattr(given, "generate") else "mmspec.load_target(name)"
    raise MMSpecError(f"{call} takes a Target, and this is a {kind}: make one with {way}")
