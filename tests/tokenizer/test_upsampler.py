import pytest
import torch

from hstvg.scales import Scale, pool, upsample
from hstvg.tokenizer.upsampler import ScaleUpsampler

SCALES = [(1, 1, 1), (2, 2, 2), (1, 4, 6), (4, 1, 3), (2, 4, 6)]
SIZE = (4, 4, 6)


def noise(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def upsampler(awake):
    """One that guesses at random, as if trained, or one that has learned nothing yet."""
    torch.manual_seed(0)
    made = ScaleUpsampler(3)
    if awake:
        torch.nn.init.normal_(made.detail.weight)
    return made


@pytest.mark.parametrize("scale", SCALES)
@torch.no_grad()
def test_pooling_gives_back_what_was_said_whatever_the_detail(scale):
    residual, state = noise(2, 3, *scale), noise(2, 3, *SIZE, seed=1)
    grown = upsampler(awake=True)(residual, state)
    assert grown.shape == state.shape
    assert torch.allclose(pool(grown, Scale(*scale)), residual, atol=1e-5)
    # The detail is there: cells of one block differ, and by the state.
    assert (grown - upsample(residual, Scale(*SIZE))).std() > 0.5
    assert not torch.allclose(upsampler(awake=True)(residual, state.flip(4)), grown, atol=0.1)


@pytest.mark.parametrize("awake", [False, True])
def test_at_full_size_nothing_is_left_to_guess(awake):
    residual, state = noise(2, 3, *SIZE), noise(2, 3, *SIZE, seed=1)
    assert torch.equal(upsampler(awake)(residual, state), residual)


def test_of_the_last_scale_it_has_no_weights():
    last = ScaleUpsampler(3, guesses=False)
    assert list(last.parameters()) == []
    residual, state = noise(2, 3, *SIZE), noise(2, 3, *SIZE, seed=1)
    assert torch.equal(last(residual, state), residual)


@pytest.mark.parametrize("scale", SCALES)
def test_it_starts_as_repetition(scale):
    residual, state = noise(2, 3, *scale), noise(2, 3, *SIZE, seed=1)
    assert torch.equal(upsampler(awake=False)(residual, state), upsample(residual, Scale(*SIZE)))


def test_a_silent_guess_learns():
    """Zero weights, but no zero gradient."""
    made = upsampler(awake=False)
    residual, state = noise(2, 3, 1, 2, 2), noise(2, 3, 2, 4, 4, seed=1)
    (made(residual, state) - noise(2, 3, 2, 4, 4, seed=2)).square().sum().backward()
    assert made.detail.weight.grad.abs().sum() > 0


@torch.no_grad()
def test_half_precision_weights_leave_the_sum_in_full():
    made = upsampler(awake=True).bfloat16()
    residual, state = noise(1, 3, 2, 2, 2), noise(1, 3, *SIZE, seed=1)
    grown = made(residual, state)
    assert grown.dtype == torch.float32
    assert torch.allclose(pool(grown, Scale(2, 2, 2)), residual, atol=1e-5)
