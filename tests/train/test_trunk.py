"""How terms pull at a shared trunk: by hand, in parts, and without a trace in the step."""

import pytest
import torch
from torch import nn

from hstvg.train.trunk import gram, pulls


class Heads(nn.Module):
    """Two heads on one trunk of two activations."""

    def __init__(self):
        super().__init__()
        self.body = nn.Linear(3, 4)
        self.first, self.second = nn.Linear(4, 2), nn.Linear(4, 2)

    def forward(self, x):
        trunk = (self.body(x).tanh(), self.body(-x).tanh())
        return self.first(trunk[0]), self.second(trunk[0] * trunk[1]), trunk


def looked(x, heads=None):
    torch.manual_seed(0)
    heads = heads or Heads()
    first, second, trunk = heads(x)
    means = {"one": first.square().mean(1).mean(), "two": second.square().mean(1).mean()}
    return means, gram(means, trunk, len(x))


def test_sizes_and_directions_by_hand():
    """Two clips with a trunk of two values each."""
    trunk = torch.tensor([[1.0, 2.0], [3.0, 4.0]], requires_grad=True)
    values = {
        "flow": 3 * trunk[:, 0],  # slopes (3, 0) and (3, 0)
        "diffusion": trunk[:, 0] + trunk[:, 1],  # (1, 1) and (1, 1)
        "against": -2 * trunk.sum(1),  # (-2, -2) and (-2, -2)
        "elsewhere": torch.ones(2, requires_grad=True) * 1,
        "before its time": torch.zeros(2),
    }
    products = gram({name: value.mean() for name, value in values.items()}, (trunk,), 2)
    assert pulls(tuple(values), products) == pytest.approx(
        {
            "gradient/flow": 3,
            "gradient/diffusion": 2**0.5,
            "gradient/against": 8**0.5,
            "gradient/elsewhere": 0,
            "gradient/before its time": 0,
            "cosine/flow": 0.5**0.5,
            "cosine/against": -1,
            "cosine/elsewhere": 0,
            "cosine/before its time": 0,
        }
    )


def test_without_diffusion_the_first_term_is_the_measure():
    products = torch.tensor([[4.0, -2.0], [-2.0, 4.0]])
    assert pulls(("a", "b"), products) == {"gradient/a": 2, "gradient/b": 2, "cosine/b": -0.5}


def test_micro_batches_average_to_the_whole_batch():
    x = torch.randn(4, 3, generator=torch.Generator().manual_seed(1))
    whole = looked(x)[1]
    parts = torch.stack([looked(part)[1] for part in x.chunk(2)]).mean(0)
    torch.testing.assert_close(parts, whole)
    assert whole[0, 1].abs() > 0


def test_a_look_leaves_the_gradients_of_the_step_as_they_are():
    x, gradients = torch.randn(4, 3), []
    for look in (False, True):
        torch.manual_seed(0)
        heads = Heads()
        first, second, trunk = heads(x)
        means = {"one": first.square().mean(), "two": second.square().mean()}
        if look:
            gram(means, trunk, len(x))
            assert all(weight.grad is None for weight in heads.parameters())
        sum(means.values()).backward()
        gradients.append([weight.grad for weight in heads.parameters()])
    assert all(torch.equal(one, other) for one, other in zip(*gradients, strict=True))


def test_half_precision_is_measured_in_full():
    x = torch.randn(4, 3)
    want = looked(x)[1]
    torch.manual_seed(0)
    got = looked(x.bfloat16(), Heads().bfloat16())[1]
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, want, rtol=0.05, atol=1e-3)
