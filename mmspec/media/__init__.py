"""Media as models read them: pictures, videos and sounds, from whatever a user has them in."""

from .histograms import keyframes
from .pictures import load_image
from .sounds import load_sound
from .videos import Chooser, Video, evenly, load_video

KINDS = ("image", "video", "audio")
"""The kinds of media that a model may read besides text, as transformers names them."""

__all__ = ["KINDS", "Chooser", "Video", "evenly", "keyframes", "load_image", "load_sound", "load_video"]
