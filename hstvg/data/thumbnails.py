"""A whole video as small pictures: what fingerprints, motion filters and shot detection look at."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from av.video.reformatter import VideoReformatter
from jaxtyping import UInt8

from hstvg.data.clock import CLOCK, clocked_frames
from hstvg.data.video import Source, opened


class Thumbnail(NamedTuple):
    """One small picture."""

    time_s: float
    """After the first frame."""
    pixels: UInt8[np.ndarray, "H W 3"]
    tallness: float
    """Height of the frame by its width, before it was squeezed."""


def thumbnails(source: Source, *, height: int, width: int) -> Iterator[Thumbnail]:
    """Every frame in RGB, squeezed into height x width pixels as it is stored, not turned upright.

    Raises:
        UnreadableVideo: not a video, a broken one, or one beyond the limits.
    """
    # One scaler, on this thread, as for windows.
    reformatter = VideoReformatter()
    with opened(source) as (container, stream):
        for frame in clocked_frames(container, stream):
            small = reformatter.reformat(
                frame, width=width, height=height, format="rgb24", threads=1
            )
            time_s = float((frame.pts or 0) * CLOCK)
            yield Thumbnail(time_s, small.to_ndarray(), frame.height / frame.width)
