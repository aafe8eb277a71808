import pytest

from hstvg.metrics.interval import mean_interval, wilson


def test_wilson_by_hand():
    # 8 of 10: the example of Newcombe 1998, to four digits.
    estimate = wilson(8, 10)
    assert (estimate.value, estimate.n) == (0.8, 10)
    assert (estimate.low, estimate.high) == pytest.approx((0.4902, 0.9433), abs=1e-4)


def test_wilson_at_the_ends():
    none, every = wilson(0, 20), wilson(20, 20)
    assert none.low == 0.0 < none.high < 0.2
    assert every.high == 1.0 > every.low > 0.8


@pytest.mark.parametrize(("successes", "n"), [(0, 0), (3, 2), (-1, 2)])
def test_wilson_refuses_what_is_no_share(successes, n):
    with pytest.raises(ValueError, match="no share"):
        wilson(successes, n)


def test_mean_by_hand():
    # Variance 4 * 0.75^2 / 3 = 0.75, n 4: the half width is 1.96 * sqrt(0.75) / 2.
    estimate = mean_interval([0.5, 0.5, 2.0, 2.0])
    assert estimate.value == 1.25
    assert estimate.high - estimate.value == pytest.approx(1.96 * (0.75**0.5) / 2, abs=1e-4)


def test_one_value_and_none():
    assert mean_interval([3.0]).low == mean_interval([3.0]).high == 3.0
    with pytest.raises(ValueError, match="no mean"):
        mean_interval([])
