import json

import pytest
import torch

from hstvg.objective.objective import (
    Objective,
    WeightedTerm,
    skill,
    squared_error,
    squared_size,
    weighted_mean,
)
from hstvg.types import GaugedTerm, Pair, Prediction, Term


class Constant:
    """A term whose value per clip is what it was made with, and which counts its calls."""

    def __init__(self, *values):
        self.values = torch.tensor(values, requires_grad=True)
        self.calls = 0

    def __call__(self, prediction, batch):
        self.calls += 1
        return self.values * 1


class Gauged(Constant):
    """A term whose trivial guess costs 4."""

    def trivial(self, prediction, batch):
        return torch.full_like(self.values, 4.0)


def test_the_total_is_the_sum_of_weight_times_mean(batch):
    terms = {"a": WeightedTerm(Constant(1.0, 3.0), 0.5), "b": WeightedTerm(Constant(4.0, 6.0), 2.0)}
    total, values = Objective(terms)(Prediction(), batch)
    # 0.5 * 2 + 2 * 5
    assert total.item() == 11
    assert {name: value.item() for name, value in values.items()} == {"a": 2, "b": 5}
    assert total.requires_grad
    assert all(value.requires_grad for value in values.values())


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


# ---- weights that change ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shares", "weights"),
    [
        ({}, [2, 2, 2, 2, 2]),
        ({"warmup": 0.5}, [0, 1, 2, 2, 2]),
        ({"decay": 0.5}, [2, 2, 2, 1, 0]),
        ({"warmup": 0.25, "decay": 0.5}, [0, 2, 2, 1, 0]),
        ({"warmup": 1.0}, [0, 0.5, 1, 1.5, 2]),
        ({"warmup": 0.5, "decay": 0.5}, [0, 1, 2, 1, 0]),
    ],
)
def test_a_weight_rises_and_falls_over_the_samples_of_the_run(shares, weights):
    entry = WeightedTerm(Constant(1.0), 2.0, **shares)
    assert [entry.weight_at(progress) for progress in (0, 0.25, 0.5, 0.75, 1)] == weights
    assert entry.changes == bool(shares)


def test_the_total_knows_how_far_the_run_is(batch):
    entries = {
        "a": WeightedTerm(Constant(3.0), 2.0, warmup=0.5),
        "b": WeightedTerm(Constant(1.0), 1.0),
    }
    objective = Objective(entries)
    totals = [objective(Prediction(), batch, progress)[0].item() for progress in (0.0, 0.25, 0.5)]
    assert totals == [1, 4, 7]
    assert objective(Prediction(), batch)[0].item() == 7
    assert objective.weights(0.25) == {"a": 1}
    total, values = objective(Prediction(), batch, 0.0)
    total.backward()
    assert values["a"].item() == 3
    assert entries["a"].term.values.grad.tolist() == [0]


@pytest.mark.parametrize("shares", [{"warmup": -0.1}, {"decay": -1}, {"warmup": 0.6, "decay": 0.6}])
def test_shares_that_are_none_are_refused(shares):
    with pytest.raises(ValueError, match="shares of the run"):
        WeightedTerm(Constant(1.0), 1.0, **shares)


# ---- trivial predictors -----------------------------------------------------------------------


def test_a_term_is_divided_by_what_a_trivial_guess_scored_before(batch):
    gauged, plain = Gauged(3.0, 5.0), Constant(1.0, 1.0)
    objective = Objective(
        {"a": WeightedTerm(gauged, 0.5, normalise=True), "b": WeightedTerm(plain, 1.0)}
    )
    assert isinstance(gauged, GaugedTerm)
    assert not isinstance(plain, GaugedTerm)
    trivial = objective.trivial(Prediction(), batch)
    assert {name: value.item() for name, value in trivial.items()} == {"a": 4}
    # Nothing is known at first: 0.5 * 4 / 1 + 1.
    assert objective(Prediction(), batch)[0].item() == 3
    objective.observe({"a": 4.0})
    assert objective(Prediction(), batch)[0].item() == pytest.approx(0.5 * 4 / 4 + 1)
    objective.observe({"a": 12.0})
    total, values = objective(Prediction(), batch)
    assert total.item() == pytest.approx(0.5 * 4 / 8 + 1)
    assert values["a"].item() == 4
    total.backward()
    assert gauged.values.grad.tolist() == [0.5 / 8 / 2] * 2


def test_a_weight_of_zero_keeps_a_gradient_of_zero_when_normalised(batch):
    gauged = Gauged(3.0)
    objective = Objective({"a": WeightedTerm(gauged, 0.0, normalise=True)})
    objective.observe({"a": 4.0})
    objective(Prediction(), batch)[0].backward()
    assert gauged.values.grad.tolist() == [0]


def test_what_is_known_of_the_steps_seen_goes_on(batch):
    def made():
        return Objective({"a": WeightedTerm(Gauged(3.0), 1.0, normalise=True)})

    whole, first, second = made(), made(), made()
    for value in (4.0, 1.1, 0.3):
        whole.observe({"a": value})
    first.observe({"a": 4.0})
    first.observe({"a": 1.1})
    kept = json.loads(json.dumps(first.state()))
    assert kept == {"a": {"trivial": pytest.approx(2.55), "steps": 2}}
    second.restore(kept)
    second.observe({"a": 0.3})
    assert second.state() == whole.state()
    assert torch.equal(second(Prediction(), batch)[0], whole(Prediction(), batch)[0])


def test_a_state_of_other_terms_leaves_a_term_at_its_beginning():
    objective = Objective({"a": WeightedTerm(Gauged(3.0), 1.0, normalise=True)})
    begun = objective.state()
    objective.restore({"b": {"trivial": 7.0, "steps": 9}})
    assert objective.state() == begun


def test_what_is_no_number_is_not_remembered():
    objective = Objective({"a": WeightedTerm(Gauged(3.0), 1.0, normalise=True)})
    for value in (4.0, float("nan"), float("inf")):
        objective.observe({"a": value})
    assert objective.state() == {"a": {"trivial": 4, "steps": 1}}


def test_nothing_to_guess_divides_by_nothing(batch):
    objective = Objective({"a": WeightedTerm(Gauged(0.0), 1.0, normalise=True)})
    objective.observe({"a": 0.0})
    assert objective(Prediction(), batch)[0].item() == 0


def test_a_term_without_a_trivial_guess_cannot_be_normalised():
    with pytest.raises(ValueError, match="Constant knows no trivial predictor"):
        WeightedTerm(Constant(1.0), 1.0, normalise=True)


def test_skill_by_hand():
    assert [skill(loss, 4.0) for loss in (0.0, 1.0, 4.0, 6.0)] == [1, 0.75, 0, -0.5]
    assert skill(0.0, 0.0) == 0


# ---- squared errors ---------------------------------------------------------------------------


def pair(weight=None):
    guess, target = torch.tensor([[1.0, 2.0, 5.0]]), torch.zeros(1, 3)
    return Pair(guess=guess, target=target, weight=weight)


def test_squared_error_by_hand():
    assert squared_error(pair()).tolist() == [10]
    # (1 * 1 + 0.5 * 4 + 0 * 25) / 1.5
    assert squared_error(pair(torch.tensor([[1.0, 0.5, 0.0]]))).tolist() == [2]
    assert squared_error(pair(torch.tensor([[0.3]]))).item() == pytest.approx(10)


def test_the_guess_of_zero_by_hand():
    guess, target = torch.tensor([[9.0, 9.0, 9.0]]), torch.tensor([[1.0, 2.0, 5.0]])
    assert squared_size(Pair(guess=guess, target=target)).tolist() == [10]
    trust = torch.tensor([[1.0, 0.5, 0.0]])
    assert squared_size(Pair(guess=guess, target=target, weight=trust)).tolist() == [2]


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
