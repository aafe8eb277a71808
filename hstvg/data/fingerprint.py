"""Perceptual hash of a whole video, to find clips that were seen before in another encoding.

A difference hash: one bit says whether the picture grows clearly brighter from one cell to the next
to the right. Each colour has bits of its own, so that a red ball is no copy of a green one.
"""

import numpy as np
from jaxtyping import UInt8, UInt64

from hstvg.data.thumbnails import Thumbnail, thumbnails
from hstvg.data.video import Source

NUM_FRAMES = 4
CELLS = 8
"""Per row and per column: 64 bits for each frame and colour."""
STEP = 4
"""Levels of 255 by which neighbours must differ: below, the noise of an encoder would decide."""
SAME = 60
"""Fingerprints at most this far apart are of the same video. Measured on 48 clips of 160 x 128
(shape world, and textures in motion): the same clip at crf 30 and 40, at half the size, at 8 and
24 instead of 12 frames per second, 10 levels brighter or a tenth darker was 0 to 35 away. Of 800
clips of the shape world at 32 x 32, any two were at least 88 apart and half of all pairs over 340;
at that size a strong re-encoding can be 110 away and stays unfound."""
MOST_KEPT = 4096
"""Thumbnails held at once; of longer videos every second one is let go, again and again."""


def fingerprint(source: Source) -> UInt64[np.ndarray, "12"]:
    """Hash of four frames, spaced evenly over the duration, so that the frame rate hardly matters.

    Best asked of what `transcode` has made: rotation and pixel aspect are not looked at.

    Raises:
        UnreadableVideo: not a video, a broken one, or one beyond the limits.
    """
    kept, every = list[Thumbnail](), 1
    for number, thumbnail in enumerate(thumbnails(source, height=CELLS, width=CELLS + 1)):
        if number % every == 0:
            kept.append(thumbnail)
        if len(kept) == MOST_KEPT:
            kept, every = kept[::2], 2 * every
    times = np.array([thumbnail.time_s for thumbnail in kept])
    duration_s = times[-1] * len(times) / max(len(times) - 1, 1)
    moments = duration_s * (np.arange(NUM_FRAMES) + 0.5) / NUM_FRAMES
    # A microsecond of tolerance for rounded times.
    on_show = np.searchsorted(times, moments + 1e-6, side="right") - 1
    return _hash(np.stack([kept[i].pixels for i in on_show]))


def distance(first: UInt64[np.ndarray, "12"], second: UInt64[np.ndarray, "12"]) -> int:
    """Bits in which two fingerprints differ, 0 to 768."""
    return int(np.bitwise_count(first ^ second).sum())


def _hash(frames: UInt8[np.ndarray, "4 8 9 3"]) -> UInt64[np.ndarray, "12"]:
    rises = np.diff(frames.astype(np.int16), axis=2) >= STEP
    # Frame by frame, colour by colour, row by row.
    bits = np.packbits(rises.transpose(0, 3, 1, 2).reshape(-1, CELLS * CELLS), axis=1)
    return bits.view(">u8").astype(np.uint64).ravel()
