"""How much a video moves, in one number: to leave out stills, and cameras that are shaken."""

from typing import NamedTuple

import numpy as np

from hstvg.data.optical_flow import MAX_SIDE, estimate_flow
from hstvg.data.thumbnails import Thumbnail, thumbnails
from hstvg.data.video import Source

GAP_S = 0.1
"""From one frame of a pair to the other: so much that slow motion shows, and fast is followed."""
MOST_PAIRS = 16
"""Compared; spread evenly over the video, however long. They cost about 40 ms in all."""


class _Pair(NamedTuple):
    first: Thumbnail
    second: Thumbnail


def mean_motion(source: Source) -> float:
    """Mean speed of all that can be followed, in frame widths per second; 0 if nothing can.

    A flat background counts for nothing; a textured one that rests counts as rest. Where nothing
    moves, grain of 3 levels of 255 reads as less than 0.01 and of 8 levels as less than 0.03.

    Raises:
        UnreadableVideo: not a video, a broken one, or one beyond the limits.
    """
    total = weight = 0.0
    for first, second in _pairs(source):
        fps = 1.0 / (second.time_s - first.time_s)
        flow, confidence = estimate_flow(np.stack([first.pixels, second.pixels]), fps)
        across, down = flow[0]
        total += float((np.hypot(across, down * first.tallness) * confidence[0, 0]).sum())
        weight += float(confidence[0].sum())
    return total / weight if weight > 0 else 0.0


def _pairs(source: Source) -> list[_Pair]:
    """Frames GAP_S or a little more apart; at most MOST_PAIRS."""
    pairs, every, count, first = list[_Pair](), 1, 0, None
    for thumbnail in thumbnails(source, height=MAX_SIDE, width=MAX_SIDE):
        # Half a millisecond of tolerance for rounded times.
        if first is not None and thumbnail.time_s - first.time_s < GAP_S - 5e-4:
            continue
        if first is not None:
            if count % every == 0:
                pairs.append(_Pair(first, thumbnail))
            count += 1
        first = thumbnail
        if len(pairs) > 2 * MOST_PAIRS:
            pairs, every = pairs[::2], 2 * every
    return pairs[:: max(1, -(-len(pairs) // MOST_PAIRS))]
