"""Visual compressors: they decide what a drafter sees of the pictures. The target always sees all of them."""

from .base import Compressed, VisualCompressor, VisualSpan
from .elastic import Elastic
from .frames import Frames
from .guided import FeatureGuided
from .hide import Hide
from .holistic import Holistic
from .latent import LatentQueries
from .layout import Layout, layout_of
from .learned_routing import LearnedRouting
from .pool import Conv, Pool
from .prompt import DraftPrompt, compressed_prompt, whole_prompt
from .prune import Prune
from .resampler import Resampler
from .routing import Routing
from .sink_aware import SinkAware
from .text_scope import text_alone
from .token_assignment import Sources
from .top_p import TopPUniform
from .uv_prune import UVPrune
from .view import TargetView

__all__ = [
    "Compressed",
    "Conv",
    "DraftPrompt",
    "Elastic",
    "FeatureGuided",
    "Frames",
    "Hide",
    "Holistic",
    "LatentQueries",
    "Layout",
    "LearnedRouting",
    "Pool",
    "Prune",
    "Resampler",
    "Routing",
    "SinkAware",
    "Sources",
    "TargetView",
    "TopPUniform",
    "UVPrune",
    "VisualCompressor",
    "VisualSpan",
    "compressed_prompt",
    "layout_of",
    "text_alone",
    "whole_prompt",
]
