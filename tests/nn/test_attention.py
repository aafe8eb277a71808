import pytest
import torch
from torch import nn

from hstvg.nn.attention import (
    CoarseAttention,
    SpaceTimeAttention,
    TextAttention,
    from_windows,
    largest_divisor,
    to_windows,
)
from hstvg.nn.resample import Factor


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def awake(layer):
    nn.init.normal_(layer.leave.weight)
    return layer


def self_attention(window):
    return awake(SpaceTimeAttention(16, head_dim=16, window=window, reference=(4, 4, 4)))


@pytest.mark.parametrize(
    ("n", "limit", "expected"), [(8, 4, 4), (6, 4, 3), (7, 4, 1), (3, 8, 3), (12, 5, 4)]
)
def test_largest_divisor_by_hand(n, limit, expected):
    assert largest_divisor(n, limit) == expected


@pytest.mark.parametrize("window", [Factor(2, 2, 2), Factor(1, 3, 2), Factor(4, 6, 2)])
def test_windows_round_trip(window):
    x = torch.randn(2, 5, 4, 6, 2)
    windows = to_windows(x, window)
    assert windows.shape == (2 * 48 // window.volume, window.volume, 5)
    assert torch.equal(from_windows(windows, window, (4, 6, 2)), x)


def test_a_window_holds_neighbours():
    x = torch.arange(16.0).reshape(1, 1, 1, 4, 4)
    assert to_windows(x, Factor(1, 2, 2))[1, :, 0].tolist() == [2, 3, 6, 7]


def test_a_window_over_the_whole_grid_is_full_attention():
    full, windowed = self_attention(None), self_attention(4)
    windowed.load_state_dict(full.state_dict())
    x = torch.randn(2, 16, 4, 4, 4)
    assert torch.equal(full(x), windowed(x))


def test_windows_do_not_see_each_other():
    layer, x = self_attention(2), torch.randn(1, 16, 4, 4, 4)
    changed = x.clone()
    changed[:, 0, 0, 2, 1] += 1
    differing = (layer(x) != layer(changed)).any(1)[0]
    inside = torch.zeros(4, 4, 4, dtype=torch.bool)
    inside[0:2, 2:4, 0:2] = True
    assert torch.equal(differing, inside)


def test_full_attention_sees_everything():
    layer, x = self_attention(None), torch.randn(1, 16, 4, 4, 4)
    changed = x.clone()
    changed[:, 0, 0, 2, 1] += 1
    assert (layer(x) != layer(changed)).any(1).all()


def test_place_matters_to_self_attention():
    """Without coordinates, permuted cells would give permuted outputs."""
    layer, x = self_attention(None), torch.randn(1, 16, 4, 4, 4)
    assert not torch.allclose(layer(x.roll(1, dims=3)), layer(x).roll(1, dims=3), atol=1e-3)


def test_padded_tokens_are_hidden():
    layer = awake(TextAttention(16, 12, head_dim=8))
    x, text = torch.randn(2, 16, 2, 2, 2), torch.randn(2, 5, 12)
    mask = torch.tensor([[True, True, True, False, False], [True] * 5])
    seen = layer(x, text, mask)
    changed = text.clone()
    changed[0, 3:] = 1e3
    assert torch.equal(layer(x, changed, mask), seen)
    shorter = layer(x[:1], text[:1, :3], mask[:1, :3])
    assert torch.allclose(shorter, seen[:1], atol=1e-5)


def test_real_tokens_are_read():
    layer = awake(TextAttention(16, 12, head_dim=8))
    x, text = torch.randn(1, 16, 2, 2, 2), torch.randn(1, 3, 12)
    mask = torch.ones(1, 3, dtype=torch.bool)
    changed = text.clone()
    changed[:, 1] += 1
    assert (layer(x, text, mask) != layer(x, changed, mask)).any(1).all()


def test_attention_starts_as_the_identity():
    x, text = torch.randn(2, 16, 4, 4, 4), torch.randn(2, 3, 12)
    layer = SpaceTimeAttention(16, head_dim=8, window=2, reference=(4, 4, 4))
    assert torch.equal(layer(x), x)
    mask = torch.ones(2, 3, dtype=torch.bool)
    assert torch.equal(TextAttention(16, 12, head_dim=8)(x, text, mask), x)


@torch.no_grad()
def test_fine_cells_read_the_coarse_ones_of_their_own_clip_by_place():
    sizes = {"head_dim": 16, "reference": (4, 4, 4)}
    x, coarse = torch.randn(2, 16, 4, 4, 4), torch.randn(2, 8, 2, 2, 2)
    assert torch.equal(CoarseAttention(16, 8, **sizes)(x, coarse), x)
    layer = awake(CoarseAttention(16, 8, **sizes))
    out = layer(x, coarse)
    changed = coarse.clone()
    changed[0, :, 1, 0, 1] += 1
    differing = (layer(x, changed) != out).flatten(1).any(1)
    assert differing.tolist() == [True, False]
    # Were places not told, the order of the coarse cells would make no difference.
    assert not torch.allclose(layer(x, coarse.flip(3)), out, atol=1e-3)
    assert torch.allclose(layer(x[1:], coarse[1:]), out[1:], atol=1e-5)
