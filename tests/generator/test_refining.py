"""How a refiner is trained: on what, with what effect, and on nobody else."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from hstvg.generator.flaws import Flaws
from hstvg.generator.motion import REFERENCE_SPEED
from hstvg.generator.neighbours import find_neighbours
from hstvg.generator.refining import Refining, with_refined
from hstvg.nn.warp import warp
from hstvg.objective.refinement import RefinementTerm
from hstvg.paths.draws import Draws
from hstvg.scales import ScaleSchedule
from hstvg.tokenizer.codec import ScaleCodec
from hstvg.tokenizer.quantiser import FSQ
from hstvg.types import LatentBatch, Pair, Prediction

CODEC = ScaleCodec(4, ScaleSchedule.of_kind("cubic", (4, 8, 8)), FSQ())
JITTER = Flaws(jitter=0.5, drift=0.0, wrong=0.0)
SECONDS = 0.5


def refining(**changes):
    return Refining(**({"num_frames": 16, "fps": 8.0, "width": 24} | changes))


def clips(count=8, first=0, frames=4):
    """Pictures that travel by whole cells, and in every frame something new on top of them.

    What is new differs from cell to cell, unlike a jitter of whole frames: it must be left.
    """
    latents, motions = [], []
    for number in range(first, first + count):
        noise = torch.Generator().manual_seed(number)
        picture = torch.randn(4, 8, 8, generator=noise)
        x, y = int(torch.randint(-1, 2, (), generator=noise)), 0
        path = [picture.roll((i * y, i * x), (1, 2)) for i in range(frames)]
        latents.append(torch.stack(path, 1) + 0.3 * torch.randn(4, frames, 8, 8, generator=noise))
        cells = torch.tensor([x, y], dtype=torch.float)[:, None, None, None]
        motions.append(torch.asinh(cells / 8 / SECONDS / REFERENCE_SPEED).expand(2, frames, 8, 8))
    return LatentBatch(
        latent=torch.stack(latents),
        motion=torch.stack(motions),
        motion_confidence=torch.ones(count, 1, frames, 8, 8),
        captions=("",) * count,
        positions=torch.arange(first, first + count),
        keys=("",) * count,
    )


def draws(count=8, first=0):
    return Draws(0, range(first, first + count), torch.device("cpu"))


def change_of(prediction, step):
    """Mean square of what is new in frames that have one before."""
    return prediction.refined_change[step].guess[:, :, 1:].square().mean()


def error_of(pair):
    return (pair.guess - pair.target).square().mean()


def test_time_between_frames_follows_from_the_clip():
    assert refining().refiner(CODEC).seconds == SECONDS


def test_the_first_frame_stands_for_the_block_before():
    made = refining(flaws=Flaws(jitter=0.0, drift=0.0, wrong=0.0)).example(clips(), CODEC, draws())
    z = clips().latent
    assert torch.allclose(made.before.latent, z[:, :, :1], atol=1e-5)
    assert torch.allclose(made.flawed, z[:, :, 1:], atol=1e-5)
    assert torch.equal(made.clean, z[:, :, 1:])
    assert made.motion.shape[2] == made.trust.shape[2] == 3
    many = refining().example(clips(64), CODEC, draws(64)).before.known
    assert 16 < many.sum() < 48


def test_the_frame_before_has_flaws_of_its_own():
    still = replace(clips(64), latent=torch.zeros(64, 4, 4, 8, 8))
    made = refining(flaws=JITTER).example(still, CODEC, draws(64))
    one, other = made.before.latent[:, :, 0], made.flawed[:, :, 0]
    spoilt = (one.abs().amax((1, 2, 3)) > 1e-4) & (other.abs().amax((1, 2, 3)) > 1e-4)
    assert spoilt.any()
    assert (one - other)[spoilt].abs().amax((1, 2, 3)).min() > 1e-3


def test_an_example_does_not_depend_on_the_batch_it_is_drawn_in():
    whole = refining().example(clips(), CODEC, draws())
    alone = refining().example(clips(1, 5), CODEC, draws(1, 5))
    for name in ("flawed", "clean", "motion", "trust"):
        assert torch.allclose(getattr(alone, name)[0], getattr(whole, name)[5], atol=1e-5)
    assert torch.allclose(alone.before.latent[0], whole.before.latent[5], atol=1e-5)
    assert alone.before.known[0] == whole.before.known[5]


def test_a_single_frame_is_refined_as_it_is():
    codec = ScaleCodec(4, ScaleSchedule.of_kind("cubic", (1, 8, 8)), FSQ())
    settings = refining()
    made = settings.example(clips(frames=1), codec, draws())
    assert not made.before.known.any()
    prediction = with_refined(Prediction(), settings.refiner(codec), made)
    cost = RefinementTerm()(prediction, clips(frames=1))
    assert torch.isfinite(cost).all()


def test_clips_without_motion_are_refused():
    still = replace(clips(), motion=None, motion_confidence=None)
    with pytest.raises(ValueError, match=r"set data\.motion=true"):
        refining().example(still, CODEC, draws())


def test_change_is_trusted_as_far_as_the_motion_of_both_frames():
    batch = clips(2)
    trust = torch.full_like(batch.motion_confidence, 0.5)
    trust[:, :, 2] = 0.2
    settings = refining()
    made = settings.example(replace(batch, motion_confidence=trust), CODEC, draws(2))
    for pair in with_refined(Prediction(), settings.refiner(CODEC), made).refined_change:
        weight = pair.weight[0, 0, :, 4, 4].tolist()  # of frames 1 to 3 of the clip
        assert weight == pytest.approx([0.0, 0.5 * 0.2, 0.2 * 0.5])


def test_at_first_it_costs_what_doing_nothing_does():
    settings, term = refining(), RefinementTerm()
    made = settings.example(clips(), CODEC, draws())
    prediction = with_refined(Prediction(), settings.refiner(CODEC), made)
    cost = term(prediction, clips())
    assert torch.allclose(cost, term.trivial(prediction, clips()))
    assert cost.mean() > 0.01


def test_the_truth_is_free_and_cheats_that_are_too_calm_are_not():
    """Frozen, smoothed or blurred clips change less than real ones do: that is no gain."""
    batch, term = clips(), RefinementTerm()
    z = batch.latent
    beside = find_neighbours(z, batch.motion, SECONDS)
    cheats = {
        "truth": z,
        "frozen": z[:, :, :1].expand_as(z),
        "smoothed": (warp(beside.previous(z), beside.back) + 2 * z) / 3,
        "blurred": F.avg_pool3d(z, (1, 3, 3), 1, (0, 1, 1)),
    }
    costs, changes = {}, {}
    for name, cheat in cheats.items():
        pair = Pair(guess=cheat, target=z)
        change = Pair(guess=beside.change(cheat), target=beside.change(z))
        made = Prediction(refined=(pair, pair), refined_change=(change, change))
        costs[name] = term(made, batch).mean().item()
        # A frozen clip changes least where it is not carried along.
        change = cheat.diff(dim=2) if name == "frozen" else beside.change(cheat)
        changes[name] = change.square().mean().item()
    assert costs.pop("truth") == 0
    real = changes.pop("truth")
    assert all(change < 0.7 * real for change in changes.values()), (changes, real)
    assert all(cost > 0.05 for cost in costs.values())


STEPS = 200


@pytest.fixture(scope="module")
def trained():
    """A refiner of jitter, and flawed clips that it has not seen."""
    torch.manual_seed(0)
    settings = refining(flaws=JITTER)
    model = settings.refiner(CODEC)
    optimizer = torch.optim.Adam(model.parameters())
    pace = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=STEPS)
    for step in range(STEPS):
        batch = clips(16, first=16 * step)
        made = settings.example(batch, CODEC, draws(16, first=16 * step))
        loss = RefinementTerm()(with_refined(Prediction(), model, made), batch).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        pace.step()
    held_out = settings.example(clips(64, first=9000), CODEC, draws(64, first=9000))
    return model, held_out


@torch.no_grad()
def test_flicker_is_mended_and_real_change_is_left(trained):
    model, made = trained
    prediction = with_refined(Prediction(), model, made)
    came, first, last = (error_of(pair) for pair in prediction.refined)
    assert came > first > last
    assert last < 0.65 * came
    flawed, mended = change_of(prediction, 0), change_of(prediction, -1)
    real = prediction.refined_change[0].target[:, :, 1:].square().mean()
    assert flawed > 1.4 * real
    # A little below, as the mean of what may be true changes less than any of it.
    assert 0.85 * real < mended < 1.15 * real


@torch.no_grad()
def test_refining_again_and_again_does_not_diverge(trained):
    model, made = trained
    came, z = (made.flawed - made.clean).square().mean(), made.flawed
    for _ in range(4):
        z = model(z, made.motion, made.before)[-1]
        assert (z - made.clean).square().mean() < came


@torch.no_grad()
def test_a_frame_before_helps_the_first(trained):
    model, made = trained
    known = replace(made.before, known=torch.ones(64, dtype=torch.bool))
    errors = [
        (model(made.flawed, made.motion, before)[-1] - made.clean)[:, :, 0].square().mean()
        for before in (known, None)
    ]
    assert errors[0] < errors[1]
