"""Partners: for every clip another one of the same style, which shows how the clip is to look."""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from jaxtyping import Int

from hstvg.scene.grammar import STYLES, style_of

NOBODY = -1
ALONE = 0.5
"""Share of clips that are told their style in words, and have no partner."""


class Partners:
    """Who shows whom its style: a pure function of the captions, the seed and the position.

    Args:
        captions: of all that may be partners of one another.
        seed: of the run.
        alone: share of clips without a partner.
    """

    def __init__(self, captions: Sequence[str], seed: int, alone: float = ALONE) -> None:
        self.seed = seed
        self.alone = alone
        styles = np.array([_number(caption) for caption in captions], dtype=np.int8)
        by_style = np.argsort(styles, kind="stable")
        self._groups = [
            by_style[slice(*np.searchsorted(styles[by_style], [number, number + 1]))]
            for number in range(len(STYLES))
        ]
        self._styles = styles

    def of(
        self, clips: Int[np.ndarray, "N"], positions: Int[np.ndarray, "N"]
    ) -> Int[np.ndarray, "N"]:
        """Number of the partner of each clip at its position; NOBODY where it has none.

        Nobody is its own partner. A clip whose caption knows no style has none, and neither has the
        only one of its style.
        """
        pairs = zip(clips.tolist(), positions.tolist(), strict=True)
        return np.array([self._of(*pair) for pair in pairs], dtype=np.int64)

    def _of(self, clip: int, position: int) -> int:
        style = int(self._styles[clip])
        toss, place = np.random.default_rng((self.seed, position, 2)).random(2)
        if style == NOBODY or toss < self.alone:
            return NOBODY
        group = self._groups[style]
        if len(group) < 2:
            return NOBODY
        # Some way round the circle of its style, short of itself.
        own = int(np.searchsorted(group, clip))
        ahead = 1 + int(place * (len(group) - 1))
        return int(group[(own + ahead) % len(group)])


@lru_cache(maxsize=1 << 16)  # captions repeat, above all those of other footage
def _number(caption: str) -> int:
    style = style_of(caption)
    return NOBODY if style is None else STYLES.index(style)
