"""The embedded vision-language model: procedurally drawn pictures, their answers, and a tiny model that reads them.

    >>> from mmspec import zoo
    >>> image, prompt, reference = zoo.sample("scenes", "test", 0)

Importing this package draws nothing and loads no model: torch and transformers come in only with the submodules that
need them (such as `architecture`, `pretraining` and `evaluation`).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from mmspec.zoo.data import SPLITS, TASKS, DrawnSample, misread, page_regions, sample

if TYPE_CHECKING:
    from PIL.Image import Image

ASSETS = Path(__file__).parent / "assets"
DEMO_PROMPT = "Describe the picture."
DEMO_CLIP_PROMPT, DEMO_FRAME_PROMPT = "Tell what happens in the clip.", "What is in the picture?"


def demo_image() -> Image:
    """Return the picture that `mmspec generate` describes when it is given none: a PIL image."""
    import PIL.Image

    with PIL.Image.open(ASSETS / "demo.png") as image:
        return image.convert("RGB")


def demo_clip() -> Path:
    """Return the file of the clip that `mmspec generate target=tiny-video` tells of when it is given none."""
    return ASSETS / "demo.mp4"


__all__ = [
    "DEMO_CLIP_PROMPT",
    "DEMO_FRAME_PROMPT",
    "DEMO_PROMPT",
    "SPLITS",
    "TASKS",
    "DrawnSample",
    "demo_clip",
    "demo_image",
    "misread",
    "page_regions",
    "sample",
]
