import pytest
import torch

from hstvg.objective.refinement import RefinementTerm
from hstvg.types import Pair, Prediction

SHAPE = (1, 2, 4, 3, 3)


def pair(error, weight=None):
    """Wrong by `error` everywhere."""
    target = torch.full(SHAPE, 2.0)
    return Pair(guess=target + error, target=target, weight=weight)


def prediction(errors, changes, weight=None):
    return Prediction(
        refined=tuple(pair(error) for error in errors),
        refined_change=tuple(pair(error, weight) for error in changes),
    )


def test_late_steps_count_more_and_the_last_change_alone(batch):
    """Errors 4, 2, 1 and a change wrong by 3: 0.25 * 16 + 0.5 * 4 + 1 + 0.1 * 9."""
    made = prediction([9.0, 4.0, 2.0, 1.0], [9.0, 9.0, 9.0, 3.0])
    assert RefinementTerm(rho=0.5, eta=0.1)(made, batch).item() == pytest.approx(7.9)


def test_a_refiner_that_leaves_the_flaws_scores_the_trivial_value(batch):
    term = RefinementTerm(rho=0.5, eta=0.1)
    idle = prediction([4.0, 4.0, 4.0], [3.0, 3.0, 3.0])
    # (1 + 0.5) * 16 + 0.1 * 9
    assert term.trivial(idle, batch).item() == pytest.approx(24.9)
    assert term(idle, batch).item() == pytest.approx(24.9)
    assert term.trivial(prediction([4.0, 1.0, 0.0], [3.0, 0.0, 0.0]), batch) == pytest.approx(24.9)


def test_change_counts_where_the_motion_is_trusted(batch):
    trust = torch.zeros(1, 1, 4, 3, 3)
    blind = prediction([0.0, 0.0], [5.0, 5.0], weight=trust)
    assert RefinementTerm()(blind, batch).item() == 0
    trust[..., 0] = 0.25
    assert RefinementTerm(eta=0.5)(blind, batch).item() == pytest.approx(12.5)


@pytest.mark.parametrize("values", [{"rho": 0.0}, {"rho": 1.5}, {"eta": -0.1}])
def test_weights_out_of_range_are_refused(values):
    with pytest.raises(ValueError, match=next(iter(values))):
        RefinementTerm(**values)
