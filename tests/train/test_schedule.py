import pytest

from hstvg.train.schedule import learning_rate


def rate(step, warmup_steps=10):
    return learning_rate(
        step, peak=2.0, warmup_steps=warmup_steps, total_steps=110, final_ratio=0.1
    )


@pytest.mark.parametrize(
    ("step", "expected"),
    # Linear to 2 at step 10, half way down the cosine at 60, a tenth of the peak at 110 and after.
    [(1, 0.2), (5, 1.0), (10, 2.0), (35, 1.736396), (60, 1.1), (110, 0.2), (200, 0.2)],
)
def test_rates_by_hand(step, expected):
    assert rate(step) == pytest.approx(expected, abs=1e-6)


def test_it_rises_once_and_falls_once():
    rates = [rate(step) for step in range(1, 111)]
    assert rates[:10] == sorted(rates[:10])
    assert rates[9:] == sorted(rates[9:], reverse=True)


def test_without_warm_up_it_starts_near_the_peak():
    assert rate(1, warmup_steps=0) == pytest.approx(2.0, rel=1e-3)


def test_a_run_that_is_all_warm_up_ends_at_the_peak():
    assert rate(110, warmup_steps=110) == 2.0
