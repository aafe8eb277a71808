"""Where a video cuts from one shot to the next, found by the optional package scenedetect."""

from itertools import pairwise
from typing import Any

import numpy as np

from hstvg.data.thumbnails import thumbnails
from hstvg.data.video import Source

SIDE = 128
"""Pixels of the frames that are compared: colours are averaged, which needs no more."""


def scene_cuts(source: Source, *, shortest_s: float = 0.6) -> list[tuple[float, float]]:
    """Start and end of each shot in seconds after the first frame, in order, without gaps.

    A cut is a frame that differs from the one before it far more than its neighbours differ among
    themselves (scenedetect's AdaptiveDetector), so a camera that moves fast makes none, nor does a
    slow fade. `transcode` takes the times as start_s and end_s.

    Args:
        source: the video.
        shortest_s: no shot but the last becomes shorter than this.

    Raises:
        UnreadableVideo: not a video, a broken one, or one beyond the limits.
        ValueError: scenedetect is not installed.
    """
    scenedetect = _import_scenedetect()
    detector = scenedetect.AdaptiveDetector(min_scene_len=shortest_s)
    times, cuts = [], []
    for thumbnail in thumbnails(source, height=SIDE, width=SIDE):
        times.append(thumbnail.time_s)
        timecode = scenedetect.FrameTimecode(thumbnail.time_s, fps=1000.0)
        blue_first = np.ascontiguousarray(thumbnail.pixels[..., ::-1])
        cuts += [cut.seconds for cut in detector.process_frame(timecode, blue_first)]
    # The last frame stays as long as the others do on average.
    end_s = times[-1] * len(times) / max(len(times) - 1, 1)
    return [(round(start, 6), round(end, 6)) for start, end in pairwise([0.0, *cuts, end_s])]


def _import_scenedetect() -> Any:
    try:
        import scenedetect  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ValueError("finding cuts needs scenedetect; pip install 'hstvg[cuts]'") from error
    return scenedetect
