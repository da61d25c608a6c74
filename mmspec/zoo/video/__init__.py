"""The embedded video target: procedural clips, accounts of them, and the model that is trained to watch them.

    >>> from mmspec.zoo.video import watch
    >>> frames, prompt, reference = watch("moments", "test", 0)

There are no weights yet: this is the ground on which `scripts/train_tiny_video_target.py` trains them. Importing the
package draws nothing and loads no model.
"""

from __future__ import annotations

from mmspec.zoo.video.data import CLIP_TASKS, LENGTHS, ClipSample, watch

__all__ = ["CLIP_TASKS", "LENGTHS", "ClipSample", "watch"]
