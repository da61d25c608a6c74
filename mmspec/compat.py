"""Differences between the versions of transformers that mmspec supports. No other module knows them."""

from __future__ import annotations

import inspect
import logging
from functools import cache

import transformers
from packaging.version import Version
from transformers import GenerationMixin

logger = logging.getLogger(__name__)

OLDEST, NEWEST = "5.17.0", "5.24.0"
"""Versions of transformers with which the test suite was last run; `docs/changelog.md` names them too."""

CACHE = (
    "cache"
    if "cache" in inspect.signature(GenerationMixin.prepare_inputs_for_generation).parameters
    else ("past_key_values")
)
"""Name of the argument by which models and their layers take a KV cache: `past_key_values` before transformers 5.24."""

CACHE_NAMES = ("cache", "past_key_values")
"""Names that a caller may use for it: `generate` takes the old one until transformers 6."""


@cache
def warn_if_untested() -> None:
    """Warn in one line, once per process, that this transformers is newer than any tested version."""
    if Version(transformers.__version__) > Version(NEWEST):
        logger.warning(
            "transformers %s is newer than %s, the newest that mmspec was tested with; should anything fail, "
            "pip install transformers==%s",
            transformers.__version__,
            NEWEST,
            NEWEST,
        )
