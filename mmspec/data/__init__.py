"""Prompts with media and where they come from: what is answered, measured and trained on.

Importing this package loads neither torch nor transformers, nor any file of data.
"""

from .accuracy import METRICS, Metric
from .clips import ClipSource
from .conversations import ConversationFile
from .examples import Example, Source, from_record, to_record
from .facts import FactSource
from .folder_prompts import FolderPrompts
from .mmspec_benchmark import MMSpecBenchmark
from .opening import open_image, open_media
from .sources import EmbeddedSource, MediaFolder

__all__ = [
    "METRICS",
    "ClipSource",
    "ConversationFile",
    "EmbeddedSource",
    "Example",
    "FactSource",
    "FolderPrompts",
    "MMSpecBenchmark",
    "MediaFolder",
    "Metric",
    "Source",
    "from_record",
    "open_image",
    "open_media",
    "to_record",
]
