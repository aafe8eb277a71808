from math import exp

import pytest
import torch

from hstvg.paths.solver import SOLVERS


def error(solver, steps):
    """At tau = 1 of dx / dtau = x tau from x = 1, whose solution is exp(tau^2 / 2)."""
    x = torch.ones((), dtype=torch.float64)
    for i in range(steps):
        x = SOLVERS[solver](lambda x, tau: x * tau, x, i / steps, (i + 1) / steps)
    return abs(x.item() - exp(0.5))


@pytest.mark.parametrize(("solver", "order"), [("euler", 1), ("heun", 2)])
def test_the_error_falls_with_the_order(solver, order):
    assert error(solver, 40) / error(solver, 80) == pytest.approx(2**order, rel=0.05)


@pytest.mark.parametrize(("solver", "asked"), [("euler", [0.25]), ("heun", [0.25, 0.75])])
def test_evaluations_of_a_step(solver, asked):
    times = []

    def field(x, tau):
        times.append(tau)
        return torch.full_like(x, 3.0)

    x = SOLVERS[solver](field, torch.zeros(2), 0.25, 0.75)
    assert times == asked
    assert x.tolist() == [1.5, 1.5]
