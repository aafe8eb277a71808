"""Which clips are held out for validation: by a hash of a name, so that each stays where it is."""

import hashlib
from collections.abc import Callable, Iterable
from itertools import islice

FEWEST = 3
"""Fewer names than this may all turn out to be of no use."""


def hold_out(names: Iterable[str], fraction: float, usable: Callable[[str], bool]) -> set[str]:
    """The names held out: about `fraction` of them, and the same ones as others come and go.

    Where the hash finds so few that all might be refused, the usable name nearest to it is taken,
    so that even two videos have one to validate on and one to train on.
    """
    places = {name: unit_hash(name) for name in names}
    held_out = {name for name, place in places.items() if place < fraction}
    if fraction > 0 and len(held_out) < FEWEST and len(places) > 1:
        nearest = sorted(places, key=lambda name: places[name])
        # Two: the only clip of use must be one to train on.
        first_two = list(islice(filter(usable, nearest), 2))
        held_out.update(first_two[:-1])
    return held_out


def unit_hash(name: str) -> float:
    """A number in [0, 1) that belongs to the name for ever."""
    digest = hashlib.sha256(name.encode("utf-8", "surrogateescape")).hexdigest()
    return int(digest[:13], 16) / 16**13
