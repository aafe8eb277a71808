import pytest
import torch

from hstvg.objective.codec import CodecTerm
from hstvg.objective.kl import KLTerm
from hstvg.objective.objective import Objective, WeightedTerm
from hstvg.objective.reconstruction import ReconstructionTerm
from hstvg.paths.draws import Draws
from hstvg.tokenizer.video_tokenizer import VideoTokenizer
from hstvg.train.loop import psnr
from hstvg.train.tokenizer_stage import TokenizerStage
from hstvg.types import Tokenizer, VideoBatch


def tokenizer(clip_size=(8, 16, 16), strides=(2, 4, 4), *, awake=False, channels=4, base=8):
    """A small tokenizer; awake, its zero-initialised layers speak too."""
    torch.manual_seed(0)
    made = VideoTokenizer(
        clip_size=clip_size, strides=strides, channels=channels, base=base, depth=1
    )
    if awake:
        with torch.no_grad():
            for parameter in made.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
    return made


def clips(count=2, size=(8, 16, 16)):
    """A bright square that moves right over a shaded background, lower in every further clip."""
    T, H, W = size
    pixels = torch.linspace(-1, 0, W).expand(count, 3, T, H, W).clone()
    for clip in range(count):
        for frame in range(T):
            pixels[clip, clip % 3, frame, 4 * clip : 4 * clip + 6, frame : frame + 6] = 1
    return pixels


SHAPES = [
    ((16, 32, 32), (2, 4, 4), (8, 8, 8)),
    ((8, 16, 24), (2, 2, 2), (4, 8, 12)),
    ((8, 32, 16), (4, 8, 8), (2, 4, 2)),
    ((4, 16, 32), (2, 4, 8), (2, 4, 4)),
    ((16, 8, 8), (8, 2, 2), (2, 4, 4)),
]


@pytest.mark.parametrize(("clip_size", "strides", "latent"), SHAPES)
def test_shapes(clip_size, strides, latent):
    model = tokenizer(clip_size, strides)
    assert isinstance(model, Tokenizer)
    assert model.latent_size == latent
    pixels = torch.rand(2, 3, *clip_size) * 2 - 1
    posterior = model.posterior(pixels)
    assert posterior.mean.shape == posterior.logvar.shape == (2, 4, *latent)
    z = model.encode(pixels)
    assert z.shape == (2, 4, *latent)
    assert model.decode(z).shape == pixels.shape


@pytest.mark.parametrize("strides", [(1, 4, 4), (2, 6, 4), (3, 4, 4), (2, 4, 1), (2, 12, 12)])
def test_strides_that_are_no_powers_of_two_are_refused(strides):
    with pytest.raises(ValueError, match="not powers of two of at least 2"):
        tokenizer((24, 24, 24), strides)


@pytest.mark.parametrize("clip_size", [(15, 32, 32), (16, 30, 32), (16, 32, 34)])
def test_a_clip_that_is_not_whole_in_strides_is_refused(clip_size):
    with pytest.raises(ValueError, match="not whole in strides"):
        tokenizer(clip_size, (2, 4, 4))


@pytest.mark.parametrize("strides", [(2, 4, 4), (4, 2, 2)])
@torch.no_grad()
def test_encoding_does_not_see_the_future(strides):
    model = tokenizer(strides=strides, awake=True)
    pixels, step = clips(), strides[0]
    before = model.posterior(pixels)
    for group in range(1, 8 // step):
        changed = pixels.clone()
        changed[:, :, group * step :] *= -0.5
        after = model.posterior(changed)
        for was, now in ((before.mean, after.mean), (before.logvar, after.logvar)):
            assert torch.equal(was[:, :, :group], now[:, :, :group])
            assert not torch.equal(was[:, :, group], now[:, :, group])


@torch.no_grad()
def test_decoding_does_not_see_the_future():
    model = tokenizer(strides=(4, 4, 4), awake=True, clip_size=(16, 16, 16))
    z = torch.randn(2, 4, 4, 4, 4)
    before = model.reconstruct(z)
    for group in range(1, 4):
        changed = z.clone()
        changed[:, :, group:] += 1
        after = model.reconstruct(changed)
        first = 4 * group
        assert torch.equal(before[:, :, :first], after[:, :, :first])
        assert not torch.equal(before[:, :, first : first + 4], after[:, :, first : first + 4])


@torch.no_grad()
def test_calibration_standardises_the_latent():
    model = tokenizer(awake=True)
    seen = list(torch.rand(3, 2, 3, 8, 16, 16) * 2 - 1)
    model.calibrate(seen)
    z = torch.cat([model.encode(pixels) for pixels in seen])
    assert z.mean((0, 2, 3, 4)).abs().max() < 1e-4
    assert (z.std((0, 2, 3, 4)) - 1).abs().max() < 1e-4


@torch.no_grad()
def test_decoding_undoes_standardisation():
    model, pixels = tokenizer(awake=True), clips()
    raw = model.reconstruct(model.posterior(pixels).mean).clamp(-1, 1)
    model.calibrate([pixels])
    assert torch.allclose(model.decode(model.encode(pixels)), raw, atol=1e-5)


@torch.no_grad()
def test_decoded_pixels_stay_in_range():
    decoded = tokenizer(awake=True).decode(100 * torch.randn(1, 4, 4, 4, 4))
    assert decoded.min() == -1
    assert decoded.max() == 1


def test_training_starts_with_little_noise():
    """A log-variance of -6 is a deviation of 0.05."""
    assert torch.equal(tokenizer().posterior(clips()).logvar, torch.full((2, 4, 4, 4, 4), -6.0))


def batch_of(pixels):
    B, _, T, H, W = pixels.shape
    return VideoBatch(
        pixels=pixels,
        fps=torch.full((B,), 8.0),
        captions=("",) * B,
        positions=torch.arange(B),
        keys=tuple(str(i) for i in range(B)),
        motion=torch.zeros(B, 2, T, H // 4, W // 4),
        motion_confidence=torch.zeros(B, 1, T, H // 4, W // 4),
    )


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_the_share_of_clips_decoded_from_a_coarse_state(share):
    stage = TokenizerStage(tokenizer=tokenizer(), prefix_share=share)
    batch = batch_of(clips(1).expand(64, -1, -1, -1, -1).contiguous())
    draws = Draws(0, range(64), torch.device("cpu"))
    example = stage.example(batch, draws)
    quiet = torch.zeros_like(example.noise)
    with torch.no_grad():
        prediction = stage(type(example)(pixels=batch.pixels, noise=quiet, choice=example.choice))
        whole = stage.tokenizer.reconstruct(stage.tokenizer.posterior(batch.pixels).mean)
    assert prediction.pixels is not None
    assert len(prediction.coarse) == len(stage.tokenizer.scales) - 1
    from_coarse = (prediction.pixels.guess - whole).abs().amax((1, 2, 3, 4)) > 1e-4
    assert abs(from_coarse.float().mean() - share) < 0.15


def test_it_overfits_two_clips():
    model = tokenizer((4, 16, 16), channels=8, base=16)
    stage = TokenizerStage(tokenizer=model, prefix_share=0.0)
    objective = Objective(
        {
            "reconstruction": WeightedTerm(ReconstructionTerm(epsilon=0.3), 3.0),
            "kl": WeightedTerm(KLTerm(), 1e-6),
            "codec": WeightedTerm(CodecTerm(), 0.01),
        }
    )
    optimizer = torch.optim.AdamW(stage.parameters(), lr=5e-3)
    batch = batch_of(clips(size=(4, 16, 16)))
    decibels = []
    for step in range(80):
        draws = Draws(0, [2 * step, 2 * step + 1], torch.device("cpu"))
        prediction = stage(stage.example(batch, draws))
        decibels.append(psnr(prediction).mean().item())
        optimizer.zero_grad()
        objective(prediction, batch)[0].backward()
        optimizer.step()
    assert decibels[-1] > decibels[0] + 8
