"""Media as models read them: pictures, videos and sounds, from whatever a user has them in."""

from .pictures import load_image
from .sounds import load_sound
from .videos import Chooser, Video, evenly, load_video

KINDS = ("image", "video", "audio")
"""What a model may be shown or told besides text, as transformers names it."""

__all__ = ["KINDS", "Chooser", "Video", "evenly", "load_image", "load_sound", "load_video"]
