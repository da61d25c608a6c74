"""Alignment: how well the subject of a draft fits what can be seen."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor
from torch.nn.functional import normalize

from ..errors import MMSpecError, shown
from ..families.vision import visual_spans
from ..inputs import prepare
from ..settings.arguments import whole_number

if TYPE_CHECKING:
    from PIL.Image import Image

    from ..target import Target

BEFORE = "a"
"""A word that is put before a subject, so that its tokens are those of words inside a sentence."""


class Scorer(Protocol):
    """A function that says how well texts and pictures fit; any CLIP-like model can be made into one."""

    def __call__(self, subjects: Sequence[str], pictures: Sequence[Image]) -> Any:
        """Return a number per subject and picture, `[subjects, pictures]`: a tensor, an array or lists. Larger is
        better; only comparisons within one call count."""
        ...


def scored(scorer: Scorer, subjects: Sequence[str], pictures: Sequence[Image]) -> Tensor:
    """Ask a scorer, and return what it says, `[subjects, pictures]`.

    Raises:
        MMSpecError: for another shape, and for what is no finite number.
    """
    wanted = (len(subjects), len(pictures))
    said = scorer(subjects, pictures)
    try:
        found = torch.as_tensor(said, dtype=torch.float64, device="cpu")
    except (TypeError, ValueError, RuntimeError):
        raise MMSpecError(
            f"scorer: {_name(scorer)} returned {shown(said, 40)}, which is no table of numbers: return one of shape "
            f"{wanted}, [subjects, pictures]"
        ) from None
    if found.shape != wanted:
        raise MMSpecError(
            f"scorer: {_name(scorer)} returned shape {tuple(found.shape)} for {wanted[0]} subjects and {wanted[1]} "
            f"pictures: return a number for each, {wanted}"
        )
    if not found.isfinite().all():
        raise MMSpecError(f"scorer: {_name(scorer)} returned numbers that are not finite: return finite ones")
    return found


class TowerScorer:
    """The target's own vision tower and text embeddings as a scorer, with nothing to load or to train.

    A vision-language model puts visual tokens where the embeddings of words stand, so both live in one space. Score of
    a subject and a picture: the mean, over the subject's tokens, of the largest cosine with any of the picture's visual
    tokens. Our own formulation: VideoSpeculateRAG (arXiv 2601.01513) takes CLIP ViT-L/14 at 336 pixels, see
    `ClipScorer`. How much it tells depends on how the target was trained.

    Args:
        target: the model; its processor has to take pictures.
        at_once: pictures that are encoded in one pass at most.

    Raises:
        MMSpecError: for a target that takes no pictures.
    """

    def __init__(self, target: Target, at_once: int = 16):
        if "image" not in target.family.kinds or target.processor is None:
            raise MMSpecError(
                f"TowerScorer: {type(target.model).__name__} "
                + ("has no processor" if target.processor is None else "takes no pictures")
                + ", so it cannot compare them with words: pass scorer=, such as mmspec.selection.ClipScorer"
            )
        self.target, self.at_once = target, whole_number(self, lowest=1, at_once=at_once)

    @torch.inference_mode()
    def __call__(self, subjects: Sequence[str], pictures: Sequence[Image]) -> Tensor:
        """Return `[subjects, pictures]` scores from -1 to 1."""
        words = [self._words(subject) for subject in subjects]
        columns = []
        for first in range(0, len(pictures), self.at_once):
            for seen in self._seen(pictures[first : first + self.at_once]):
                columns.append([float((one @ seen.T).amax(-1).mean()) for one in words])
        return torch.tensor(columns, dtype=torch.float64).T

    def _words(self, subject: str) -> Tensor:
        """Return the embeddings of a subject's tokens, `[tokens, hidden]`, of length 1."""
        tokenizer, table = self.target.tokenizer, self.target.model.get_input_embeddings().weight
        before, whole = (
            tokenizer(text, add_special_tokens=False)["input_ids"] for text in (BEFORE, f"{BEFORE} {subject}")
        )
        own = whole[len(before) :] if whole[: len(before)] == before else whole
        return normalize(table[torch.tensor(own or whole, device=table.device)].float(), dim=-1)

    def _seen(self, pictures: Sequence[Image]) -> list[Tensor]:
        """Return the visual tokens of each picture, `[tokens, hidden]`, of length 1."""
        target = self.target
        request = prepare(target, ["Look."] * len(pictures), [[picture] for picture in pictures])
        vision = target.encode(request)
        assert vision is not None  # every row has a picture
        rows = visual_spans(request.token_ids(), target.family.placeholders, vision.sizes)
        left = iter(vision.embeds)
        return [normalize(torch.cat([next(left) for _ in row]).float(), dim=-1) for row in rows]


class ClipScorer:
    """A CLIP of transformers as a scorer: the cosine of the embeddings of a subject and a picture.

    VideoSpeculateRAG (arXiv 2601.01513) takes `openai/clip-vit-large-patch14-336`. Any model with `get_text_features`
    and `get_image_features` will do, such as SigLIP.

    Args:
        model: the model, such as a `transformers.CLIPModel`.
        processor: its processor.
        padding: how its texts are padded: `True`, or `"max_length"` for SigLIP.

    Raises:
        MMSpecError: for a model of another kind.
    """

    def __init__(self, model: Any, processor: Any, padding: bool | str = True):
        if not (hasattr(model, "get_text_features") and hasattr(model, "get_image_features")):
            raise MMSpecError(
                f"ClipScorer: a {type(model).__name__} has no get_text_features and get_image_features; pass a "
                "transformers.CLIPModel, or a model like it"
            )
        self.model, self.processor, self.padding = model.eval(), processor, padding

    def __call__(self, subjects: Sequence[str], pictures: Sequence[Image]) -> Tensor:
        """Return `[subjects, pictures]` cosines."""
        return self.of_texts(subjects) @ self.of_pictures(pictures).T

    @torch.inference_mode()
    def of_texts(self, texts: Sequence[str]) -> Tensor:
        """Return the embeddings of texts, `[texts, width]`, of length 1. What does not fit into the model is cut."""
        read = self.processor(text=list(texts), padding=self.padding, truncation=True, return_tensors="pt")
        return self._unit(self.model.get_text_features(**read.to(self.model.device)))

    @torch.inference_mode()
    def of_pictures(self, pictures: Sequence[Image]) -> Tensor:
        """Return the embeddings of pictures, `[pictures, width]`, of length 1."""
        read = self.processor(images=list(pictures), return_tensors="pt").to(self.model.device)
        return self._unit(self.model.get_image_features(pixel_values=read["pixel_values"].to(self.model.dtype)))

    @staticmethod
    def _unit(features: Any) -> Tensor:
        found = getattr(features, "pooler_output", features)  # some versions return a tensor
        return normalize(found.float(), dim=-1).cpu()


def _name(scorer: Any) -> str:
    return getattr(scorer, "__name__", type(scorer).__name__)
