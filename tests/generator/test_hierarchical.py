import pytest
import torch

from hstvg.generator.generator import Generator, Sampling
from hstvg.generator.hierarchical import HierarchicalGenerator
from hstvg.objective.diffusion import DiffusionTerm
from hstvg.objective.flow import FlowTerm
from hstvg.objective.objective import Objective, WeightedTerm
from hstvg.paths.draws import Draws
from hstvg.paths.pyramid_flow import PyramidFlow
from hstvg.scales import ScaleSchedule
from hstvg.scene.text import TextEncoder
from hstvg.tokenizer.codec import ScaleCodec
from hstvg.tokenizer.quantiser import FSQ
from hstvg.types import Condition, LatentBatch, VideoBatch

CPU = torch.device("cpu")
CODEC = ScaleCodec(4, ScaleSchedule.of_kind("cubic", (4, 4, 4)), FSQ())
CAPTIONS = ("a red circle", "a blue square moves left", "", "ab")
OBJECTIVE = Objective(
    {"diffusion": WeightedTerm(DiffusionTerm(), 1.0), "flow": WeightedTerm(FlowTerm(), 0.1)}
)


def generator(*, awake=False, **changes):
    torch.manual_seed(0)
    path = PyramidFlow(boundaries=(0.5, 1.0), tau_shift=2.0)
    sizes = {"path": path, "draws": (3, 2), "text_dropout": 0.0, "widths": (16, 32), "head_dim": 16}
    made = HierarchicalGenerator(
        codec=CODEC,
        text=TextEncoder(width=16, layers=1, heads=2),
        **(sizes | changes),
    )
    if awake:
        with torch.no_grad():
            for parameter in made.parameters():
                parameter.add_(0.05 * torch.randn_like(parameter))
    return made


def draws(first=10, count=4, seed=0):
    return Draws(seed, range(first, first + count), CPU)


def latents(rows=slice(None), **changes):
    """Four clips as they are encoded, or some of them."""
    noise = torch.Generator().manual_seed(0)
    z = torch.randn(4, 4, 4, 4, 4, generator=noise)
    motion = torch.randn(4, 2, 4, 4, 4, generator=noise)
    confidence = torch.rand(4, 1, 4, 4, 4, generator=noise)
    fields = {
        "latent": z[rows],
        "motion": motion[rows],
        "motion_confidence": confidence[rows],
        "captions": CAPTIONS[rows],
        "positions": torch.arange(10, 14)[rows],
        "keys": tuple("0123")[rows],
    }
    return LatentBatch(**(fields | changes))


def example(model, rows=slice(None)):
    """Four clips on their paths, or some of them, drawn as if they were alone."""
    return model.example(latents(rows), CODEC, Draws(0, range(10, 14)[rows], CPU))


def batch_of(count):
    return VideoBatch(
        pixels=torch.zeros(count, 3, 2, 4, 4),
        fps=torch.full((count,), 8.0),
        captions=("",) * count,
        positions=torch.arange(count),
        keys=("",) * count,
        motion=torch.zeros(count, 2, 2, 1, 1),
        motion_confidence=torch.zeros(count, 1, 2, 1, 1),
    )


@torch.no_grad()
def test_shapes_of_every_level_and_silence_at_the_start():
    model = generator()
    prediction = model(example(model))
    for pairs, channels in ((prediction.velocity, 4), (prediction.motion, 2)):
        assert [tuple(pair.guess.shape) for pair in pairs] == [
            (4, 3, channels, 2, 2, 2),
            (4, 2, channels, 4, 4, 4),
        ]
        for pair in pairs:
            assert pair.guess.abs().sum() == 0
            assert pair.target.shape == pair.guess.shape
    for pair, count in zip(prediction.motion, (3, 2), strict=True):
        assert pair.weight is not None
        assert pair.weight.expand_as(pair.target).shape[1] == count


def test_targets_are_the_velocities_of_each_clip():
    model = generator()
    made = example(model)
    with torch.no_grad():
        prediction = model(made)
    for level, (path, count) in enumerate(zip(made.paths, (3, 2), strict=True)):
        assert torch.equal(prediction.velocity[level].target[1, 0], path.velocity[count, :4])
        assert torch.equal(prediction.motion[level].target[1, 1], path.velocity[count + 1, 4:])


def test_times_of_a_clip_are_spread_evenly():
    model = generator(draws=(4, 4), path=PyramidFlow(boundaries=(0.5, 1.0)))
    for path in example(model).paths:
        times = path.tau.unflatten(0, (4, 4)).sort(dim=1).values
        assert torch.allclose(times.diff(dim=1), torch.full((4, 3), 0.25), atol=1e-6)


def test_an_example_does_not_depend_on_the_batch_it_is_drawn_in():
    model = generator(text_dropout=0.5)
    whole = example(model)
    halves = [example(model, slice(0, 2)), example(model, slice(2, 4))]
    for level in range(2):
        for name in ("start", "end", "x", "velocity", "tau"):
            parts = torch.cat([getattr(half.paths[level], name) for half in halves])
            assert torch.equal(parts, getattr(whole.paths[level], name))
        parts = torch.cat([half.confidence[level] for half in halves])
        assert torch.equal(parts, whole.confidence[level])
    texts = [
        ids[mask].tolist()
        for half in (*halves, whole)
        for ids, mask in zip(half.told.ids, half.told.mask, strict=True)
    ]
    assert texts[:4] == texts[4:]


@torch.no_grad()
def test_a_prediction_does_not_depend_on_the_batch():
    model = generator(awake=True)
    whole = model(example(model))
    halves = [model(example(model, rows)) for rows in (slice(0, 2), slice(2, 4))]
    for field in ("velocity", "motion"):
        for level in range(2):
            parts = torch.cat([getattr(half, field)[level].guess for half in halves])
            assert torch.allclose(parts, getattr(whole, field)[level].guess, atol=1e-5)


def test_dropped_captions_are_the_empty_text():
    model = generator(text_dropout=1.0)
    made = example(model)
    assert made.told.ids.tolist() == [[1]] * 4
    assert made.told.mask.all()


def test_every_parameter_gets_a_gradient_from_one_step():
    model = generator(awake=True)
    loss, terms = OBJECTIVE(model(example(model)), batch_of(4))
    loss.backward()
    assert set(terms) == {"diffusion", "flow"}
    silent = [
        name
        for name, parameter in model.named_parameters()
        if parameter.grad is None or parameter.grad.abs().sum() == 0
    ]
    assert silent == []


def test_every_parameter_takes_part_from_the_first_step():
    """A parameter without a gradient, be it zero, would stop a sharded optimiser."""
    model = generator()
    OBJECTIVE(model(example(model)), batch_of(4))[0].backward()
    assert [n for n, parameter in model.named_parameters() if parameter.grad is None] == []


def sample(model, captions, first=0, guidance=1.0, seed=0, steps=2):
    where, settings = draws(first, len(captions), seed), Sampling(steps=steps, guidance=guidance)
    return model.sample(captions, CODEC, where, settings).levels


@torch.no_grad()
def test_guidance_of_one_is_the_condition_alone():
    model, captions = generator(awake=True), CAPTIONS[:2]
    ids, mask = model.text.tokenize(captions)
    condition = Condition(text=model.text(ids, mask), text_mask=mask)
    where = draws(0, 2)
    noises = [where.normal(f"sample/{i}", 6, *scale) for i, scale in enumerate(model.levels)]
    plain = model.path.sample(
        lambda x, tau, level: model.unet(x, tau, level, condition), model.levels, noises, steps=2
    )
    guided = sample(model, captions)
    assert [x.shape for x in guided] == [(2, 6, 2, 2, 2), (2, 6, 4, 4, 4)]
    for one, other in zip(guided, plain.levels, strict=True):
        assert torch.allclose(one, other, atol=1e-5)


def test_guidance_of_zero_is_the_empty_text():
    model = generator(awake=True)
    ignored, empty = sample(model, CAPTIONS[:2], guidance=0.0), sample(model, ("", ""))
    assert torch.allclose(ignored[-1], empty[-1], atol=1e-5)


def test_guidance_moves_away_from_the_empty_text():
    model = generator(awake=True)
    free, plain, guided = (sample(model, CAPTIONS[:2], guidance=g)[-1] for g in (0.0, 1.0, 3.0))
    assert (guided - free).norm() > 1.5 * (plain - free).norm() > 0


def test_a_sample_belongs_to_its_draws_and_caption():
    model = generator(awake=True)
    together = sample(model, CAPTIONS[:3], guidance=3.0)
    assert torch.equal(sample(model, CAPTIONS[:3], guidance=3.0)[-1], together[-1])
    alone = sample(model, CAPTIONS[1:2], first=1, guidance=3.0)
    for one, all_of_them in zip(alone, together, strict=True):
        assert torch.allclose(one[0], all_of_them[1], atol=1e-5)
    assert not torch.allclose(sample(model, CAPTIONS[:3], seed=1)[-1], together[-1], atol=0.1)


@pytest.mark.parametrize(
    ("pyramid", "coarsest", "of_another_size"),
    [("space", (4, 2, 2), (4, 2, 4)), ("time", (2, 4, 4), (2, 4, 8))],
)
def test_the_pyramid_is_that_of_the_path(pyramid, coarsest, of_another_size):
    model = generator(awake=True, path=PyramidFlow(pyramid=pyramid))
    assert list(model.levels) == [coarsest, (4, 4, 4)]
    assert [x.shape[2:] for x in sample(model, CAPTIONS[:1])] == [coarsest, (4, 4, 4)]
    wide = {"latent": 4, "motion": 2, "motion_confidence": 1}
    clips = latents(**{name: torch.randn(4, C, 4, 4, 8) for name, C in wide.items()})
    made = model.example(clips, CODEC, draws())
    assert [path.x.shape[2:] for path in made.paths] == [of_another_size, (4, 4, 8)]


def test_the_solver_is_that_of_the_settings():
    model, asked = generator(awake=True), []
    model.unet.register_forward_hook(lambda unet, given, velocity: asked.append(given[2]))
    for solver, evaluations in (("euler", 2 * 3), ("heun", 2 * 2 * 3 - 1)):
        asked.clear()
        settings = Sampling(steps=3, guidance=1, solver=solver)
        model.sample(CAPTIONS[:1], CODEC, draws(0, 1), settings)
        assert len(asked) == evaluations


def test_an_unknown_solver_is_refused():
    """Also where nobody checks types, as under a config."""
    settings = Sampling()
    object.__setattr__(settings, "solver", "rk4")
    with pytest.raises(ValueError, match="solver=rk4: choose from euler, heun"):
        settings.__post_init__()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"draws": (1,)}, "one count per level"),
        ({"widths": (16, 32, 64), "kinds": ("local", "local", "global")}, "cannot be halved 2"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        generator(**changes)


def test_a_codec_says_what_is_made():
    model = generator()
    assert isinstance(model, Generator)
    assert model.latent_size == CODEC.schedule.size
    assert list(model.levels) == [(2, 2, 2), (4, 4, 4)]


def test_clips_without_motion_are_refused():
    model, still = generator(), latents(motion=None, motion_confidence=None)
    with pytest.raises(ValueError, match=r"set data\.motion=true"):
        model.example(still, CODEC, draws())


def test_given_frames_are_refused():
    model = generator()
    assert model.context_frames == 0
    with pytest.raises(ValueError, match="begins with at most 0"):
        model.sample(CAPTIONS[:1], CODEC, draws(count=1), Sampling(), torch.zeros(1, 4, 1, 4, 4))


def test_it_overfits_one_batch():
    model = generator()
    made = example(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(60):
        loss, _ = OBJECTIVE(model(made), batch_of(4))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
