import pytest
import torch

from hstvg.nn.norm import ChannelNorm


def position(*channels):
    return torch.tensor(channels).reshape(1, -1, 1, 1, 1)


def test_channel_norm_by_hand():
    # Mean 3, variance (4 + 1 + 9) / 3, deviation 2.160247.
    expected = pytest.approx([-0.925820, -0.462910, 1.388730], abs=1e-5)
    assert ChannelNorm(3)(position(1.0, 2.0, 6.0)).flatten().tolist() == expected


def test_the_gain_is_per_channel():
    norm = ChannelNorm(3)
    with torch.no_grad():
        norm.gain.copy_(torch.tensor([2.0, 0.0, -1.0]))
    expected = pytest.approx([-1.851640, 0.0, -1.388730], abs=1e-5)
    assert norm(position(1.0, 2.0, 6.0)).flatten().tolist() == expected


def test_size_does_not_matter_and_silence_stays_silent():
    norm = ChannelNorm(3)
    loud, quiet = norm(position(10.0, 20.0, 60.0)), norm(position(1.0, 2.0, 6.0))
    assert torch.allclose(loud, quiet, atol=1e-5)
    assert norm(position(0.0, 0.0, 0.0)).abs().sum() == 0


def test_a_position_sees_no_other():
    x = torch.randn(1, 4, 2, 3, 3, generator=torch.Generator().manual_seed(0))
    changed = x.clone()
    changed[:, :, 1, 2, 2] *= 7
    changed[:, 0, 1, 2, 2] += 1
    before, after = ChannelNorm(4)(x), ChannelNorm(4)(changed)
    differing = (before != after).any(1)[0]
    assert differing.nonzero().tolist() == [[1, 2, 2]]
