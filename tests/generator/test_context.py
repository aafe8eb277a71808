"""Clips that begin with given frames: how a denoiser is told, trained and sampled with them."""

from dataclasses import replace

import pytest
import test_hierarchical
import test_joint
import torch
from test_hierarchical import CAPTIONS, CODEC, CPU, OBJECTIVE, batch_of, draws, latents

from hstvg.generator.context import Context, given_on
from hstvg.generator.generator import Sampling
from hstvg.generator.refining import Refining
from hstvg.paths.draws import Draws
from hstvg.scales import Scale, pool
from hstvg.types import Condition, Given, LatentBatch

ALWAYS = {"context_frames": 2, "context_share": 1.0}
SIZE = CODEC.schedule.size
SETTINGS = Sampling(steps=2, guidance=1.5)


def noise(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def given_of(frames, count):
    """The first `count` frames of clips, without noise."""
    present = (torch.arange(frames.shape[2]) < count).expand(len(frames), -1)
    return Given(frames=frames, present=present, noise=torch.zeros(len(frames)))


# ---- what is drawn ----------------------------------------------------------------------------


def context_of(**changes):
    return Context(**({"frames": 2, "share": 0.5, "noise": 0.2} | changes))


def test_a_share_of_the_clips_is_given_its_first_frames():
    z = noise(400, 2, 4, 2, 2)
    given = context_of().draw(z, Draws(0, range(400), CPU))
    assert given is not None
    count = given.present.sum(1)
    assert [int(n) for n in count.unique()] == [0, 1, 2]
    assert (count > 0).float().mean() == pytest.approx(0.5, abs=0.08)
    assert (count == 1).float().mean() == pytest.approx(0.25, abs=0.08)
    assert not given.present[:, 2:].any()  # the first ones
    assert torch.equal(given.present[:, 0], count > 0)


def test_given_frames_are_as_noisy_as_is_told():
    z = noise(400, 8, 4, 4, 4)
    given = context_of(share=1.0).draw(z, Draws(0, range(400), CPU))
    assert given is not None
    found = (given.frames - z).flatten(1).std(1)
    assert torch.allclose(found, given.noise, rtol=0.15)
    assert given.noise.max() <= 0.2
    assert given.noise.mean() == pytest.approx(0.1, abs=0.01)
    absent = context_of(share=0.0).draw(z, Draws(0, range(400), CPU))
    assert absent is not None
    assert not absent.present.any()
    assert not absent.noise.any()


def test_a_clip_is_never_given_all_of_itself():
    for length, most in ((1, 0), (2, 1), (3, 2), (4, 2)):
        given = context_of(share=1.0).draw(noise(50, 2, length, 2, 2), Draws(0, range(50), CPU))
        assert given is not None
        assert given.present.sum(1).max() == most
    assert context_of(frames=0).draw(noise(1, 2, 1, 2, 2), draws(count=1)) is None


@pytest.mark.parametrize("changes", [{"share": 1.5}, {"noise": -0.1}])
def test_shares_are_shares(changes):
    with pytest.raises(ValueError, match=f"context_{next(iter(changes))}="):
        context_of(**changes)


def test_something_must_be_left_to_write():
    with pytest.raises(ValueError, match="something to write"):
        test_hierarchical.generator(context_frames=4)


# ---- on the grid of a level -------------------------------------------------------------------


def test_a_cell_holds_the_mean_of_what_is_given_of_it():
    z = noise(1, 3, 4, 4, 4)
    fine = given_on(given_of(z, 1), Scale(4, 4, 4))
    assert torch.equal(fine[:, :3, :1], z[:, :, :1])
    assert not fine[:, :, 1:].any()
    assert (fine[:, 3:, :1] == 1).all()
    coarse = given_on(given_of(z, 1), Scale(2, 2, 2))
    assert torch.allclose(coarse[:, :3, :1], pool(z[:, :, :1], Scale(1, 2, 2)))
    assert (coarse[:, 3, 0] == 0.5).all()
    assert not coarse[:, :, 1].any()
    whole = given_on(given_of(z, 3), Scale(1, 1, 1))
    assert torch.allclose(whole[0, :3, 0, 0, 0], z[0, :, :3].mean((1, 2, 3)))
    assert whole[0, 3].item() == 0.75


def test_what_is_not_present_is_not_read():
    z, other = noise(2, 3, 4, 4, 4), noise(2, 3, 4, 4, 4, seed=1)
    other[:, :, :2] = z[:, :, :2]
    for size in ((4, 4, 4), (2, 2, 2), (1, 1, 1)):
        ours, theirs = (given_on(given_of(frames, 2), Scale(*size)) for frames in (z, other))
        assert torch.equal(ours, theirs)


# ---- the network ------------------------------------------------------------------------------


@torch.no_grad()
def test_the_denoiser_listens_to_given_frames_where_there_are_any():
    unet = test_hierarchical.generator(awake=True, **ALWAYS).eval().unet
    x, tau = noise(2, 6, 4, 4, 4), torch.tensor([0.3, 0.3])
    text = Condition(text=noise(2, 3, 16), text_mask=torch.ones(2, 3, dtype=torch.bool))

    def velocity(given):
        return unet(x, tau, 1, replace(text, given=given))

    z = noise(2, 4, 4, 4, 4, seed=1)
    nothing, one, two = (given_of(z, count) for count in range(3))
    assert torch.equal(velocity(nothing), velocity(None))
    spoilt = replace(one, noise=torch.full((2,), 0.1))
    heard = [velocity(given) for given in (None, one, two, spoilt)]
    for number, ours in enumerate(heard):
        assert not any(torch.allclose(ours, other, atol=1e-6) for other in heard[:number])
    other = given_of(torch.cat([z[:1], noise(1, 4, 4, 4, 4, seed=2)]), 1)
    assert torch.equal(velocity(other)[0], heard[1][0])
    assert not torch.allclose(velocity(other)[1], heard[1][1], atol=1e-6)


def test_without_context_the_network_is_as_ever():
    plain = test_hierarchical.generator(context_frames=0)
    shapes = plain.state_dict()
    assert plain.example(latents(), CODEC, draws()).given is None
    aware = test_hierarchical.generator(**ALWAYS).state_dict()
    assert set(aware) - set(shapes) == {"unet.cues.given.noise.weight", "unet.beside.weight"}
    assert all(torch.equal(aware[name], weight) for name, weight in plain.state_dict().items())


# ---- training ---------------------------------------------------------------------------------


@torch.no_grad()
def test_it_starts_silent_and_shapes_stay():
    model = test_hierarchical.generator(**ALWAYS)
    for pair in model(model.example(latents(), CODEC, draws())).velocity:
        assert pair.guess.shape == pair.target.shape
        assert not pair.guess.any()


@pytest.mark.parametrize("share", [0.0, 1.0])
@pytest.mark.parametrize("module", [test_hierarchical, test_joint])
def test_every_parameter_takes_part_whether_frames_are_given_or_not(module, share):
    model = module.generator(context_frames=1, context_share=share)
    prediction = model(model.example(latents(), CODEC, draws()))
    module.OBJECTIVE(prediction, batch_of(4))[0].backward()
    assert [n for n, parameter in model.named_parameters() if parameter.grad is None] == []


@pytest.mark.parametrize("module", [test_hierarchical, test_joint])
@torch.no_grad()
def test_a_part_of_the_batch_is_predicted_as_in_the_whole(module):
    model = module.generator(awake=True, context_frames=2, context_share=0.7).eval()
    whole = model(model.example(latents(), CODEC, draws()))
    part = model(model.example(latents(slice(2, 4)), CODEC, draws(12, 2)))
    for ours, theirs in zip(part.velocity, whole.velocity, strict=True):
        assert torch.allclose(ours.guess, theirs.guess[2:], atol=1e-5)


def test_pictures_among_the_clips_are_given_nothing():
    model = test_hierarchical.generator(**ALWAYS)
    wide = {"latent": 4, "motion": 2, "motion_confidence": 1}
    pictures = latents(**{name: noise(4, C, 1, 4, 4) for name, C in wide.items()})
    example = model.example(pictures, CODEC, draws())
    assert example.given is not None
    assert not example.given.present.any()


def test_it_learns_to_read_what_is_given():
    """Of clips that stand still all is known once a frame is; x at tau = 0 says nothing."""
    model = test_hierarchical.generator(context_frames=1, context_share=0.5, context_noise=0.0)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for step in range(150):
        z = noise(16, 4, 1, 4, 4, seed=step).expand(-1, -1, 4, -1, -1)
        batch = LatentBatch(
            latent=z,
            motion=torch.zeros(16, 2, 4, 4, 4),
            motion_confidence=torch.ones(16, 1, 4, 4, 4),
            captions=("",) * 16,
            positions=torch.arange(16),
            keys=("",) * 16,
        )
        prediction = model(model.example(batch, CODEC, Draws(step, range(16), CPU)))
        OBJECTIVE(prediction, batch_of(16))[0].backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval()
    told, bare = (
        model.sample(("",) * 16, CODEC, Draws(9, range(16), CPU), Sampling(guidance=1), frames)
        for frames in (z[:, :, :1], None)
    )
    errors = [(levels.finest[:, :4] - z).square().mean() for levels in (told, bare)]
    assert errors[0] < 0.5 * errors[1]


# ---- sampling ---------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2])
def test_a_sample_begins_with_the_frames_it_is_given(count):
    model, frames = test_hierarchical.generator(awake=True, **ALWAYS), noise(2, 4, count, 4, 4)
    told, bare = (
        model.sample(CAPTIONS[:2], CODEC, draws(count=2), SETTINGS, given).finest
        for given in (frames, None)
    )
    assert torch.equal(told[:, :4, :count], frames)
    assert told.shape == bare.shape
    assert not torch.allclose(told[:, :, count:], bare[:, :, count:], atol=1e-4)


@pytest.mark.parametrize("kappa", range(CODEC.schedule.num_levels + 1))
def test_the_transformer_and_the_denoiser_are_both_given_them(kappa):
    model, frames = test_joint.generator(awake=True, **ALWAYS), noise(2, 4, 1, 4, 4)
    settings, read = replace(SETTINGS, kappa=kappa), []
    model.transformer.transformer.given.register_forward_hook(lambda *call: read.append(call[1]))
    told, bare = (
        model.sample(CAPTIONS[:2], CODEC, draws(count=2), settings, given)
        for given in (frames, None)
    )
    assert torch.equal(told.finest[:, :, :1], frames)
    if kappa < CODEC.schedule.num_levels:  # codes, drawn alike, may come out alike
        assert not torch.allclose(told.finest[:, :, 1:], bare.finest[:, :, 1:], atol=1e-4)
    assert len(read) == (kappa > 0)


@pytest.mark.parametrize("module", [test_hierarchical, test_joint])
def test_more_frames_than_in_training_are_refused(module):
    model = module.generator(context_frames=1)
    with pytest.raises(ValueError, match="2 latent frames are given"):
        model.sample(CAPTIONS[:1], CODEC, draws(count=1), SETTINGS, noise(1, 4, 2, 4, 4))


def test_the_refiner_takes_given_frames_for_the_block_before():
    refining = Refining(num_frames=16, fps=8.0, width=16, depth=1)
    model = test_hierarchical.generator(awake=True, refiner=refining, **ALWAYS)
    asked = []
    assert model.refiner is not None
    model.refiner.register_forward_hook(lambda refiner, inputs, steps: asked.append(inputs))
    frames = noise(2, 4, 2, 4, 4)
    sampled = model.sample(CAPTIONS[:2], CODEC, draws(count=2), SETTINGS, frames).finest
    ((z, _, before),) = asked
    assert z.shape[2] == SIZE.t - 2
    assert torch.equal(before.latent, frames[:, :, 1:])
    assert before.known.all()
    assert torch.equal(sampled[:, :4, :2], frames)
    assert sampled.shape[2:] == SIZE
