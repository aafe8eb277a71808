import math

import pytest
import torch

from hstvg.generator.draw_codes import draw_codes, keep_likely
from hstvg.generator.generator import Sampling

LOGITS = torch.tensor([0.5, 0.2, 0.2, 0.1]).log()


def left(top_k=0, top_p=1.0):
    kept = keep_likely(LOGITS[None], top_k, top_p)[0]
    assert torch.equal(kept[kept.isfinite()], LOGITS[kept.isfinite()])
    return kept.isfinite().nonzero().flatten().tolist()


def test_top_k_keeps_the_likeliest():
    assert left() == [0, 1, 2, 3]
    assert left(top_k=1) == [0]
    assert left(top_k=3) == [0, 1, 2]


@pytest.mark.parametrize(
    ("top_p", "kept"),
    [(0.3, [0]), (0.5, [0]), (0.6, [0, 1]), (0.8, [0, 1, 2]), (1.0, [0, 1, 2, 3])],
)
def test_top_p_keeps_the_fewest_that_reach_it(top_p, kept):
    assert left(top_p=top_p) == kept


def test_the_likeliest_always_stays():
    assert left(top_p=0.0) == [0]


def draws(settings, n=4000):
    uniform = torch.rand(1, 1, n, 4, generator=torch.Generator().manual_seed(0))
    codes = draw_codes(LOGITS.expand(1, 1, n, 4), uniform, settings)
    return torch.bincount(codes.flatten(), minlength=4) / n


def test_codes_come_as_often_as_they_are_likely():
    shares = draws(Sampling(top_p=1.0))
    for share, p in zip(shares.tolist(), (0.5, 0.2, 0.2, 0.1), strict=True):
        assert abs(share - p) < 4 * math.sqrt(p * (1 - p) / 4000)


def test_a_temperature_of_0_takes_the_likeliest():
    assert draws(Sampling(temperature=0)).tolist() == [1, 0, 0, 0]


def test_a_low_temperature_sharpens():
    """p^2 over its sum: 0.25 of 0.34."""
    assert draws(Sampling(temperature=0.5, top_p=1.0))[0].item() == pytest.approx(
        0.25 / 0.34, abs=0.03
    )
