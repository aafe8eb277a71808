"""How sure a measurement is: 95 % intervals for shares and for means."""

from collections.abc import Sequence
from math import fsum, sqrt

from hstvg.types import Estimate

Z = 1.959964
"""97.5 % quantile of the standard normal."""


def wilson(successes: int, n: int) -> Estimate:
    """A share of n independent trials with Wilson's score interval, honest near 0 and 1.

    Source: Wilson 1927, "Probable inference, the law of succession, and statistical inference".
    """
    if not 0 <= successes <= n or n == 0:
        raise ValueError(f"{successes} successes of {n} trials have no share")
    share = successes / n
    middle = (share + Z**2 / (2 * n)) / (1 + Z**2 / n)
    reach = Z * sqrt(share * (1 - share) / n + Z**2 / (4 * n**2)) / (1 + Z**2 / n)
    # The value lies inside its interval; rounding alone would break that at 0 and 1.
    low, high = max(0.0, min(share, middle - reach)), min(1.0, max(share, middle + reach))
    return Estimate(value=share, low=low, high=high, n=n)


def mean_interval(values: Sequence[float]) -> Estimate:
    """A mean with its normal interval. One value alone has an interval of width 0: look at n.

    The sums are exact, so the order in which partial results were merged does not matter.
    """
    n = len(values)
    if n == 0:
        raise ValueError("no value has no mean")
    mean = fsum(values) / n
    variance = fsum((value - mean) ** 2 for value in values) / max(1, n - 1)
    reach = Z * sqrt(variance / n)
    return Estimate(value=mean, low=mean - reach, high=mean + reach, n=n)
