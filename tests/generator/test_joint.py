"""The transformer and the denoiser together, joined by kappa."""

from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
from test_hierarchical import CAPTIONS, CODEC, CPU, batch_of, draws, latents

from benchmarks.kappa import levels_left, steps_in
from hstvg.generator.generator import Generator, Sampling
from hstvg.generator.joint import JointGenerator
from hstvg.generator.prefixes import Prefixes, first_level, longest, write
from hstvg.generator.tracks import Tracks
from hstvg.objective.attention import AttentionTerm
from hstvg.objective.diffusion import DiffusionTerm
from hstvg.objective.flow import FlowTerm
from hstvg.objective.next_scale import NextScaleTerm
from hstvg.objective.objective import Objective, WeightedTerm
from hstvg.paths.draws import Draws
from hstvg.paths.motion_noise import MotionNoise
from hstvg.paths.pyramid_flow import PyramidFlow
from hstvg.scales import Ladder, Scale, pool
from hstvg.scene.text import TextEncoder
from hstvg.types import Condition, Prefix

OBJECTIVE = Objective(
    {
        "diffusion": WeightedTerm(DiffusionTerm(), 1.0),
        "flow": WeightedTerm(FlowTerm(), 0.1),
        "next_scale": WeightedTerm(NextScaleTerm(), 1.0),
    }
)
K = CODEC.schedule.num_levels
SETTINGS = Sampling(steps=2, guidance=1.5)


def generator(*, awake=False, motion_dropout=0.0, **changes):
    torch.manual_seed(0)
    made = JointGenerator(
        codec=CODEC,
        text=TextEncoder(width=16, layers=1, heads=2),
        transformer={"width": 16, "depth": 1, "head_dim": 8},
        denoiser={
            "path": PyramidFlow(boundaries=(0.5, 1.0)),
            "draws": (3, 2),
            "motion_dropout": motion_dropout,
            "widths": (16, 32),
            "head_dim": 16,
        },
        **({"kappa": 1} | changes),
    )
    if awake:
        with torch.no_grad():
            for parameter in made.parameters():
                parameter.add_(0.05 * torch.randn_like(parameter))
    return made


def sampled(model, kappa, count=2):
    settings = replace(SETTINGS, kappa=kappa)
    return model.sample(CAPTIONS[:count], CODEC, draws(count=count), settings)


def test_it_is_a_generator_and_saves_its_text_encoder_once():
    model = generator()
    assert isinstance(model, Generator)
    twice = ("transformer.text.", "denoiser.text.")
    assert not [name for name in model.state_dict() if name.startswith(twice)]
    assert sum(name.startswith("text.") for name in model.state_dict()) > 0


def test_one_checkpoint_samples_at_every_kappa():
    model = generator(awake=True)
    assert model.kappas == tuple(range(K + 1))
    finest = [sampled(model, kappa).finest for kappa in model.kappas]
    for z in finest:
        assert z.shape == (2, 4, *CODEC.schedule.size)
    for a, b in pairwise(finest):
        assert not torch.allclose(a, b)


def test_the_scales_come_first_and_then_the_levels():
    model = generator(awake=True)
    levels = sampled(model, 1).levels
    written = sampled(model, K).levels
    assert torch.equal(levels[0], written[0])
    assert [level.shape[1:] for level in levels] == [(4, 4, 4, 4), (4, 2, 2, 2), (4, 4, 4, 4)]


def test_a_scale_that_is_a_level_is_gone_on_from_and_not_climbed_again():
    model = generator(awake=True)
    assert CODEC.schedule[0][1] == Scale(2, 2, 2)  # the coarser of the two levels
    assert len(sampled(model, 2).levels) == 2 + 1


@pytest.mark.parametrize("kappa", [-1, K + 1])
def test_an_unknown_kappa_is_refused(kappa):
    with pytest.raises(ValueError, match=f"kappa={kappa}"):
        generator(kappa=kappa)
    with pytest.raises(ValueError, match=f"kappa={kappa}"):
        sampled(generator(), kappa)


def test_every_parameter_takes_part_at_every_step_and_kappa():
    for none in (0.0, 0.99):
        model = generator(
            awake=True,
            prefixes=Prefixes(none=none),
            tracks=Tracks(num_frames=4, fps=4.0, queries=3),
        )
        terms = {**OBJECTIVE.terms, "attention": WeightedTerm(AttentionTerm(), 0.0)}
        prediction = model(model.example(latents(), CODEC, draws()))
        Objective(terms)(prediction, batch_of(4))[0].backward()
        idle = [name for name, weight in model.named_parameters() if weight.grad is None]
        assert idle == []


def test_a_part_of_the_batch_is_predicted_as_in_the_whole():
    model = generator(awake=True).eval()
    whole = model(model.example(latents(), CODEC, Draws(0, range(10, 14), CPU)))
    rows = slice(2, 4)
    part = model(model.example(latents(rows), CODEC, Draws(0, range(12, 14), CPU)))
    for ours, theirs in zip(part.velocity, whole.velocity, strict=True):
        assert torch.allclose(ours.guess, theirs.guess[rows], atol=1e-5)
        assert torch.allclose(ours.target, theirs.target[rows], atol=1e-6)


# ---- prefixes ---------------------------------------------------------------------------------


def written(none=0.0, corruption=0.0, count=64, seed=0):
    z = torch.randn(count, 4, 4, 4, 4, generator=torch.Generator().manual_seed(seed))
    positions = Draws(0, range(count), CPU)
    return z, write(z, CODEC, positions, Prefixes(none=none, corruption=corruption))


def test_prefixes_are_the_states_of_the_codec():
    z, found = written()
    states = CODEC.split(z).states
    assert torch.equal(found.states[0], torch.zeros_like(z))
    for kappa in range(1, K):
        assert torch.equal(found.states[kappa], states[kappa - 1])
    assert set(found.kappa.tolist()) == set(range(1, K))


def test_the_share_without_a_prefix_is_kept():
    _, found = written(none=0.4, count=500)
    assert (found.kappa == 0).float().mean() == pytest.approx(0.4, abs=0.06)


def test_half_of_the_prefixes_are_corrupted():
    _, clean = written()
    _, found = written(corruption=0.3)
    assert (found.corruption == 0).float().mean() == pytest.approx(0.5, abs=0.2)
    same = (clean.states == found.states).flatten(2).all(-1).all(0)
    assert same[found.corruption == 0].all()
    assert not same[found.corruption > 0.1].any()


def test_no_level_is_told_more_than_is_coarser():
    scales, levels = CODEC.schedule[0], Ladder.cubic((4, 4, 4)).finest(2)
    assert [longest(scales, level) for level in levels] == [1, 2]
    _, found = written()
    assert found.up_to(1).kappa.max() == 1
    assert torch.equal(found.up_to(0).state, torch.zeros_like(found.states[0]))
    assert found.up_to(0).corruption.max() == 0


def test_where_the_denoiser_goes_on():
    scales, levels = CODEC.schedule[0], Ladder.cubic((4, 4, 4)).finest(2)
    assert [first_level(scales, levels, kappa) for kappa in range(K + 1)] == [0, 0, 1, None]
    other = Ladder([(4, 1, 1), (4, 4, 4)])
    assert first_level(scales, other, 2) is None


def test_a_handoff_starts_as_in_training():
    """Mean and deviation of the start of a level, over noise, with the prefix of training."""
    model = generator(prefixes=Prefixes(none=0.0, corruption=0.0)).denoiser
    batch = latents()
    example = model.example(batch, CODEC, draws())
    prefix = example.prefixes[1]
    handed = prefix.kappa == 2
    assert handed.any()
    trained = example.paths[1].start.unflatten(0, (4, 2))[handed]
    noise = torch.randn(2000, 6, *CODEC.schedule.size)
    one = int(handed.nonzero()[0])
    alone = Prefix(
        state=prefix.state[one : one + 1].expand(2000, -1, -1, -1, -1),
        kappa=torch.full((2000,), 2),
        corruption=torch.zeros(2000),
    )
    level = model._first(alone)
    assert level == 1
    start = model._start(alone, level, noise)
    a = model.path.start_share(1, 8)
    coarse = pool(prefix.state[one : one + 1], model.levels[0]).repeat_interleave(2, 2)
    coarse = a * coarse.repeat_interleave(2, 3).repeat_interleave(2, 4)
    assert torch.allclose(start[:, :4].mean(0), coarse[0], atol=0.08)
    assert start.std(0).mean() == pytest.approx(1 - a, rel=0.02)
    residual = (trained[:, 0, :4] - trained[:, 1, :4]) / 2**0.5
    assert residual.std() == pytest.approx(1 - a, rel=0.2)
    apart = trained[0, :, :4] - coarse
    assert apart.mean() == pytest.approx(0, abs=0.1)


def test_the_denoiser_listens_to_the_prefix():
    model = generator(awake=True).denoiser.eval()
    x, tau = torch.randn(1, 6, 4, 4, 4), torch.tensor([0.3])
    text = generator().text
    ids, mask = text.tokenize(["a red circle"])
    told = text(ids, mask)
    outs = []
    for kappa, corruption in ((0, 0.0), (1, 0.0), (1, 0.2), (2, 0.0)):
        prefix = Prefix(
            state=torch.ones(1, 4, 4, 4, 4) * (kappa > 0),
            kappa=torch.tensor([kappa]),
            corruption=torch.tensor([corruption]),
        )
        outs.append(model.unet(x, tau, 1, Condition(text=told, text_mask=mask, prefix=prefix)))
    bare = model.unet(x, tau, 1, Condition(text=told, text_mask=mask))
    assert torch.equal(outs[0], bare)
    for a in range(4):
        for b in range(a):
            assert not torch.allclose(outs[a], outs[b], atol=1e-6)


def test_the_benchmark_deals_evaluations_to_the_levels_that_are_left():
    model = generator()
    assert [levels_left(model, kappa) for kappa in model.kappas] == [2, 2, 1, 0]
    bundle = SimpleNamespace(generator=model)
    assert [steps_in(bundle, kappa, 24) for kappa in model.kappas] == [12, 11, 21, 1]


def test_what_is_written_is_told_to_be_as_wrong_as_in_training_at_the_mean(monkeypatch):
    model, told = generator(prefixes=Prefixes(corruption=0.4)), []
    climb = model.denoiser.climb

    def watch(condition, nothing, own, settings, prefix, *others):
        told.append(prefix.corruption.tolist())
        return climb(condition, nothing, own, settings, prefix, *others)

    monkeypatch.setattr(model.denoiser, "climb", watch)
    sampled(model, 1)
    assert told == [pytest.approx([0.2, 0.2])]


# ---- what acts on a level that may be left out --------------------------------------------------


def test_noise_moves_on_the_level_that_is_begun_with(monkeypatch):
    noise = MotionNoise(seconds=0.25)
    model, seen = generator(awake=True, noise=noise), []
    climb = model.denoiser.path.sample

    def watch(velocity, scales, noises, **settings):
        seen.append(noises)
        return climb(velocity, scales, noises, **settings)

    monkeypatch.setattr(model.denoiser.path, "sample", watch)
    settings = replace(SETTINGS, kappa=2)  # begins with the second level
    for alpha in (0.0, 0.5):
        moved = replace(settings, motion_noise=alpha)
        model.sample(CAPTIONS[:2], CODEC, draws(count=2), moved)
    white, _, coloured = seen
    assert torch.equal(white[0], coloured[0])
    assert not torch.equal(white[1], coloured[1])
    seen_by_coarsest = pool(coloured[1], Scale(2, 2, 2)) - pool(white[1], Scale(2, 2, 2))
    assert seen_by_coarsest.abs().max() > 0.1


@pytest.mark.parametrize(
    ("kappa", "changes", "said"),
    [
        (K, {"motion_noise": 0.5}, "leaves nothing to the denoiser"),
        (K, {"motion_guidance": 1.0}, "leaves nothing to the denoiser"),
        (2, {"motion_guidance": 1.0}, "give a smaller kappa"),
    ],
)
def test_what_no_level_would_heed_is_refused(kappa, changes, said):
    model = generator(noise=MotionNoise(seconds=0.25), motion_dropout=0.2)
    settings = replace(SETTINGS, kappa=kappa, **changes)
    with pytest.raises(ValueError, match=said):
        model.sample(CAPTIONS[:2], CODEC, draws(count=2), settings)
