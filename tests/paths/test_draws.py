import pytest
import torch

from hstvg.paths.draws import Draws

CPU = torch.device("cpu")


def draws(*positions, seed=0):
    return Draws(seed, positions, CPU)


@pytest.mark.parametrize("kind", ["normal", "uniform"])
def test_a_clip_draws_the_same_in_any_batch(kind):
    whole = getattr(draws(3, 7, 100), kind)("noise", 2, 5)
    for i, position in enumerate((3, 7, 100)):
        assert torch.equal(getattr(draws(position), kind)("noise", 2, 5)[0], whole[i])
    assert torch.equal(getattr(draws(100, 3, 7), kind)("noise", 2, 5), whole[[2, 0, 1]])


def test_drawing_leaves_no_trace():
    one = draws(5)
    first = one.normal("noise", 4)
    torch.manual_seed(1)
    one.uniform("tau", 4)
    assert torch.equal(one.normal("noise", 4), first)


def test_purposes_positions_and_seeds_differ():
    base = draws(1).normal("noise", 8)
    for other in (draws(1).normal("tau", 8), draws(2).normal("noise", 8)):
        assert not torch.isclose(base, other).any()
    assert not torch.isclose(base, draws(1, seed=1).normal("noise", 8)).any()
    # Not the same digits read another way: 1/23 is not 12/3.
    assert not torch.isclose(
        draws(23, seed=1).normal("x", 8), draws(3, seed=12).normal("x", 8)
    ).any()


def test_moments():
    normal = draws(*range(200)).normal("noise", 500)
    assert abs(normal.mean()) < 0.01
    assert abs(normal.std() - 1) < 0.01
    uniform = draws(*range(2000)).uniform("tau")
    assert uniform.shape == (2000,)
    assert uniform.min() >= 0
    assert uniform.max() < 1
    assert abs(uniform.mean() - 0.5) < 0.03


@pytest.mark.parametrize("share", [0.0, 0.1, 0.7, 1.0])
def test_coins_fall_by_their_share(share):
    tosses = draws(*range(4000)).coins("drop", share)
    assert abs(sum(tosses) / 4000 - share) < 0.025
    assert draws(17).coins("drop", share) == [tosses[17]]


def test_a_coin_that_falls_for_a_share_falls_for_any_larger_one():
    few, many = (draws(*range(500)).coins("drop", share) for share in (0.2, 0.5))
    assert all(more for less, more in zip(few, many, strict=True) if less)
