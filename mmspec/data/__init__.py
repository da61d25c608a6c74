"""Prompts with pictures and where they come from: what is answered, measured and trained on.

Importing this package loads neither torch nor transformers, nor any file of data.
"""

from .accuracy import METRICS, Metric
from .conversations import ConversationFile
from .examples import Example, Source, from_record, open_image, to_record
from .mmspec_benchmark import MMSpecBenchmark
from .picture_prompts import PicturePrompts
from .sources import EmbeddedSource, ImageFolder

__all__ = [
    "METRICS",
    "ConversationFile",
    "EmbeddedSource",
    "Example",
    "ImageFolder",
    "MMSpecBenchmark",
    "Metric",
    "PicturePrompts",
    "Source",
    "from_record",
    "open_image",
    "to_record",
]
