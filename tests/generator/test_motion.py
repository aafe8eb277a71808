import math

import pytest
import torch

from hstvg.generator.motion import (
    REFERENCE_SPEED,
    fill_unknown,
    motion_channels,
    read_motion,
)
from hstvg.scales import Scale


def flow(x, y, frames=2, size=4):
    motion = torch.empty(1, 2, frames, size, size)
    motion[:, 0], motion[:, 1] = x, y
    return motion


def test_sign_axis_and_unit_by_hand():
    """asinh(u / 0.05): u0 to the right gives asinh 1 = 0.8814, ten times u0 upwards -2.9982."""
    motion = flow(0.05, -0.5)
    channels, trust = motion_channels(motion, torch.ones(1, 1, 2, 4, 4), Scale(1, 2, 2))
    assert channels.shape == (1, 2, 1, 2, 2)
    assert channels[0, 0].flatten().tolist() == pytest.approx([0.881374] * 4, abs=1e-5)
    assert channels[0, 1].flatten().tolist() == pytest.approx([-2.998223] * 4, abs=1e-5)
    assert torch.equal(trust, torch.ones(1, 1, 1, 2, 2))


def test_untrusted_flow_does_not_count():
    motion, confidence = flow(0.1, 0.0), torch.ones(1, 1, 2, 4, 4)
    motion[:, :, 1] = 9.0
    confidence[:, :, 1] = 0
    channels, trust = motion_channels(motion, confidence, Scale(1, 1, 1))
    assert read_motion(channels).flatten().tolist() == pytest.approx([0.1, 0.0], abs=1e-5)
    assert trust.item() == 0.5


def test_flow_is_weighted_by_trust():
    motion, confidence = flow(0.1, 0.0), torch.ones(1, 1, 2, 4, 4)
    motion[:, 0, 1] = 0.5
    confidence[:, :, 1] = 1 / 3
    channels, _ = motion_channels(motion, confidence, Scale(1, 1, 1))
    # (0.1 + 0.5 / 3) / (1 + 1 / 3)
    assert channels[0, 0].item() == pytest.approx(math.asinh(0.2 / REFERENCE_SPEED), abs=1e-4)


def test_no_trust_is_no_motion():
    channels, trust = motion_channels(flow(9.0, 9.0), torch.zeros(1, 1, 2, 4, 4), Scale(1, 2, 2))
    assert channels.abs().sum() == 0
    assert trust.sum() == 0


def test_unknown_cells_move_as_those_around_them_that_are_known():
    """Of a pan over a half without texture the mean is the pan, and not half of it."""
    channels, trust = torch.full((1, 2, 2, 4, 4), 2.0), torch.ones(1, 1, 2, 4, 4)
    trust[..., :, 2:] = 0
    trust[..., 3, 3] = 0.1
    channels[..., 2:] = 0
    channels[..., 3, 3] = 1.0
    filled = fill_unknown(channels, trust, Scale(1, 2, 2))
    assert torch.equal(filled[..., :2], channels[..., :2])
    assert (filled[..., :2, 2:] == 0).all()  # nobody knows anything there
    assert (filled[..., 2:, 2:] == 1).all()
    assert torch.equal(fill_unknown(channels, trust, Scale(1, 1, 1))[..., :2, 2:].unique(), MEAN)


MEAN = torch.tensor([(8 * 2 + 1) / 9])
"""Of eight trusted cells in each frame that move by 2 and one that moves by 1."""


def test_cells_are_kept_apart():
    motion = flow(0.0, 0.0)
    motion[0, 0, :, :2, 2:] = 0.2
    channels, _ = motion_channels(motion, torch.ones(1, 1, 2, 4, 4), Scale(1, 2, 2))
    assert (channels[0, 0, 0] != 0).tolist() == [[False, True], [False, False]]


def test_read_motion_is_the_inverse():
    motion = torch.randn(2, 2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    channels, _ = motion_channels(motion, torch.ones(2, 1, 4, 8, 8), Scale(4, 8, 8))
    assert torch.allclose(read_motion(channels), motion, atol=1e-5)
