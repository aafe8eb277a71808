"""Which of many videos show the same, by fingerprints that were taken of each."""

from collections.abc import Mapping, Sequence

import numpy as np

ROWS = 1 << 14
"""Fingerprints compared at once: 1.5 MB of them."""


def find_duplicates(fingerprints: Mapping[str, Sequence[int]], most_bits: int) -> dict[str, str]:
    """Name of a duplicate -> the name that is kept in its stead, the first of all that are near.

    Every video is compared with all that are kept: seconds for ten thousand of them, minutes for a
    hundred thousand.

    Args:
        fingerprints: name -> the words of 64 bits of its fingerprint.
        most_bits: two that differ in at most so many bits show the same.
    """
    names = sorted(fingerprints)
    words = len(fingerprints[names[0]]) if names else 0
    kept = np.empty((len(names), words), np.uint64)
    kept_names: list[str] = []
    duplicates: dict[str, str] = {}
    for name in names:
        fingerprint = np.array(fingerprints[name], np.uint64)
        if (place := _first_near(kept[: len(kept_names)], fingerprint, most_bits)) is None:
            kept[len(kept_names)] = fingerprint
            kept_names.append(name)
        else:
            duplicates[name] = kept_names[place]
    return duplicates


def _first_near(kept: np.ndarray, fingerprint: np.ndarray, most_bits: int) -> int | None:
    for start in range(0, len(kept), ROWS):
        bits = np.bitwise_count(kept[start : start + ROWS] ^ fingerprint).sum(axis=1)
        near = np.flatnonzero(bits <= most_bits)
        if len(near):
            return start + int(near[0])
    return None
