import pytest
import torch

from hstvg.generator.motion import REFERENCE_SPEED
from hstvg.generator.neighbours import Before, find_neighbours

SECONDS = 0.25


def channels(x, y, size=(3, 4, 8)):
    """Motion channels of a uniform displacement, in cells per latent frame."""
    motion = torch.empty(1, 2, *size)
    motion[:, 0], motion[:, 1] = x, y
    return torch.asinh(motion / size[-1] / SECONDS / REFERENCE_SPEED)


def travelling(x, y, size=(3, 4, 8)):
    """A picture that travels by (x, y) cells per frame, rolling over the border."""
    t, h, w = size
    picture = torch.randn(2, h, w, generator=torch.Generator().manual_seed(0))
    frames = [picture.roll((i * y, i * x), (1, 2)) for i in range(t)]
    return torch.stack(frames, dim=1)[None]


def before_of(latent, motion, known=True):
    return Before(latent=latent, motion=motion, known=torch.tensor([known]))


def inner(x, edge=2):
    """Without the border, over which the picture rolls."""
    return x[..., 1:-1, edge:-edge]


@pytest.mark.parametrize("way", [(1, 0), (-2, 0), (0, 1), (0, -1), (2, -1)])
def test_motion_carries_a_travelling_picture_both_ways(way):
    """In cells of both axes alike, although the frame is twice as wide as high."""
    z, motion = travelling(*way), channels(*way)
    beside = find_neighbours(z, motion, SECONDS)
    assert torch.allclose(beside.on[0, :, 1, 1, 1], torch.tensor(way).float(), atol=1e-4)
    assert torch.allclose(beside.back, -beside.on, atol=1e-4)
    assert inner(beside.change(z)[:, :, 1:]).abs().max() < 1e-3
    wrong = find_neighbours(z, -motion, SECONDS).change(z)
    assert inner(wrong[:, :, 1:]).abs().mean() > 0.3


def test_the_way_back_is_the_motion_that_content_had_where_it_came_from():
    """Cell 5 moves on by 2, so it is taken to come from cell 3, which moved by 1.5."""
    motion = torch.zeros(1, 2, 2, 1, 8)
    motion[0, 0, 0, 0, 3] = 1.5
    motion[0, 0, 1, 0, 5] = 2.0
    motion = torch.asinh(motion / 8 / SECONDS / REFERENCE_SPEED)
    beside = find_neighbours(torch.zeros(1, 1, 2, 1, 8), motion, SECONDS)
    back = [0, 0, 0, -1.5, 0, -1.5, 0, 0]
    assert beside.back[0, 0, 1, 0].tolist() == pytest.approx(back, abs=1e-4)


def test_the_first_frame_has_the_one_of_the_block_before():
    whole, motion = travelling(1, 0, (4, 4, 8)), channels(1, 0, (4, 4, 8))
    before = before_of(whole[:, :, :1], motion[:, :, :1])
    beside = find_neighbours(whole[:, :, 1:], motion[:, :, 1:], SECONDS, before)
    assert torch.equal(beside.previous(whole[:, :, 1:]), whole[:, :, :-1])
    assert inner(beside.change(whole[:, :, 1:])).abs().max() < 1e-3
    assert beside.marks[0, :, :, 0, 0].tolist() == [[1, 1, 1], [1, 1, 0]]


def test_a_clip_that_follows_none_is_its_own_neighbour():
    z, motion = travelling(0, 0), channels(0.0, 0.0)
    nothing = before_of(z[:, :, :1] + 9, motion[:, :, :1] + 9, known=False)
    for beside in (
        find_neighbours(z, motion, SECONDS),
        find_neighbours(z, motion, SECONDS, nothing),
    ):
        assert torch.equal(beside.previous(z)[:, :, 0], z[:, :, 0])
        assert torch.equal(beside.following(z)[:, :, -1], z[:, :, -1])
        assert torch.equal(beside.following(z)[:, :, :-1], z[:, :, 1:])
        assert beside.change(z).abs().max() < 1e-5
        assert beside.marks[0, :, :, 0, 0].tolist() == [[0, 1, 1], [1, 1, 0]]


def test_a_frame_alone_has_no_neighbours():
    z, motion = travelling(0, 0, (1, 4, 8)), channels(0.0, 0.0, (1, 4, 8))
    beside = find_neighbours(z, motion, SECONDS)
    assert torch.equal(beside.previous(z), z)
    assert torch.equal(beside.following(z), z)
    assert beside.marks.abs().sum() == 0
