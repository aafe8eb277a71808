from itertools import pairwise

import pytest
import torch

from hstvg.scales import Scale, ScaleSchedule, pool, upsample
from hstvg.tokenizer.codec import ScaleCodec

SCHEDULES = [
    ScaleSchedule.cubic((8, 8, 8)),
    ScaleSchedule.cubic((2, 8, 4)),
    ScaleSchedule([(1, 1, 1), (1, 3, 2), (3, 6, 4)]),
]


def noise(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def codec(scales, trained=True):
    """A codec whose detail guesses are arbitrary, as if trained, or still silent."""
    codec = ScaleCodec(4, scales)
    torch.manual_seed(0)
    for layer in codec.detail if trained else ():
        torch.nn.init.normal_(layer.weight, std=0.3)
        torch.nn.init.normal_(layer.bias)
    return codec


@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize("scales", SCHEDULES)
def test_all_scales_together_are_the_latent(scales, trained):
    z = noise(2, 4, *scales.last)
    residuals, states = codec(scales, trained).split(z)
    assert [r.shape[2:] for r in residuals] == [tuple(scale) for scale in scales]
    assert (states.finest - z).abs().max() < 1e-5


@pytest.mark.parametrize("scales", SCHEDULES)
def test_detail_never_touches_what_a_scale_has_said(scales):
    """D_k z_hat_k = D_k z_hat_{k-1} + r_k, whatever the detail guess."""
    z = noise(2, 4, *scales.last)
    residuals, states = codec(scales).split(z)
    before = torch.zeros_like(z)
    for scale, residual, state in zip(scales, residuals, states.levels, strict=True):
        assert torch.allclose(pool(state, scale), pool(before, scale) + residual, atol=1e-5)
        assert torch.allclose(pool(state, scale), pool(z, scale), atol=1e-5)
        before = state


@pytest.mark.parametrize("scales", SCHEDULES)
def test_merging_a_prefix_gives_its_state(scales):
    codes = codec(scales)
    residuals, states = codes.split(noise(2, 4, *scales.last))
    for k, state in enumerate(states.levels, start=1):
        assert torch.allclose(codes.merge(residuals[:k]), state, atol=1e-6)


def test_a_detail_guess_changes_the_state_in_between():
    scales = SCHEDULES[0]
    z = noise(1, 4, *scales.last)
    silent, states = (codec(scales, trained).split(z)[1] for trained in (False, True))
    assert not torch.allclose(silent.levels[1], states.levels[1], atol=1e-2)


def test_the_silent_codec_is_the_pooled_latent_and_explains_ever_more():
    scales = SCHEDULES[0]
    z = noise(2, 4, *scales.last)
    with torch.no_grad():
        _, states = codec(scales, trained=False).split(z)
    for scale, state in zip(scales, states.levels, strict=True):
        assert torch.allclose(state, upsample(pool(z, scale), scales.last), atol=1e-6)
    explained = [1 - (z - state).var() / z.var() for state in states.levels]
    assert all(fine > coarse for coarse, fine in pairwise(explained))
    assert explained[-1].item() == pytest.approx(1.0)


def test_residuals_by_hand():
    codes = ScaleCodec(1, ScaleSchedule([(1, 1, 1), (1, 1, 2)]))
    residuals, states = codes.split(torch.tensor([2.0, 6.0]).reshape(1, 1, 1, 1, 2))
    assert residuals[0].item() == 4
    assert residuals[1].flatten().tolist() == [-2, 2]
    assert states.levels[0].flatten().tolist() == [4, 4]
    assert codes.scales.last == Scale(1, 1, 2)
