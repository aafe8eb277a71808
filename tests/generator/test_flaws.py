import torch

from hstvg.generator.flaws import Flaws, share
from hstvg.paths.draws import Draws
from hstvg.scales import ScaleSchedule
from hstvg.tokenizer.codec import ScaleCodec
from hstvg.tokenizer.quantiser import FSQ

CODEC = ScaleCodec(4, ScaleSchedule.of_kind("cubic", (4, 4, 4)), FSQ())


def draws(count=8, first=0):
    return Draws(0, range(first, first + count), torch.device("cpu"))


def latent(count=8):
    return torch.randn(count, 4, 4, 4, 4, generator=torch.Generator().manual_seed(0))


def test_half_of_the_clips_are_spared_and_no_size_is_passed():
    sizes = share(draws(400), "size", 3)
    assert sizes.shape == (400, 1, 1, 1)
    assert 160 < (sizes == 0).sum() < 240
    assert 0.9 < sizes.max() < 1


def test_an_unsteady_frame_has_one_gain_and_bias_per_channel():
    z = latent()
    made = Flaws().unsteady(z, draws())
    for frame in made[:, :, 2].flatten(0, 1).unbind():
        assert torch.isfinite(frame).all()
    # (1 + gain) z + bias is solved from two cells and tells all the others.
    first, second = (x[..., 2, :, :].flatten(2) for x in (z, made))
    gain = (second[..., 0] - second[..., 1]) / (first[..., 0] - first[..., 1])
    bias = second[..., 0] - gain * first[..., 0]
    told = gain[..., None] * first + bias[..., None]
    assert torch.allclose(told, second, atol=1e-3)
    assert gain.std() > 0.02
    assert bias.std() > 0.02


def test_drift_is_slow_and_jitter_is_not():
    still = torch.zeros(64, 4, 16, 1, 1)

    def roughness(flaws):
        """Step from frame to frame as a share of all change."""
        bias = flaws.unsteady(still, draws(64))
        return bias.diff(dim=2).square().mean() / bias.var(dim=2).mean()

    assert roughness(Flaws(drift=0.0)) > 1.5
    assert roughness(Flaws(jitter=0.0)) < 0.5


def test_wrong_cells_change_single_cells_of_single_frames():
    z = latent(64)
    changed = (Flaws(wrong=0.2).miswritten(z, CODEC, draws(64)) - z).abs().amax(1) > 1e-5
    shares = changed.flatten(1).float().mean(1)
    assert 0.3 < (shares == 0).float().mean() < 0.7
    assert 0.05 < shares.max() < 0.35


def test_what_quantisation_loses_is_no_flaw():
    z = latent()
    assert torch.allclose(Flaws(wrong=0.0).miswritten(z, CODEC, draws()), z, atol=1e-6)


def test_a_latent_of_another_size_is_spoilt_too():
    z = torch.randn(2, 4, 8, 8, 8)
    assert Flaws().miswritten(z, CODEC, draws(2)).shape == z.shape


def test_flaws_belong_to_a_clip_and_not_to_its_batch():
    z, flaws = latent(), Flaws()
    whole = flaws.unsteady(flaws.miswritten(z, CODEC, draws()), draws())
    alone = flaws.unsteady(flaws.miswritten(z[5:6], CODEC, draws(1, 5)), draws(1, 5))
    assert torch.allclose(alone[0], whole[5], atol=1e-6)
