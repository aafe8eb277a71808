import pytest
import torch

from hstvg.nn.norm import ChannelNorm


def test_channel_norm_by_hand():
    x = torch.tensor([3.0, 4.0]).reshape(1, 2, 1, 1, 1)
    # The root mean square of 3 and 4 is sqrt(12.5) = 3.5355.
    expected = pytest.approx([0.848528, 1.131371], abs=1e-5)
    assert ChannelNorm(2)(x).flatten().tolist() == expected


def test_the_gain_is_per_channel():
    norm = ChannelNorm(2)
    with torch.no_grad():
        norm.gain.copy_(torch.tensor([2.0, 0.0]))
    x = torch.tensor([3.0, 4.0]).reshape(1, 2, 1, 1, 1)
    assert norm(x).flatten().tolist() == pytest.approx([1.697056, 0.0], abs=1e-5)


def test_a_position_sees_no_other():
    x = torch.randn(1, 4, 2, 3, 3, generator=torch.Generator().manual_seed(0))
    changed = x.clone()
    changed[:, :, 1, 2, 2] *= 7
    changed[:, 0, 1, 2, 2] += 1
    before, after = ChannelNorm(4)(x), ChannelNorm(4)(changed)
    differing = (before != after).any(1)[0]
    assert differing.nonzero().tolist() == [[1, 2, 2]]
