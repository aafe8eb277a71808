import copy

import pytest
import torch
from torch import nn

from hstvg.nn.features import FeatureNetwork
from hstvg.objective.perceptual import PerceptualTerm, direction
from hstvg.types import Pair, Prediction


class Seen(FeatureNetwork):
    """Two levels, known by hand: the pixels, and their mean over places."""

    def __init__(self):
        super().__init__(num_words=1, base=1, depth=1)

    def levels(self, pixels):
        return [pixels, pixels.mean((2, 3, 4), keepdim=True)]


def network():
    torch.manual_seed(0)
    return FeatureNetwork(num_words=4, base=4, depth=2)


def clips(seed):
    return torch.rand(2, 3, 4, 8, 8, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def value(term, guess, target, batch):
    return term(Prediction(pixels=Pair(guess=guess, target=target)), batch)


def test_directions_by_hand(batch):
    """One place red, one green, where all should be red: at right angles, 2; on average 45 degrees,
    2 - sqrt 2."""
    red, green = torch.eye(3)[:2].view(2, 1, 3, 1, 1, 1)
    guess = torch.cat([0.3 * red, 0.3 * green], dim=4)
    target = torch.cat([red, red], dim=4)
    got = value(PerceptualTerm(Seen()), guess, target, batch).item()
    assert got == pytest.approx(((0 + 2) / 2 + 2 - 2**0.5) / 2)


def test_a_direction_of_nothing_has_a_finite_gradient():
    nothing = torch.zeros(1, 3, 2, requires_grad=True)
    direction(nothing).sum().backward()
    assert direction(nothing).abs().sum() == 0
    assert torch.isfinite(nothing.grad).all()


def test_it_is_a_distance(batch):
    term = PerceptualTerm(network())
    one, other = clips(1), clips(2)
    assert value(term, one, one, batch).abs().max() < 1e-10
    assert (value(term, one, other, batch) > 0.01).all()
    torch.testing.assert_close(value(term, one, other, batch), value(term, other, one, batch))


def test_the_network_is_never_trained(batch):
    given = network()
    before = copy.deepcopy(given.state_dict())
    term = PerceptualTerm(given)
    assert not isinstance(term, nn.Module)
    guess = clips(1).requires_grad_()
    value(term, guess, clips(2), batch).sum().backward()
    assert guess.grad.abs().amax((1, 2, 3, 4)).min() > 0
    assert all(weight.grad is None for weight in given.parameters())
    assert all(torch.equal(before[name], value) for name, value in given.state_dict().items())


def test_it_can_be_counted_without_memory_and_then_used(batch):
    """A dry run asks it of meta tensors before the training does of real ones."""
    term = PerceptualTerm(network())
    want = value(PerceptualTerm(network()), clips(1), clips(2), batch)
    assert value(term, clips(1).to("meta"), clips(2).to("meta"), batch).device.type == "meta"
    assert torch.equal(value(term, clips(1), clips(2), batch), want)


def test_a_folder_without_a_network_is_refused(tmp_path):
    with pytest.raises(ValueError, match="holds no exported network; train one with"):
        PerceptualTerm(tmp_path)
