"""A picture or a video that a generated clip begins with, as frames of the generator's window."""

import numpy as np
from jaxtyping import UInt8

from hstvg.data.decode import Cover, decode_window, on_show
from hstvg.data.sample import Window
from hstvg.data.video import UnreadableVideo, opened, probe_video

PICTURES = "png_pipe,jpeg_pipe,webp_pipe,bmp_pipe"
LONGEST_S = 60.0
"""Of a given video; a clip goes on from its last few frames alone."""


def read_given(data: bytes, window: Window) -> UInt8[np.ndarray, "T H W 3"]:
    """All frames at the rate of the window, scaled to cover it and cropped; of a picture one.

    Raises:
        UnreadableVideo: neither a picture nor a video, or one beyond the limits.
    """
    clip = np.empty((1, window.height, window.width, 3), np.uint8)
    try:
        with opened(data, PICTURES) as (container, stream):
            for frame in on_show(container, stream, [0.0]):
                Cover(clip).put(frame, 0)
            return clip
    except UnreadableVideo:
        duration_s = probe_video(data).duration_s
    if duration_s > LONGEST_S:
        raise UnreadableVideo(f"video cannot be gone on from: it is longer than {LONGEST_S:g} s")
    return decode_window(
        data,
        start_s=0.0,
        num_frames=max(1, round(duration_s * window.fps)),
        fps=window.fps,
        height=window.height,
        width=window.width,
    )
