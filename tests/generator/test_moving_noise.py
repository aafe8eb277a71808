"""HierarchicalGenerator with MotionNoise: what it changes, and what it must not."""

from dataclasses import replace
from math import sqrt

import pytest
import torch

from hstvg.generator.generator import Sampling
from hstvg.generator.hierarchical import HierarchicalGenerator
from hstvg.generator.motion import REFERENCE_SPEED
from hstvg.paths.draws import Draws
from hstvg.paths.motion_noise import MotionNoise
from hstvg.paths.pyramid_flow import PyramidFlow
from hstvg.scales import Scale, ScaleSchedule, pool
from hstvg.scene.text import TextEncoder
from hstvg.tokenizer.codec import ScaleCodec
from hstvg.tokenizer.quantiser import FSQ
from hstvg.types import Hints, LatentBatch

CPU = torch.device("cpu")
SIZE, CHANNELS, DRAWS = (8, 8, 8), 4, (3, 2)
COARSEST = Scale(4, 4, 4)
CODEC = ScaleCodec(CHANNELS, ScaleSchedule.of_kind("cubic", SIZE), FSQ())
SECONDS = 0.25
CELL = 1 / 4 / (2 * SECONDS)
"""Frame widths per second of one cell per frame of the coarsest level."""
CAPTIONS = ("a red circle", "a blue square moves left", "", "ab")


def generator(noise=None, *, awake=False, **changes):
    torch.manual_seed(0)
    made = HierarchicalGenerator(
        codec=CODEC,
        path=PyramidFlow(boundaries=(0.5, 1.0)),
        text=TextEncoder(width=16, layers=1, heads=2),
        draws=DRAWS,
        text_dropout=0.0,
        widths=(16, 32),
        head_dim=16,
        noise=noise,
        **changes,
    )
    if awake:
        with torch.no_grad():
            for parameter in made.parameters():
                parameter.add_(0.05 * torch.randn_like(parameter))
    return made


def moving(**changes):
    return MotionNoise(seconds=SECONDS, **changes)


def example(model, rows=slice(None), speed=CELL):
    """Clips that move to the right as a whole."""
    noise = torch.Generator().manual_seed(0)
    motion = torch.zeros(4, 2, *SIZE)
    motion[:, 0] = torch.asinh(torch.tensor(speed / REFERENCE_SPEED))
    batch = LatentBatch(
        latent=torch.randn(4, CHANNELS, *SIZE, generator=noise)[rows],
        motion=motion[rows],
        motion_confidence=torch.ones(4, 1, *SIZE)[rows],
        captions=CAPTIONS[rows],
        positions=torch.arange(4)[rows],
        keys=tuple("0123")[rows],
    )
    return model.example(batch, CODEC, Draws(0, range(4)[rows], CPU))


def sample(model, settings=None, captions=CAPTIONS[:2], within=None, **told):
    draws = Draws(0, range(len(captions)), CPU)
    draws = draws if within is None else draws.within(within)
    settings = settings or Sampling(steps=2, guidance=2.0)
    return model.sample(captions, CODEC, draws, settings, **told)


def moved(**changes):
    return Sampling(steps=2, guidance=2.0, motion_noise=0.5, **changes)


def test_alpha_of_zero_trains_on_the_same_bytes_as_without():
    without, plain = example(generator()), example(generator(moving(plain=1.0)))
    assert plain.alpha is not None
    assert plain.alpha.tolist() == [0, 0, 0, 0]
    for one, other in zip(without.paths, plain.paths, strict=True):
        assert torch.equal(one.x, other.x)
        assert torch.equal(one.velocity, other.velocity)


@torch.no_grad()
def test_at_first_nothing_changes():
    without, told = generator().unet, generator(moving()).unet
    known = without.state_dict()
    assert set(told.state_dict()) - set(known) == {"cues.noise.alpha.weight"}
    assert all(torch.equal(value, told.state_dict()[name]) for name, value in known.items())
    assert not told.state_dict()["cues.noise.alpha.weight"].any()
    assert torch.equal(sample(generator()).finest, sample(generator(moving())).finest)


def test_half_of_the_clips_have_white_noise_and_each_is_told_its_own():
    alpha = moving().draw_alpha(Draws(0, range(4), CPU))
    model = generator(moving())
    made, white = example(model), example(generator())
    assert torch.equal(made.alpha, alpha)
    assert 0 < (alpha > 0).sum() < 4
    for level, count in enumerate(DRAWS):
        same = [
            torch.equal(one, other)
            for one, other in zip(
                made.paths[level].x.unflatten(0, (4, count)),
                white.paths[level].x.unflatten(0, (4, count)),
                strict=True,
            )
        ]
        assert same == (alpha == 0).tolist()


def test_the_noise_of_every_level_moves_with_the_clip():
    """By one cell of the coarsest level per frame, seen at alpha near 1; draws stay independent."""
    noise = moving(plain=0.0, most=0.999)
    model = generator(noise)
    made = example(model)
    assert made.alpha is not None
    clip = int(made.alpha.argmax())
    assert made.alpha[clip] > 0.5
    for level, count in enumerate(DRAWS):
        rows = slice(clip * count, (clip + 1) * count)
        # What the data leaves over at the end of a level is its noise; at the last it is the start.
        path = made.paths[level]
        if level == 0:
            seen = path.start[rows]
        else:
            a = model.path.start_share(level, 8)
            clean = example(generator()).paths[level].end[::count][clip]
            coarse = pool(clean[None], COARSEST)
            seen = sqrt(8) * (pool(path.start[rows], COARSEST) - a * coarse) / (1 - a)
        before, after = seen[:, :, :-1, :, :-1].flatten(1), seen[:, :, 1:, :, 1:].flatten(1)
        shared = torch.corrcoef(torch.cat([before, after]))
        for draw in range(count):
            assert shared[draw, count + draw] == pytest.approx(made.alpha[clip].item(), abs=0.12)
        assert abs(shared[0, 1]) < 0.15


def test_an_example_does_not_depend_on_the_batch_it_is_drawn_in():
    model = generator(moving(plain=0.2))
    whole, part = example(model), example(model, slice(2, 3))
    assert torch.equal(part.alpha, whole.alpha[2:3])
    for level, count in enumerate(DRAWS):
        rows = slice(2 * count, 3 * count)
        assert torch.equal(part.paths[level].x, whole.paths[level].x[rows])


def test_alpha_is_heard_and_learnt():
    model = generator(moving(), awake=True)
    made = example(model)
    heard = model(made).velocity[0].guess
    deaf = model(replace(made, alpha=None))
    changed = (heard - deaf.velocity[0].guess).abs().amax(dim=(1, 2, 3, 4, 5)) > 1e-5
    assert changed.tolist() == (made.alpha > 0).tolist()
    model(made).velocity[0].guess.sum().backward()
    told = dict(model.named_parameters())["unet.cues.noise.alpha.weight"]
    assert told.grad is not None
    assert told.grad.any()


@torch.no_grad()
def test_sampling_moves_the_noise_by_the_motion_of_a_first_sample():
    model = generator(moving(), awake=True)
    assert not torch.equal(sample(model).finest, sample(model, moved()).finest)
    again = sample(model, moved())
    assert torch.equal(again.finest, sample(model, moved()).finest)
    alone = sample(model, moved(), CAPTIONS[:1])
    assert torch.allclose(alone.finest, again.finest[:1], atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("overlap", [0, 3])
def test_the_noise_of_a_block_goes_on_where_that_of_the_one_before_was(monkeypatch, overlap):
    """Where given frames are, both blocks have them; here one and a half of the coarsest grid."""
    model, seen = generator(moving(), awake=True, context_frames=overlap), []
    climb = model.path.sample

    def watch(velocity, scales, noises, **settings):
        seen.append(noises[0])
        return climb(velocity, scales, noises, **settings)

    monkeypatch.setattr(model.path, "sample", watch)
    given = torch.randn(2, CHANNELS, overlap, *SIZE[1:]) if overlap else None
    particles = sample(model, moved()).particles
    assert particles is not None
    later = sample(model, moved(), given=given, hints=Hints(particles=particles)).particles
    still, first, _, second = seen
    draws, alpha = Draws(0, [0, 1], CPU), torch.full((2,), 0.5)
    white = draws.normal("sample/0", CHANNELS + 2, *COARSEST)
    # Noise that made the motion would know it, as none does in training.
    assert abs(torch.corrcoef(torch.stack([still.flatten(), white.flatten()]))[0, 1]) < 0.1

    motions = [
        torch.sinh(one.finest[:, CHANNELS:]) * REFERENCE_SPEED
        for one in (sample(model, within="still"), sample(model, within="still", given=given))
    ]
    draws = draws.within("sample")
    begun = moving().sample(white, motions[0], alpha, draws, overlap=overlap / 2)
    assert torch.equal(first, begun.noise)
    ended = moving().sample(white, motions[1], alpha, draws, begun.particles, overlap / 2)
    assert torch.equal(second, ended.noise)
    assert torch.equal(later.place, ended.particles.place)
    assert sample(model).particles is None


def test_noise_that_never_moved_in_training_does_not_in_sampling():
    with pytest.raises(ValueError, match=r"trained with \+noise=motion"):
        sample(generator(), moved())
    with pytest.raises(ValueError, match="motion_noise=1"):
        Sampling(motion_noise=1.0)
