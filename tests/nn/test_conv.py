import pytest
import torch
from torch import nn

from hstvg.nn.conv import FactorisedConv, ResidualBlock, TimeCache, zero_init


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def taps(causal):
    """A convolution that passes space unchanged and weighs three frames by 1, 2 and 3."""
    conv = FactorisedConv(1, 1, causal=causal)
    with torch.no_grad():
        for parameter in conv.parameters():
            parameter.zero_()
        conv.space.weight[0, 0, 0, 1, 1] = 1
        conv.time.weight.copy_(torch.tensor([1.0, 2.0, 3.0]).reshape(1, 1, 3, 1, 1))
    return conv


@pytest.mark.parametrize(
    ("causal", "expected"),
    # Of frames 1, 10, 100, 1000: x_{t-2} + 2 x_{t-1} + 3 x_t, or x_{t-1} + 2 x_t + 3 x_{t+1}.
    [(True, [3, 32, 321, 3210]), (False, [32, 321, 3210, 2100])],
)
def test_factorised_conv_by_hand(causal, expected):
    frames = torch.tensor([1.0, 10.0, 100.0, 1000.0]).reshape(1, 1, 4, 1, 1)
    assert taps(causal)(frames).flatten().tolist() == expected


def test_space_sees_three_by_three_of_one_frame():
    conv = FactorisedConv(1, 1, causal=True)
    with torch.no_grad():
        for parameter in conv.parameters():
            parameter.zero_()
        conv.space.weight.fill_(1)
        conv.time.weight[0, 0, 2] = 1
    x = torch.zeros(1, 1, 2, 5, 5)
    x[0, 0, 1, 2, 2] = 1
    seen = conv(x)[0, 0]
    assert seen[0].sum() == 0
    assert seen[1].sum() == 9
    assert seen[1, 1:4, 1:4].sum() == 9


def awake(block):
    nn.init.normal_(block.conv2.time.weight)
    return block


@pytest.mark.parametrize("frame", [1, 3, 5])
@pytest.mark.parametrize(
    "layer", [FactorisedConv(3, 3, causal=True), awake(ResidualBlock(3, causal=True))]
)
def test_causal_layers_do_not_see_the_future(layer, frame):
    x = torch.randn(2, 3, 6, 4, 4)
    changed = x.clone()
    changed[:, :, frame] += torch.randn(2, 3, 4, 4)
    before, after = layer(x), layer(changed)
    assert torch.equal(before[:, :, :frame], after[:, :, :frame])
    assert not torch.equal(before[:, :, frame], after[:, :, frame])


@pytest.mark.parametrize("lengths", [(6,), (1, 5), (5, 1), (2, 1, 3), (1, 1, 1, 1, 1, 1)])
@pytest.mark.parametrize(
    "layer", [FactorisedConv(3, 3, causal=True), awake(ResidualBlock(3, causal=True))]
)
@torch.no_grad()
def test_chunks_give_what_the_whole_does(layer, lengths):
    x, past = torch.randn(2, 3, 6, 4, 4), TimeCache()
    chunks = [layer(chunk, past) for chunk in x.split(lengths, dim=2)]
    assert [chunk.shape[2] for chunk in chunks] == list(lengths)
    assert torch.allclose(torch.cat(chunks, dim=2), layer(x), atol=1e-5)


def test_a_cache_by_hand():
    """Of frames 1, 10 | 100: the second chunk knows both frames before it."""
    conv, past = taps(causal=True), TimeCache()
    first = torch.tensor([1.0, 10.0]).reshape(1, 1, 2, 1, 1)
    last = torch.tensor([100.0]).reshape(1, 1, 1, 1, 1)
    assert conv(first, past).flatten().tolist() == [3, 32]
    assert past[conv].flatten().tolist() == [1, 10]
    assert conv(last, past).flatten().tolist() == [321]
    assert past[conv].flatten().tolist() == [10, 100]
    assert conv(last, TimeCache()).flatten().tolist() == [300]


def test_a_cache_keeps_two_frames_and_not_their_chunk():
    conv, past = taps(causal=True), TimeCache()
    conv(torch.randn(1, 1, 16, 4, 4), past)
    assert past[conv].untyped_storage().nbytes() == 2 * 4 * 4 * 4


def test_two_layers_remember_each_its_own():
    block, past = awake(ResidualBlock(3, causal=True)), TimeCache()
    block(torch.randn(1, 3, 2, 4, 4), past)
    assert set(past) == {block.conv1, block.conv2}


def test_a_layer_that_is_not_causal_does():
    layer = awake(ResidualBlock(3, causal=False))
    x = torch.randn(1, 3, 6, 4, 4)
    changed = x.clone()
    changed[:, :, 5] += 1
    assert not torch.equal(layer(x)[:, :, 4], layer(changed)[:, :, 4])


def test_a_residual_block_starts_as_the_identity():
    x = torch.randn(2, 4, 3, 4, 4)
    assert torch.equal(ResidualBlock(4, causal=True)(x), x)


@pytest.mark.parametrize(
    "layer", [nn.Linear(3, 4), nn.Linear(3, 4, bias=False), nn.Conv3d(3, 4, 1)]
)
def test_zero_init_silences_a_layer(layer):
    assert zero_init(layer) is layer
    assert all(parameter.abs().sum() == 0 for parameter in layer.parameters())
