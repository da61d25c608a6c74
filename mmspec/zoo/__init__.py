"""The embedded vision-language model: procedurally drawn pictures, their answers, and a tiny model that reads them.

    >>> from mmspec import zoo
    >>> image, prompt, reference = zoo.sample("scenes", "test", 0)

Importing this package draws nothing and loads no model: torch and transformers come in only with the submodules that
need them (such as `architecture`, `pretraining` and `evaluation`).
"""

from pathlib import Path

from mmspec.zoo.data import SPLITS, TASKS, Sample, sample

DEMO_PROMPT = "Describe the picture."


def demo_image():
    """Return the picture that `mmspec generate` describes when it is given none: a PIL image."""
    from PIL import Image

    with Image.open(Path(__file__).parent / "assets" / "demo.png") as image:
        return image.convert("RGB")


__all__ = ["DEMO_PROMPT", "SPLITS", "TASKS", "Sample", "demo_image", "sample"]
