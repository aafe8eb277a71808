import pytest
import torch

from hstvg.objective.objective import Objective, WeightedTerm, squared_error, weighted_mean
from hstvg.types import Pair, Prediction, Term


class Constant:
    """A term whose value per clip is what it was made with, and which counts its calls."""

    def __init__(self, *values):
        self.values = torch.tensor(values, requires_grad=True)
        self.calls = 0

    def __call__(self, prediction, batch):
        self.calls += 1
        return self.values * 1


def test_the_total_is_the_sum_of_weight_times_mean(batch):
    terms = {"a": WeightedTerm(Constant(1.0, 3.0), 0.5), "b": WeightedTerm(Constant(4.0, 6.0), 2.0)}
    total, values = Objective(terms)(Prediction(), batch)
    # 0.5 * 2 + 2 * 5
    assert total.item() == 11
    assert {name: value.item() for name, value in values.items()} == {"a": 2, "b": 5}
    assert total.requires_grad
    assert not any(value.requires_grad for value in values.values())


def test_weight_zero_still_computes_the_term_and_keeps_its_gradient(batch):
    idle, busy = Constant(1.0), Constant(3.0)
    assert isinstance(idle, Term)
    objective = Objective({"idle": WeightedTerm(idle, 0.0), "busy": WeightedTerm(busy, 1.0)})
    total, values = objective(Prediction(), batch)
    total.backward()
    assert (total.item(), values["idle"].item(), idle.calls) == (3, 1, 1)
    assert idle.values.grad.tolist() == [0]
    assert busy.values.grad.tolist() == [1]


def test_a_negative_weight_is_refused():
    with pytest.raises(ValueError, match="would reward the loss"):
        WeightedTerm(Constant(1.0), -0.1)


def test_no_terms_are_refused():
    with pytest.raises(ValueError, match="at least one term"):
        Objective({})


def pair(weight=None):
    guess, target = torch.tensor([[1.0, 2.0, 5.0]]), torch.zeros(1, 3)
    return Pair(guess=guess, target=target, weight=weight)


def test_squared_error_by_hand():
    assert squared_error(pair()).tolist() == [10]
    # (1 * 1 + 0.5 * 4 + 0 * 25) / 1.5
    assert squared_error(pair(torch.tensor([[1.0, 0.5, 0.0]]))).tolist() == [2]
    assert squared_error(pair(torch.tensor([[0.3]]))).item() == pytest.approx(10)


def test_a_weight_counts_once_per_element_it_spreads_over():
    guess = torch.tensor([[[1.0, 3.0], [1.0, 3.0]]])
    weight = torch.tensor([[[1.0, 0.0]]])
    spread = Pair(guess=guess, target=torch.zeros(1, 2, 2), weight=weight)
    assert weighted_mean(guess, spread).tolist() == [1]


def test_where_nothing_is_trusted_value_and_gradient_are_zero():
    guess = torch.ones(1, 3, requires_grad=True)
    blind = Pair(guess=guess, target=torch.zeros(1, 3), weight=torch.zeros(1, 3))
    squared_error(blind).sum().backward()
    assert squared_error(blind).item() == 0
    assert guess.grad.tolist() == [[0, 0, 0]]
