from collections import Counter

import numpy as np
import pytest

from hstvg.data.partners import NOBODY, Partners
from hstvg.scene.grammar import STYLES

WORDS = "a red circle moves right"
STYLED = {style: f"{WORDS}, in {style} style" for style in STYLES} | {"plain": WORDS}
CAPTIONS = [STYLED[style] for _ in range(5) for style in STYLES[:3]] + [
    "a dog in warm style",
    STYLED["cool"],
]
FOREIGN, LONELY = len(CAPTIONS) - 2, len(CAPTIONS) - 1
ALL = np.arange(len(CAPTIONS))


def test_a_partner_is_another_clip_of_the_same_style():
    partners = Partners(CAPTIONS, seed=0, alone=0.0)
    for epoch in range(20):
        found = partners.of(ALL, ALL + len(ALL) * epoch)
        assert (found != ALL).all()
        for clip, partner in enumerate(found[:FOREIGN]):
            assert CAPTIONS[partner] == CAPTIONS[clip]
        assert found[[FOREIGN, LONELY]].tolist() == [NOBODY, NOBODY]


def test_every_other_one_of_the_style_is_as_likely():
    partners = Partners(CAPTIONS, seed=0, alone=0.0)
    found = Counter(partners.of(np.full(2000, 3), np.arange(2000)).tolist())
    assert sorted(found) == [0, 6, 9, 12]
    assert min(found.values()) > 400


def test_the_share_without_a_partner_is_kept():
    found = Partners(CAPTIONS, seed=0, alone=0.3).of(np.zeros(2000, int), np.arange(2000))
    assert (found == NOBODY).mean() == pytest.approx(0.3, abs=0.04)


def test_a_partner_belongs_to_the_seed_the_clip_and_the_position():
    positions = ALL + 100
    whole = Partners(CAPTIONS, seed=1).of(ALL, positions)
    parts = [Partners(CAPTIONS, seed=1).of(ALL[i::2], positions[i::2]) for i in range(2)]
    assert np.array_equal(parts[0], whole[0::2])
    assert np.array_equal(parts[1], whole[1::2])
    assert not np.array_equal(Partners(CAPTIONS, seed=2).of(ALL, positions), whole)
    assert not np.array_equal(Partners(CAPTIONS, seed=1).of(ALL, positions + 1), whole)
