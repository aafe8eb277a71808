import pytest
import torch
from torch import nn

from hstvg.nn.statistics import MEMORY, Statistic


class Model(nn.Module):
    """A weight with a statistic beside it, two levels down."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(2, 2)
        self.part = nn.ModuleDict({"mean": Statistic(torch.zeros(2))})

    @property
    def statistic(self):
        return self.part["mean"]


def test_the_running_mean_by_hand():
    """The start does not count; the first steps do evenly."""
    statistic = Statistic(torch.tensor([9.0, 9.0]))
    assert statistic.value.tolist() == [9, 9]
    means = []
    for value in ([2.0, 0.0], [4.0, 0.0], [0.0, 3.0]):
        statistic.observe(torch.tensor(value))
        means.append(statistic.value.tolist())
    assert means == [[2, 0], [3, 0], [2, pytest.approx(1)]]
    assert statistic.count == 3


def test_old_steps_are_forgotten():
    statistic = Statistic(torch.zeros(()))
    for _ in range(MEMORY):
        statistic.observe(torch.tensor(0.0))
    statistic.observe(torch.tensor(1.0))
    assert statistic.value.item() == pytest.approx(1 / MEMORY)
    statistic.observe(torch.tensor(1.0))
    assert statistic.value.item() == pytest.approx(1 - (1 - 1 / MEMORY) ** 2)


def test_what_is_observed_may_be_of_another_precision():
    statistic = Statistic(torch.zeros(2, dtype=torch.float64))
    statistic.observe(torch.tensor([0.5, 2.0], dtype=torch.bfloat16))
    assert statistic.value.dtype == torch.float32
    assert statistic.value.tolist() == [0.5, 2.0]


@pytest.mark.parametrize("lower", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("how", ["by name", "to"])
def test_a_models_precision_is_not_its_statistics(lower, how):
    model = Model()
    value = torch.tensor([1 / 3, 1e-3])
    model.statistic.value.copy_(value)
    model.statistic.count.fill_(1001)  # which bfloat16 would round to 1000
    names = {torch.bfloat16: "bfloat16", torch.float16: "half", torch.float64: "double"}
    moved = getattr(model, names[lower])() if how == "by name" else model.to(dtype=lower)
    assert moved.linear.weight.dtype == lower
    assert moved.statistic.value.dtype == moved.statistic.count.dtype == torch.float32
    assert torch.equal(moved.statistic.value, value)
    assert moved.statistic.count == 1001


def test_it_moves_with_the_model():
    model = Model().to("meta")
    at_once = Model().to(device="meta", dtype=torch.bfloat16)
    for moved in (model.statistic, at_once.statistic):
        assert moved.value.is_meta
        assert moved.count.is_meta
        assert moved.value.dtype == torch.float32
    back = model.bfloat16().to_empty(device="cpu")
    assert back.statistic.value.device.type == "cpu"
    assert back.statistic.value.dtype == torch.float32
    assert back.linear.weight.dtype == torch.bfloat16


def test_it_is_saved_and_is_no_parameter():
    model, other = Model(), Model()
    model.statistic.observe(torch.tensor([1.0, 2.0]))
    assert {"part.mean.value", "part.mean.count"} <= set(model.state_dict())
    assert not any("mean" in name for name, _ in model.named_parameters())
    other.load_state_dict(model.state_dict())
    other.statistic.observe(torch.tensor([3.0, 2.0]))
    assert other.statistic.value.tolist() == [2, 2]


def test_no_gradient_flows_into_it():
    statistic = Statistic(torch.zeros(1))
    statistic.observe(torch.ones(1, requires_grad=True) * 2)
    assert not statistic.value.requires_grad
